"""Weights of one seed in a file of their own, and what reads them back."""

import json

import jax
import numpy as np
import optax
import pytest
from etils import epath
from flax import linen as nn

import cljax
from cljax import artifacts
from cljax.data.pictures import dressed, shown_as
from cljax.data.sample import take_task
from cljax.errors import ConfigError
from cljax.files import plain
from cljax.nets.modes import at_rest
from cljax.pieces.gates import means
from launch import export
from tests import toys
from tests.shell import shell

SPEC, DATA = dressed(*toys.stream(), normalise="task")


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


def test_what_is_printed_asks_as_the_run_did(run, tmp_path):
  """The printed lines, typed with a task's test pictures, are right as often as result.json says."""
  folder, net, outcome = run
  done = shell("launch.export", f"--workdir={folder}", "--seed=5", f"--out={tmp_path}/w.npz")
  *lines, last = done.stdout.splitlines()[1:]
  for t in range(SPEC.T):
    own = DATA.test.idx[t, : DATA.test.count[t]]
    names = {"t": t, "net": net, "pictures": DATA.test_bank.x[own], "slot": np.full(len(own), t)}
    names["warp"] = take_task(DATA.test.warp.warp, t)
    exec("\n".join(lines), names)  # noqa: S102
    right = (np.argmax(eval(last, names).logits, axis=1) == DATA.test_bank.y[own]).mean()
    np.testing.assert_allclose(right, outcome.result["accuracy"][1][-1][t], atol=1e-6)


def test_what_a_net_is_given_of_a_picture_in_words():
  plain = shown_as(toys.stream()[1]._replace(test=DATA.test._replace(warp=None)))
  assert export.way_in(plain, "w") == "x = pictures / 255"
  assert export.way_in(plain | {"type": "float32"}, "w") == "x = pictures"
  turned = export.way_in(shown_as(toys.stream()[1]), "w")
  assert turned == "x = warp(pictures / 255)  # warp: the Permutation of task t, stream.test.warp"
  assert "does not tell" in export.way_in({}, "w") and export.normalisation(plain, 0) == {}
  by_seed = {"mean": [[[1.0]], [[2.0]]], "scale": [[[4.0]], [[5.0]]]}
  found = export.normalisation(by_seed, 1)
  assert found[artifacts.MEAN].tolist() == [[2.0]] and found[artifacts.STD].tolist() == [[np.float32(0.2)]]


@pytest.mark.parametrize(
  "told",
  [
    [1],
    "x",
    3,
    {"warp": 1},
    {"type": 3},
    {"warp": "Rotation"},
    {"type": "uint8", "warp": 1},
    {"type": "uint8", "mean": "x", "scale": "x"},
    {"type": "uint8", "mean": [[0.0]]},
    {"type": "uint8", "scale": [[0.0]]},
    {"type": "uint8", "mean": [[0.0]], "scale": [[0.0]]},
    {"type": "uint8", "mean": [[0.0], [0.0]], "scale": [[1.0]]},
    {"type": "uint8", "mean": [[0.0, 1.0], [0.0]], "scale": [[1.0]]},
    {"type": "uint8", "mean": [0.0], "scale": [1.0]},
    {"type": "uint8", "mean": [[None]], "scale": [[1.0]]},
  ],
)
def test_what_environment_json_tells_of_pictures_is_checked(told, tmp_path):
  (tmp_path / "environment.json").write_text(json.dumps({"pictures": told}))
  with pytest.raises(ConfigError, match=r"environment\.json is damaged .*; delete it") as caught:
    export.shown_in(epath.Path(tmp_path))
  assert "\n" not in str(caught.value)


def test_what_a_run_tells_of_pictures_is_taken(tmp_path):
  for data in (toys.stream()[1], DATA):
    (tmp_path / "environment.json").write_text(json.dumps(plain({"pictures": shown_as(data)})))
    found = export.shown_in(epath.Path(tmp_path))
    assert found == plain(shown_as(data)) and export.way_in(found, "w")
    export.normalisation(found, 0)


def test_what_a_method_answers_by_is_told(run, tmp_path):
  """Weights are written where they answer as the run does; runs that do not tell are taken at their word."""
  folder, _, _ = run
  assert json.loads((folder / "environment.json").read_text())["answers_by"] == ["collections", "params"]
  export.check_alone(epath.Path(folder))
  export.check_alone(epath.Path(tmp_path))
  spec, data = toys.stream()
  made = {
    name: cljax.METHODS[name](toys.mlp(spec), optax.sgd(0.1), spec) for name in ("er", "single", "packnet", "hat")
  }
  fields = {name: list(toys.experiment(each, spec, data).answers_by) for name, each in made.items()}
  assert fields["er"] == ["params"] and fields["single"] == ["store"]
  assert list(toys.experiment(cljax.gated(made["er"], means(spec)), spec, data).answers_by) == ["params"]
  for name, words in {
    "single": "this run's method answers by `store`, so that weights alone would not",
    "packnet": "answers by `finished`, `owner` as well as by `params`, so",
    "hat": "answers by `embeddings` as well as by `params`, so",
  }.items():
    (tmp_path / "environment.json").write_text(json.dumps({"answers_by": fields[name]}))
    with pytest.raises(ConfigError, match=words) as caught:
      export.check_alone(epath.Path(tmp_path))
    assert "\n" not in str(caught.value)
  for wrong in (3, {"a": 1}, [1]):
    (tmp_path / "environment.json").write_text(json.dumps({"answers_by": wrong}))
    with pytest.raises(ConfigError, match="answers_by is no list of words"):
      export.check_alone(epath.Path(tmp_path))


def test_weights_of_a_method_behind_a_gate_are_its_own():
  arrays = {"['state'].method.params['a']": np.ones((2, 3)), "['state'].gates.params['a']": np.zeros((2, 3))}
  assert {name: leaf.tolist() for name, leaf in export.weights(arrays, 1).items()} == {"['a']": [1, 1, 1]}


def test_another_run_begins_with_them(run, tmp_path):
  folder, net, outcome = run
  found = export.weights(export.newest(folder), export.row_of(folder, 3, 0))
  (tmp_path / "w.npz").write_bytes(export.pack(found))
  method = cljax.METHODS["finetune"](net, optax.sgd(0.0), SPEC)
  again = cljax.fit(method, SPEC, DATA, start_from=str(tmp_path / "w.npz"), quiet=True)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), again.state.params, outcome.state.params)


def test_a_value_of_a_sweep_has_its_own_row(monkeypatch, tmp_path):
  config = {"seed": 4, "num_seeds": 3, "sweep": {"lr": (0.1, 0.2), "noise": (), "x": (1.0, 2.0)}}
  monkeypatch.setattr(export, "recorded", lambda folder: {"config.json": config})
  assert [export.row_of(tmp_path, seed, value) for seed, value in ((4, 0), (6, 0), (4, 1), (5, 3))] == [0, 2, 3, 10]
  with pytest.raises(ConfigError, match="--value=4: the run's sweep has 4 values"):
    export.row_of(tmp_path, 4, 4)
  with pytest.raises(ConfigError, match="--seed=7: the run has the seeds 4, 5, 6"):
    export.row_of(tmp_path, 7, 0)


def test_what_is_no_run_or_no_weight_is_one_line(run, tmp_path):
  for words, expected in (
    ([f"--workdir={tmp_path}"], "is no run's work dir"),
    ([f"--workdir={run[0]}", "--seed=9"], "--seed=9: the run has the seeds 3, 5"),
  ):
    done = shell("launch.export", *words)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr
  with pytest.raises(ConfigError, match="keeps no `params` in its state, which holds experts, memory"):
    export.weights({"['state'].experts['a']": np.ones((2, 3)), "['state'].memory.seen": np.ones(2)}, 0)
  (tmp_path / "w.npz").write_bytes(export.pack({"['a']": np.ones(2)}))
  with pytest.raises(ConfigError, match="holds no normalisation"):
    artifacts.normalisation(tmp_path / "w.npz")
  artifacts.write(tmp_path, {"gate": {"a": [np.ones(2)]}})
  with pytest.raises(ConfigError, match="no weight of a net"):
    artifacts.tree(tmp_path / "gate.npz")
