"""Episodic memory as a schedule: which past example is replayed when, decided by position and key alone.

A memory stores places, not pictures, so its rules can run before the weights move: `reservoir(...)` is a `PlanFn` that
any phase can take. It adds `replay` columns to the plan and finds its `Memory` as `state.memory`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax.data.sample import shuffle
from cljax.types import NONE, Array, ConfigError, Key, Place, Plan, PlanFn, Spec, State, View, as_it_is


class Memory(NamedTuple):
  place: Place  # [M] int32
  seen: Array  # [] int32, examples offered so far


def empty(capacity: int) -> Memory:
  """A memory of `capacity` places, none of them filled."""
  return Memory(Place(jnp.zeros(capacity, jnp.int32), jnp.zeros(capacity, jnp.int32)), jnp.int32(0))


def memory_bytes(spec: Spec, capacity: int) -> int:
  """What `capacity` stored rows would take: uint8 pixels, label and task (int32). Places are small only because the
  bank is resident, so a memory is charged for the rows that it stands for."""
  pixels = 1
  for size in spec.x_shape:
    pixels *= size
  return capacity * (pixels + 8)


def draw(key: Key, memory: Memory, replay: int) -> tuple[Place, Array, Array]:
  """`min(replay, filled)` different entries, each equally likely.

  Returns:
    place [replay], slot [replay] int32 (NONE where not live), live [replay] bool.
  """
  capacity = memory.place.row.shape[0]
  filled = jnp.minimum(memory.seen, capacity)
  i = jnp.arange(replay)
  slot = shuffle(key, i, filled)
  live = i < filled
  return jax.tree.map(lambda leaf: leaf[slot], memory.place), jnp.where(live, slot, NONE), live


def insert(key: Key, memory: Memory, place: Place, live: Array) -> tuple[Memory, Array]:
  """Reservoir sampling (Vitter 1985), example by example in row order.

  With n examples offered before: an example fills slot n while there is room, afterwards it draws j from 0..n and
  replaces slot j if j is below the capacity. So after any number n of examples each is kept with equal probability.

  Args:
    place, live: [B]; dead rows are not offered.

  Returns:
    the memory, and slot [B] int32: where each row was written, NONE if nowhere or overwritten within this batch.
  """
  capacity = memory.place.row.shape[0]
  before = memory.seen + jnp.cumsum(live) - live
  chosen = jax.random.randint(key, live.shape, 0, before + 1)
  slot = jnp.where(before < capacity, before, chosen)
  slot = jnp.where(live & (slot < capacity), slot, NONE).astype(jnp.int32)
  again = (slot[:, None] == slot[None, :]) & (jnp.arange(len(slot))[:, None] < jnp.arange(len(slot))[None, :])
  slot = jnp.where(again.any(axis=1), NONE, slot)  # scatter order is undefined: only the last write of a slot stays
  stored = jax.tree.map(lambda all, new: all.at[slot].set(new, mode="drop"), memory.place, place)
  return Memory(stored, memory.seen + live.sum(dtype=jnp.int32)), slot


def reservoir(replay: int = 10, capacity: int = 1000) -> PlanFn:
  """The plan with `replay` columns drawn from a reservoir of `capacity` rows, each step drawing before it inserts.

  Capacity 0 is no replay: no column is added.

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
  if not capacity:
    return as_it_is

  def plan_replay(keys: Key, state: State, view: View, plan: Plan) -> tuple[State, Plan]:
    def one(memory, step):
      key, place, live = step
      drawn, from_slot, drawn_live = draw(jax.random.fold_in(key, 0), memory, replay)
      memory, to_slot = insert(jax.random.fold_in(key, 1), memory, place, live)
      drawn_live &= live.any()  # a dead step replays nothing
      return memory, (drawn, from_slot, drawn_live, to_slot)

    memory, (drawn, from_slot, drawn_live, to_slot) = jax.lax.scan(one, state.memory, (keys, plan.place, plan.live))
    columns = Plan(drawn, from_slot, drawn_live), plan._replace(slot=to_slot)
    joined = jax.tree.map(lambda new, now: jnp.concatenate([now, new], axis=1), *columns)
    return state.replace(memory=memory), joined._replace(held=state.memory.place)

  return plan_replay
