"""What a run leaves: the schema of `result.json`, field by field, and the files around it.

A result is a plain dict. Equal runs give equal results but for `timing` and `environment`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cljax.errors import ConfigError
from cljax.files import pack, plain, read_sealed, telling, unpack, write_atomically
from cljax.metrics import METRICS, spread, summarize
from cljax.paths import located

SCHEMA = 6
LACKED_5: dict[str, Any] = {"diverged": None}
LACKED_4: dict[str, Any] = {**LACKED_5, "curves": {}}
LACKED_3: dict[str, Any] = {**LACKED_4, "peak": None, "state_bytes": None}
LACKED_2 = {**LACKED_3, "train_rows": None}
OLDER = {
  1: {**LACKED_2, "report": {}},
  2: LACKED_2,
  3: LACKED_3,
  4: LACKED_4,
  5: LACKED_5,
}  # what the older versions lacked
LONGEST = 1000  # numbers a seed of a report array that stands in the result file
FIELDS = {
  "schema": "version of this list",
  "paper": "folder of configs/papers whose published numbers belong beside it, or ''",
  "preset": "scale of the run: paper, gem1000, smoke, ...",
  "cell": "name in its table, `stream/method` or `method`",
  "method": "the cell's method, e.g. routing_cotrain",
  "stream": "the cell's stream, e.g. mnist_perm",
  "seeds": "[S] the seeds",
  "oracle": "whether it trained on the rows of all tasks at once",
  "readout": "what `accuracy` is: task, class, domain or inferred",
  "accuracy": "[S][T+1][T] share of test rows right; row 0 before training, row i after task i; null: not evaluated",
  "metrics": "{ACC, BWT, FWT, forgetting, learning_accuracy: {mean, std over seeds (ddof 1), values [S]}}; null where "
  "undefined, as is FWT of a readout that answers among the classes seen so far",
  "readouts": "{name: {accuracy, metrics}} of the other readouts; `inferred` also has task_recognition, the share of "
  "each task's test rows that went to its own slot: {by_task [S][T], and of its mean over tasks mean, std, values "
  "[S]}. By config.looks also `valid`, the main readout on the validation rows, and `before_exit`, on the test rows "
  "before the `exit` of each task's last phase (no row 0); `readout` and `readout_adam`, test rows by a linear probe "
  "on the frozen features, learnt anew at each row of the matrix from at most 5,000 training rows of the task asked "
  "about, among that task's classes: the optimum of softmax regression, and what 500 steps of Adam find",
  "peak": "where config.looks has `watch`, the best epoch of each task while it was trained, by accuracy on its "
  "validation rows, the first of equals: {valid, test [S][T] accuracy then, epoch [S][T] epochs of its phase that were "
  "done (1 for a phase that counts steps), phase [S][T] from 0, and of test's mean over tasks mean, std, values [S]}; "
  "null: a task that was not trained by itself. Where it has `trials`, that of the best of a phase's trials, and "
  "`trials`: {valid, test, epoch, phase [S][T][K]} of each. Else null",
  "curves": "{look: {steps [S][T][M] of a task that were done, accuracy [S][T][M][T] on each task then}} of the looks "
  "inside tasks, every config.look_every_steps and at the end of each phase: `output_within` of the main readout, "
  "`readout_within` of the probe; null: not asked; {} without such a look, and in results of older versions",
  "diverged": "[S] {task, phase, step}, from 0, of the first step whose loss is not a finite number; null: none; "
  "null in results of older versions",
  "train_rows": "[S][T] training rows of each task, its passes counted; null in results of older versions",
  "task_confusion": "[S][T][slots] test rows of each task by the slot inferred, after the last task; or null",
  "report": "{name: [S]...} what the method told after the last task, short arrays only (all: report.npz)",
  "parameters": "numbers that the method learns",
  "memory_bytes": "bytes of stored examples: pixels, label and task of each row",
  "state_bytes": "bytes of the method's whole state, of one seed; null in results of older versions",
  "timing": "{compile_seconds, train_seconds, eval_seconds, steps (of one seed), steps_per_second (of all seeds)}",
  "environment": "versions, devices, git commit and command of the process that finished the run",
  "data_hash": "sha256 of the data set",
  "experiment": "{precision, executor, device_count}: how it was computed",
  "config": "the resolved config",
}
AGAIN = "delete it, and the same command computes it again"
MAY_DIFFER = ("timing", "environment")


def shares(right: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Counts [S, T+1, T] (-1: not evaluated) over test rows [S, T] or [T], as accuracies with NaN."""
  return np.where(right < 0, np.nan, right / rows[..., None, :])


def recognition(confusion: np.ndarray, slot_of: np.ndarray) -> dict[str, Any]:
  """How often a task's rows [S, T, slots] went to its own slot [S, T]: the share by task, and the mean over tasks."""
  own = np.take_along_axis(confusion, np.maximum(slot_of, 0)[..., None], axis=2)[..., 0]
  rows = confusion.sum(axis=2)
  by_task = np.where(slot_of >= 0, own / np.maximum(rows, 1), 0.0)
  return {"by_task": by_task, **spread(list(by_task.mean(axis=1)))}


def peak_of(counts: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The field `peak`.

  Args:
    counts: `valid` and `test` [S, T] right answers at the best epoch, or [S, T, K] at that of each trial; -1 where
      there was none; out of `valid_rows` and `test_rows` [S, T]; `epoch` and `phase` of the same shape.
  """
  valid = counts["valid"]
  known, beside = valid >= 0, (slice(None), slice(None), *[None] * (valid.ndim - 2))
  rows = {name: counts[f"{name}_rows"][beside] for name in ("valid", "test")}
  found = {name: np.where(known, counts[name] / rows[name], np.nan) for name in rows}
  found |= {name: np.where(known, counts[name], np.array(None)) for name in ("epoch", "phase")}
  trials = {}
  if valid.ndim == 3:
    best, trials = valid.argmax(axis=2)[..., None], {"trials": found}
    found = {name: np.take_along_axis(each, best, axis=2)[..., 0] for name, each in found.items()}
  return {**found, **trials, **spread(list(found["test"].mean(axis=1)))}


def curve_of(counts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """An entry of the field `curves`.

  Args:
    counts: `within` [S, T, M, T] right answers out of `right_rows` [S, T], and `done` [S, T, M]; -1: not asked.
  """
  within, done = counts["within"], counts["done"]
  accuracy = np.where(within < 0, np.nan, within / counts["right_rows"][:, None, None])
  return {"steps": np.where(done < 0, np.array(None), done), "accuracy": accuracy}


def make_result(
  *,
  right: Mapping[str, np.ndarray],
  rows: np.ndarray,
  readout: str,
  task_confusion: np.ndarray | None,
  slot_of: np.ndarray,
  report: Mapping[str, np.ndarray],
  looked: Mapping[str, Mapping[str, np.ndarray]],
  **fields: Any,
) -> dict[str, Any]:
  """A result from counts.

  Args:
    right: readout -> [S, T+1, T] right answers, -1 where not evaluated.
    rows: [S, T] test rows, or [T] where they are the same for all seeds.
    readout: the main one.
    task_confusion: [S, T, slots] counts, or None.
    slot_of: [S, T] the slot of each task.
    report: [S, T, ...] what the method told after each task.
    looked: look -> its counts: `right` as above, of a readout of that name out of `right_rows` [S, T]; or those of
      `peak_of` or of `curve_of`.
    fields: all others of FIELDS but schema, accuracy, metrics, readouts, peak and curves.

  Raises:
    ValueError: a field is missing or unknown.
  """
  matrices = {name: shares(counts, rows) for name, counts in right.items()}
  result = {"schema": SCHEMA, "readout": readout, "task_confusion": task_confusion, **fields}
  # Whose answers are among the classes or the tasks seen so far, so that no method can be right of a task to come.
  growing = {"class", "inferred", *(("valid",) if readout in ("class", "inferred") else ())}
  result |= {"accuracy": matrices[readout], "metrics": summarize(matrices[readout], readout in growing)}
  others = {name: matrix for name, matrix in matrices.items() if name != readout}
  others |= {name: shares(one["right"], one["right_rows"]) for name, one in looked.items() if "right" in one}
  result["peak"] = next((peak_of(one) for one in looked.values() if "valid" in one), None)
  result["curves"] = {name: curve_of(one) for name, one in looked.items() if "within" in one}
  result["readouts"] = {name: {"accuracy": m, "metrics": summarize(m, name in growing)} for name, m in others.items()}
  if task_confusion is not None and "inferred" in others:
    result["readouts"]["inferred"]["task_recognition"] = recognition(task_confusion, slot_of)
  last = {name: np.asarray(value)[:, -1] for name, value in report.items()}
  result["report"] = {name: value for name, value in last.items() if value[0].size <= LONGEST}
  if set(result) != set(FIELDS):
    raise ValueError(f"fields differ from the schema: {sorted(set(result) ^ set(FIELDS))}")
  return plain({name: result[name] for name in FIELDS})


def read_result(path: epath.Path | str) -> dict[str, Any]:
  """
  Raises:
    ConfigError: no result of this schema, or a damaged file; names the file.
    OSError: it cannot be read.
  """
  path = epath.Path(path)
  result = read_sealed(path, AGAIN)
  if result.get("schema") in OLDER:
    result = {**OLDER[result["schema"]], **result, "schema": SCHEMA}
  if result.get("schema") != SCHEMA or set(result) != set(FIELDS):
    wrong = sorted(set(result) ^ set(FIELDS))
    hint = f" (fields missing or unknown: {', '.join(wrong)})" if wrong else ""
    raise ConfigError(f"{path} is no result of schema {SCHEMA}{hint}; another version or another hand wrote it")
  with telling(path, AGAIN):
    check_kinds(result)
  return result


def check_kinds(result: Mapping[str, Any]) -> None:
  """
  Raises:
    Exception: of any type, for fields of another kind than tables and figures take.
  """
  words = ("paper", "preset", "cell", "method", "stream", "readout", "data_hash")
  if wrong := [name for name in words if not isinstance(result[name], str)]:
    raise ValueError(f"{wrong[0]} is no word")
  S = len(result["seeds"])
  for told in ({"accuracy": result["accuracy"], "metrics": result["metrics"]}, *result["readouts"].values()):
    shape = np.array(told["accuracy"], float).shape
    if S < 1 or shape != (S, shape[-1] + 1, shape[-1]):
      raise ValueError(f"accuracy of {S} seeds has the shape {shape}")
    for name in METRICS:
      summary = told["metrics"][name]
      np.array([summary["mean"], summary["std"], *summary["values"]], float)
      if len(summary["values"]) != S:
        raise ValueError(f"{name} has {len(summary['values'])} values for {S} seeds")
  environment, timing, config = (result[name] for name in ("environment", "timing", "config"))
  if not all(isinstance(each, Mapping) for each in (environment, timing, config, config.get("stream", {}))):
    raise ValueError("config, environment or timing is no JSON object")
  "".join([*environment["devices"], environment["command"], environment["git_commit"] or ""])
  sum(timing[f"{part}_seconds"] for part in ("compile", "train", "eval"))


def check_data(folder: epath.Path, data_hash: str) -> None:
  """
  Raises:
    ConfigError: the result of a run's folder, where it has one, is of other data.
  """
  for path in sorted(folder.glob("result.json")):
    if read_result(path)["data_hash"] != data_hash:
      raise ConfigError(f"the data is not what the run was trained on, as {path} tells; see --data_dir")


def find_results(workdir: epath.Path | str) -> list[tuple[str, dict[str, Any], epath.Path]]:
  """(path below the work dir, result, folder) of every result at most four folders below it, sorted.

  Raises:
    ConfigError: there is none, or one is damaged.
  """
  root = located(workdir)
  depths = ["*/" * depth + "result.json" for depth in range(5)]  # object stores know no recursive pattern
  paths = sorted(path for depth in depths for path in root.glob(depth)) if root.is_dir() else []
  if not paths:
    state = "holds no result.json" if root.is_dir() else "does not exist"
    raise ConfigError(f"{workdir} {state}; a run leaves one: python -m launch.train --config=... --workdir={workdir}")
  return [(os.fspath(path.parent.relative_to(root)), read_result(path), path.parent) for path in paths]


def unfinished(workdir: epath.Path | str) -> list[str]:
  """A line about runs at most four folders below a work dir that have begun and left no result yet; [] without any."""
  root = located(workdir)
  begun = sorted({path.parent for depth in range(5) for path in root.glob("*/" * depth + "config.json")})
  ends = ("result.json", "*/result.json", "meta.json")  # of a run, of a sweep's values, of a meta-training
  left = [each for each in begun if not any(list(each.glob(end)) for end in ends)]
  names = [os.fspath(each.relative_to(root)) for each in left]
  more = f" and {len(names) - 5} more" if len(names) > 5 else ""
  told = f"Begun, without a result yet, and so without a row: {', '.join(names[:5])}{more}."
  return [told] if names else []


def write_report_arrays(path: epath.Path | str, arrays: Mapping[str, np.ndarray]) -> None:
  """The method's report after each task, [S, T, ...] each, as a compressed .npz."""
  write_atomically(epath.Path(path), pack(arrays, compressed=True))


def read_report_arrays(folder: epath.Path | str) -> dict[str, np.ndarray]:
  """What `write_report_arrays` wrote into the folder's report.npz; {} without one.

  Raises:
    ConfigError: a damaged file.
  """
  path = epath.Path(folder) / "report.npz"
  if not path.exists():
    return {}
  try:
    return unpack(path.read_bytes())
  except ValueError as error:
    raise ConfigError(f"{path} is damaged ({error}); delete it, and the figures made from it are left out") from error


def without_arrays(found: Sequence[tuple[Mapping[str, Any], epath.Path]]) -> list[epath.Path]:
  """The report.npz that are not there, of (result, folder): whoever has a report has written one."""
  paths = [folder / "report.npz" for result, folder in found if result["report"]]
  return [path for path in paths if not path.exists()]


def equal(a: Any, b: Any, path: str = "") -> list[str]:
  """The dotted paths of the fields in which two results differ, sorted, but for `timing` and `environment`."""
  if not (isinstance(a, dict) and isinstance(b, dict)):
    return [] if a == b else [path]
  found: list[str] = []
  for key in sorted({*a, *b} - (set() if path else set(MAY_DIFFER))):
    below = f"{path}.{key}" if path else key
    found += equal(a[key], b[key], below) if key in a and key in b else [below]
  return found
