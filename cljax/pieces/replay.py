"""Episodic memory as a schedule: which past example is replayed when, decided by position and key alone.

A memory stores places, not pictures, so its rules can run before the weights move: `reservoir(...)` is a `PlanFn` that
any phase can take. It adds `replay` columns to the plan and finds its `Memory` as `state.memory`. Other rules of what
is stored are in `rings.py` and `balanced.py`; `draw_only(...)` leaves storing to the method.

What every such plan fills in: `slot` of a current row is where it is written, NONE where it is not kept (or where a
later row of the same step takes its place); `slot` of a replayed row is where it was read; `held` is the memory as the
chunk found it. A step reads before it writes, and one without a live current row neither reads nor writes.
"""

import math
from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.data.sample import shuffle
from cljax.declared import at_least
from cljax.errors import ConfigError
from cljax.types import NONE, Array, Key, Place, Plan, PlanFn, Spec, State, View, as_it_is


class Replay(NamedTuple):
  """How much is stored and replayed."""

  replay: Annotated[int, at_least(0, "memory rows a step; fewer while the memory holds fewer")] = 10
  capacity: Annotated[int, at_least(0, "rows of the memory, over all tasks; 0 is no replay")] = 1000


class Memory(NamedTuple):
  """Stored places, filled from the first on, and how many rows were offered."""

  place: Place  # [M] int32
  seen: Array  # [] int32, examples offered so far

  def filled(self) -> Array:
    """[M] bool: the slots that hold a row."""
    return jnp.arange(len(self.place.row)) < self.seen


def no_places(capacity: int) -> Place:
  """`capacity` places that mean nothing yet."""
  return Place(jnp.zeros(capacity, jnp.int32), jnp.zeros(capacity, jnp.int32))


def empty(capacity: int) -> Memory:
  """A memory of `capacity` places, none of them filled."""
  return Memory(no_places(capacity), jnp.int32(0))


def memory_bytes(spec: Spec, capacity: int) -> int:
  """What `capacity` stored rows would take: their numbers, label and task (int32). Places are small only because the
  bank is resident, so a memory is charged for the rows that it stands for."""
  return capacity * (math.prod(spec.x_shape) * spec.x_bytes + 8)


def draw(key: Key, memory: Memory, replay: int) -> tuple[Place, Array, Array]:
  """`min(replay, filled)` different entries, each equally likely.

  Returns:
    place [replay], slot [replay] int32 (NONE where not live), live [replay] bool.
  """
  slot, live = drawn_slots(key, memory.seen, replay, len(memory.place.row))
  return jax.tree.map(lambda leaf: leaf[slot], memory.place), jnp.where(live, slot, NONE), live


def drawn_slots(key: Key, seen: Array, replay: int, capacity: int) -> tuple[Array, Array]:
  """(slot [replay], live [replay]) of `draw`: which slots depends on how many rows were seen, not on which."""
  filled = jnp.minimum(seen, capacity)
  i = jnp.arange(replay)
  return shuffle(key, i, filled), i < filled


def insert(key: Key, memory: Memory, place: Place, live: Array) -> tuple[Memory, Array]:
  """Reservoir sampling (Vitter 1985), example by example in row order.

  With n examples offered before: an example fills slot n while there is room, afterwards it draws j from 0..n and
  replaces slot j if j is below the capacity. So after any number n of examples each is kept with equal probability.

  Args:
    place, live: [B]; dead rows are not offered.

  Returns:
    the memory, and slot [B] int32: where each row was written, NONE if nowhere or overwritten within this batch.
  """
  slot = written_slots(key, memory.seen, live, len(memory.place.row))
  stored = jax.tree.map(lambda all, new: all.at[slot].set(new, mode="drop"), memory.place, place)
  return Memory(stored, memory.seen + live.sum(dtype=jnp.int32)), slot


def written_slots(key: Key, seen: Array, live: Array, capacity: int) -> Array:
  """The slots [B] of `insert`, after `seen` examples; like those of `draw` they depend on no row."""
  before = seen + jnp.cumsum(live) - live
  chosen = jax.random.randint(key, live.shape, 0, before + 1)
  slot = jnp.where(before < capacity, before, chosen)
  return last_writes(jnp.where(live & (slot < capacity), slot, NONE).astype(jnp.int32))


def last_writes(slot: Array) -> Array:
  """The slots [B] of a step with NONE for all but the last write of each: scatter order is undefined."""
  chex.assert_rank(slot, 1)
  again = (slot[:, None] == slot[None, :]) & (jnp.arange(len(slot))[:, None] < jnp.arange(len(slot))[None, :])
  return jnp.where(again.any(axis=1), NONE, slot)


def offered_before(group: Array, live: Array, groups: int) -> tuple[Array, Array]:
  """How many rows of its own group were offered before each row, in the order of the steps and of their rows.

  Args:
    group: [n, W] int32 in 0..groups-1, of each current row.
    live: [n, W] bool; dead rows are not offered.

  Returns:
    before [n, W] int32, counted from the chunk's start; offered [n, groups] int32, by each step.
  """
  chex.assert_rank((group, live), 2)
  chex.assert_equal_shape((group, live))
  offered = (live[..., None] & (group[..., None] == jnp.arange(groups))).sum(axis=1, dtype=jnp.int32)
  steps_before = jnp.cumsum(offered, axis=0) - offered
  rows = jnp.arange(group.shape[1])
  alike = (group[:, :, None] == group[:, None, :]) & live[:, :, None] & (rows[:, None] < rows[None, :])
  return jnp.take_along_axis(steps_before, group, axis=1) + alike.sum(axis=1, dtype=jnp.int32), offered


def with_replayed(stored: Place, plan: Plan, read: Array, drawn: Array, write: Array) -> tuple[Place, Plan]:
  """Carries out a schedule of reads and writes: step by step, reading before writing.

  Args:
    stored: [M] the memory as the chunk found it.
    plan: of the current rows [n, W].
    read: [n, R] int32 slots to replay from.
    drawn: [n, R] bool, whether they hold anything.
    write: [n, W] int32 slots of the current rows, NONE for nowhere; within a step no slot twice.

  Returns:
    the memory after the chunk, and the plan with R more columns.
  """
  chex.assert_rank((stored.row, read, drawn, write), (1, 2, 2, 2))
  chex.assert_equal_shape((plan.live, write))

  def one(held, step):
    place, read, write = step
    taken = jax.tree.map(lambda leaf: leaf[read], held)
    return jax.tree.map(lambda all, new: all.at[write].set(new, mode="drop"), held, place), taken

  after, taken = jax.lax.scan(one, stored, (plan.place, read, write))
  return after, with_columns(plan._replace(slot=write), taken, read, drawn)._replace(held=stored)


def with_columns(plan: Plan, place: Place, slot: Array, live: Array) -> Plan:
  """The plan with more columns [n, R], dead where a step has no live current row."""
  live_steps = plan.live.any(axis=1)[:, None]
  columns = plan, Plan(place, jnp.where(live, slot, NONE), live & live_steps)
  return jax.tree.map(lambda now, new: jnp.concatenate([now, new], axis=1), *columns)


def check_sizes(replay: int, capacity: int) -> None:
  """
  Raises:
    ConfigError: a capacity that cannot fill one replay batch, or a negative size.
  """
  if replay < 0 or capacity < 0:
    raise ConfigError(f"config.method.replay={replay}, config.method.capacity={capacity}: sizes cannot be negative")
  if capacity and not replay:
    raise ConfigError(f"config.method.replay=0 with config.method.capacity={capacity}: set capacity=0 for no replay")
  if 0 < capacity < replay:
    raise ConfigError(
      f"config.method.capacity={capacity} is smaller than one replay batch of config.method.replay={replay}; "
      f"use at least {replay}, or 0 for no replay"
    )


def reservoir(replay: int = 10, capacity: int = 1000, draws: int = 1) -> PlanFn:
  """The plan with `replay` columns drawn from a reservoir of `capacity` rows, each step drawing before it inserts.

  Capacity 0 is no replay: no column is added. With several `draws` so many columns of each, independent of the others.

  Raises:
    ConfigError: a capacity that cannot fill one replay batch, or a negative size.
  """
  check_sizes(replay, capacity)
  if not capacity:
    return as_it_is

  def plan_replay(keys: Key, state: State, view: View, plan: Plan) -> tuple[State, Plan]:
    offered = plan.live.sum(axis=1, dtype=jnp.int32)
    seen = state.memory.seen + jnp.cumsum(offered) - offered  # before each step

    def slots(key, seen, live):  # all random numbers at once: in the loop they would cost more than the steps' rows
      names = (0, *range(2, draws + 1))
      drawn = [drawn_slots(jax.random.fold_in(key, name), seen, replay, capacity) for name in names]
      read, found = map(jnp.concatenate, zip(*drawn, strict=True))
      return read, found, written_slots(jax.random.fold_in(key, 1), seen, live, capacity)

    stored, joined = with_replayed(state.memory.place, plan, *jax.vmap(slots)(keys, seen, plan.live))
    memory = Memory(stored, state.memory.seen + offered.sum(dtype=jnp.int32))
    return state.replace(memory=memory), joined

  return plan_replay


def draw_only(replay: int) -> PlanFn:
  """The plan with `replay` columns drawn from a memory that the method fills by itself; nothing is stored.

  Each step draws different entries, each equally likely, from those that `state.memory.filled()` names: all of them
  where there are fewer than `replay`. The memory is any piece with `place` [M] and `filled()`. `slot` of a current row
  is NONE, that of a replayed row where it was read; `held` is the memory.
  """

  def plan_draws(keys: Key, state: State, view: View, plan: Plan) -> tuple[State, Plan]:
    stored, filled = state.memory.place, state.memory.filled()
    chex.assert_equal_shape((stored.task, stored.row, filled))
    count, i = filled.sum(dtype=jnp.int32), jnp.arange(replay)
    slots = jnp.flatnonzero(filled, size=len(filled), fill_value=0).astype(jnp.int32)
    read = slots[jax.vmap(lambda key: shuffle(jax.random.fold_in(key, 0), i, count))(keys)]
    taken = jax.tree.map(lambda leaf: leaf[read], stored)
    live = jnp.broadcast_to(i < count, read.shape)
    return state, with_columns(plan, taken, read, live)._replace(held=stored)

  return plan_draws
