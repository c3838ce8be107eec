"""A memory in equal parts: the last rows of each task, or rows of a task picked at its end, by position and key alone.

`ring(...)` overwrites the oldest row of a task (Lopez-Paz and Ranzato 2017, https://arxiv.org/abs/1706.08840; Chaudhry
et al. 2019, https://arxiv.org/abs/1812.00420). With one ring for all tasks it is first in, first out, the window of the
latest rows, and works where boundaries are hidden. `keep_rows` is the edge of a phase that fills a task's ring at the
task's end instead; `replay.draw_only` draws from it. `replay.py` tells what these plans fill in.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.data.sample import shuffle
from cljax.errors import ConfigError
from cljax.pieces.replay import check_sizes, last_writes, no_places, offered_before, with_replayed
from cljax.types import NONE, Array, Clock, Key, Place, Plan, PlanFn, State, View, as_it_is


class Rings(NamedTuple):
  """R rings of m places each; `slot` counts through the rings one after the other."""

  place: Place  # [R * m] int32
  seen: Array  # [R] int32, rows offered to each ring so far

  def size(self) -> int:
    """m, the places of a ring."""
    return self.place.row.shape[0] // self.seen.shape[0]

  def filled(self) -> Array:
    """[R * m] bool: the slots that hold a row."""
    return (jnp.arange(self.size()) < self.seen[:, None]).reshape(-1)

  def rows_of(self, ring: Array) -> tuple[Place, Array]:
    """(place [m], live [m]) of one ring."""
    places = jax.tree.map(lambda leaf: leaf.reshape(-1, self.size())[ring], self.place)
    return places, jnp.arange(self.size()) < self.seen[ring]

  def with_rows(self, ring: Array, place: Place, count: Array) -> "Rings":
    """The rings with other rows in one of them.

    Args:
      place: [m], of which the first `count` [] are live.
    """
    chex.assert_shape((place.task, place.row), (self.size(),))

    def put(leaf, new):
      return leaf.reshape(-1, self.size()).at[ring].set(new).reshape(-1)

    seen = self.seen.at[ring].set(jnp.asarray(count, jnp.int32))
    return Rings(jax.tree.map(put, self.place, place), seen)


def empty_rings(capacity: int, rings: int = 1) -> Rings:
  """`rings` rings of `capacity / rings` places, none of them filled."""
  return Rings(no_places(capacity), jnp.zeros(rings, jnp.int32))


def check_parts(capacity: int, rings: int) -> None:
  """
  Raises:
    ConfigError: a capacity that the rings cannot share equally.
  """
  if capacity % rings:
    low = capacity - capacity % rings
    near = f"{low} or {low + rings}" if low else f"{rings}"
    raise ConfigError(f"config.method.capacity={capacity} cannot be shared equally by {rings} tasks; use {near}")


def ring(replay: int = 10, capacity: int = 1000, rings: int = 1, earlier: bool = False) -> PlanFn:
  """The plan with `replay` columns drawn from all rings together, each step drawing before it stores.

  Each current row goes into its task's ring, over the oldest row where that is full: a ring of m places holds the last
  m rows of its task in the order of training. It finds its `Rings` as `state.memory`. Capacity 0 is no replay.

  Args:
    rings: the number of tasks, or 1 for a single ring through which all rows go.
    earlier: draws only rows of the tasks before the one in training (A-GEM).

  Raises:
    ConfigError: sizes that `replay.reservoir` refuses too, or a capacity that the rings cannot share equally.
  """
  check_sizes(replay, capacity)
  check_parts(capacity, rings)
  if not capacity:
    return as_it_is
  size = capacity // rings

  def plan_replay(keys: Key, state: State, view: View, plan: Plan) -> tuple[State, Plan]:
    if view.t is None and (rings > 1 or earlier):
      raise ValueError("hidden boundaries tell no tasks: one ring for all rows is all there can be")
    chex.assert_shape(state.memory.seen, (rings,))
    own = plan.place.task if rings > 1 else jnp.zeros_like(plan.place.task)
    before, offered = offered_before(own, plan.live, rings)
    seen = state.memory.seen + jnp.cumsum(offered, axis=0) - offered  # [n, R] before each step
    open_rings = jnp.arange(rings) < view.t if earlier else jnp.ones(rings, bool)
    filled = jnp.where(open_rings, jnp.minimum(seen, size), 0)
    read, drawn = jax.vmap(lambda key, filled: slots_in(jax.random.fold_in(key, 0), filled, replay, size))(keys, filled)
    write = own * size + (state.memory.seen[own] + before) % size
    write = jax.vmap(last_writes)(jnp.where(plan.live, write, NONE))
    stored, joined = with_replayed(state.memory.place, plan, read, drawn, write)
    return state.replace(memory=Rings(stored, state.memory.seen + offered.sum(axis=0, dtype=jnp.int32))), joined

  return plan_replay


def slots_in(key: Key, filled: Array, replay: int, size: int) -> tuple[Array, Array]:
  """(slot [replay], live [replay]): different slots of rings of which the first `filled` [R] places hold something."""
  ends, i = jnp.cumsum(filled), jnp.arange(replay)
  k = shuffle(key, i, ends[-1])
  own = jnp.minimum(jnp.searchsorted(ends, k, side="right"), len(ends) - 1)
  return (own * size + k - (ends[own] - filled[own])).astype(jnp.int32), i < ends[-1]


def some_places(key: Key, view: View, count: int) -> tuple[Place, Array]:
  """`count` different training rows of task t, each equally likely.

  Returns:
    place [count], and [] int32 how many of them, from the first on, are live: all, or the rows that the task has.
  """
  i, rows = jnp.arange(count), view.tasks.train.count[view.t]
  row = view.tasks.train.idx[view.t, shuffle(key, i, rows)]
  return Place(jnp.full_like(row, view.t), row), jnp.minimum(rows, count).astype(jnp.int32)


def keep_rows(key: Key, state: State, view: View, clock: Clock) -> State:
  """The `exit` edge of a phase that puts rows of its task, picked at random, into the task's ring of `state.memory`.

  A method with it must say `needs_boundaries=True`: it has to know where tasks end.
  """
  rings = state.memory
  return state.replace(memory=rings.with_rows(view.t, *some_places(key, view, rings.size())))
