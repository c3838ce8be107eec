"""Tasks of named lists of classes with few rows of each class, standardised by task and split.

The lists of CIFAR-100 and of Office-Home are those of Lee, Behpour and Eaton 2021
(https://proceedings.mlr.press/v139/lee21a.html), whose logit k stands for the k-th class of its list. A class that
occurs in several tasks has the same rows in each of them, so that no row held out in one task is trained on in another.
Office-Home's published shares are `train_share=.6` and `valid_share=.1`, with `standardise=none`.
"""

from typing import Annotated, NamedTuple

import jax
import numpy as np

from cljax.data.bank import Source
from cljax.data.pictures import picture_stream
from cljax.data.sample import folded, orders
from cljax.data.streams import MOST_TASKS, ROWS, SCENARIOS, Layout, lay, pad, require
from cljax.data.warp import Standardisation
from cljax.declared import at_least, free, one_of
from cljax.types import Key, Rows, Spec, Stream

CIFAR100 = (
  (4, 1, 54, 9, 0, 5, 6, 3, 12, 8),
  (30, 32, 62, 10, 51, 20, 7, 42, 17, 13),
  (55, 67, 70, 16, 53, 25, 14, 43, 37, 48),
  (72, 73, 82, 28, 57, 84, 18, 88, 68, 58),
  (95, 91, 92, 61, 83, 94, 24, 97, 76, 90),
  (22, 23, 15, 34, 26, 2, 27, 36, 47, 41),
  (39, 33, 19, 63, 45, 11, 29, 50, 52, 69),
  (40, 49, 21, 64, 77, 35, 44, 65, 56, 81),
  (86, 60, 31, 66, 79, 46, 78, 74, 59, 85),
  (87, 71, 38, 75, 99, 98, 93, 80, 96, 89),
)
OFFICE_HOME = (  # of either domain
  (63, 54, 55, 59, 47, 8, 5, 56, 18, 50, 3, 57, 13),
  (62, 19, 21, 35, 64, 46, 27, 10, 39, 17, 22, 34, 30),
  (48, 15, 51, 6, 40, 31, 4, 36, 45, 41, 16, 14, 11),
  (9, 29, 1, 44, 33, 26, 25, 32, 53, 12, 43, 38, 60),
  (28, 2, 49, 37, 20, 23, 58, 24, 52, 61, 7, 0, 42),
)
NEIGHBOURS = (0, 5, 1, 6, 2, 7, 3, 8, 9, 4)  # the order in which the 40 tasks take the ten lists


def mixed_lists(lists: tuple[tuple[int, ...], ...] = CIFAR100) -> list[tuple[int, ...]]:
  """40 lists of 10 classes made of ten disjoint ones.

  Twenty alternate a list with its mixture with the next (even places of the one, odd places of the next); twenty are
  made of the even places, and of the odd places, of two lists whose superclasses are the same kind of thing.
  """
  found = []
  for one, following in zip(NEIGHBOURS, NEIGHBOURS[1:] + NEIGHBOURS[:1], strict=True):
    found += [lists[one], woven(lists[one][0::2], lists[following][1::2])]
  even = [woven(lists[k][0::2], lists[k + 5][0::2]) for k in range(5)]
  odd = [woven(lists[k][1::2], lists[k + 5][1::2]) for k in range(5)]
  for k in range(5):
    found += [even[k], odd[k][:5] + even[k][5:], odd[k], even[(k + 1) % 5][:5] + odd[k][5:]]
  return found


def woven(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
  """Two lists of one length, taking turns."""
  return tuple(label for pair in zip(first, second, strict=True) for label in pair)


LISTS: dict[str, list[tuple[int, ...]]] = {
  "cifar100_10": list(CIFAR100),
  "cifar100_40": mixed_lists(),
  "office_home": list(OFFICE_HOME) + [tuple(label + 65 for label in labels) for labels in OFFICE_HOME],
}
NEEDS = {"cifar100_10": ("cifar100", 100), "cifar100_40": ("cifar100", 100), "office_home": ("office_home", 130)}
STANDARDISE = ("split", "train", "none")
Standardise = Annotated[
  str, one_of(STANDARDISE, "channels by mean and deviation of each task's split, of its training rows, or as they are")
]


class Counts(NamedTuple):
  """Rows of each class."""

  train_per_class: Annotated[int, at_least(0, "training rows of each class; 0: all that are left")] = 17
  valid_per_class: Annotated[int, at_least(0, "rows of each class held out of training for validation")] = 3
  test_per_class: Annotated[int, at_least(0, "test rows of each class, the bank's first; 0: all")] = 0
  train_share: Annotated[float, at_least(0, "of all rows of a class, tests too, in place of train_per_class", 1)] = 0.0
  valid_share: Annotated[float, at_least(0, "of all rows of a class, tests too, in place of valid_per_class", 1)] = 0.0

  def of(self, rows: int, tests: int) -> tuple[int, int]:
    """Training and validation rows of a class that has so many rows beside its tests; shares are rounded down."""
    take = max(int(self.train_share * (rows + tests)), 1) if self.train_share else self.train_per_class
    return take, int(self.valid_share * (rows + tests)) if self.valid_share else self.valid_per_class


@picture_stream
def class_lists(
  source: Source,
  key: Key,
  *,
  lists: Annotated[str, one_of(("consecutive", *LISTS), "which classes each task has")] = "consecutive",
  classes_per_task: Annotated[int, at_least(1, "classes of each task, where lists are consecutive")] = 2,
  tasks: Annotated[int, at_least(0, "the first so many lists; 0: all", MOST_TASKS)] = 0,
  scenario: Annotated[str, one_of(SCENARIOS, "what a task is told apart by, see `data.streams`")] = "task",
  counts: Counts = Counts(),
  standardise: Standardise = "split",
  same_images: Annotated[bool, free("all seeds have the same rows; else each seed draws its own")] = False,
) -> tuple[Spec, Stream]:
  """A list of classes a task; the label of a row is its class's place in the list (with one head, in label order)."""
  classes = labels_of(source, lists, classes_per_task)
  require(
    tasks <= len(classes),
    f"config.stream.tasks={tasks} is more than the {len(classes)} tasks of config.stream.lists={lists!r}; 0 is all",
  )
  classes = classes[: tasks or len(classes)]
  labels = np.unique(np.concatenate(classes))
  keys = folded(jax.random.fold_in(jax.random.key(0) if same_images else key, ROWS), labels)
  rows = dict(zip(labels.tolist(), rows_by_class(keys, source, labels, counts), strict=True))
  train, valid = ([np.concatenate([rows[int(c)][part] for c in own]) for own in classes] for part in (0, 1))
  spec, stream = lay(source, Layout(classes, None), scenario, train, valid)
  if counts.test_per_class:
    stream = stream._replace(test=Rows(*pad(first_tests(source, classes, counts.test_per_class)), None))
  return spec, standardised(stream, standardise)


def labels_of(source: Source, lists: str, classes_per_task: int) -> list[np.ndarray]:
  """The labels of each task, in the order of its list; ConfigError: lists that do not fit the data."""
  C = len(source.classes)
  if lists == "consecutive":
    require(
      C % classes_per_task == 0,
      f"config.stream.classes_per_task={classes_per_task} does not divide the {C} classes of the data; "
      f"choose one of {', '.join(str(n) for n in range(1, C + 1) if C % n == 0)}",
    )
    return list(source.classes.reshape(-1, classes_per_task))
  name, wanted = NEEDS[lists]
  require(
    np.array_equal(source.classes, np.arange(wanted)),
    f"config.stream.lists={lists!r} needs the {wanted} classes of {name}, but the data has {C} from "
    f"{source.classes[0]} to {source.classes[-1]}: use config.stream.source={name}, or config.stream.lists=consecutive",
  )
  return [np.array(labels, np.int32) for labels in LISTS[lists]]


def rows_by_class(keys: Key, source: Source, labels: np.ndarray, counts: Counts) -> list[tuple[np.ndarray, np.ndarray]]:
  """(training rows, validation rows) of each of the labels [n], drawn from the bank by the label's key of keys [n].

  Raises:
    ConfigError: a class has fewer rows.
  """
  pools = {int(c): np.flatnonzero(source.train.y == c).astype(np.int32) for c in np.unique(labels)}
  parts = {c: counts.of(len(pool), int((source.test.y == c).sum())) for c, pool in pools.items()}
  short = max(pools, key=lambda c: sum(parts[c]) + (not parts[c][0]) - len(pools[c]))
  take, held = parts[short]
  require(
    held + max(take, 1) <= len(pools[short]),
    f"config.stream asks for {take or 1} training and {held} validation rows of each class, but class {short} has "
    f"{len(pools[short])} rows; lower config.stream.train_{'share' if counts.train_share else 'per_class'} or "
    f"config.stream.valid_{'share' if counts.valid_share else 'per_class'}",
  )
  own = [pools[int(c)] for c in labels]
  sizes = np.array([len(pool) for pool in own], np.int32)
  drawn = np.asarray(orders(keys, sizes, int(sizes.max())))
  found = []
  for c, pool, order in zip(labels, own, drawn, strict=True):
    (take, held), mine = parts[int(c)], pool[order[: len(pool)]]
    found.append((mine[held : held + take if take else None], mine[:held]))
  return found


def first_tests(source: Source, classes: list[np.ndarray], most: int) -> list[np.ndarray]:
  """The first test rows of each class of each task, in the bank's order; ConfigError: a class has fewer."""
  found = []
  for labels in classes:
    rows = [np.flatnonzero(source.test.y == label).astype(np.int32) for label in labels]
    short = min(map(len, rows))
    require(
      short >= most,
      f"config.stream.test_per_class={most} is more than the {short} test rows of a class; 0 takes all of each class",
    )
    found.append(np.sort(np.concatenate([each[:most] for each in rows])))
  return found


def standardised(stream: Stream, by: str) -> Stream:
  """The stream with each task's splits standardised by their own statistics, or by those of its training rows."""
  if by == "none":
    return stream
  tasks, test = stream.tasks, stream.test
  train = moments(stream.bank.x, tasks.train)
  valid = moments(stream.bank.x, tasks.valid) if by == "split" and tasks.valid.count.all() else train
  own = moments(stream.test_bank.x, test) if by == "split" else train
  tasks = tasks._replace(train=tasks.train._replace(warp=train), valid=tasks.valid._replace(warp=valid))
  return stream._replace(tasks=tasks, test=test._replace(warp=own))


def moments(x: np.ndarray, rows: Rows) -> Standardisation:
  """The standardisation of each task [T, channels] by the rows of one split; a deviation is at least one over the root
  of the number of pixels, so that a constant channel becomes zeros."""
  mean, scale = [], []
  for index, count in zip(rows.idx, rows.count, strict=True):
    pixels = x[index[:count]].reshape(-1, x.shape[-1])
    own = [mean_and_deviation(channel) for channel in pixels.T]
    mean.append([average for average, _ in own])
    scale.append([1 / max(deviation, len(pixels) ** -0.5) for _, deviation in own])
  return Standardisation(np.array(mean, np.float32), np.array(scale, np.float32))


def mean_and_deviation(values: np.ndarray) -> tuple[float, float]:
  """Of float values [N], or of the fractions that uint8 ones stand for, which are counted instead of converted."""
  if values.dtype != np.uint8:
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
  share = np.bincount(values, minlength=256) / len(values)
  levels = np.arange(256) / 255
  mean = share @ levels
  return float(mean), float(np.sqrt(share @ (levels - mean) ** 2))
