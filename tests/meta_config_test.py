"""Configs of meta-trainings: those of the paper are whole, wrong ones are refused before anything is trained."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cljax.errors import ConfigError
from cljax.meta.settings import RECORDS, default, settings_of, with_defaults
from cljax.meta.start import source_of
from cljax.meta.train import train
from configs.papers.metateacher import meta as config_file
from tests.declared_test import WRONG
from tests.meta_test import quick


def test_a_config_has_every_field_of_its_net():
  """So that flags can set them, and another net by its name alone."""
  net = config_file.get_config("preset=paper").net
  assert net.to_dict() == {"name": "resnet", "depth": 32, "widths": (16, 32, 64), "groups": 8, "kernel_init": "he"}
  other = {**net.to_dict(), "name": "normed_cnn", "depth": 8}
  with pytest.raises(ConfigError, match="config.net.depth=8 means nothing to config.net.name='normed_cnn'"):
    settings_of({"net": other})
  smoke = {**config_file.get_config("preset=smoke").net.to_dict(), "hidden": (256, 256), "name": "normed_cnn"}
  assert type(settings_of({"net": smoke}).net).__name__ == "NormedCNN"


@pytest.mark.parametrize("preset", config_file.PRESETS)
@pytest.mark.parametrize("rule", config_file.RULES)
def test_every_config_is_whole(preset, rule):
  for experiment in config_file.EXPERIMENTS if preset == "paper" else ("1",):
    config = config_file.get_config(f"preset={preset},rule={rule},experiment={experiment}").to_dict()
    assert set(config) == set(default())
    settings = settings_of({**config, "net": {"name": "mlp"}})
    assert settings.rule.form == rule and config["preset"] == preset


@pytest.mark.parametrize("preset", config_file.PRESETS)
def test_baselines_train_a_network_in_place_of_a_rule(preset):
  found = [
    settings_of({**config_file.get_config(f"preset={preset},rule={name}").to_dict(), "net": {"name": "mlp"}})
    for name in config_file.STARTS
  ]
  assert [(one.trains, one.start.of, one.start.networks) for one in found] == [
    ("start", "old", 1),
    ("nothing", "both", 1),
    ("nothing", "old", 1),
  ]
  assert (found[0].curriculum.truncation_at(0), found[0].curriculum.truncation_at(10_000)) == (10, 10)


@pytest.mark.parametrize("name", [*RECORDS, "seed", "num_seeds"])
def test_no_value_of_any_key_ends_in_a_traceback(name):
  refused = 0
  for field in RECORDS[name]._fields if name in RECORDS else ("",):
    for value in WRONG:
      try:
        settings_of({name: {field: value}} if field else {name: value})
      except ConfigError as error:
        refused += 1
        assert "config." in str(error)
  assert refused


def test_a_config_of_python_becomes_plain():
  """Numbers of numpy and JAX, lists and a ConfigDict, as `launch.train` takes them."""
  mine = quick(seed=np.int64(3), data={"old": [0, 1], "new": np.arange(2, 9)}, inner={"alpha": jax.numpy.float32(0.5)})
  found = with_defaults(ConfigDict(mine))
  assert json.loads(json.dumps(found)) == json.loads(json.dumps(with_defaults(mine)))
  assert (found["seed"], found["data"]["new"], found["inner"]["alpha"]) == (3, (2, 3, 4, 5, 6, 7, 8), 0.5)
  assert settings_of(mine).seeds == settings_of(found).seeds == (3,) and type(settings_of(mine).data.new[0]) is int
  assert settings_of(quick(length={"call": 1_000_000})).length.whole == 12  # and not a million segments
  for changes, message in (
    ({"data": 3}, "config.data=3 must be a mapping"),
    ({"net": "mlp"}, "config.net='mlp' must be a mapping"),
    ({"inner": {"alpha": {1}}}, "is of type set, but a config holds numbers"),
    ({"paper": 3}, "config.paper=3 must be a word"),
  ):
    with pytest.raises(ConfigError, match=message):
      settings_of(changes)
  with pytest.raises(ConfigError, match=r"Type --config.data.source=digits"):
    source_of(settings_of({"data": {"source": "digit"}}).data, "/nowhere")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"lenght": {}}, "config key='lenght' is not known. Did you mean length"),
    ({"inner": {"unroll": True, "remat": True}}, "remat saves memory in a loop only"),
    ({"inner": {"old_batch": 0}}, "config.inner.old_batch=0 "),
    ({"inner": {"unroll": True, "update": "step"}}, "config.inner.unroll=True means nothing to .*='step', where"),
    ({"start": {"epochs": 1, "last_epochs": 2}}, "config.start.last_epochs=2 is more than"),
    ({"start": {"file": "x", "networks": 2}}, "config.start.file is one network"),
    ({"method": {"name": "hat"}}, "config.method.name='hat' trains networks .* set config.trains"),
    ({"trains": "nothing", "method": {"name": "hat"}, "start": {"of": "both"}}, "config.start.of='old'"),
    ({"trains": "nothing", "method": {"name": "hat"}, "start": {"networks": 2}}, "config.start.networks=1"),
    ({"trains": "nothing", "method": {"name": "hat"}, "start": {"file": "x"}}, "no config.start.file"),
    ({"trains": "nothing", "method": {"name": "expert_gate"}}, "a network to begin with is the `params` of a method"),
    ({"method": {"name": "hta"}}, "config.method.name='hta' is not known. Did you mean hat"),
    ({"method": {"epochs": 3}}, "config.method.epochs=3 is config.start.epochs here"),
    (
      {"net": {"name": "normed_cnn", "hidden": (3,)}},
      "config.net.hidden=.* means nothing to config.net.name='normed_cnn'",
    ),
    ({"net": {"name": "mpl"}}, "config.net.name='mpl' is not known. Did you mean mlp"),
    ({"net": {"name": "stack"}}, "take a net without dropout and running statistics"),
    ({"net": {"name": "routed_mlp"}}, "a learned rule trains a net without gates"),
  ],
)
def test_wrong_configs_are_refused(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    train(changes, tmp_path, quiet=True)
