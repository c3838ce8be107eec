"""Streams over joined data sets (`data.join`): one data set a task, or copies of one to relate to each other."""

from typing import Annotated

import jax
import numpy as np

from cljax.data.bank import Source
from cljax.data.folder import Shape
from cljax.data.pictures import picture_stream
from cljax.data.streams import MOST_TASKS, SCENARIOS, Layout, lay, order_of, require, require_pictures, stratified
from cljax.data.warp import Rotation
from cljax.declared import any_number, at_least, free, one_of
from cljax.types import Key, Spec, Stream

ANGLES = (0.0, 0.0, 9.0, 18.0, 27.0, 36.0, 45.0)
ValidShare = Annotated[float, at_least(0, "of each class, held out of training for validation", 1)]
SPLIT, DRAW, RELABEL = range(10, 13)  # purposes of a stream's key, beside those of data.streams


def groups_of(source: Source) -> tuple[tuple[str, np.ndarray], ...]:
  """The data sets of a source; one that was not joined is one."""
  return source.groups or (("all", source.classes),)


def keyed(key: Key, purpose: int, t: int) -> Key:
  """The key of one task for one purpose."""
  return jax.random.fold_in(jax.random.fold_in(key, purpose), t)


@picture_stream
def datasets(
  source: Source,
  key: Key,
  *,
  tasks: Annotated[int, at_least(0, "the first so many data sets; 0 is all", MOST_TASKS)] = 0,
  scenario: Annotated[str, one_of(SCENARIOS, "what a task is told apart by, see `data.streams`")] = "task",
  examples_per_task: Annotated[int, at_least(0, "the most training rows of a task, drawn at random; 0: all")] = 0,
  valid_share: ValidShare = 0.1,
  shuffle_order: Annotated[bool, free("the data sets in an order drawn from the key")] = False,
  shape: Shape = Shape(28, 1),
) -> tuple[Spec, Stream]:
  """One data set a task, each with its own labels; C is the largest label space."""
  groups = groups_of(source)
  require(
    tasks <= len(groups),
    f"config.stream.tasks={tasks} is more than the {len(groups)} data sets: "
    f"{', '.join(name for name, _ in groups)}; join more by config.stream.source='a+b+c'",
  )
  T = tasks or len(groups)
  require(valid_share < 1, f"config.stream.valid_share={valid_share}: a share is at least 0 and less than 1")
  classes = [groups[k][1] for k in order_of(key, T, shuffle_order)]
  train, valid = [], []
  for t, labels in enumerate(classes):
    rows = np.flatnonzero(np.isin(source.train.y, labels)).astype(np.int32)
    kept, held = stratified(keyed(key, SPLIT, t), rows, source.train.y[rows], valid_share)
    if 0 < examples_per_task < len(kept):
      kept = np.sort(np.asarray(jax.random.permutation(keyed(key, DRAW, t), kept))[:examples_per_task])
    train.append(kept)
    valid.append(held)
  return lay(source, Layout(classes, None), scenario, train, valid)


@picture_stream
def copies(
  source: Source,
  key: Key,
  *,
  angles: Annotated[tuple[float, ...], any_number("degrees of each copy")] = ANGLES,
  scenario: Annotated[str, one_of(SCENARIOS, "`task`: copies need a head each")] = "task",
  examples_per_task: Annotated[int, at_least(1, "rows of each task, of which `valid_share` are held out")] = 5000,
  valid_share: ValidShare = 0.1,
  shape: Shape = Shape(28, 1),
) -> tuple[Spec, Stream]:
  """Copies of the first data set, turned by `angles`, each with rows of its own; then each other data set as it is.

  Copies after the first are relabelled: their logits name the same global labels in another order, so that a copy
  shares pictures and labels with the first task, but no answer of its head. A row answered through another copy's
  expert can therefore be right; the strict count asks for the right expert as well.
  """
  groups = groups_of(source)
  n, others = len(angles), len(groups) - 1
  require(1 <= n <= MOST_TASKS, f"config.stream.angles={angles}: 1 to {MOST_TASKS} copies are needed")
  require(valid_share < 1, f"config.stream.valid_share={valid_share}: a share is at least 0 and less than 1")
  require_pictures(source, "config.stream.name='copies'")
  require(scenario == "task", f"config.stream.scenario={scenario!r}: relabelled copies need a head each, 'task'")
  base = np.flatnonzero(np.isin(source.train.y, groups[0][1]))
  require(
    0 < examples_per_task * n <= len(base),
    f"config.stream.examples_per_task={examples_per_task} for {n} copies with rows of their own needs "
    f"{examples_per_task * n} rows, but {groups[0][0]} has {len(base)}; the most is {len(base) // n}",
  )
  drawn = np.asarray(jax.random.permutation(keyed(key, DRAW, 0), base)).astype(np.int32)
  rows = [np.sort(drawn[k * examples_per_task : (k + 1) * examples_per_task]) for k in range(n)]
  classes = [groups[0][1]]
  classes += [np.asarray(jax.random.permutation(keyed(key, RELABEL, k), groups[0][1])) for k in range(1, n)]
  for k, (_, labels) in enumerate(groups[1:]):
    own = np.flatnonzero(np.isin(source.train.y, labels))
    own = np.asarray(jax.random.permutation(keyed(key, DRAW, n + k), own))[:examples_per_task]
    rows.append(np.sort(own).astype(np.int32))
    classes.append(labels)
  split = [stratified(keyed(key, SPLIT, t), own, source.train.y[own], valid_share) for t, own in enumerate(rows)]
  train, valid = map(list, zip(*split, strict=True))
  turns = np.array([*angles, *[0.0] * others], np.float32)
  return lay(source, Layout(classes, Rotation(turns)), scenario, train, valid)
