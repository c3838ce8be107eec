"""What a run can be asked beside its readouts: the table of looks, from which `config.looks` picks.

A look says where on the timeline it is asked, about which rows of which tasks, and what it keeps of the answers: whole
numbers, which go round the loop with the cursor, so that a run that was stopped keeps the bits of one that was not.
A further one is an entry of LOOKS, with an `answer` of its own one of `readout.ANSWERS`, which is compiled for it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cljax.errors import ConfigError
from cljax.readout import check_newton
from cljax.timeline import Answers, Counts, Extent, Look, Unit
from cljax.types import Method, Spec


def pairs(mode: str, row: int, T: int, trained: tuple[int, ...]) -> list[int]:
  """The tasks that row `row` asks about; `mode` is config.evaluate."""
  if mode == "all" or (row == T and mode == "ends") or len(trained) < T:
    return list(range(T))
  if mode == "seen":
    return list(range(T)) if row == 0 else list(range(min(row + 1, T)))
  return [row - 1] if row else []


def in_training(mode: str, row: int, T: int, trained: tuple[int, ...]) -> list[int]:
  """The task that is being trained, whose row of the matrix comes next."""
  return [row - 1]


def no_row(of: Extent) -> Counts:
  """`right` [S, T+1, T] right answers, -1 where not asked."""
  return {"right": np.full((of.seeds, of.tasks + 1, of.tasks), -1)}


def fill_row(counts: Counts, unit: Unit, answers: Answers) -> None:
  """Writes one row of the matrix."""
  assert unit.look is not None
  for task, right in answers(unit.look.split).items():
    counts["right"][:, unit.row, task] = right


BEST = ("valid", "test", "epoch", "phase")


def no_curve(of: Extent) -> Counts:
  """`within` [S, T, M, T] right answers on each task at the M places inside a task's training, and `done` [S, T, M]
  steps of it then; -1 where not asked."""
  shape = (of.seeds, of.tasks, of.marks)
  return {"within": np.full((*shape, of.tasks), -1), "done": np.full(shape, -1)}


def extend_curve(counts: Counts, unit: Unit, answers: Answers) -> None:
  """Writes the next place of the task in training."""
  assert unit.look is not None
  task = unit.at.task
  place = int((counts["done"][0, task] >= 0).sum())
  counts["done"][:, task, place] = unit.done
  for asked, right in answers(unit.look.split).items():
    counts["within"][:, task, place, asked] = right


def no_best(of: Extent) -> Counts:
  """[S, T] of the best epoch: right answers on `valid` and `test` rows, `epoch` and `phase` of it; -1 before any."""
  return {name: np.full((of.seeds, of.tasks), -1) for name in BEST}


def no_best_of_each(of: Extent) -> Counts:
  """[S, T, K] of the best epoch of each trial, as `no_best` has them."""
  return {name: np.full((of.seeds, of.tasks, of.trials), -1) for name in BEST}


def keep_best(counts: Counts, unit: Unit, answers: Answers) -> None:
  """Asks the validation rows, and the test rows where some seed has more of the former right than ever in this task,
  or in this trial of it; only such seeds keep what was found."""
  for task, valid in answers("valid").items():
    at = (slice(None), task, unit.trial)[: counts["valid"].ndim]
    better = valid > counts["valid"][at]
    if better.any():
      test = answers("test")[task]
      for name, value in zip(BEST, (valid, test, unit.epoch, unit.at.phase), strict=True):
        counts[name][at] = np.where(better, np.asarray(value), counts[name][at])


LOOKS = {
  look.name: look
  for look in (
    Look("valid", "valid", pairs, "row", no_row, fill_row),
    Look("before_exit", "test", pairs, "exit", no_row, fill_row),
    Look("watch", "valid", in_training, "epoch", no_best, keep_best),
    Look("trials", "valid", in_training, "epoch", no_best_of_each, keep_best),
    Look("readout", "test", pairs, "row", no_row, fill_row, "readout_newton", check_newton),
    Look("readout_adam", "test", pairs, "row", no_row, fill_row, "readout_adam"),
    Look("output_within", "test", pairs, "steps", no_curve, extend_curve),
    Look("readout_within", "test", pairs, "steps", no_curve, extend_curve, "readout_newton", check_newton),
  )
}


def told(
  unit: Unit, split: str, right: Mapping[int, np.ndarray], rows: np.ndarray
) -> tuple[dict[str, Any], dict[str, float]]:
  """What a look was answered, as a line of metrics.jsonl and as scalars.

  Args:
    right: task -> [S] right answers, -1 where the task has no slot.
    rows: [S, T] rows of the split.
  """
  assert unit.look is not None
  share = {task: np.where(n < 0, np.nan, n / rows[:, task]) for task, n in right.items()}
  at: dict[str, Any] = {"task": unit.at.task, "phase": unit.at.phase, "epoch": unit.epoch, "row": unit.row}
  at |= {"done": list(unit.done)} if unit.done else {}
  line = {"event": "look", "look": unit.look.name, **at, "split": split, "accuracy": share}
  known = {task: seeds for task, seeds in share.items() if not np.isnan(seeds).all()}
  return line, {f"{unit.look.name}/{split}/task_{t:02d}/acc": float(np.nanmean(n)) for t, n in known.items()}


def counts_of(
  looks: Iterable[Look], looked: Mapping[str, Counts], rows: Callable[[str], np.ndarray], own: slice
) -> dict[str, Counts]:
  """The counts of all looks for some rows of the seed axis, with the rows [S, T] that were asked, as
  `store.make_result` takes them."""
  asked = {"valid_rows": rows("valid")[own], "test_rows": rows("test")[own]}
  return {
    look.name: {name: n[own] for name, n in looked[look.name].items()} | {"right_rows": rows(look.split)[own], **asked}
    for look in looks
  }


def looks_of(names: Sequence[str], spec: Spec, valid_rows: np.ndarray, method: Method) -> tuple[Look, ...]:
  """The looks of a run.

  Args:
    names: of LOOKS.
    valid_rows: [S, T] validation rows.

  Raises:
    ConfigError: a name twice, or a look that the stream or the method cannot serve.
  """
  if len(set(names)) < len(names):
    raise ConfigError(f"config.looks={tuple(names)} names a look twice")
  looks = tuple(LOOKS[name] for name in names)
  asking = [f"config.looks names {look.name!r}, which" for look in looks if look.split == "valid"]
  asking += ["the method, or its gate (config.gate),"] * (method.needs_valid and spec.boundaries)
  if asking and not valid_rows.all():
    task = int(valid_rows.min(axis=0).argmin()) + 1
    raise ConfigError(
      f"{asking[0]} asks the validation rows of every task, and task {task} has none: "
      "set config.stream.valid_per_task (or valid_share, valid_per_class) above 0, or leave it out"
    )
  for look in looks:
    if look.when != "row" and not spec.boundaries:
      raise ConfigError(
        f"config.looks names {look.name!r}, and config.stream.boundaries=False leaves it no place: such a "
        "stream has no epochs and no end of a task; set it to True, or leave it out"
      )
    look.check(method, spec)
  return looks
