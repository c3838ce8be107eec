"""A run asked again: the same numbers under its own settings, others under others, and nothing else touched."""

import json
import logging
import shutil

import numpy as np
import pytest

from cljax.checkpoint import Checkpoints
from cljax.config import complete, default
from cljax.drive import Stopped
from cljax.errors import ConfigError
from cljax.evaluation import evaluate_again, evaluations, name_of, note
from cljax.files import write_sealed
from cljax.report.store import read_result
from cljax.report.tables import evaluation_table
from cljax.run import train
from cljax.values import typed
from tests.shell import shell


def pairs(**changes):
  """Three pairs of digits, subnetworks that find their task by batches of 32."""
  config = default()
  config.num_seeds, config.evaluate_group = 2, 32
  config.stream = {"name": "subsets", "source": "digits", "classes": ((0, 8), (1, 8), (3, 9))}
  config.net = {"name": "mlp", "hidden": (32,)}
  config.optimizer = {"name": "adam", "lr": 0.003}
  config.method = {"name": "subnetwork", "epochs": 4, "fractions": (0.2, 0.2), "retrain": 0, "overlap_from": 1.1}
  config.method.update(changes)
  return complete(config)


def turned(**changes):
  config = default()
  config.num_seeds = 2
  config.stream = {"name": "rotated", "source": "digits", "tasks": 2, "examples_per_task": 100}
  config.net = {"name": "mlp", "hidden": (16,)}
  config.method = {"name": "finetune"}
  config.update(changes)
  return complete(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pairs") / "run"
  return folder, train(pairs(), folder, quiet=True).result


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  folder = tmp_path_factory.mktemp("turned") / "run"
  return folder, train(turned(), folder, quiet=True).result


def test_a_method_without_parts_leaves_none(plain):
  assert not list(plain[0].rglob("parts"))


def files_of(folder):
  return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_its_own_setting_gives_the_result_file_to_the_bit(run):
  folder, result = run
  before = files_of(folder)
  (entry,) = evaluate_again(folder, {})
  for name, found in {"task": result, "inferred": result["readouts"]["inferred"]}.items():
    assert entry["readouts"][name]["accuracy"] == [seed[-1] for seed in found["accuracy"]]
    assert entry["readouts"][name]["ACC"] == found["metrics"]["ACC"]
  inferred = entry["readouts"]["inferred"]
  assert inferred["task_recognition"] == result["readouts"]["inferred"]["task_recognition"]
  assert inferred["task_confusion"] == result["task_confusion"]
  assert 0.4 < inferred["task_recognition"]["mean"] < 1, "the test needs batches that go wrong"
  assert inferred["strict_ACC"]["mean"] <= inferred["ACC"]["mean"]
  assert (entry["after_tasks"], entry["steps"]) == (3, result["timing"]["steps"])
  assert entry["data_hash"] == result["data_hash"] and entry["seeds"] == [0, 1]
  assert files_of(folder) == before


def test_the_batch_decides_what_is_inferred_and_nothing_else(run):
  folder, _ = run
  alone, many = evaluate_again(folder, {"evaluate_group": ["1", 64]})
  assert [entry["setting"] for entry in (alone, many)] == [{"evaluate_group": 1}, {"evaluate_group": 64}]
  assert alone["readouts"]["task"]["accuracy"] == many["readouts"]["task"]["accuracy"]
  means = [entry["readouts"]["inferred"]["task_recognition"]["mean"] for entry in (alone, many)]
  assert means[0] < means[1]
  assert alone["readouts"]["inferred"]["strict_ACC"]["mean"] < alone["readouts"]["inferred"]["ACC"]["mean"]


def test_a_field_of_the_method_reaches_the_answers(run):
  folder, _ = run
  own, other = evaluate_again(folder, {"method.centred": [True, False]})
  assert own["readouts"]["task"] != other["readouts"]["task"]


def test_rules_that_infer_the_task_are_compared(run):
  """Another rule finds other tasks, with the same answers where the task is given; no rule, no such readout."""
  folder, result = run
  own, other, none = entries = evaluate_again(folder, {"method.infer": ["entropy", "hamming", "oracle"]})
  assert own["readouts"]["task"] == other["readouts"]["task"] == none["readouts"]["task"]
  assert own["readouts"]["inferred"]["ACC"] == result["readouts"]["inferred"]["metrics"]["ACC"]
  assert own["readouts"]["inferred"]["task_confusion"] != other["readouts"]["inferred"]["task_confusion"]
  assert set(none["readouts"]) == {"task"}
  lines = evaluation_table(entries).splitlines()
  assert [line.split()[0] for line in lines] == ["method.infer", "entropy", "hamming", "oracle"]
  assert lines[3].split()[-3:] == ["-", "-", "-"]


def test_rows_are_the_first_of_each_task(run):
  folder, result = run
  (few,), (all_of_them,) = evaluate_again(folder, {}, rows=40), evaluate_again(folder, {}, rows=10**6)
  assert few["test_rows"] == [[40] * 3] * 2 and few["rows"] == 40
  accuracy = np.array(few["readouts"]["task"]["accuracy"])
  np.testing.assert_array_equal(accuracy * 40, np.round(accuracy * 40))
  assert all_of_them["readouts"]["task"]["ACC"] == result["metrics"]["ACC"]
  assert np.array(few["readouts"]["inferred"]["task_confusion"]).sum() == 240


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  """Two learning rates, with a look at validation rows; the look `readout` is not asked again."""
  folder = tmp_path_factory.mktemp("swept") / "run"
  config = turned(evaluate_group=50, looks=("valid", "readout"))
  config.stream.valid_per_task = 35
  config.sweep.lr = (0.01, 0.2)
  return folder, train(config, folder, quiet=True).sweep


def test_validation_rows_are_asked_as_in_the_run(swept):
  """Those of the look `valid` after the last task, to the bit; the entry and its table say whose rows they are."""
  folder, outcomes = swept
  valid, test = (evaluate_again(folder, {}, split=split) for split in ("valid", "test"))
  for entries, name in ((valid, "valid"), (test, None)):
    for entry, own in zip(entries, outcomes, strict=True):
      found = own.result["readouts"][name] if name else own.result
      assert entry["readouts"]["task"]["accuracy"] == [seed[-1] for seed in found["accuracy"]]
  assert (valid[0]["split"], valid[0]["test_rows"]) == ("valid", [[35, 35]] * 2)
  assert (name_of(valid[0]), name_of(test[1])) == ("lr=0.01 split=valid rows=all", "lr=0.2 rows=all")
  assert evaluation_table(valid).startswith("lr") and "all 35" in evaluation_table(valid)
  few, _ = evaluate_again(folder, {}, rows=10, split="valid")
  accuracy = np.array(few["readouts"]["task"]["accuracy"])
  np.testing.assert_array_equal(accuracy * 10, np.round(accuracy * 10))


def test_other_splits_are_refused(run):
  folder, _ = run
  with pytest.raises(ConfigError, match="--split='vald' is not known. Did you mean valid"):
    evaluate_again(folder, {}, split="vald")
  with pytest.raises(
    ConfigError, match="--split=valid: the run's stream holds no such rows of some task; leave it out"
  ):
    evaluate_again(folder, {}, split="valid")


def test_costly_warps_and_learning_rates_of_a_sweep(swept):
  """Each value of the run's sweep is an entry of its own; rotated test pictures are made for the rows asked."""
  folder, outcomes = swept
  entries = evaluate_again(folder, {"evaluate_group": [50, 7]})
  assert [entry["sweep"] for entry in entries] == [{"lr": 0.01}, {"lr": 0.2}] * 2
  for entry, own in zip(entries, outcomes * 2, strict=True):
    assert entry["readouts"]["task"]["ACC"] == own.result["metrics"]["ACC"]
  assert len({name_of(entry) for entry in entries}) == 4
  (few, _) = evaluate_again(folder, {}, rows=30)
  assert few["test_rows"] == [[30, 30]] * 2
  with pytest.raises(ConfigError, match=r"--over=optimizer\.lr: the run's own sweep varies it"):
    evaluate_again(folder, {"optimizer.lr": [0.1]})
  with pytest.raises(ConfigError, match=rf"give that of a run, for example --workdir={folder}"):
    evaluate_again(folder / "lr=0.01", {})


def test_settings_multiply_and_are_checked_before_the_first_is_asked(plain):
  folder, _ = plain
  entries = evaluate_again(folder, {"evaluate_group": [10, 20], "matmul_precision": ["highest", "default"]})
  assert [tuple(entry["setting"].values()) for entry in entries] == [
    (10, "highest"),
    (10, "default"),
    (20, "highest"),
    (20, "default"),
  ]
  with pytest.raises(ConfigError, match="config.matmul_precision"):
    next(evaluations(folder, {"matmul_precision": ["highest", "hihg"]}))


def test_an_unfinished_run_says_so(tmp_path):
  """Stopped in its first task: the state is asked as it is."""
  asked = []

  def stop():
    asked.append(1)
    return len(asked) > 1

  config = turned(chunk=2)
  config.method.block = 1
  with pytest.raises(Stopped):
    train(config, tmp_path / "run", quiet=True, stop_asked=stop)
  (entry,) = evaluate_again(tmp_path / "run", {})
  assert entry["after_tasks"] == 0 and 0 < entry["steps"] < 10
  assert np.isfinite(entry["readouts"]["task"]["ACC"]["mean"])


def test_a_run_stopped_between_tasks_is_asked_about_the_classes_so_far(tmp_path):
  """The readout `class` chooses among the classes of finished tasks, as the run's own row of the matrix did."""
  asked = []

  def stop():
    asked.append(1)
    return len(asked) == 2  # the first chance is at the end of the phase, the second after the evaluation

  config = turned()
  config.stream = {"name": "split", "source": "digits", "tasks": 5, "scenario": "class"}
  with pytest.raises(Stopped):
    train(complete(config), tmp_path / "run", quiet=True, stop_asked=stop)
  (entry,) = evaluate_again(tmp_path / "run", {})
  lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
  own = {line["readout"]: line["accuracy"] for line in lines if line["event"] == "evaluate" and line["row"] == 1}
  assert entry["after_tasks"] == 1 and set(own) == {"class", "task"}
  assert {name: found["accuracy"] for name, found in entry["readouts"].items()} == own
  assert evaluation_table([entry]).endswith("its newest checkpoint has 1 of 5 tasks behind it.")


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(plain, tmp_path, caplog):
  folder = tmp_path / "run"
  shutil.copytree(plain[0], folder)
  newest = max(int(path.name) for path in (folder / "checkpoints").iterdir())
  for path in (folder / "checkpoints" / str(newest)).rglob("*"):
    if path.is_file():
      path.write_bytes(b"damaged")
  before = files_of(folder)
  logging.getLogger("absl").propagate = True
  (entry,) = evaluate_again(folder, {})
  assert entry["after_tasks"] == 1 and files_of(folder) == before
  shutil.rmtree(folder / "checkpoints" / str(newest - 1))
  with pytest.raises(ConfigError, match="no checkpoint that can be read.*another version"):
    evaluate_again(folder, {})


def test_a_work_dir_may_be_relative(plain, monkeypatch):
  folder, _ = plain
  monkeypatch.chdir(folder.parent)
  (entry,) = evaluate_again(folder.name, {})
  assert entry["readouts"]


def test_the_file_keeps_one_row_a_setting(tmp_path):
  def entry(group, value, rows=0):
    return {"setting": {"evaluate_group": group}, "sweep": {}, "rows": rows, "readouts": value}

  path = note(tmp_path, [entry(1, "old"), entry(8, "other")])
  note(tmp_path, [entry(1, "new"), entry(1, "few", rows=5)])
  found = json.loads(path.read_text())["evaluations"]
  assert {name: row["readouts"] for name, row in found.items()} == {
    "evaluate_group=1 rows=all": "new",
    "evaluate_group=8 rows=all": "other",
    "evaluate_group=1 rows=5": "few",
  }
  path.write_text('{"schema": 7}')
  with pytest.raises(ConfigError, match="no list of evaluations of schema 1; move it away"):
    note(tmp_path, [entry(1, "new")])
  assert path.read_text() == '{"schema": 7}'


@pytest.mark.parametrize(
  ("over", "words"),
  [
    ({"evaluate_grp": [1]}, "evaluate_grp.*Did you mean evaluate_group"),
    ({"method.ifner": ["entropy"]}, r"'method\.ifner' is not known"),
    ({"evaluate_group": ["many"]}, "--over=evaluate_group='many' must be a whole number, as 32 is"),
    ({"evaluate_group": [1.5]}, "evaluate_group=1.5 must be a whole number"),
    ({"evaluate_group": [True]}, "evaluate_group=True must be a whole number"),
    ({"evaluate_group": [0]}, "config.evaluate_group=0 is too small; the least is 1"),
    ({"evaluate_group": [8, "8"]}, "names a value twice"),
    ({"evaluate_group": []}, "must be a list of values, for example --over=evaluate_group=1,8,32"),
    ({"evaluate_group": "18"}, "must be a list of values"),
    ({"method.centred": ["yes"]}, "must be true or false"),
    ({"method.above": ["nan"]}, "config.method.above=nan is not a finite number"),
    ({"method.select": ["best"]}, "topk, threshold, accuracy"),
    ({"method.infer": ["entropy", "entrpy"]}, "entrpy.*Did you mean entropy"),
    ({"net.hidden": ["16"]}, r"--over=net\.hidden holds .* only fields of one number"),
    (
      {"method.experts": [4, 7]},
      r"--over=method\.experts=7 asks for another state(.|\n)*subnets\.store.*stored, .*asked for",
    ),
    *(
      ({key: values, "evaluate_group": [32]}, rf"--over={key}: no answer hangs on it")
      for key, values in {
        "optimizer.name": ["sgd"],
        "optimizer.lr": [0.1, 0.2],
        "preset": ["smoke"],
        "checkpoint_every_chunks": [1, 2],
        "given_tasks": [1],
        "method.epochs": [4, 7],
        "method.batch_size": [3],
        "net.kernel_init": ["glorot"],
      }.items()
    ),
    ({"method.epochs": [3], "method.infer": ["entropy", "hamming"]}, r"--over=method.epochs: no answer hangs on it"),
    (3, "over=3 must be a mapping"),
    ({"evaluate_group": 3}, "must be a list of values"),
    *(
      ({key: ["1"]}, f"--over={key}: the run was trained on the data")
      for key in ("seed", "num_seeds", "sweep.lr", "stream.source", "debug")
    ),
  ],
  ids=str,
)
def test_refusals(run, over, words):
  with pytest.raises(ConfigError, match=words):
    evaluate_again(run[0], over)


def test_refusals_of_a_work_dir(run, tmp_path):
  with pytest.raises(ConfigError, match="holds no config.json.*launch.train"):
    evaluate_again(tmp_path, {})
  with pytest.raises(ConfigError, match="--rows='5' must be a whole number"):
    evaluate_again(run[0], {}, rows="5")
  with pytest.raises(ConfigError, match="--rows=-1 is too small"):
    evaluate_again(run[0], {}, rows=-1)
  with pytest.raises(ConfigError, match=f"for example --workdir={run[0]}"):
    evaluate_again(run[0].parent, {})
  copy = tmp_path / "copy"
  copy.mkdir()
  for name in ("config.json", "result.json"):
    shutil.copy(run[0] / name, copy / name)
  with pytest.raises(ConfigError, match="holds no checkpoint that can be read.*a copy of result files none"):
    evaluate_again(copy, {})
  assert sorted(path.name for path in copy.iterdir()) == ["config.json", "result.json"]
  shutil.copytree(run[0] / "checkpoints", copy / "checkpoints")
  result = read_result(copy / "result.json")
  write_sealed(copy / "result.json", {**result, "data_hash": "other"})
  with pytest.raises(ConfigError, match=r"the data is not what the run was trained on.*result\.json"):
    evaluate_again(copy, {})


def test_words_as_typed():
  assert [typed("k", word, like) for word, like in (("3", 1), ("TRUE", False), ("2", 0.5), ("a", "b"))] == [
    3,
    True,
    2.0,
    "a",
  ]
  assert typed("k", "none", None) is None and typed("k", "0.5", None) == 0.5 and typed("k", 1, 0.5) == 1.0
  assert isinstance(typed("k", 1, 0.5), float)


def test_a_checkpoint_that_is_only_read_cannot_be_written(plain):
  checkpoints = Checkpoints(plain[0] / "checkpoints", writes=False)
  steps = checkpoints.manager.all_steps()
  assert len(steps) == 2 and checkpoints.manager._options.read_only
  checkpoints.close()


def test_the_launcher(run, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(run[0], folder)
  words = ["launch.evaluate", f"--workdir={folder}", "--platform=cpu"]
  done = shell(*words, "--over=evaluate_group=1,32", "--over=method.infer=entropy", "--rows=40")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[0].split()[:2] == ["evaluate_group", "method.infer"] and "task recognition" in lines[0]
  assert [line.split()[0] for line in lines[1:3]] == ["1", "32"] and all("first 40" in line for line in lines[1:3])
  assert lines[-1] == f"written: {folder}/evaluations.json"
  found = json.loads((folder / "evaluations.json").read_text())["evaluations"]
  assert list(found) == [f"evaluate_group={group} method.infer=entropy rows=40" for group in (1, 32)]
  assert "launch.evaluate" in next(iter(found.values()))["environment"]["command"]
  done = shell(*words, "--over=evaluate_group=1", "--over=evaluate_group=8")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "--over=evaluate_group stands there twice; give all its values at once" in done.stderr
