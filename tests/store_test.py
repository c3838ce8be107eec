"""Result files: what one holds, how it is written and read, what is found and what differs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from cljax import files
from cljax.errors import ConfigError
from cljax.report import store
from tests.results import RIGHT, S, T, fake, looked, report_arrays, two_streams


@pytest.fixture
def workdir(tmp_path):
  return two_streams(tmp_path)


def test_a_result_has_the_documented_fields_and_json_types():
  result = fake()
  assert list(result) == list(store.FIELDS) and all(store.FIELDS.values())
  assert json.loads(json.dumps(result, allow_nan=False)) == result
  assert result["accuracy"][0] == [[0.1, 0.1, 0.1], [0.9, 0.1, None], [0.8, 0.95, 0.2], [0.7, 0.85, 0.9]]
  assert result["metrics"]["ACC"]["mean"] == pytest.approx(0.766667, abs=5e-7)
  assert result["metrics"]["BWT"]["values"] == [pytest.approx(-0.15), pytest.approx(-0.25)]
  assert list(result["readouts"]) == ["class"] and result["readouts"]["class"]["accuracy"][1][3] == [0.3, 0.37, 0.4]
  assert result["readouts"]["class"]["metrics"]["ACC"]["values"][0] == pytest.approx((0.35 + 0.42 + 0.45) / 3)


def test_looks_are_readouts_out_of_their_own_rows_and_the_peak():
  """By hand; a task that was not watched is null, and so is the mean of its seed."""
  result = fake(looked=looked())
  assert list(result["readouts"]) == ["class", "valid"]
  valid = result["readouts"]["valid"]
  assert valid["accuracy"][0] == [[2 / 12] * 3, [None] * 3, [None] * 3, [0.75, 0.5, 0.25]]
  assert valid["metrics"]["ACC"]["values"] == [0.5, 0.75] and valid["metrics"]["BWT"]["mean"] is None
  peak = result["peak"]
  assert peak["valid"] == [[1.0, 0.5, 0.75], [None, 0.25, 1.0]] and peak["test"] == [[0.8, 0.5, 0.7], [None, 0.3, 0.9]]
  assert peak["epoch"] == [[3, 1, 2], [None, 1, 4]] and peak["phase"] == [[0, 0, 1], [None, 0, 1]]
  assert peak["values"] == [pytest.approx(2 / 3), None] and peak["mean"] is None
  whole = looked()
  whole["watch"] |= {"valid": np.full((S, T), 6), "test": np.array([[50, 60, 70], [40, 50, 60]])}
  peak = fake(looked=whole)["peak"]
  assert (peak["mean"], peak["std"]) == (pytest.approx(0.55), pytest.approx(0.1 / 2**0.5))
  assert fake()["peak"] is None


@pytest.mark.parametrize("schema", sorted(store.OLDER))
def test_a_result_of_an_older_version_is_read(tmp_path, schema):
  result = fake()
  for name in store.OLDER[schema]:
    del result[name]
  files.write_json(tmp_path / "result.json", {**result, "schema": schema})
  assert store.read_result(tmp_path / "result.json") == {**fake(), **store.OLDER[schema]}


def test_test_rows_may_be_the_same_for_all_seeds_and_differ_by_task():
  found = store.shares(RIGHT, np.array([100, 200, 400]))
  assert found[1, 3].tolist() == [0.6, 0.375, 0.2] and np.isnan(found[0, 1, 2])


NOTHING = {"slot_of": np.zeros((S, T), int), "report": {}, "looked": {}}


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_result_with_other_fields_is_refused(change):
  with pytest.raises(ValueError, match="paper" if change == "missing" else "colour"):
    if change == "unknown":
      fake(colour="red")
    else:
      store.make_result(
        right={"task": RIGHT}, rows=np.full((S, T), 100), readout="task", task_confusion=None, **NOTHING
      )


def test_a_result_survives_its_file(tmp_path):
  result = fake(task_confusion=np.arange(S * T * T).reshape(S, T, T))
  files.write_json(tmp_path / "result.json", result)
  assert store.read_result(tmp_path / "result.json") == result
  text = (tmp_path / "result.json").read_text()
  assert '\n "seeds": [0, 1],\n' in text and "NaN" not in text and '\n  "executor": "map"' in text


def test_numpy_nan_and_tuples_become_json(tmp_path):
  value = {"a": np.float32(0.5), "b": (np.int64(1), float("nan")), "c": np.array([[True]]), "d": None, "e": "x"}
  files.write_json(tmp_path / "v.json", value)
  assert json.loads((tmp_path / "v.json").read_text()) == {"a": 0.5, "b": [1, None], "c": [[True]], "d": None, "e": "x"}


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, fails):
  path = tmp_path / "result.json"
  files.write_json(path, {"old": 1})

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, fails, full)
  with pytest.raises(OSError, match=r"No space left on device; .*result\.json could not be written: make room"):
    files.write_json(path, {"new": 2})
  assert json.loads(path.read_text()) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
  """The new content is whole and on the disk before it gets the name."""
  path, seen = tmp_path / "result.json", []
  files.write_json(path, {"old": 1})

  def killed(source, target):
    seen.append((json.loads(Path(source).read_text()), json.loads(path.read_text()), Path(source).parent))
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    files.write_json(path, {"new": 2})
  assert seen == [({"new": 2}, {"old": 1}, tmp_path)] and json.loads(path.read_text()) == {"old": 1}


def broken(change):
  result = fake()
  if change == "another schema":
    result["schema"] += 1
  if change == "a field less":
    del result["data_hash"]
  text = json.dumps(result)
  return {"cut off": text[:100], "no object": "[]", "no text": "\udcff", "empty": ""}.get(change, text)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ("cut off", "damaged"),
    ("empty", "damaged"),
    ("no text", "damaged"),
    ("no object", "damaged .it holds list, no JSON object"),
    ("another schema", f"schema {store.SCHEMA}"),
    ("a field less", "data_hash"),
  ],
)
def test_a_damaged_result_is_named(tmp_path, change, says):
  path = tmp_path / "result.json"
  path.write_bytes(broken(change).encode(errors="surrogateescape"))
  with pytest.raises(ConfigError, match=says) as caught:
    store.read_result(path)
  assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("metrics", 3),
    ("metrics", {}),
    ("accuracy", "x"),
    ("accuracy", [[0.5]]),
    ("seeds", []),
    ("seeds", 3),
    ("config", []),
    ("config", {"stream": 3}),
    ("environment", None),
    ("environment", {"devices": [1]}),
    ("timing", {"train_seconds": "1"}),
    ("paper", None),
    ("readouts", {"class": 3}),
  ],
)
def test_fields_of_another_kind_are_one_line_that_names_the_file(tmp_path, field, value):
  """Of a file without a checksum, as older versions and other hands wrote them."""
  files.write_json(tmp_path / "result.json", {**fake(), field: value})
  with pytest.raises(ConfigError, match=r"result\.json is damaged \(it holds something else: ") as caught:
    store.read_result(tmp_path / "result.json")
  assert "\n" not in str(caught.value)


def test_results_are_found_sorted_and_below_their_work_dir(workdir):
  found = store.find_results(workdir)
  assert [path for path, _, _ in found] == ["mnist_perm/er", "mnist_perm/routing", "mnist_rot/er", "mnist_rot/routing"]
  assert [result["cell"] for _, result, _ in found] == [path for path, _, _ in found]
  assert [folder for _, _, folder in found] == [epath.Path(workdir) / path for path, _, _ in found]
  assert [path for path, _, _ in store.find_results(workdir / "mnist_rot" / "er")] == ["."]


def test_no_results_is_an_error_that_says_what_to_type(tmp_path):
  with pytest.raises(ConfigError, match=r"holds no result\.json.*python -m launch\.train"):
    store.find_results(tmp_path)
  with pytest.raises(ConfigError, match="nowhere does not exist"):
    store.find_results(tmp_path / "nowhere")


def test_report_arrays_survive_their_file(tmp_path):
  arrays = report_arrays()
  store.write_report_arrays(tmp_path / "report.npz", arrays)
  found = store.read_report_arrays(tmp_path)
  assert set(found) == set(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype
  assert store.read_report_arrays(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize("kept", [0, 10, 400])
def test_damaged_report_arrays_are_named(tmp_path, kept):
  store.write_report_arrays(tmp_path / "report.npz", report_arrays())
  content = (tmp_path / "report.npz").read_bytes()
  (tmp_path / "report.npz").write_bytes(content[:kept])
  with pytest.raises(ConfigError, match=r"report\.npz is damaged"):
    store.read_report_arrays(tmp_path)


def test_flipped_bits_of_report_arrays_are_seen(tmp_path):
  store.write_report_arrays(tmp_path / "report.npz", report_arrays())
  content = bytearray((tmp_path / "report.npz").read_bytes())
  content[300] ^= 255
  (tmp_path / "report.npz").write_bytes(content)
  with pytest.raises(ConfigError, match=r"report\.npz is damaged"):
    store.read_report_arrays(tmp_path)


def test_equal_results_may_differ_in_time_and_place_only():
  other = fake()
  other["timing"] = {"train_seconds": 1.0}
  other["environment"] = {}
  assert store.equal(fake(), other) == []
  other["config"]["net"]["widths"] = [20, 20]
  other["config"]["timing"] = 1
  other["accuracy"][1][3][2] += 1e-9
  del other["data_hash"]
  assert store.equal(fake(), other) == ["accuracy", "config.net.widths", "config.timing", "data_hash"]
  assert store.equal(other, fake()) == store.equal(fake(), other)


def test_no_forward_transfer_where_answers_are_among_the_classes_seen():
  """There it says only what chance was before training, the same for every method."""
  result = fake(looked={"valid": {"right": RIGHT, "right_rows": np.full((S, T), 100)}})
  by_task, by_class = result["metrics"], result["readouts"]["class"]["metrics"]
  assert by_task["FWT"]["mean"] is not None and by_class["FWT"] == {"mean": None, "std": None, "values": [None, None]}
  assert by_class["ACC"]["mean"] is not None and result["readouts"]["valid"]["metrics"]["FWT"]["mean"] is not None
  inferred = fake(right={"task": RIGHT, "inferred": RIGHT}, task_confusion=np.ones((S, T, T), int))["readouts"]
  assert inferred["inferred"]["metrics"]["FWT"]["mean"] is None  # no task to come can be found
  swapped = fake(readout="class", looked={"valid": {"right": RIGHT, "right_rows": np.full((S, T), 100)}})
  assert swapped["metrics"]["FWT"]["mean"] is None and swapped["readouts"]["valid"]["metrics"]["FWT"]["mean"] is None
