"""Scenarios as index tables: a builder lays T tasks over one bank, and copies no picture.

A builder is `(source, key, *, tasks, ...) -> (Spec, Stream)`; `cljax.data.STREAMS` has them all. All random choices
(permutations, drawn rows, task order) come from `key`, so a seed names its stream. Arrays are numpy: `stack` joins the
streams of several seeds and keeps one copy of what they share.

Scenarios (van de Ven and Tolias 2019): `task` gives the task's identity and one head to each task; `class` has one head
over all classes; `domain` has one head whose classes mean the same in every task.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

from cljax.data.bank import Source
from cljax.data.pictures import picture_stream
from cljax.data.sample import folded, orders, permutations
from cljax.data.warp import Permutation, Rotation
from cljax.declared import any_number, at_least, free, one_of
from cljax.errors import ConfigError
from cljax.types import Key, Rows, Spec, Stream, Task

SCENARIOS = ("task", "class", "domain")
MOST_TASKS = 10_000
PERMUTE, ROWS, ORDER, PASS = range(4)  # purposes of a stream's key


class Drawn(NamedTuple):
  """What streams over one data set share."""

  scenario: Annotated[str, one_of(SCENARIOS, "what a task is told apart by, see `data.streams`")] = "task"
  examples_per_task: Annotated[int, at_least(0, "training rows of each task; 0: all, in the bank's order")] = 0
  valid_per_task: Annotated[int, at_least(0, "rows held out of training for validation")] = 0
  shuffle_order: Annotated[bool, free("tasks (of split: the classes) in an order drawn from the key")] = False


Tasks = Annotated[int, at_least(1, "T", MOST_TASKS)]


class Layout(NamedTuple):
  """What a builder decides before rows are drawn."""

  classes: list[np.ndarray]  # for each task, its global labels in logit order
  warp: Any  # leaves [T, ...], or None


def require(condition: bool, message: str) -> None:
  """ConfigError with the message unless the condition holds."""
  if not condition:
    raise ConfigError(message)


def places_of(source: Source) -> int:
  """What a permutation moves: pixels, whose channels stay together, or the numbers of a vector."""
  shape = source.train.x.shape[1:]
  return math.prod(shape[:2] if len(shape) == 3 else shape)


def require_pictures(source: Source, what: str) -> None:
  """ConfigError unless examples are pictures, which is what the stream does something with."""
  shape = list(source.train.x.shape[1:])
  way = "; give them a channel: x[..., None]" if len(shape) == 2 else ""
  require(
    len(shape) == 3, f"{what} takes pictures [height, width, channels], but the data has examples of {shape}{way}"
  )


def order_of(key: Key, count: int, shuffle_order: bool) -> np.ndarray:
  """The identity, or the keyed order of `count` things."""
  if not shuffle_order:
    return np.arange(count, dtype=np.int32)
  return np.asarray(jax.random.permutation(jax.random.fold_in(key, ORDER), count))


def draw_rows(
  key: Key, labels: np.ndarray, classes: list[np.ndarray], take: int, held: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Bank rows of each task: (train [T][..], valid [T][..]); all rows in the bank's order unless fewer are asked for.

  Args:
    take: training rows of each task, 0 for all that are left.
    held: validation rows of each task, drawn first and never trained on.
  """
  candidates = {tuple(c): np.flatnonzero(np.isin(labels, c)).astype(np.int32) for c in map(tuple, classes)}
  pools = [candidates[tuple(c)] for c in classes]
  shortest = min(map(len, pools))
  require(
    held + max(take, 1) <= shortest,
    f"config.stream asks for {take or 1} training and {held} validation rows of each task, but the smallest task has "
    f"{shortest} rows; lower config.stream.examples_per_task or config.stream.valid_per_task",
  )
  if not (take or held):
    return pools, [pool[:0] for pool in pools]
  longest = max(map(len, pools)) if not take else take + held
  keys = folded(jax.random.fold_in(key, ROWS), np.arange(len(pools)))
  drawn = np.asarray(orders(keys, np.array([len(pool) for pool in pools], np.int32), longest))
  train, valid = [], []
  for pool, order in zip(pools, drawn, strict=True):
    order = order[: min(longest, len(pool))]
    valid.append(pool[order[:held]])
    train.append(pool[order[held:]])
  return train, valid


def stratified(key: Key, rows: np.ndarray, labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
  """(train, valid): the share of each class of `rows` held out at random, rounded; at least one row, if any share."""
  order = np.asarray(jax.random.permutation(key, len(rows)))
  held = np.zeros(len(rows), bool)
  for label in np.unique(labels):
    own = order[labels[order] == label]
    held[own[: max(round(share * len(own)), int(share > 0))]] = True
  return rows[~held], rows[held]


def pad(tables: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Ragged tables as (idx [T, Nmax] int32, count [T] int32)."""
  count = np.array([len(table) for table in tables], np.int32)
  idx = np.zeros((len(tables), max(int(count.max()), 1)), np.int32)
  for row, table in zip(idx, tables, strict=True):
    row[: len(table)] = table
  return idx, count


def assemble(source: Source, key: Key, layout: Layout, drawn: Drawn) -> tuple[Spec, Stream]:
  """Index tables, label maps and heads of a decided plan, with rows drawn by `draw_rows`."""
  rows = draw_rows(key, source.train.y, layout.classes, drawn.examples_per_task, drawn.valid_per_task)
  return lay(source, layout, drawn.scenario, *rows)


def lay(
  source: Source, layout: Layout, scenario: str, train: list[np.ndarray], valid: list[np.ndarray]
) -> tuple[Spec, Stream]:
  """The same with the rows of each task given."""
  T = len(layout.classes)
  C = len(source.classes) if scenario == "class" else max(map(len, layout.classes))
  label_map = np.zeros((T, int(source.classes.max()) + 1), np.int32)
  label_unmap = np.zeros((T, C), np.int32)
  live = np.zeros((T, C), bool)
  for t, labels in enumerate(layout.classes):
    logits = np.searchsorted(source.classes, labels) if scenario == "class" else np.arange(len(labels))
    label_map[t, labels] = logits
    label_unmap[t, logits] = labels
    live[t, logits] = True
  if scenario == "class":
    label_map[:, source.classes] = np.arange(C)
    label_unmap[:] = source.classes
  tests = [np.flatnonzero(np.isin(source.test.y, labels)).astype(np.int32) for labels in layout.classes]
  if source.whole is not None:  # the data's own validation rows, beside those that are held out
    n, y = len(source.train.y), source.whole.y
    own = [n + np.flatnonzero(np.isin(y[n:], labels)) for labels in layout.classes]
    valid = [np.concatenate(parts).astype(np.int32) for parts in zip(valid, own, strict=True)]
  tasks = Task(Rows(*pad(train), layout.warp), Rows(*pad(valid), layout.warp), label_map, label_unmap, live)
  rows = tuple(len(table) for table in train)
  x = source.train.x
  spec = Spec(x.shape[1:], T, C, T if scenario == "task" else 1, rows=rows, x_bytes=x.dtype.itemsize)
  return spec, Stream(source.whole or source.train, tasks, source.test, Rows(*pad(tests), layout.warp))


@picture_stream
def permuted(
  source: Source,
  key: Key,
  *,
  tasks: Tasks = 20,
  drawn: Drawn = Drawn(),
  identity_first: Annotated[bool, free("the first, before any shuffle, leaves pictures as they are")] = False,
) -> tuple[Spec, Stream]:
  """T fixed random permutations of the pixels, all classes in each task (Kirkpatrick et al. 2017)."""
  places = places_of(source)
  keys = folded(jax.random.fold_in(key, PERMUTE), np.arange(tasks))
  index = np.array(permutations(keys, places), np.int32)
  if identity_first:
    index[0] = np.arange(places)
  warp = Permutation(index[order_of(key, tasks, drawn.shuffle_order)])
  layout = Layout([source.classes] * tasks, warp)
  return assemble(source, key, layout, drawn)


@picture_stream
def rotated(
  source: Source,
  key: Key,
  *,
  tasks: Tasks = 20,
  drawn: Drawn = Drawn(),
  degrees: Annotated[float, any_number("between two tasks")] = 9.0,
) -> tuple[Spec, Stream]:
  """Task t turns pictures by `degrees * t`, counter-clockwise (Larochelle et al. 2007); all classes in each task."""
  require_pictures(source, "config.stream.name='rotated'")
  require(
    abs(degrees) * tasks <= 360,
    f"config.stream.tasks={tasks} turns of config.stream.degrees={degrees:g} pass 360 and would repeat a task; "
    f"the most is {int(360 // abs(degrees)) if degrees else tasks} tasks",
  )
  angle = np.float32(degrees) * order_of(key, tasks, drawn.shuffle_order).astype(np.float32)
  return assemble(source, key, Layout([source.classes] * tasks, Rotation(angle)), drawn)


@picture_stream
def split(
  source: Source,
  key: Key,
  *,
  tasks: Tasks = 5,
  sizes: Annotated[
    tuple[int, ...], at_least(1, "classes of each task, in place of tasks; (): equally many", least=0)
  ] = (),
  drawn: Drawn = Drawn(),
) -> tuple[Spec, Stream]:
  """The classes dealt out to T tasks, equally many each unless `sizes` tells, in label order or one drawn from the key
  (Zenke et al. 2017)."""
  C = len(source.classes)
  if sizes:
    require(
      sum(sizes) == C,
      f"config.stream.sizes={sizes} deals out {sum(sizes)} classes, but the data has {C}: make the sum {C}, or take "
      "some of the classes by config.stream.name=subsets",
    )
  require(
    bool(sizes) or tasks <= C,
    f"config.stream.tasks={tasks} is more than the {C} classes of the data; split gives each task a class or more",
  )
  require(
    bool(sizes) or C % tasks == 0,
    f"config.stream.tasks={tasks} does not divide the {C} classes of the data; "
    f"choose one of {', '.join(str(n) for n in range(1, C + 1) if C % n == 0)}, or tell each task's by "
    "config.stream.sizes",
  )
  ends = np.cumsum(sizes or [C // tasks] * tasks)
  dealt = np.split(source.classes[order_of(key, C, drawn.shuffle_order)], ends[:-1])
  layout = Layout([np.sort(labels) for labels in dealt], None)
  return assemble(source, key, layout, drawn)


def stack(streams: Sequence[Stream]) -> tuple[Stream, Any]:
  """Joins the streams of several seeds: (stream, axes).

  `axes` has the stream's structure and says of each leaf whether it carries a leading [S] (0) or is shared (None).
  """

  def join(*leaves):
    if all(leaf is leaves[0] for leaf in leaves):
      return leaves[0], None
    longest = [max(sizes) for sizes in zip(*(np.shape(leaf) for leaf in leaves), strict=True)]
    leaves = [np.pad(leaf, [(0, size - n) for size, n in zip(longest, leaf.shape, strict=True)]) for leaf in leaves]
    if all(np.array_equal(leaf, leaves[0]) for leaf in leaves[1:]):
      return leaves[0], None
    return np.stack(leaves), 0

  structure = jax.tree.structure(streams[0])
  joined = [join(*leaves) for leaves in zip(*(jax.tree.leaves(stream) for stream in streams), strict=True)]
  leaves, axes = zip(*joined, strict=True)
  return jax.tree.unflatten(structure, leaves), jax.tree.unflatten(structure, axes)
