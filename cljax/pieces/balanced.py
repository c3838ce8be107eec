"""A memory that keeps its classes equally many, decided by labels, positions and keys alone.

Chrysakis and Moens 2020, "Online continual learning from imbalanced data" (class-balancing reservoir sampling): every
row is stored while there is room. Afterwards a row of a class that is not full replaces a random row of a largest one,
as in the greedy sampler of GDumb (Prabhu et al. 2020); a class is full once it has been a largest one. The n-th row of
a full class that has m rows in memory replaces a random one of those with probability m / n, where GDumb drops it: so
within a class early and late rows have equal chances.

A class is a logit of a head, so tasks that share labels but not the head have classes of their own. `replay.py` tells
what the plan fills in.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.data.sample import task_of
from cljax.pieces.replay import check_sizes, drawn_slots, last_writes, no_places, offered_before, with_replayed
from cljax.types import NONE, Array, Key, Place, Plan, PlanFn, Spec, State, View, as_it_is

GROUP = 32


class Balanced(NamedTuple):
  """M places, filled from the first on, and what was offered of each class."""

  place: Place  # [M] int32
  seen: Array  # [heads * C] int32, rows of each class offered so far

  def filled(self) -> Array:
    """[M] bool: the slots that hold a row."""
    return jnp.arange(len(self.place.row)) < self.seen.sum(dtype=jnp.int32)


def empty_balanced(capacity: int, spec: Spec) -> Balanced:
  """A memory of `capacity` places, none of them filled."""
  return Balanced(no_places(capacity), jnp.zeros(spec.heads * spec.C, jnp.int32))


def class_of(view: View, place: Place, spec: Spec) -> Array:
  """int32 of the places' shape: the head of a row's task, times C, plus the logit of its label."""
  chex.assert_equal_shape(place)
  task = task_of(view, place)
  logit = view.tasks.label_map[task, view.bank.y[place.row]]
  return (jnp.minimum(task, spec.heads - 1) * spec.C + logit).astype(jnp.int32)


class Offer(NamedTuple):
  """Rows that are offered one after the other; leaves [N]."""

  own: Array  # int32, the class
  live: Array  # bool
  seen: Array  # int32, rows of the class offered before
  within: Array  # int32, drawn from 0..seen
  among: Array  # uint32, any number


def true_entry(mask: Array, k: Array) -> Array:
  """[] int32, where the k-th True of `mask` [M] stands, counting from 0; by groups, faster than one long sum."""
  groups = jnp.pad(mask, (0, -len(mask) % GROUP)).reshape(-1, GROUP)
  ends = jnp.cumsum(groups.sum(axis=1, dtype=jnp.int32))
  g = (ends <= k).sum(dtype=jnp.int32)
  before = jnp.where(g > 0, ends[g - 1], 0)
  return g * GROUP + (jnp.cumsum(groups[g]) <= k - before).sum(dtype=jnp.int32)


def balanced_slots(label: Array, filled: Array, classes: int, offer: Offer) -> Array:
  """The slots [N] into which the rows are written, NONE where a row is not kept.

  Args:
    label: [M] int32 classes of the stored rows, `classes` where nothing is stored.
    filled: [] int32 slots that hold a row, from the first on.
  """
  chex.assert_rank((label, filled), (1, 0))
  chex.assert_equal_shape(offer)

  def one(memory, row):
    label, count, filled = memory
    largest, mine = count.max(), count[row.own]
    full = (mine == largest) | (row.seen > mine)  # none but a class that has been a largest one loses or misses a row
    candidates = jnp.where(full, label == row.own, jnp.take(count, label, mode="clip") == largest)
    drawn = row.among % jnp.maximum(candidates.sum(dtype=jnp.uint32), 1)
    room = filled < len(label)
    slot = jnp.where(room, filled, true_entry(candidates, jnp.where(full, row.within, drawn.astype(jnp.int32))))
    kept = row.live & (room | ~full | (row.within < mine))
    slot = jnp.where(kept, slot, NONE)
    gone = jnp.where(kept & ~room, jnp.take(label, slot, mode="clip"), classes)
    count = count.at[gone].add(-1, mode="drop").at[jnp.where(kept, row.own, classes)].add(1, mode="drop")
    return (label.at[slot].set(row.own, mode="drop"), count, filled + (kept & room)), slot

  count = jnp.zeros(classes, jnp.int32).at[label].add(1, mode="drop")
  return jax.lax.scan(one, (label, count, filled), offer)[1]


def class_balanced(spec: Spec, replay: int = 10, capacity: int = 1000) -> PlanFn:
  """The plan with `replay` columns drawn from a class-balanced memory of `capacity` rows, drawing before it stores.

  It finds its `Balanced` as `state.memory`. Capacity 0 is no replay. Rows are offered one after the other, so storing
  takes a loop over the rows of a chunk.

  Raises:
    ConfigError: sizes that `replay.reservoir` refuses too.
  """
  check_sizes(replay, capacity)
  if not capacity:
    return as_it_is
  classes = spec.heads * spec.C

  def plan_replay(keys: Key, state: State, view: View, plan: Plan) -> tuple[State, Plan]:
    memory = state.memory
    chex.assert_shape(memory.seen, (classes,))
    own = class_of(view, plan.place, spec)
    before, offered = offered_before(own, plan.live, classes)
    seen = memory.seen[own] + before

    def numbers(key, total, seen):
      within = jax.random.randint(jax.random.fold_in(key, 1), seen.shape, 0, seen + 1)
      among = jax.random.bits(jax.random.fold_in(key, 2), seen.shape, jnp.uint32)
      return drawn_slots(jax.random.fold_in(key, 0), total, replay, capacity), within, among

    rows = plan.live.sum(axis=1, dtype=jnp.int32)
    total = memory.seen.sum(dtype=jnp.int32) + jnp.cumsum(rows) - rows  # before each step
    (read, drawn), within, among = jax.vmap(numbers)(keys, total, seen)
    offer = jax.tree.map(jnp.ravel, Offer(own, plan.live, seen, within, among))
    label = jnp.where(memory.filled(), class_of(view, memory.place, spec), classes)
    filled = memory.filled().sum(dtype=jnp.int32)
    write = balanced_slots(label, filled, classes, offer).reshape(plan.live.shape)
    stored, joined = with_replayed(memory.place, plan, read, drawn, jax.vmap(last_writes)(write))
    return state.replace(memory=Balanced(stored, memory.seen + offered.sum(axis=0, dtype=jnp.int32))), joined

  return plan_replay
