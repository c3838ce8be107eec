"""Rings and class-balanced memories against plain re-implementations, row by row."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cljax.data.sample import view_at
from cljax.pieces import balanced
from cljax.pieces.replay import offered_before
from cljax.types import NONE, Spec
from tests.plans import BATCH, CASES, COUNTS, REPLAY, State, T, case, check_replayed, ran, write
from tests.tiers import at_release


@pytest.mark.parametrize("name", ["ring", "short_ring", "earlier", "fifo"])
def test_a_ring_holds_the_last_rows_of_its_task(name):
  """Against a list for each task; replayed rows are spread over all that may be drawn."""
  found, after = ran(name)
  count = after.seen.shape[0]
  m = len(after.place.row) // count
  lists = [[] for _ in range(count)]
  memory, drawn = {}, set()
  for t, _, given, plan in found:
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[:, :BATCH], plan.place), given.place)
    own = t if count > 1 else 0
    for k in range(len(plan.live)):
      may = [slot for slot in memory if name != "earlier" or slot // m < t]
      check_replayed(plan, k, memory, min(REPLAY, len(may)) if given.live[k].any() else 0)
      drawn |= {int(slot) for slot in plan.slot[k, BATCH:][plan.live[k, BATCH:]]}
      write(plan, k, memory)
      lists[own] += [(int(given.place.task[k, w]), int(given.place.row[k, w])) for w in np.flatnonzero(given.live[k])]
      for r in range(count):
        assert sorted(memory[slot] for slot in memory if slot // m == r) == sorted(lists[r][-m:])
  most = m * (T - 1) if name == "earlier" else m * count
  assert 0.8 * most < len(drawn) <= most and max(drawn) < most
  np.testing.assert_array_equal(after.seen, [len(rows) for rows in lists])
  for slot, (task, row) in memory.items():
    assert (after.place.task[slot], after.place.row[slot]) == (task, row)


def balanced_by_hand(labels, M, rows):
  """One row after the other, lists of slots by class: what is written where.

  Args:
    labels: {slot: class}, changed here.
    rows: (class, live, rows of the class seen before, draw within the class, draw among the largest).
  """
  for own, live, seen, within, among in rows:
    slots = {c: sorted(slot for slot in labels if labels[slot] == c) for c in {*labels.values(), own}}
    largest = max(map(len, slots.values()))
    slot = NONE
    if not live:
      pass
    elif len(labels) < M:
      slot = len(labels)
    elif len(slots[own]) < largest and seen == len(slots[own]):  # not full: it never lost a row
      of_largest = sorted(slot for each in slots.values() if len(each) == largest for slot in each)
      slot = of_largest[among % len(of_largest)]
    elif within < len(slots[own]):
      slot = slots[own][within]
    if slot != NONE:
      labels[slot] = own
    yield slot


@jax.jit
def draws_of(key, before):
  among = jax.random.bits(jax.random.fold_in(key, 2), before.shape, jnp.uint32)
  return jax.random.randint(jax.random.fold_in(key, 1), before.shape, 0, before + 1), among


@pytest.mark.parametrize("name", ["balanced", "one_head"])
def test_a_balanced_memory_is_filled_row_by_row(name):
  found, after = ran(name)
  it, M = case(name), 17
  y, C = np.asarray(it.stream.bank.y), it.spec.C
  labels, memory, seen = {}, {}, np.zeros(it.spec.heads * C, int)
  for t, keys, given, plan in found:
    for k in range(len(keys)):
      total = seen.sum()
      check_replayed(plan, k, memory, min(REPLAY, total, M) if given.live[k].any() else 0)
      own = (t if it.spec.heads > 1 else 0) * C + y[given.place.row[k]]
      before = np.array([seen[c] + ((own == c) & given.live[k])[:w].sum() for w, c in enumerate(own)])
      within, among = map(np.asarray, draws_of(keys[k], before))
      rows = zip(own.tolist(), given.live[k], before, within.tolist(), among.tolist(), strict=True)
      slots = list(balanced_by_hand(labels, M, rows))
      slots = [NONE if slot in slots[w + 1 :] else slot for w, slot in enumerate(slots)]
      np.testing.assert_array_equal(plan.slot[k, :BATCH], slots)
      write(plan, k, memory)
      np.add.at(seen, own[given.live[k]], 1)
  np.testing.assert_array_equal(after.seen, seen)
  assert len(memory) == M == after.filled().sum()
  for slot, (task, row) in memory.items():
    assert (after.place.task[slot], after.place.row[slot]) == (task, row)
  held = np.bincount(list(labels.values()), minlength=len(seen))
  lost = held[seen > held]
  assert held[seen <= 1].sum() == 0 and lost.max() - lost.min() <= 1  # all that lost rows are equally many


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [3, *at_release(1)])
def test_any_cutting_plans_the_same(name, length):
  """Slots, places and memories; only `held` is another at another start."""
  (whole, after), (parts, cut) = ran(name), case(name).run(length)
  chex.assert_trees_all_equal(after, cut)
  for (*_, plan), (*_, other) in zip(whole, parts, strict=True):
    chex.assert_trees_all_equal(plan._replace(held=None), other._replace(held=None))


@pytest.mark.parametrize("name", ["fifo", "one_head"])
def test_hidden_boundaries_change_nothing(name):
  """The same rows cut into other tasks: places are positions in the stream, and no plan asks for a task."""
  it, (whole, after) = case(name), ran(name)
  train = it.stream.tasks.train
  rows = np.concatenate([np.asarray(train.idx)[t, :count] for t, count in enumerate(COUNTS)])
  counts = np.array([11, 12, len(rows) - 23], np.int32)
  index = np.zeros((T, counts.max()), np.int32)
  for t, part in enumerate(np.split(rows, np.cumsum(counts)[:-1])):
    index[t, : len(part)] = part
  tasks = it.stream.tasks._replace(train=train._replace(idx=index, count=counts))
  state, view = State(it.memory), view_at(it.stream._replace(tasks=tasks), None)
  for _, keys, given, plan in whole:
    state, found = it.compiled(keys, state, view, given)
    chex.assert_trees_all_equal(found._replace(held=None), jax.tree.map(jnp.asarray, plan._replace(held=None)))
  chex.assert_trees_all_equal(jax.tree.map(np.asarray, state.memory), after)


@pytest.mark.parametrize("name", CASES)
def test_held_is_the_memory_as_the_chunk_found_it(name):
  """So a row of an earlier task lies in its slot there, which is where a pool of pictures looks for it."""
  old = 0
  for t, _, _, plan in ran(name)[0]:
    live = plan.live[:, BATCH:] & (plan.place.task[:, BATCH:] != t)
    if not case(name).boundaries:
      continue
    slot = plan.slot[:, BATCH:][live]
    np.testing.assert_array_equal(plan.held.row[slot], plan.place.row[:, BATCH:][live])
    np.testing.assert_array_equal(plan.held.task[slot], plan.place.task[:, BATCH:][live])
    old += live.sum()
  assert old > 10 or not case(name).boundaries


def test_within_a_class_early_and_late_rows_have_equal_chances():
  """One class of 24 rows beside one of 3: after both, each of the 24 is held equally often, and the 3 always."""
  trials, M, spec = 3000, 8, Spec((1,), 1, 2, 1)
  own = np.repeat([0, 1, 0], [20, 3, 4]).astype(np.int32)
  seen = np.array([(own[:i] == c).sum() for i, c in enumerate(own)], np.int32)

  def run(key):
    offer = balanced.Offer(own, np.ones(len(own), bool), seen, *draws_of(key, seen))
    slots = balanced.balanced_slots(jnp.full(M, 2), jnp.int32(0), 2, offer)
    return jnp.full(M, -1).at[slots].set(jnp.arange(len(own)), mode="drop")

  held = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(5), trials)))
  assert spec.C == 2 and all(len(set(row)) == M for row in held.tolist())
  counts = np.bincount(held.ravel(), minlength=len(own))
  assert (counts[own == 1] == trials).all()
  counts, p = counts[own == 0], 5 / 24
  statistic = ((counts - trials * p) ** 2).sum() / (trials * p * (1 - p)) * 23 / 24
  assert scipy.stats.chi2.sf(statistic, 23) > 1e-3, counts


def test_the_entry_of_a_mask():
  random = np.random.default_rng(0)
  find = jax.jit(balanced.true_entry)
  for size in (1, 31, 32, 33, 100):
    mask = random.random(size) < 0.3
    mask[-1] = True
    for k, where in enumerate(np.flatnonzero(mask)):
      assert find(mask, np.int32(k)) == where


def test_rows_offered_before_are_counted_without_dead_ones():
  random = np.random.default_rng(1)
  group, live = random.integers(0, 3, (5, 4)).astype(np.int32), random.random((5, 4)) < 0.6
  before, offered = jax.jit(offered_before, static_argnums=2)(group, live, 3)
  earlier = [(g, alive) for g, alive in zip(group.ravel(), live.ravel(), strict=True)]
  expected = [sum(alive and g == own for g, alive in earlier[:i]) for i, (own, _) in enumerate(earlier)]
  np.testing.assert_array_equal(np.ravel(before), expected)
  np.testing.assert_array_equal(offered, [[(live[k] & (group[k] == g)).sum() for g in range(3)] for k in range(5)])
