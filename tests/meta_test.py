"""A meta-training from a config to files: what it leaves, going on, seeds; `launch.meta` from the shell."""

import json
import signal
import time

import chex
import jax
import numpy as np
import pytest
from etils import epath

from cljax import artifacts
from cljax.drive import Stopped
from cljax.errors import ConfigError
from cljax.files import read_sealed
from cljax.meta import start
from cljax.meta import train as meta_train
from cljax.meta.settings import settings_of
from cljax.meta.start import shapes_of, source_of
from cljax.meta.train import Loop, Trainee, train
from cljax.meta.train import begin as first
from cljax.report.training import training_figures
from tests.shell import begin, shell

CONFIG = "--config=configs/papers/metateacher/meta.py:preset=smoke,rule=static"
QUICK = {
  "net": {"name": "mlp", "hidden": (8,)},
  "start": {"epochs": 2, "batch_size": 64, "last_epochs": 0},
  "rule": {"form": "static", "hidden": 2, "hidden_vectors": 2},
  "inner": {"alpha": 0.3, "old_batch": 8, "new_batch": 8},
  "curriculum": {"steps": 8, "threshold": 1e3, "threshold_most": 1e3, "truncation": 3, "truncation_most": 3},
  "length": {"segments": 12, "call": 4, "log_every": 3, "checkpoint_every_calls": 1},
}


def quick(**changes):
  """QUICK with some of its sections' fields, or other keys, changed."""
  found = dict(QUICK)
  for name, value in changes.items():
    found[name] = {**found.get(name, {}), **value} if isinstance(value, dict) else value
  return found


def theta_of(folder, seed=0):
  return artifacts.read(folder / "parts" / f"seed_{seed}" / "theta.npz")


def lines_of(folder):
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def begun_by(folder, **changes):
  """`quick` that starts from the network of a finished run, which nothing trains again."""
  return quick(start={"file": str(folder / "parts" / "seed_0" / "start.npz")}, **changes)


def untrained(folder, seed=0, **changes):
  """Writes a network of random numbers for `quick(**changes)`; its parameters."""
  random, net = np.random.default_rng(seed), settings_of(quick(**changes)).net
  shapes = shapes_of(net, (8, 8, 1))["params"]
  params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape, scale=0.3).astype(np.float32), shapes)
  artifacts.write(artifacts.folder_of(folder, seed), {"start": params})
  return params


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp("meta") / "run"
  return folder, train(quick(num_seeds=2), folder, quiet=True)


def test_what_it_leaves(done):
  folder, result = done
  names = {path.name for path in folder.iterdir()}
  expected = {"config.json", "overrides.json", "environment.json", "metrics.jsonl", "checkpoints", "parts", "meta.json"}
  assert expected <= names and any(name.startswith("events.") for name in names)
  assert read_sealed(folder / "meta.json", "") == result
  assert (folder / "figures" / "training.png").stat().st_size > 5_000
  lines = training_figures(result)["training"].axes[0].get_lines()
  drawn = [curve for one in zip(result["curve"]["loss"], result["curve"]["threshold"], strict=True) for curve in one]
  assert [line.get_ydata().tolist() for line in lines] == drawn
  assert (result["segments"], result["inner_steps"], result["rule"]) == ([12, 12], [36, 36], "static")
  # 3 does not divide the 8 steps of an episode: it ends with the segment that passes them
  rows = lines_of(folder)
  assert [row["seed"] for row in rows] == [0] * 4 + [1] * 4 and [row["step"] for row in rows] == [3] * 8
  assert [row["segment"] for row in rows] == [0, 3, 6, 9] * 2 and [row["episode"] for row in rows] == [0, 1, 2, 3] * 2
  assert (
    result["episodes"] == [4, 4]
    and result["curve"]["segment"] == [[4, 8, 12]] * 2
    and np.all(np.diff(result["curve"]["loss"]) != 0)
  )
  theta, bias = theta_of(folder), "['static']['first/kernel']['bias']"
  assert theta[bias].shape == (64,) and np.abs(theta[bias] - 1).max() > 1e-4
  assert artifacts.trained_at(theta) == {"alpha": np.float32(0.3)}
  start = artifacts.read(folder / "parts" / "seed_0" / "start.npz")
  assert start["['head']['kernel']"].shape == (8, 2 * 5)
  assert json.loads((folder / "start" / "result.json").read_text())["accuracy"][0][1][0] > 0.6
  assert result["seeds"] == [0, 1] and not np.array_equal(*(theta_of(folder, n)[bias] for n in (0, 1)))


def test_the_number_of_unrolled_steps_is_drawn_where_it_varies(done):
  _, result = done
  assert len(training_figures(result)["training"].axes) == 2
  grown = [[3, 3, 5], [3, 5, 7]]
  axes = training_figures(cut(result, "curve", "truncation", value=grown))["training"].axes
  assert [line.get_ydata().tolist() for line in axes[2].get_lines()] == grown
  assert axes[2].get_ylabel() == "unrolled steps (dashed)"


def test_a_finished_run_is_only_read(done):
  folder, result = done
  before = (folder / "meta.json").stat().st_mtime_ns
  assert train(quick(num_seeds=2), folder, quiet=True) == result
  assert (folder / "meta.json").stat().st_mtime_ns == before
  with pytest.raises(ConfigError, match="config.outer.lr: 0.001 there, 0.1 here"):
    train(quick(num_seeds=2, outer={"lr": 0.1}), folder, quiet=True)


def cut(result, *keys, value=None):
  """A result without the field under some keys, or with another value there."""
  found = json.loads(json.dumps(result))
  place = found
  for key in keys[:-1]:
    place = place[key]
  if value is None:
    del place[keys[-1]]
  else:
    place[keys[-1]] = value
  return found


def test_a_result_of_another_kind_is_one_line_that_names_it(done, tmp_path):
  _, result = done
  fields = [(name,) for name in result if name not in ("trains", "config")]
  wrong = [cut(result, *keys) for keys in (*fields, ("curve", "loss"), ("timing", "train_seconds"))]
  wrong += [cut(result, name, value=3) for name in ("paper", "seeds", "segments", "curve", "timing", "environment")]
  wrong += [cut(result, "seeds", value=[]), cut(result, "seeds", value=["x"]), cut(result, "episodes", value=[1])]
  wrong += [cut(result, "curve", "loss", value=[[0.1], ["x"]]), cut(result, "schema", value=2)]
  wrong += [{"seeds": [0], "config": result["config"]}, {}]
  path = epath.Path(tmp_path) / "meta.json"
  for each in wrong:
    path.write_text(json.dumps(each))
    with pytest.raises(ConfigError, match=r"meta\.json is damaged.*; delete it, and the same command") as caught:
      train(quick(num_seeds=2), tmp_path, quiet=True)
    assert "\n" not in str(caught.value)
  path.write_text(json.dumps(cut(result, "trains")))  # as the first versions wrote it
  assert train(quick(num_seeds=2), tmp_path, quiet=True) == result


def test_a_network_to_begin_with_that_has_changed_is_refused(tmp_path):
  """Its file is in the identity of the run: what went on would have begun with another."""
  params = untrained(tmp_path / "before")
  config, folder = begun_by(tmp_path / "before"), tmp_path / "run"
  with pytest.raises(Stopped):
    train(config, folder, quiet=True, stop_asked=lambda: True)
  told = json.loads((folder / "environment.json").read_text())["own_files"]["start"]
  assert told["path"] == config["start"]["file"] and len(told["sha256"]) == 64
  other = jax.tree.map(lambda leaf: leaf + 1, params)
  artifacts.write(artifacts.folder_of(tmp_path / "before", 0), {"start": other})
  with pytest.raises(ConfigError, match=r"start\.npz is not what the run began with") as caught:
    train(config, folder, quiet=True)
  assert "\n" not in str(caught.value)
  untrained(tmp_path / "before")
  assert train(config, folder, quiet=True)["environment"]["own_files"]["start"] == told


def test_a_network_to_begin_with_that_had_diverged_is_refused(tmp_path):
  params = untrained(tmp_path)
  params["first"]["bias"][3] = np.nan
  artifacts.write(artifacts.folder_of(tmp_path, 0), {"start": params})
  with pytest.raises(ConfigError, match=r"start\.npz: \['first'\]\['bias'\] holds NaN or infinity: its run had"):
    train(begun_by(tmp_path), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
  ("given", "words"), [({"quiet": 3}, "quiet=3 must be"), ({"stop_asked": 3}, "stop_asked=3 must be a function")]
)
def test_what_is_given_from_python_is_checked_first(tmp_path, given, words):
  with pytest.raises(ConfigError, match=words):
    train(quick(), tmp_path, **given)


def test_stopping_and_the_length_of_a_call_change_no_number(done, tmp_path):
  """Segments are named by their number, wherever a call begins; a network from a file is the one that was trained."""
  folder, result = done
  settings = begun_by(folder, length={"call": 2})
  with pytest.raises(Stopped):  # after the first call of segments
    train(settings, tmp_path, stop_asked=(tmp_path / "metrics.jsonl").exists, quiet=True)
  assert [row["segment"] for row in lines_of(tmp_path)] == [0]
  assert not (tmp_path / "meta.json").exists()
  again = train(settings, tmp_path, quiet=True)
  chex.assert_trees_all_equal(theta_of(tmp_path), theta_of(folder))
  starts = [artifacts.read(each / "parts" / "seed_0" / "start.npz") for each in (tmp_path, folder)]
  chex.assert_trees_all_equal(*starts)
  assert lines_of(tmp_path) == lines_of(folder)[:4]
  assert again["curve"]["segment"] == [[2, 4, 6, 8, 10, 12]] and again["largest_cell"][0] == result["largest_cell"][0]
  losses = np.reshape(again["curve"]["loss"], (3, 2)).mean(axis=1)
  np.testing.assert_allclose(losses, result["curve"]["loss"][0], rtol=1e-5)


@pytest.mark.parametrize("most", [6, 5])
def test_with_several_networks_the_one_that_is_kept_starts_no_episode(tmp_path, monkeypatch, most):
  """Each seed has its own, in the order in which they are trained; many of them one after the other."""
  monkeypatch.setattr(start, "AT_ONCE", most)
  asked, trained = [], {}

  def fit(learner, spec, stream, *, seeds, workdir, seed_executor, **_):
    asked.extend(seeds)
    assert seed_executor == ("auto" if most > 5 else "map")
    trained.update({seed: untrained(workdir, seed) for seed in seeds})

  monkeypatch.setattr(start, "fit", fit)
  settings = settings_of(quick(num_seeds=2, start={"networks": 2}))
  found = start.starts_of(settings, source_of(settings.data, None), "head", epath.Path(tmp_path), lambda: False, True)
  assert asked == [*range(6)] and list(found) == [0, 1]
  for seed, (networks, kept) in found.items():
    first, second, last = (trained[3 * seed + n] for n in range(3))
    chex.assert_trees_all_equal(networks, jax.tree.map(lambda *leaves: np.stack(leaves), first, second))
    chex.assert_trees_all_equal(kept, last)


@pytest.mark.slow
def test_three_tasks_whose_truncation_grows_by_single_steps(tmp_path):
  """Segments of 1, then of 2 steps as episodes go by; the second new task has its own classes."""
  settings = quick(
    data={"old": (0, 1, 2, 3), "new": (4, 5, 6, 7, 8, 9), "classes": 2, "tasks": 2},
    curriculum={"steps": 4, "every": 1, "truncation": 1, "truncation_raise": 1, "truncation_most": 2},
    inner={"update": "step"},
    length={"segments": 16},
  )
  with pytest.raises(ConfigError, match="config.data.old has 4 classes, but heads have config.data.classes=2"):
    train(settings, tmp_path / "wrong", quiet=True)
  settings["data"]["old"] = (0, 1)
  untrained(tmp_path, data=settings["data"])
  settings = {**settings, "start": {"file": str(tmp_path / "parts" / "seed_0" / "start.npz")}}
  result = train(settings, tmp_path, quiet=True)
  lengths = result["curve"]["truncation"][0]
  assert lengths == sorted(lengths) and lengths[0] == 1 and lengths[-1] > 1
  assert result["inner_steps"] == [4 * sum(lengths)]
  assert {row["task"] for row in lines_of(tmp_path)} == {1, 2}


def test_literal_relu_cells_stop_with_their_name():
  """At their first such segment; other cells where all of a call are so."""
  told = {"finite": np.array([True, False, True]), "patient": np.zeros(3, bool)}
  relu, tanh = (settings_of(quick(rule={"form": "lstm", "cell": cell})) for cell in ("relu", "tanh"))
  with pytest.raises(ConfigError, match="config.rule.cell='relu' ended in numbers that are not finite at segment 5"):
    Loop(relu, None, None, None, {}).check(told, 4)
  Loop(tanh, None, None, None, {}).check(told, 4)


def test_what_never_is_finite_stops():
  told = {"finite": np.zeros(3, bool), "patient": np.zeros(3, bool)}
  with pytest.raises(ConfigError, match=r"no segment from segment 4 on is finite: lower config.inner.alpha=1e\+30"):
    Loop(settings_of(quick(inner={"alpha": 1e30})), None, None, None, {}).check(told, 4)


@pytest.mark.slow
def test_segments_that_are_not_finite_stop_a_whole_training(tmp_path):
  """The same two messages, from numbers that did blow up."""
  relu = quick(rule={"form": "lstm", "cell": "relu"}, inner={"alpha": 1e30})
  with pytest.raises(ConfigError, match="config.rule.cell='relu' ended in numbers that are not finite at segment"):
    train(relu, tmp_path / "relu", quiet=True)
  with pytest.raises(ConfigError, match=r"no segment from segment 0 on is finite: lower config.inner.alpha=1e\+30"):
    train(quick(inner={"alpha": 1e30}), tmp_path / "static", quiet=True)


def test_what_seeds_share_is_traced_and_copied_once(tmp_path, monkeypatch):
  untrained(tmp_path)
  traced, found = [], []

  def noted(*fields):
    found.append(Trainee(*fields))
    return found[-1]

  def drive(*args):
    raise Stopped

  monkeypatch.setattr(meta_train, "begin", lambda *args: traced.append(args) or first(*args))
  monkeypatch.setattr(meta_train, "Trainee", noted)
  monkeypatch.setattr(Loop, "drive", drive)
  with pytest.raises(Stopped):
    train(begun_by(tmp_path, num_seeds=2), tmp_path / "run", quiet=True)
  one, other = (trainee.episodes for trainee in found)
  assert len(traced) == 1 and one.bank is other.bank and one.rows is other.rows


@pytest.mark.slow
def test_seeds_and_networks_are_drawn_apart(tmp_path):
  """Networks of two seeds that were trained, three each, and the rules from them; all of them differ."""
  result = train(quick(num_seeds=2, start={"networks": 2}, length={"segments": 4}), tmp_path, quiet=True)
  assert result["seeds"] == [0, 1] and result["segments"] == [4, 4]
  assert not np.array_equal(*(theta_of(tmp_path, seed)["['static']['first/kernel']['bias']"] for seed in (0, 1)))
  kept = [artifacts.read(tmp_path / "parts" / f"seed_{seed}" / "start.npz") for seed in (0, 1)]
  trained = [artifacts.read(tmp_path / "start" / "parts" / f"seed_{n}" / "start.npz") for n in range(6)]
  chex.assert_trees_all_equal(kept, [trained[2], trained[5]])
  assert len({one["['first']['kernel']"].tobytes() for one in trained}) == 6


def test_a_threshold_that_lets_nothing_live_is_said(done, tmp_path, caplog):
  settings = begun_by(done[0], curriculum={"threshold": 1e-9, "threshold_most": 1e-9, "patience": 3})
  result = train(settings, tmp_path, quiet=True)
  assert "3 episodes in a row ended in their first segment, so one lives to its end" in caplog.text
  assert [row["episode"] for row in lines_of(tmp_path)] == [0, 3, 4, 7]
  assert result["episodes"] == [8]


def test_from_the_shell_and_killed_on_the_way(tmp_path):
  """kill -9 after the first checkpoint: the same command goes on to the bits of a run that nobody disturbed."""
  words = ["launch.meta", CONFIG, "--config.length.checkpoint_every_calls=1", "--config.length.segments=60"]
  process = begin(*words, f"--workdir={tmp_path}/killed")
  deadline = time.monotonic() + 120
  while not list((tmp_path / "killed").glob("checkpoints/seed_0/[0-9]*")) and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.finish()
  killed = not (tmp_path / "killed" / "meta.json").exists()
  for name in ("killed", "whole"):
    done = shell(*words, f"--workdir={tmp_path}/{name}")
    assert done.returncode == 0, done.stderr
    assert "seed 0: 60 segments, 180 inner steps" in done.stdout and "theta.npz" in done.stdout
  assert killed
  chex.assert_trees_all_equal(theta_of(tmp_path / "killed"), theta_of(tmp_path / "whole"))
  assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
  wrong = shell("launch.meta", CONFIG, f"--workdir={tmp_path}/killed", "--config.inner.alpha=0.2")
  assert wrong.returncode == 2 and "config.inner.alpha: 0.3 there, 0.2 here" in wrong.stderr
