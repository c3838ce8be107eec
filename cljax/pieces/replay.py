"""Episodic memory as a schedule: which past example is replayed when, decided by position and key alone.

A memory stores places, not pictures, so its rules can run before the weights move: `reservoir(...)` is a `PlanFn` that
any phase can take. It adds `replay` columns to the plan and finds its `Memory` as `state.memory`.
"""

from typing import Annotated, NamedTuple

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
  """Stored places, and how many rows were offered."""

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
  slot = jnp.where(live & (slot < capacity), slot, NONE).astype(jnp.int32)
  again = (slot[:, None] == slot[None, :]) & (jnp.arange(len(slot))[:, None] < jnp.arange(len(slot))[None, :])
  return jnp.where(again.any(axis=1), NONE, slot)  # scatter order is undefined: only the last write of a slot stays


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
    offered = plan.live.sum(axis=1, dtype=jnp.int32)
    seen = state.memory.seen + jnp.cumsum(offered) - offered  # before each step

    def slots(key, seen, live):  # all random numbers at once: in the loop they would cost more than the steps' rows
      return (
        *drawn_slots(jax.random.fold_in(key, 0), seen, replay, capacity),
        written_slots(jax.random.fold_in(key, 1), seen, live, capacity),
      )

    from_slot, drawn_live, to_slot = jax.vmap(slots)(keys, seen, plan.live)

    def one(stored, step):
      place, read, write = step
      drawn = jax.tree.map(lambda leaf: leaf[read], stored)
      return jax.tree.map(lambda all, new: all.at[write].set(new, mode="drop"), stored, place), drawn

    stored, drawn = jax.lax.scan(one, state.memory.place, (plan.place, from_slot, to_slot))
    live = drawn_live & (offered > 0)[:, None]  # a dead step replays nothing
    columns = Plan(drawn, jnp.where(drawn_live, from_slot, NONE), live), plan._replace(slot=to_slot)
    joined = jax.tree.map(lambda new, now: jnp.concatenate([now, new], axis=1), *columns)
    memory = Memory(stored, state.memory.seen + offered.sum(dtype=jnp.int32))
    return state.replace(memory=memory), joined._replace(held=state.memory.place)

  return plan_replay
