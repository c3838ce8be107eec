"""One's own arrays as a stream: pairs of pictures and labels, a pair for each task, or one pair and lists of rows."""

from collections.abc import Sequence
from numbers import Number
from typing import Any, NamedTuple

import numpy as np

from cljax.data.arrays import AS, array_of, pair_of
from cljax.data.pictures import dressed
from cljax.data.streams import SCENARIOS, pad
from cljax.errors import ConfigError, choose
from cljax.types import Bank, Rows, Spec, Stream, Task

Given = Any  # [(x, y), ...] one pair a task, or (x, y, [rows of each task, ...])


class Pairs(NamedTuple):
  """A split: all examples, and which rows each task has."""

  x: np.ndarray  # [N, ...] uint8 or float32
  y: np.ndarray  # [N] int32
  rows: list[np.ndarray]  # [T] of int32 rows


def from_arrays(
  train: Given, test: Given, valid: Given = None, scenario: str = "task", **pictures: Any
) -> tuple[Spec, Stream]:
  """(spec, stream) of one's own arrays, for `fit(method, spec, stream)`.

  Args:
    train: training examples of each task: a list of pairs `(x, y)`, or `(x, y, rows)`, where `rows` lists the row
      numbers of each task, and tasks may share rows. x is uint8 pictures [N, height, width, channels] or
      [N, height, width], which become numbers from 0 to 1, or floats of any shape [N, ...], which pass as they are; y
      is whole numbers [N].
    test: the same, as many tasks. A task is tested on its own rows.
    valid: the same, or None for no validation rows.
    scenario: `task`, a head for each task, which may number its classes as it likes; `class`, one head over the labels
      of all tasks; `domain`, one head whose labels mean the same in every task.
    pictures: `normalise`, `mean`, `std`, `flip` and `crop`, see `data.pictures.Pictures`.

  Raises:
    ConfigError: arrays that do not fit each other, with the task and what was found.
  """
  choose("scenario", scenario, SCENARIOS)
  splits = {"train": pairs_of("train", train), "test": pairs_of("test", test)}
  T, shape = len(splits["train"].rows), splits["train"].x.shape[1:]
  splits["valid"] = pairs_of("valid", valid) if valid is not None else nothing_like(splits["train"])
  for name, split in splits.items():
    if len(split.rows) != T:
      raise ConfigError(f"{name} has {len(split.rows)} tasks, but train has {T}")
    if split.x.shape[1:] != shape or split.x.dtype != splits["train"].x.dtype:
      raise ConfigError(
        f"{name} has examples of {split.x.dtype} {split.x.shape[1:]}, but those of train are "
        f"{splits['train'].x.dtype} {shape}"
      )
    for t, rows in enumerate(split.rows):
      if not len(rows) and name != "valid":
        raise ConfigError(f"task {t + 1} has no rows in {name}; each task needs one or more")
  train_rows = splits["train"]
  classes = [np.unique(train_rows.y[rows]) for rows in train_rows.rows]
  known = [np.unique(np.concatenate(classes))] * T if scenario == "domain" else classes
  for name in ("test", "valid"):
    check_known(name, splits[name], known)
  return dressed(*laid(splits, known, scenario), **pictures)


def laid(splits: dict[str, Pairs], classes: list[np.ndarray], scenario: str) -> tuple[Spec, Stream]:
  """The spec and the stream of splits that fit each other, with the labels that each task asks about."""
  T, known = len(classes), np.unique(np.concatenate(classes))
  C = max(map(len, classes)) if scenario == "task" else len(known)
  label_map = np.zeros((T, int(known[-1]) + 1), np.int32)
  label_unmap, live = np.zeros((T, C), np.int32), np.zeros((T, C), bool)
  for t, own in enumerate(classes):
    means = own if scenario == "task" else known  # what the first logits stand for
    label_map[t, means] = np.arange(len(means))
    label_unmap[t, : len(means)] = means
    live[t, np.searchsorted(means, own)] = True
  train, valid, test = splits["train"], splits["valid"], splits["test"]
  bank = Bank(np.concatenate([train.x, valid.x]), np.concatenate([train.y, valid.y]))
  held = [rows + len(train.x) for rows in valid.rows]
  tasks = Task(Rows(*pad(train.rows), None), Rows(*pad(held), None), label_map, label_unmap, live)
  heads, longest = T if scenario == "task" else 1, tuple(map(len, train.rows))
  spec = Spec(train.x.shape[1:], T, C, heads, rows=longest, x_bytes=train.x.dtype.itemsize)
  return spec, Stream(bank, tasks, Bank(test.x, test.y), Rows(*pad(test.rows), None))


def pairs_of(name: str, given: Given) -> Pairs:
  """What was given for a split, checked.

  Raises:
    ConfigError: neither of the two forms, or wrong arrays.
  """
  if not isinstance(given, Sequence) or not len(given):
    raise ConfigError(f"{name} is {type(given).__name__}: {AS}")
  if not is_one_pair(given):
    found = [pair_of(f"{name}, task {t + 1}", pair) for t, pair in enumerate(given)]
    shapes = {x.shape[1:] for x, _ in found}
    if len(shapes) > 1:
      raise ConfigError(f"{name} has examples of different shapes, {sorted(shapes)}; all tasks need the same")
    ends = np.cumsum([0, *(len(y) for _, y in found)])
    rows = [np.arange(a, b, dtype=np.int32) for a, b in zip(ends, ends[1:], strict=False)]
    return Pairs(np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found]), rows)
  x, y = pair_of(name, given[:2])
  if not isinstance(given[2], Sequence | np.ndarray) or not len(given[2]):
    raise ConfigError(f"{name} has {type(given[2]).__name__} in place of a list of row numbers for each task: {AS}")
  return Pairs(x, y, [rows_of(f"{name}, task {t + 1}", rows, len(y)) for t, rows in enumerate(given[2])])


def is_one_pair(given: Sequence[Any]) -> bool:
  """Whether it is (x, y, rows), and not three tasks: of which the second would be a pair whose first is no number."""
  if len(given) != 3:
    return False
  second = given[1]
  pair = isinstance(second, tuple | list) and len(second) == 2 and not isinstance(second[0], Number | np.generic)
  return not pair and second is not None


def rows_of(name: str, rows: Any, count: int) -> np.ndarray:
  """Row numbers of one task, int32.

  Raises:
    ConfigError: no row numbers of `count` examples.
  """
  found = array_of(name, rows)
  if found.dtype == bool:
    raise ConfigError(
      f"{name}: rows are a mask {list(found.shape)}; give the numbers of its rows, np.flatnonzero(mask)"
    )
  if found.ndim != 1 or not (np.issubdtype(found.dtype, np.integer) or not found.size):
    raise ConfigError(f"{name}: rows are {found.dtype} {list(found.shape)}; they are a list of whole numbers")
  if found.size and (found.min() < 0 or found.max() >= count):
    raise ConfigError(f"{name}: rows from {found.min()} to {found.max()}, but there are {count} examples, from 0 on")
  return found.astype(np.int32)


def nothing_like(train: Pairs) -> Pairs:
  """A split of as many tasks without a row."""
  return Pairs(train.x[:0], train.y[:0], [np.zeros(0, np.int32) for _ in train.rows])


def check_known(name: str, split: Pairs, classes: list[np.ndarray]) -> None:
  """
  Raises:
    ConfigError: a task is asked about labels that its training rows do not have.
  """
  for t, rows in enumerate(split.rows):
    unknown = sorted(set(split.y[rows].tolist()) - set(classes[t].tolist()))
    if unknown:
      raise ConfigError(f"{name}, task {t + 1} has the labels {unknown[:10]}, which its training rows do not have")
