"""Tasks of random sets of classes, each with noise and an order of the channels of its own.

As Lee, Behpour and Eaton 2021 (https://proceedings.mlr.press/v139/lee21a.html) use STL-10. What the tasks are
depends on `task_seed` alone, and so does the noise of a picture in a task; a seed draws the rows.
"""

import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from cljax.data.bank import Source
from cljax.data.class_lists import Counts, first_tests, rows_by_class
from cljax.data.pictures import picture_stream
from cljax.data.sample import folded, permutations
from cljax.data.streams import MOST_TASKS, ROWS, SCENARIOS, Layout, Tasks, lay, pad, require, require_pictures
from cljax.data.warp import NoisyChannels
from cljax.declared import any_number, at_least, free, one_of
from cljax.types import Array, Key, Spec, Stream

CLASSES, MEAN, DEVIATION, CHANNELS, TRAIN, TEST = range(6)  # purposes of the tasks' key
MEANS, DEVIATIONS = (-2, -1, 0, 1), (0, 1)  # in units of `noise_unit`


@picture_stream
def noisy_subsets(
  source: Source,
  key: Key,
  *,
  tasks: Tasks = 20,
  classes_per_task: Annotated[int, at_least(1, "classes of each task, no two tasks the same set", MOST_TASKS)] = 3,
  task_seed: Annotated[int, any_number("of the tasks' classes, noise and channels, for all seeds alike")] = 0,
  noise_unit: Annotated[
    float, at_least(0, "means of -2, -1, 0 or 1 and deviations of 0 or 1 of it are drawn", 1)
  ] = 0.025,
  permute_channels: Annotated[bool, free("an order of the channels drawn for each task")] = True,
  scenario: Annotated[str, one_of(SCENARIOS, "what a task is told apart by, see `data.streams`")] = "task",
  counts: Counts = Counts(train_per_class=106, valid_per_class=19),
) -> tuple[Spec, Stream]:
  """T random sets of classes; pictures in [-.5, .5] with the task's noise added, then its order of the channels."""
  C = len(source.classes)
  require_pictures(source, "config.stream.name='noisy_subsets'")
  require(
    classes_per_task <= C and tasks <= math.comb(C, classes_per_task),
    f"config.stream.tasks={tasks} with config.stream.classes_per_task={classes_per_task}: the {C} classes of the data "
    f"make {math.comb(C, classes_per_task)} different sets of so many; lower one of them",
  )
  own = jax.random.key(task_seed)
  classes = [source.classes[chosen] for chosen in distinct_sets(own, tasks, C, classes_per_task)]
  keys = jax.vmap(folded)(folded(jax.random.fold_in(key, ROWS), np.arange(tasks)), np.array(classes)).reshape(-1)
  rows = rows_by_class(keys, source, np.concatenate(classes), counts)
  parts = [rows[t * classes_per_task : (t + 1) * classes_per_task] for t in range(tasks)]
  train, valid = ([np.concatenate([row[k] for row in part]) for part in parts] for k in (0, 1))
  seen, asked = (
    noisy_channels(own, tasks, source.train.x.shape[-1], noise_unit, permute_channels, k) for k in (TRAIN, TEST)
  )
  spec, stream = lay(source, Layout(classes, seen), scenario, train, valid)
  test = stream.test._replace(warp=asked)
  if counts.test_per_class:
    idx, count = pad(first_tests(source, classes, counts.test_per_class))
    test = test._replace(idx=idx, count=count)
  return spec, stream._replace(test=test)


def distinct_sets(key: Key, tasks: int, C: int, size: int) -> np.ndarray:
  """[T, size] numbers below C: random sets in random order, no two of them equal; more tasks keep the first ones."""
  keys = jax.random.fold_in(key, CLASSES)
  found: dict[tuple[int, ...], np.ndarray] = {}
  first = 0
  while len(found) < tasks:
    draws = permutations(folded(keys, first + np.arange(tasks)), C)
    for draw in np.asarray(draws)[:, :size]:
      found.setdefault(tuple(sorted(draw.tolist())), draw)
    first += tasks
  return np.array(list(found.values())[:tasks])


def noisy_channels(key: Key, tasks: int, channels: int, unit: float, permute: bool, bank: int) -> NoisyChannels:
  """The warp of each task [T] for the rows of one bank (TRAIN or TEST), which share all but the seed of the noise."""
  warp = jax.tree.map(np.asarray, drawn(key, jnp.arange(tasks), jnp.int32(bank), channels, permute))
  return warp._replace(mean=np.float32(unit) * warp.mean, deviation=np.float32(unit) * warp.deviation)


@functools.partial(jax.jit, static_argnums=(3, 4))
def drawn(key: Key, numbers: Array, bank: Array, channels: int, permute: bool) -> NoisyChannels:
  """The same in units of the noise, of the tasks of these numbers [T]."""

  def draw(t):
    mean, deviation, order, seed = (
      jax.random.fold_in(jax.random.fold_in(key, k), t) for k in (MEAN, DEVIATION, CHANNELS, bank)
    )
    return NoisyChannels(
      jax.random.choice(mean, jnp.array(MEANS, jnp.float32)),
      jax.random.choice(deviation, jnp.array(DEVIATIONS, jnp.float32)),
      jax.random.permutation(order, channels) if permute else jnp.arange(channels),
      jax.random.randint(seed, (), 0, 2**31 - 1),
    )

  return jax.vmap(draw)(numbers)
