"""An old task, then new ones of classes that it has not seen: sequential transfer as of Xiong, Ren and Urtasun 2020
(https://arxiv.org/abs/1910.04650, Table 1).

New classes are a list in order, or drawn from a pool for each seed; of their rows a half may be kept for another run,
such as the training of a learned rule.
"""

from typing import Annotated

import jax
import numpy as np

from cljax.data.bank import Source
from cljax.data.pictures import picture_stream
from cljax.data.streams import MOST_TASKS, ORDER, SCENARIOS, Layout, lay, require
from cljax.declared import at_least, one_of
from cljax.types import Key, Spec, Stream

HALVES = {"all": slice(None), "first": slice(0, None, 2), "second": slice(1, None, 2)}
Classes = Annotated[tuple[int, ...], at_least(0, "labels of the data, in the order of the logits")]


def rows_of_class(labels: np.ndarray, label: int, half: str) -> np.ndarray:
  """[..] int32 bank rows of one class in the bank's order: all of them, or those at even or odd places."""
  return np.flatnonzero(labels == label)[HALVES[half]].astype(np.int32)


@picture_stream
def transfer(
  source: Source,
  key: Key,
  *,
  old: Classes = (0, 1, 2, 3, 4),
  new: Classes = (5, 6, 7, 8, 9),
  new_tasks: Annotated[int, at_least(1, "tasks after the old one", MOST_TASKS)] = 1,
  new_classes: Annotated[int, at_least(0, "of each, drawn from `new` for each seed; 0: all of `new` in turn")] = 0,
  draw: Annotated[int, at_least(0, "names a draw of classes; others are other tasks of the same seed")] = 0,
  half: Annotated[
    str, one_of(tuple(HALVES), "training rows of each new class: all, those at even places, or at odd places")
  ] = "all",
  scenario: Annotated[str, one_of(SCENARIOS, "what a task is told apart by, see `data.streams`")] = "task",
) -> tuple[Spec, Stream]:
  """One task of the classes `old`, then others of the classes `new`."""
  for name, labels in (("old", old), ("new", new)):
    unknown = sorted(set(labels) - set(source.classes.tolist()))
    require(bool(labels) and not unknown, f"config.stream.{name}={labels}: the data has no labels {unknown}")
    require(len(set(labels)) == len(labels), f"config.stream.{name}={labels} names a class twice")
  both = sorted(set(old) & set(new))
  require(not both, f"config.stream.new={new} has classes of config.stream.old: {both}")
  width, left = (new_classes, 0) if new_classes else divmod(len(new), new_tasks)
  require(
    not left and 0 < width * new_tasks <= len(new),
    f"config.stream.new has {len(new)} classes, which do not make config.stream.new_tasks={new_tasks} tasks of "
    f"{new_classes or 'equally many'} (config.stream.new_classes)",
  )
  pool = np.array(new, np.int32)
  if new_classes:
    pool = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, ORDER), draw), pool))
  classes = [np.array(old, np.int32), *pool[: width * new_tasks].reshape(new_tasks, width)]
  halves = ["all"] + [half] * new_tasks
  train = [
    np.sort(np.concatenate([rows_of_class(source.train.y, int(label), part) for label in labels]))
    for labels, part in zip(classes, halves, strict=True)
  ]
  require(
    min(map(len, train)) > 0,
    f"config.stream.half={half!r} leaves a task without a training row; set it to 'all', or take other classes",
  )
  return lay(source, Layout(classes, None), scenario, train, [rows[:0] for rows in train])
