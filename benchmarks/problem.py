"""What every side learns: MNIST-shaped pictures, a class mean and noise, each task with its own order of the pixels.

All sides take the same pixels, the same permutations and the same initial weights. A run learns task 0, which fills the
memory, and then task 1, which is what is timed.
"""

from typing import Any, NamedTuple

import numpy as np

from cljax.data.bank import Source
from cljax.types import Bank

SIDE, CLASSES, TASKS = 28, 10, 20
BATCH, REPLAY, CAPACITY = 10, 10, 1000  # current rows and memory rows a step, rows of the memory
HIDDEN = 256  # of the shared bottom, in both layers
CNN: dict[str, Any] = {"channels": (16, 32), "hidden": (128,), "window": 3, "stride": 2}  # the convolution net
EXPERTS, WIDTH, K = 20, 20, 4  # of each layer of the mixture
LR, NOISE = 0.1, 0.1  # of plain SGD everywhere; scale of the Gumbel noise with which experts are drawn
TEST_ROWS = 2000
CONTRAST, SPREAD, INK = 16, 70, 0.2  # class means against noise, in grey levels; share of pixels that are not dark


class Problem(NamedTuple):
  """The first two tasks as plain arrays, for all that is not cljax; the pixels are warped already."""

  x: np.ndarray  # [2, N, 784] uint8
  y: np.ndarray  # [2, N] int32
  test_x: np.ndarray  # [2, TEST_ROWS, 784] uint8
  test_y: np.ndarray  # [TEST_ROWS] int32


def pictures(random: np.random.Generator, rows: int) -> Bank:
  """Rows of all classes in turn; the classes' means are the same in every call."""
  fixed = np.random.default_rng(28)
  shape = (SIDE, SIDE, 1)
  base = 120.0 * (fixed.random(shape) < INK)
  means = base + CONTRAST * fixed.normal(size=(CLASSES, *shape))
  y = np.arange(rows) % CLASSES
  x = np.empty((rows, *shape), np.uint8)
  for start in range(0, rows, 5000):  # float noise of all rows at once would be large
    part = y[start : start + 5000]
    noise = SPREAD * random.standard_normal((len(part), *shape), dtype=np.float32)
    x[start : start + 5000] = np.clip(means[part] + noise, 0, 255)
  return Bank(x, y.astype(np.int32))


def source(rows: int) -> Source:
  """The data set with `rows` training rows, all of which make one task."""
  random = np.random.default_rng(7)
  return Source(pictures(random, rows), pictures(random, TEST_ROWS), np.arange(CLASSES, dtype=np.int32), "benchmark")


def problem(data: Source, permutations: Any) -> Problem:
  """The first two tasks, by the permutations [T, 784] of the stream that cljax learns."""
  train, test = data.train.x.reshape(-1, SIDE**2), data.test.x.reshape(-1, SIDE**2)
  first = np.asarray(permutations)[:2]
  y = np.stack([data.train.y] * 2)
  return Problem(np.stack([train[:, p] for p in first]), y, np.stack([test[:, p] for p in first]), data.test.y)


class Schedule(NamedTuple):
  """Which rows the steps of one task take: places 0..N-1 are task 0's, N..2N-1 task 1's."""

  current: np.ndarray  # [n, BATCH] int32
  replayed: np.ndarray  # [n, REPLAY] int32


def schedule(random: np.random.Generator, places: np.ndarray, memory: list[int], seen: int, capacity: int) -> Schedule:
  """One pass over `places` in a random order, and a reservoir, written example by example.

  The very first step has nothing to replay and takes its own rows again: what is not cljax has no dead rows.

  Args:
    memory: the places held, changed here.
    seen: rows offered before.
  """
  current = random.permutation(places).reshape(-1, BATCH)
  replayed = np.empty((len(current), REPLAY), np.int64)
  for step, rows in enumerate(current):
    replayed[step] = random.choice(memory, REPLAY, replace=False) if memory else rows
    for place in rows.tolist():
      chosen = len(memory) if len(memory) < capacity else int(random.integers(0, seen + 1))
      if chosen == len(memory):
        memory.append(place)
      elif chosen < capacity:
        memory[chosen] = place
      seen += 1
  return Schedule(current.astype(np.int32), replayed.astype(np.int32))


def schedules(rows: int, capacity: int = CAPACITY) -> list[Schedule]:
  """Of task 0 and of task 1, each of `rows` rows."""
  random = np.random.default_rng(3)
  memory: list[int] = []
  places = np.arange(2 * rows).reshape(2, rows)
  return [schedule(random, places[t], memory, t * rows, capacity) for t in (0, 1)]
