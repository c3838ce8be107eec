"""The rules of storing past examples, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from cljax.errors import choose
from cljax.pieces import balanced, replay, rings
from cljax.types import PlanFn, Spec

MEMORIES = ("reservoir", "ring", "class_balanced")


def memory_of(name: str, rows: int, capacity: int, spec: Spec) -> tuple[Callable[[], Any], PlanFn]:
  """What makes an empty memory of `capacity` places, and the plan that replays `rows` of them a step.

  Args:
    name: `reservoir`; `ring`, the last rows of each task (of all tasks together where boundaries are hidden); or
      `class_balanced`.

  Raises:
    ConfigError: an unknown name, or sizes that the plan refuses.
  """
  choose("config.method.memory", name, MEMORIES)
  if name == "ring":
    tasks = spec.T if spec.boundaries else 1
    return partial(rings.empty_rings, capacity, tasks), rings.ring(rows, capacity, tasks)
  if name == "class_balanced":
    return partial(balanced.empty_balanced, capacity, spec), balanced.class_balanced(spec, rows, capacity)
  return partial(replay.empty, capacity), replay.reservoir(rows, capacity)
