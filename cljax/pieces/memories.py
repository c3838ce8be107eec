"""The rules of storing past examples, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from cljax.errors import choose
from cljax.pieces import balanced, replay, rings
from cljax.types import EdgeFn, PlanFn, Spec, as_it_is, keep

MEMORIES = ("reservoir", "ring", "class_balanced", "kept")


class Memory(NamedTuple):
  """What a rule of storing brings to a phase."""

  empty: Callable[[], Any]  # makes the memory before the first task
  plan: PlanFn  # draws, and stores where rows are stored as they come
  exit: EdgeFn = keep  # stores where they are picked at the task's end


def memory_of(name: str, rows: int, capacity: int, spec: Spec) -> Memory:
  """A memory of `capacity` places, of which `rows` are replayed a step.

  Args:
    name: `reservoir`; `ring`, the last rows of each task (of all tasks together where boundaries are hidden);
      `class_balanced`; or `kept`, rows of each task that are picked at random at its end, so that a task's own rows are
      not replayed while it is in training; only where boundaries are given.

  Raises:
    ConfigError: an unknown name, or sizes that the plan refuses.
  """
  choose("config.method.memory", name, MEMORIES)
  if name == "kept":
    replay.check_sizes(rows, capacity)
    rings.check_parts(capacity, spec.T)
    drawn, stored = (replay.draw_only(rows), rings.keep_rows) if capacity else (as_it_is, keep)
    return Memory(partial(rings.empty_rings, capacity, spec.T), drawn, stored)
  if name == "ring":
    tasks = spec.T if spec.boundaries else 1
    return Memory(partial(rings.empty_rings, capacity, tasks), rings.ring(rows, capacity, tasks))
  if name == "class_balanced":
    return Memory(partial(balanced.empty_balanced, capacity, spec), balanced.class_balanced(spec, rows, capacity))
  return Memory(partial(replay.empty, capacity), replay.reservoir(rows, capacity))
