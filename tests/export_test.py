"""Weights of one seed in a file of their own, and what reads them back."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

import cljax
from cljax import artifacts
from cljax.errors import ConfigError
from cljax.nets.modes import at_rest
from launch import export
from tests import toys
from tests.shell import shell

SPEC, DATA = toys.stream()


class Normed(nn.Module):
  @nn.compact
  def __call__(self, x, train: bool = False):
    return nn.BatchNorm(use_running_average=not train)(nn.relu(nn.Dense(5)(x.reshape(len(x), -1))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(work dir of two seeds, net, outcome)."""
  net, folder = cljax.headed(Normed(), SPEC), tmp_path_factory.mktemp("run")
  method = cljax.METHODS["finetune"](net, optax.sgd(0.1), SPEC)
  return folder, net, cljax.fit(method, SPEC, DATA, seeds=(3, 5), workdir=folder, quiet=True)


def test_the_weights_of_one_seed_come_back(run, tmp_path):
  """Params and statistics to the bit, and what the net answers by them."""
  folder, net, outcome = run
  done = shell("launch.export", f"--workdir={folder}", "--seed=5", f"--out={tmp_path}/w.npz")
  assert done.returncode == 0 and "artifacts.tree(" in done.stdout, done.stderr
  found = artifacts.tree(tmp_path / "w.npz")
  state = jax.tree.map(lambda leaf: np.asarray(leaf[1]), outcome.state)
  jax.tree.map(np.testing.assert_array_equal, found, {"params": state.params, **state.collections})
  x, slot = np.ones((2, *SPEC.x_shape), np.float32), np.zeros(2, np.int32)
  np.testing.assert_array_equal(
    net.apply(found, x, slot).logits, at_rest(net, state.params, state.collections, x, slot).logits
  )


def test_another_run_begins_with_them(run, tmp_path):
  folder, net, outcome = run
  found = export.weights(export.newest(folder), export.row_of(folder, 3, 0))
  (tmp_path / "w.npz").write_bytes(export.pack(found))
  method = cljax.METHODS["finetune"](net, optax.sgd(0.0), SPEC)
  again = cljax.fit(method, SPEC, DATA, start_from=str(tmp_path / "w.npz"), quiet=True)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), again.state.params, outcome.state.params)


def test_a_value_of_a_sweep_has_its_own_row(monkeypatch):
  config = {"seed": 4, "num_seeds": 3, "sweep": {"lr": (0.1, 0.2), "noise": (), "x": (1.0, 2.0)}}
  monkeypatch.setattr(export, "recorded", lambda folder: {"config.json": config})
  assert [export.row_of(None, seed, value) for seed, value in ((4, 0), (6, 0), (4, 1), (5, 3))] == [0, 2, 3, 10]
  with pytest.raises(ConfigError, match="--value=4: the run's sweep has 4 values"):
    export.row_of(None, 4, 4)
  with pytest.raises(ConfigError, match="--seed=7: the run has the seeds 4, 5, 6"):
    export.row_of(None, 7, 0)


def test_what_is_no_run_or_no_weight_is_one_line(run, tmp_path):
  for words, expected in (
    ([f"--workdir={tmp_path}"], "is no run's work dir"),
    ([f"--workdir={run[0]}", "--seed=9"], "--seed=9: the run has the seeds 3, 5"),
  ):
    done = shell("launch.export", *words)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr
  with pytest.raises(ConfigError, match="keeps no `params` in its state, which holds experts, memory"):
    export.weights({"['state'].experts['a']": np.ones((2, 3)), "['state'].memory.seen": np.ones(2)}, 0)
  artifacts.write(tmp_path, {"gate": {"a": [np.ones(2)]}})
  with pytest.raises(ConfigError, match="no weight of a net"):
    artifacts.tree(tmp_path / "gate.npz")
