"""Tasks of classes that are given one by one, and may come again: through permutations, or in a stream that hides where
tasks begin."""

from typing import Annotated

import jax
import numpy as np

from cljax.data.bank import Source
from cljax.data.pictures import picture_stream
from cljax.data.sample import folded, orders, permutations
from cljax.data.streams import MOST_TASKS, PASS, PERMUTE, SCENARIOS, Layout, draw_rows, lay, places_of, require
from cljax.data.warp import Permutation
from cljax.declared import at_least, free, one_of
from cljax.types import Key, Spec, Stream

PAIRS = ((1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 2))


@picture_stream
def subsets(
  source: Source,
  key: Key,
  *,
  classes: Annotated[tuple[tuple[int, ...], ...], at_least(0, "labels of each task")] = PAIRS,
  scenario: Annotated[
    str, one_of(("all", *SCENARIOS), "as in `data.streams`; all: one head, every class of the data competes")
  ] = "all",
  permuted_rounds: Annotated[int, at_least(0, "all tasks again, through permutations of their own", MOST_TASKS)] = 0,
  boundaries: Annotated[bool, free("False hides where a task begins: its rows come, then the next task's")] = True,
  passes: Annotated[int, at_least(1, "how often a hidden task's rows come, each time in another order", 10_000)] = 1,
  examples_per_task: Annotated[int, at_least(0, "training rows of each task; 0: all")] = 0,
  valid_per_task: Annotated[int, at_least(0, "rows held out of training for validation")] = 0,
) -> tuple[Spec, Stream]:
  """Tasks of given classes, which may share some. Unless `scenario` says else they are under one head over all classes
  of the data: every answer competes with all others, and the task's identity is no part of the answer. Where boundaries
  are given `passes` is 1, and a method's epochs repeat the rows.
  """
  require(
    boundaries or scenario == "all",
    f"config.stream.scenario={scenario!r} tells which classes a task has, and config.stream.boundaries=False hides "
    "where it begins: leave out one of them",
  )
  require(
    passes == 1 or not boundaries,
    f"config.stream.passes={passes}: at least 1 where boundaries are hidden, else 1 (use config.method.epochs)",
  )
  for labels in classes:
    unknown = sorted(set(labels) - set(source.classes.tolist()))
    require(not unknown, f"config.stream.classes={classes}: the data has no labels {unknown}")
    require(len(set(labels)) == len(labels), f"config.stream.classes={classes}: a task names a class twice")
  warp, rounds = None, permuted_rounds + 1
  require(
    rounds * len(classes) <= MOST_TASKS,
    f"config.stream.permuted_rounds={permuted_rounds} makes {rounds * len(classes)} tasks; the most is {MOST_TASKS}",
  )
  if permuted_rounds:
    pixels = places_of(source)
    keys = folded(jax.random.fold_in(key, PERMUTE), np.arange(1, rounds))
    index = [np.arange(pixels), *np.asarray(permutations(keys, pixels))]
    warp = Permutation(np.repeat(np.array(index, np.int32), len(classes), axis=0))
  layout = Layout([np.array(sorted(labels), np.int32) for labels in classes] * rounds, warp)
  train, valid = draw_rows(key, source.train.y, layout.classes, examples_per_task, valid_per_task)
  if not boundaries:
    train = repeated(jax.random.fold_in(key, PASS), train, passes)
  spec, stream = lay(source, layout, "class" if scenario == "all" else scenario, train, valid)
  live = np.ones_like(stream.tasks.classes) if scenario == "all" else stream.tasks.classes
  return spec._replace(boundaries=boundaries), stream._replace(tasks=stream.tasks._replace(classes=live))


def repeated(key: Key, tasks: list[np.ndarray], passes: int) -> list[np.ndarray]:
  """The rows of each task `passes` times, each time in another keyed order."""
  longest, found = max(map(len, tasks)), []
  for t, rows in enumerate(tasks):
    keys = folded(jax.random.fold_in(key, t), np.arange(passes))
    drawn = np.asarray(orders(keys, np.full(passes, len(rows), np.int32), longest))
    found.append(rows[drawn[:, : len(rows)].ravel()])
  return found
