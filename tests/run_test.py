"""`fit` and `train`: one's own net, optimizer and arrays; work dirs that are begun, gone on with, read and refused."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cljax.data import STREAMS
from cljax.data.bank import Source
from cljax.data.sample import decode
from cljax.errors import ConfigError
from cljax.evaluation import evaluate_again
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.predict import Predictor
from cljax.recipe import build_stream
from cljax.report import store
from cljax.run import fit, train
from cljax.settings import Labels
from cljax.types import Outputs
from tests import toys
from tests.subjects import first


class Own(nn.Module):
  """A net of nobody's table: one tanh layer, and a head by slot."""

  heads: int
  classes: int
  width: int = 8

  @nn.compact
  def __call__(self, x, slot):
    features = nn.tanh(nn.Dense(self.width)(x.reshape(len(x), -1)))
    logits = nn.Dense(self.heads * self.classes)(features).reshape(len(x), self.heads, self.classes)
    return Outputs(logits[jnp.arange(len(x)), slot], features, slot)


def own_data(seed=0, classes=4):
  """Arrays of one's own as a stream: two tasks of two classes."""
  source = Source(toys.bank(seed=seed), toys.bank(60, seed=9), np.arange(classes, dtype=np.int32), "")
  return STREAMS["split"](source, None, tasks=2)


def own_method(spec, width=8, batch_size=10):
  steps = spec.steps(batch_size, 3)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.01, sum(steps))))
  return METHODS["er"](Own(spec.heads, spec.C, width), tx, spec, batch_size=batch_size, epochs=3, replay=4, capacity=20)


def run(workdir=None, seed=0, width=8, batch_size=10, **options):
  spec, data = own_data(seed)
  options = {"seeds": (0, 1), "chunk": 4, "checkpoint_every_chunks": 1, "log_every_steps": 1, **options}
  labels = Labels(cell="own/er")
  return fit(own_method(spec, width, batch_size), spec, data, workdir=workdir, quiet=True, labels=labels, **options)


class Killed(Exception):
  """The process is gone: nothing is saved any more."""


def kill(after):
  """Asked for the n-th time whether to stop, it dies instead."""
  left = [after]

  def stop_asked():
    left[0] -= 1
    if left[0] < 0:
      raise Killed
    return False

  return stop_asked


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """(folder, outcome) of a run that nothing interrupted."""
  folder = tmp_path_factory.mktemp("fit") / "run"
  return folder, run(folder)


def test_own_net_optimizer_and_arrays(whole):
  _, outcome = whole
  result = outcome.result
  assert result["method"] == "er" and result["stream"] == "own" and result["readout"] == "task"
  assert np.array(result["accuracy"]).shape == (2, 3, 2) and result["metrics"]["ACC"]["mean"] > 0.7
  assert result["config"]["settings"]["chunk"] == 4 and result["data_hash"] != ""


def test_state_bytes_are_those_of_one_seed(whole):
  _, outcome = whole
  assert outcome.result["state_bytes"] == sum(leaf[0].nbytes for leaf in jax.tree.leaves(outcome.state))
  assert outcome.result["state_bytes"] > 4 * outcome.result["parameters"]


def test_a_killed_run_goes_on_bit_for_bit(whole, tmp_path):
  """Even where config.json was written before a setting existed."""
  _, reference = whole
  with pytest.raises(Killed):
    run(tmp_path / "run", stop_asked=kill(7))
  assert not (tmp_path / "run" / "result.json").exists()
  path = tmp_path / "run" / "config.json"
  there = json.loads(path.read_text())
  del there["settings"]["evaluate_group"], there["labels"]["preset"], there["spec"]["boundaries"]
  path.write_text(json.dumps(there))
  asked = []
  outcome = run(tmp_path / "run", stop_asked=lambda: bool(asked.append(1)))
  assert 0 < len(asked) < 10  # of 12 chances in the whole run
  chex.assert_trees_all_equal(outcome.state, reference.state)
  assert store.equal(outcome.result, reference.result) == []


def test_a_finished_run_is_only_read(whole):
  folder, outcome = whole
  before = (folder / "result.json").stat().st_mtime_ns
  again = run(folder)
  assert again.experiment is None and store.equal(again.result, outcome.result) == []
  assert set(again.arrays) == set(outcome.arrays)
  assert (folder / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"chunk": 8}, r"settings.chunk: 4 there, 8 here"),
    ({"seeds": (0, 2)}, r"seeds: \[0, 1\] there, \[0, 2\] here"),
    ({"seed": 1}, "data_hash"),
    (
      {"width": 9},
      r"params\['Dense_0'\]\['kernel'\]: 'float32 \[16, 8\]' there, 'float32 \[16, 9\]' here",
    ),
    ({"batch_size": 9}, r"method.phases.*'batch': 10.*'batch': 9"),
    ({"readouts": ("domain",)}, r"readouts: \['task'\] there, \['domain'\] here"),
  ],
)
def test_another_run_is_refused_with_its_differences(whole, changes, words):
  folder, _ = whole
  with pytest.raises(ConfigError, match=words):
    run(folder, **changes)


def test_what_needs_a_config_says_that_there_is_none(whole):
  folder, _ = whole
  with pytest.raises(ConfigError, match="begun from Python by `fit`"):
    evaluate_again(folder, {})
  with pytest.raises(ConfigError, match="belongs to a run with another config"):
    train(toys.config_of({"name": "finetune"}), folder)


def test_a_run_without_a_config_answers_by_its_method(tmp_path):
  """From its parts alone, as the whole state does."""
  spec, data = toys.stream((30, 23))
  small = {"batch_size": 10, "epochs": 2, "warmup_epochs": 0, "code": 4, "autoencoder_epochs": 3}
  net = toys.mlp(spec).clone(hidden=(8,))
  method = METHODS["expert_gate"](net, optax.adam(0.01), spec, autoencoder_batch=10, **small)
  outcome = fit(method, spec, data, workdir=tmp_path, quiet=True)
  with pytest.raises(ConfigError, match="begun from Python by `fit`"):
    Predictor(tmp_path)
  predictor = Predictor(tmp_path, method=method)
  assert predictor.spec == outcome.experiment.spec == spec
  out = jax.jit(method.apply)(first(outcome.state), decode(jnp.asarray(data.test_bank.x)), None)
  np.testing.assert_array_equal(predictor(data.test_bank.x).slot, out.task)


def test_a_config_and_python_give_the_same_bits():
  """The same data, net and numbers by names of tables, and as values."""
  config = toys.config_of({"name": "er", "replay": 4, "capacity": 20}, tasks=2, examples_per_task=60)
  config.optimizer = {"name": "adam", "lr": 0.01}
  by_config = train(config, quiet=True)
  spec, data, axes, _ = build_stream(config, (0, 1), None)
  net = MLP(heads=spec.heads, classes=spec.C, hidden=(16,))

  def make(hyper):
    return METHODS["er"](net, optax.adam(hyper["lr"]), spec, replay=4, capacity=20)

  by_hand = fit(make, spec, data, seeds=(0, 1), hyper={"lr": 0.01}, quiet=True)
  assert by_hand.experiment.axes == axes
  chex.assert_trees_all_equal(by_hand.state, by_config.state)
  assert by_hand.result["accuracy"] == by_config.result["accuracy"]


def older(folder, *keys):
  """Takes keys out of a config.json, as if they had not existed when it was written."""
  there = json.loads((folder / "config.json").read_text())
  for key in keys:
    *sections, field = key.split(".")
    del functools.reduce(dict.__getitem__, sections, there)[field]
  (folder / "config.json").write_text(json.dumps(there))


def test_a_config_of_before_a_key_existed_is_that_with_its_default(tmp_path):
  """An unfinished run goes on, a finished one is read and can be asked again; another value is refused as ever."""
  keys = {"chunk": 4, "checkpoint_every_chunks": 1}
  config = toys.config_of({"name": "finetune"}, tasks=2, examples_per_task=60, keys=keys)
  folder = tmp_path / "run"
  with pytest.raises(Killed):
    train(config, folder, quiet=True, stop_asked=kill(2))
  older(folder, "log_every_steps", "method.block", "sweep.lr", "stream.shuffle_order", "debug")
  outcome, in_memory = train(config, folder, quiet=True), train(config, quiet=True)
  chex.assert_trees_all_equal(outcome.state, in_memory.state)
  assert store.equal(outcome.result, in_memory.result) == []
  assert train(config, folder, quiet=True).experiment is None  # only read
  again = evaluate_again(folder, {})[0]["readouts"]["task"]["ACC"]["values"]
  assert again == pytest.approx(outcome.result["metrics"]["ACC"]["values"])
  older(folder, "net.hidden")
  with pytest.raises(ConfigError, match=r"config.net.hidden: .* there, \[16\] here"):
    train(config, folder, quiet=True)
