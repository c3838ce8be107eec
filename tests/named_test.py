"""Nets, methods, optimizers and streams from files and packages, by their names in a config."""

import sys

import jax
import pytest

from cljax.config import complete, default
from cljax.declared import fields
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.files import read_json
from cljax.named import OWN_FILES, check_own_files, own_files, own_names
from cljax.recorded import found_again, told_by
from cljax.run import train
from cljax.sections import factory_of, numbers_of
from launch.config_files import prepared

OWN = '''
from typing import Callable, NamedTuple

import flax.linen as nn
import optax

from beside import WIDTH
from cljax.data.streams import split
from cljax.methods.finetune import finetune
from cljax.settings import Settings


class Wide(nn.Module):
  """A net of one's own."""

  width: int = WIDTH
  act: Callable = nn.relu

  @nn.compact
  def __call__(self, x):
    return self.act(nn.Dense(self.width)(x.reshape(len(x), -1)))


class Whole(nn.Module):
  heads: int
  classes: int


def deep(layers=2, widths=(3, 4)):
  return Wide(width=widths[0] + layers)


made = Wide(width=5)


def halved(learning_rate, momentum=0.5, mask=None, decay: float = 0.0, schedule=len):
  """Half the rate."""
  return optax.sgd(learning_rate / 2, momentum)


def slow(net, tx, spec, *, batch_size: int = 7, epochs: int = 1, pull: float = 0.5):
  return finetune(net, tx, spec, batch_size=batch_size, epochs=epochs)


def evens(source, key, *, tasks: int = 5, scenario: str = "task"):
  return split(source, key, tasks=tasks, scenario=scenario)


def one_head(source, key, *, tasks: int = 5, scenario: str = "mine"):
  return split(source, key, tasks=tasks, scenario="domain")


def bare(source, key, *, tasks: int = 5):
  return split(source, key, tasks=tasks, scenario="domain")


def wrong(*args, **keywords):
  return 3


def fails(*args, width: int = 3, **keywords):
  raise RuntimeError("no such luck")


number = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
  """The file, in the current folder."""
  (tmp_path / "own.py").write_text(OWN)
  (tmp_path / "beside.py").write_text("WIDTH = 6\n")
  monkeypatch.chdir(tmp_path)
  yield tmp_path
  sys.modules.pop("beside", None)


def config(**changes):
  it = default()
  it.update_from_flattened_dict({"num_seeds": 1, "debug": True})
  it.stream.tasks = 2
  it.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return it


def test_a_net_of_a_file_is_under_the_heads_of_the_library(own):
  it = complete(config(net__name="own.py:Wide"))
  assert it.net.to_dict() == {
    "name": "own.py:Wide",
    "width": 6,
  }  # its neighbour is read, what no config holds is left out
  it.net.width = 4
  experiment = build(it)
  params = jax.eval_shape(experiment.method.init, jax.random.key(0)).params
  assert params["body"]["Dense_0"]["kernel"].shape == (64, 4) and params["head"]["kernel"].shape == (4, 20)


def test_what_makes_a_net_may_be_a_function_or_a_net(own):
  it = complete(config(net__name="own.py:deep"))
  assert it.net.to_dict() == {"name": "own.py:deep", "layers": 2, "widths": (3, 4)}
  for name, width in (("deep", 5), ("made", 5)):
    method = build(complete(config(net__name=f"own.py:{name}"))).method
    assert jax.eval_shape(method.init, jax.random.key(0)).params["body"]["Dense_0"]["kernel"].shape[1] == width


def test_an_optimizer_of_a_file_or_a_package(own):
  it = complete(config(optimizer__name="own.py:halved"))
  own_keywords = {"name": "own.py:halved", "lr": 0.1, "momentum": 0.5, "mask": None, "decay": 0.0}
  assert own_keywords.items() <= it.optimizer.to_dict().items() and "schedule" in it.optimizer  # a function stays out
  it.optimizer.update({"schedule": "cosine", "restart": True})  # they work with every optimizer
  assert build(it).method.phases
  assert set(fields(factory_of("optimizer", "optax:adabelief"), 1)) >= {"b1", "b2", "eps"}
  it = complete(config(optimizer__name="optax:adabelief"))
  it.optimizer.b1 = 0.8
  assert build(it).method.phases


def test_a_method_and_a_stream_of_a_file(own):
  it = complete(config(method__name="own.py:slow", stream__name="own.py:evens"))
  assert it.method.to_dict() == {"name": "own.py:slow", "batch_size": 7, "epochs": 1, "pull": 0.5}
  assert "pull" in numbers_of(it) and it.stream.to_dict()["scenario"] == "task" and it.stream.source == "digits"
  it.sweep.pull = (0.1, 0.2)
  experiment = build(complete(it))
  assert experiment.method.phases[0].batch == 7 and experiment.spec.T == 2 and len(experiment.values) == 2


def test_a_stream_of_a_file_has_the_readouts_that_its_heads_allow(own):
  """Whatever it calls its scenario, or where it has none."""
  for name in ("one_head", "bare"):
    assert build(complete(config(stream__name=f"own.py:{name}"))).readouts == ("domain",)


MISTAKES = [
  ("net", "own.py:Wyde", r"config.net.name='own.py:Wyde': the name='Wyde' is not known. Did you mean Wide\?"),
  ("net", "nowhere.py:Wide", r"config.net.name='nowhere.py:Wide': there is no file .*/nowhere.py"),
  pytest.param("net", f"{'7' * 400}.py:Wide", r"there is no file .*/7+\.py", id="longer than a name may be"),
  ("net", "own.py:", r"is not FILE.py:NAME or package.module:NAME, for example my_file.py:MyNet"),
  ("net", "no_package.at_all:Net", r"config.net.name='no_package.at_all:Net': ModuleNotFoundError: No module named"),
  ("net", "broken.py:Net", r"broken.py, line 2: SyntaxError"),
  ("net", "raises.py:Net", r"raises.py, line 2: ZeroDivisionError"),
  ("net", "own.py:wrong", r"config.net.name='own.py:wrong' makes int, and not a flax.linen module"),
  ("net", "own.py:number", r"is no function or class that makes a flax.linen module, but int"),
  ("net", "own.py:fails", r"config.net.name='own.py:fails', line \d+: RuntimeError: no such luck"),
  ("optimizer", "own.py:wrong", r"makes int, and not an optax transformation"),
  ("method", "own.py:wrong", r"makes int, and not a cljax Method"),
  ("stream", "own.py:wrong", r"makes int, and not a pair \(Spec, Stream\)"),
]


@pytest.mark.parametrize(("section", "name", "message"), MISTAKES)
def test_mistakes_are_one_line(own, section, name, message):
  (own / "broken.py").write_text("x = 1\ndef Net(:\n")
  (own / "raises.py").write_text("x = 1\ny = x / 0\n")
  it = config(**{f"{section}__name": name})
  if section == "stream":
    del it.stream.tasks
  with pytest.raises(ConfigError, match=message) as caught:
    build(complete(it))
  assert "\n" not in str(caught.value)


def test_a_run_knows_its_files(own, monkeypatch):
  """They are hashed, found from elsewhere, and another version of them is refused where a run would go on with it."""
  it = prepared(config(net__name="own.py:Wide"), ["--config.net.width=3"])
  code = (own / "own.py").read_text()

  def edit(carry, row):
    (own / "own.py").write_text("x = (")  # while it trains: what was read at the start counts

  train(it, "run", quiet=True, on_row=edit)
  (own / "own.py").write_text(code)
  told = read_json(own / "run" / "environment.json")[OWN_FILES]
  assert told == own_files(complete(it).to_dict()) and told["own.py:Wide"]["path"] == str(own / "own.py")
  result = read_json(own / "run" / "result.json")
  assert result["environment"][OWN_FILES] == told
  (own / "elsewhere").mkdir()
  monkeypatch.chdir(own / "elsewhere")
  assert told_by(own / "run")["net"]["name"] == f"{own}/own.py:Wide"
  (own / "elsewhere" / "own.py").write_text("other = 1\n")  # of the same name, and not what the run knew
  assert found_again(own / "run", {"net": {"name": "own.py:Wide"}})["net"]["name"] == f"{own}/own.py:Wide"
  other = own_files({"net": {"name": "own.py:other"}})["own.py:other"]
  with pytest.raises(ConfigError, match="own.py is not what the run began with .*put it back, or use another"):
    check_own_files(told, {"own.py:Wide": other})
  check_own_files(told, told)


def test_names_are_found_in_all_sections():
  told = {"name": "a.py:A", "net": {"name": "b.py:B"}, "method": {"name": "er", "guard": {"name": "c.py:C"}}}
  assert own_names(told) == {("net", "name"): "b.py:B", ("method", "guard", "name"): "c.py:C"}
