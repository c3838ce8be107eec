"""The reservoir: order, equal chances, slots that tell the truth, and a plan that knows no weights."""

from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cljax.errors import ConfigError
from cljax.pieces.replay import Memory, draw, empty, insert, memory_bytes, reservoir
from cljax.types import NONE, Place, Plan, Spec, as_it_is

draw = jax.jit(draw, static_argnums=2)
insert = jax.jit(insert)


@flax.struct.dataclass
class State:
  params: Any
  memory: Memory


def places(rows, task=0) -> Place:
  rows = np.asarray(rows, np.int32)
  return Place(np.full_like(rows, task), rows)


def filled(capacity: int, seen: int) -> Memory:
  """A memory of the rows 100, 101, ..."""
  slots = np.arange(capacity, dtype=np.int32)
  return Memory(Place(slots + 7, np.where(slots < seen, slots + 100, 0).astype(np.int32)), np.int32(seen))


def test_the_first_rows_are_kept_in_order():
  memory = empty(3)
  for n, row in enumerate((11, 12, 13)):
    memory, slot = insert(jax.random.key(n), memory, places([row], task=n), np.ones(1, bool))
    assert slot[0] == n and memory.seen == n + 1
  np.testing.assert_array_equal(memory.place.row, [11, 12, 13])
  np.testing.assert_array_equal(memory.place.task, [0, 1, 2])


def by_hand(chosen, memory, seen, rows, live):
  """Reservoir sampling one example after the other, given what each one would draw."""
  memory, slots = list(memory), []
  for row, draws, alive in zip(rows, chosen, live, strict=True):
    slot = NONE
    if alive:
      slot = seen if seen < len(memory) else draws
      slot = slot if slot < len(memory) else NONE
      seen += 1
    if slot != NONE:
      slots = [NONE if before == slot else before for before in slots]
      memory[slot] = row
    slots.append(slot)
  return memory, seen, slots


@pytest.mark.parametrize("capacity,seen", [(1, 0), (1, 5), (3, 0), (3, 1), (3, 4), (12, 0), (12, 11)])
def test_a_batch_is_stored_example_by_example(capacity, seen):
  """Duplicates within the batch: the last one wins, and only it keeps its slot."""
  rows, random = np.arange(200, 210), np.random.default_rng(capacity + seen)
  before = filled(capacity, seen)
  overwritten = 0
  for n in range(20):
    live, key = random.random(10) < 0.8, jax.random.key(n)
    offered = seen + np.cumsum(live) - live
    chosen = np.asarray(jax.random.randint(key, (10,), 0, offered + 1))
    stored, count, slots = by_hand(chosen, np.asarray(before.place.row), seen, rows, live)
    after, slot = insert(key, before, places(rows), live)
    np.testing.assert_array_equal(after.place.row, stored)
    np.testing.assert_array_equal(slot, slots)
    assert after.seen == count == seen + live.sum()
    kept = slot[slot != NONE]
    assert len(np.unique(kept)) == len(kept)
    overwritten += live.sum() - len(kept)
  assert overwritten or capacity == 12


def test_dead_rows_are_not_offered():
  memory, slot = insert(jax.random.key(0), empty(4), places(range(5)), np.array([0, 1, 0, 1, 0], bool))
  np.testing.assert_array_equal(memory.place.row, [1, 3, 0, 0])
  np.testing.assert_array_equal(slot, [NONE, 0, NONE, 1, NONE])
  assert memory.seen == 2
  same, slot = insert(jax.random.key(1), memory, places(range(5)), np.zeros(5, bool))
  chex.assert_trees_all_equal(same, memory)
  assert (np.asarray(slot) == NONE).all()


def kept_rows(capacity, items, batch, keys):
  """[keys, capacity] rows held after `items` examples, offered in batches of which the last has dead rows."""
  steps = -(-items // batch)
  rows = np.arange(steps * batch, dtype=np.int32).reshape(steps, batch)

  def run(key):
    def one(memory, step):
      n, row = step
      return insert(jax.random.fold_in(key, n), memory, Place(row, row), row < items)

    memory, slots = jax.lax.scan(one, empty(capacity), (jnp.arange(steps), rows))
    return memory, slots

  return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), keys))


@pytest.mark.parametrize("capacity,items,batch", [(3, 12, 5), (5, 40, 10)])
def test_every_example_is_kept_with_equal_probability(capacity, items, batch):
  """After n examples each is held with probability capacity / n. (Off-by-ones keep the late, or the early.)"""
  trials = 4000
  memory, slots = kept_rows(capacity, items, batch, trials)
  rows = np.asarray(memory.place.row)
  assert (np.asarray(memory.seen) == items).all()
  assert all(len(set(row)) == capacity for row in rows) and rows.max() < items
  counts, p = np.bincount(rows.ravel(), minlength=items), capacity / items
  statistic = ((counts - trials * p) ** 2).sum() / (trials * p * (1 - p)) * (items - 1) / items  # drawn without return
  assert scipy.stats.chi2.sf(statistic, items - 1) > 1e-3, counts
  slots = np.asarray(slots)
  assert slots[slots != NONE].max() < capacity
  # Also slot by slot, as the memory replaces uniformly: a slot holds an example of the first fill as often as another.
  first = (rows < capacity).sum(axis=0)
  assert scipy.stats.chisquare(first).pvalue > 1e-3, first


def test_the_memory_never_grows():
  memory, random = empty(3), np.random.default_rng(0)
  for n in range(12):
    live = random.random(5) < 0.5
    before = int(memory.seen)
    memory, _ = insert(jax.random.key(n), memory, places(np.arange(1, 6) + 5 * n), live)
    chex.assert_shape(memory.place.row, (3,))
    assert memory.seen == before + live.sum()
    assert (np.asarray(memory.place.row) > 0).sum() == min(3, int(memory.seen))


@pytest.mark.parametrize("seen,expected", [(0, 0), (1, 1), (3, 3), (4, 4), (6, 4), (50, 4)])
def test_draw_takes_what_there_is(seen, expected):
  """min(replay, filled) different entries, which slot tells; none of what was never written."""
  memory = filled(6, seen)
  for n in range(10):
    place, slot, live = (jax.tree.map(np.asarray, out) for out in draw(jax.random.key(n), memory, 4))
    assert live.sum() == expected and live[:expected].all()
    assert (slot[~live] == NONE).all() and len(set(slot[live])) == expected
    assert (slot[live] < min(seen, 6)).all()
    np.testing.assert_array_equal(place.row[live], memory.place.row[slot[live]])
    np.testing.assert_array_equal(place.task[live], memory.place.task[slot[live]])


@pytest.mark.parametrize("seen", [5, 40])
def test_draw_is_uniform_without_replacement(seen):
  """Over the filled entries: each equally often, and each pair too."""
  n, trials = min(seen, 8), 6000
  compiled = jax.jit(jax.vmap(lambda key: draw(key, filled(8, seen), 3)[1]))
  slots = np.sort(np.asarray(compiled(jax.random.split(jax.random.key(1), trials))), axis=1)
  assert slots.max() == n - 1
  counts, p = np.bincount(slots.ravel(), minlength=n), 3 / n
  statistic = ((counts - trials * p) ** 2).sum() / (trials * p * (1 - p)) * (n - 1) / n
  assert scipy.stats.chi2.sf(statistic, n - 1) > 1e-3, counts
  _, sets = np.unique(slots, axis=0, return_counts=True)
  assert len(sets) == n * (n - 1) * (n - 2) // 6 and scipy.stats.chisquare(sets).pvalue > 1e-3


STEPS, BATCH, REPLAY, CAPACITY = 9, 4, 3, 5


@pytest.fixture(scope="module")
def planned():
  """(state, plan) after a plan of 9 steps, the last one dead and the one before with a dead row; and a rerun."""
  rows = np.arange(STEPS * BATCH, dtype=np.int32).reshape(STEPS, BATCH)
  live = np.ones((STEPS, BATCH), bool)
  live[-1], live[-2, -1] = False, False
  plan = Plan(Place(rows % 3, rows), np.full(rows.shape, NONE), live)
  keys = jax.random.split(jax.random.key(0), STEPS)
  compiled = jax.jit(lambda keys, state, plan: reservoir(REPLAY, CAPACITY)(keys, state, None, plan))

  def run(params=0.0, keys=keys, plan=plan):
    state = State(params=jnp.full(3, params), memory=empty(CAPACITY))
    return jax.tree.map(np.asarray, compiled(keys, state, plan))

  return *run(), run, keys, plan


def test_a_plan_gains_the_replayed_columns(planned):
  """The current columns come first and keep their places."""
  _, plan, _, _, given = planned
  chex.assert_tree_shape_prefix(plan._replace(held=None), (STEPS, BATCH + REPLAY))
  chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[:, :BATCH], plan.place), given.place)
  np.testing.assert_array_equal(plan.live[:, :BATCH], given.live)


def test_a_plan_reads_no_weights(planned):
  state, plan, run, _, _ = planned
  other, same = run(params=7.0)
  chex.assert_trees_all_equal(same, plan)
  chex.assert_trees_all_equal(other.memory, state.memory)
  np.testing.assert_array_equal(other.params, np.full(3, 7))


def test_other_keys_plan_otherwise(planned):
  _, plan, run, keys, _ = planned
  _, other = run(keys=keys[::-1])
  assert (other.place.row[:, BATCH:] != plan.place.row[:, BATCH:]).any()


def test_slots_of_a_plan_tell_where_rows_stand(planned):
  """Replaying the slots by hand gives every replayed row, and the last memory."""
  state, plan, *_ = planned
  memory = {}
  for k in range(STEPS):
    for w in range(BATCH, BATCH + REPLAY):
      if plan.live[k, w]:
        assert memory[plan.slot[k, w]] == (plan.place.task[k, w], plan.place.row[k, w])
    expected = min(REPLAY, len(memory)) if plan.live[k, :BATCH].any() else 0
    assert plan.live[k, BATCH:].sum() == expected
    for w in range(BATCH):
      if plan.slot[k, w] != NONE:
        assert plan.live[k, w] and 0 <= plan.slot[k, w] < CAPACITY
        memory[plan.slot[k, w]] = (plan.place.task[k, w], plan.place.row[k, w])
  for slot, (task, row) in memory.items():
    assert (state.memory.place.task[slot], state.memory.place.row[slot]) == (task, row)
  assert len(memory) == CAPACITY and state.memory.seen == plan.live[:, :BATCH].sum() == 8 * BATCH - 1


def test_a_batch_never_replays_itself(planned):
  """The first step replays nothing, later ones only rows of the steps before; one step no row twice."""
  _, plan, *_ = planned
  assert not plan.live[0, BATCH:].any()
  for k in range(STEPS):
    replayed = plan.place.row[k, BATCH:][plan.live[k, BATCH:]]
    assert (replayed < k * BATCH).all() and len(set(replayed)) == len(replayed)
  assert plan.live[1, BATCH:].all()


def test_a_dead_step_replays_and_stores_nothing(planned):
  state, plan, run, keys, given = planned
  assert not plan.live[-1].any() and (plan.slot[-1, :BATCH] == NONE).all()
  shorter = given._replace(live=given.live & (np.arange(STEPS) < 5)[:, None])
  stopped, cut = run(plan=shorter)
  assert stopped.memory.seen == 5 * BATCH and not cut.live[5:].any()
  chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[:5], cut), jax.tree.map(lambda leaf: leaf[:5], plan))


def test_capacity_zero_adds_no_column():
  assert reservoir(10, 0) is as_it_is and reservoir(0, 0) is as_it_is
  assert empty(0).place.row.shape == (0,)


@pytest.mark.parametrize(
  "replay,capacity,words",
  [
    (10, 1, "capacity=1 is smaller.*replay=10.*at least 10, or 0"),
    (10, 9, "capacity=9 is smaller.*replay=10"),
    (0, 5, "replay=0 with config.method.capacity=5"),
    (-1, 5, "replay=-1.*negative"),
    (3, -1, "capacity=-1.*negative"),
  ],
)
def test_sizes_that_make_no_sense_are_refused(replay, capacity, words):
  with pytest.raises(ConfigError, match=words):
    reservoir(replay, capacity)


def test_one_replay_batch_is_enough():
  assert reservoir(10, 10) is not as_it_is


def test_a_memory_is_charged_for_the_rows_it_stands_for():
  assert memory_bytes(Spec((28, 28, 1), 20, 10, 20), 1000) == 1000 * (784 + 4 + 4)
  assert memory_bytes(Spec((32, 32, 3), 5, 2, 5), 0) == 0
