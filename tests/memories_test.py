"""Rings, class-balanced memories, and memories that a method fills: against plain re-implementations, row by row."""

import functools
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cljax.data.sample import some_rows, split_batch, view_at
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.pieces import balanced, rings
from cljax.pieces.balanced import class_balanced, empty_balanced
from cljax.pieces.memories import MEMORIES, memory_of
from cljax.pieces.optimizers import sgd
from cljax.pieces.replay import Memory, draw_only, empty, offered_before
from cljax.pieces.rings import Rings, empty_rings, keep_rows, ring, some_places
from cljax.types import NONE, Place, Plan, Spec, as_it_is
from tests.toys import mlp, stream

T, BATCH, REPLAY = 3, 4, 3
COUNTS, STEPS = (30, 23, 41), 12  # steps of a task, some of them dead


@flax.struct.dataclass
class State:
  memory: Any
  params: Any = ()


class Case:
  """A rule, an empty memory for it, and the compiled plan over the whole toy stream, task after task."""

  def __init__(self, plan, memory, boundaries=True, heads=None):
    self.spec, self.stream = stream(COUNTS, heads=heads, boundaries=boundaries)
    self.stream = jax.device_put(self.stream)
    self.memory, self.boundaries = memory(self.spec), boundaries
    self.compiled = jax.jit(plan(self.spec))

  def view(self, t):
    return view_at(self.stream, jnp.int32(t) if self.boundaries else None, self.spec.heads)

  def steps(self):
    """(task, keys [n], plan) of each task; the last batch of a task has dead rows, and the steps after it are dead."""
    start = 0
    for t, count in enumerate(COUNTS):
      i = np.arange(STEPS * BATCH).reshape(STEPS, BATCH)
      row = np.asarray(self.stream.tasks.train.idx)[t, np.minimum(i, count - 1)]
      task = np.full_like(row, t) if self.boundaries else (start + np.minimum(i, count - 1)).astype(np.int32)
      start += count
      plan = Plan(Place(task, row), np.full(row.shape, NONE), i < count)
      yield t, jax.random.split(jax.random.key(t), STEPS), plan

  def run(self, length=STEPS):
    """[(task, keys, given plan, plan)], and the memory afterwards; in chunks of `length` steps."""
    state, found = State(self.memory), []
    for t, keys, given in self.steps():
      plans = []
      for k in range(0, len(keys), length):
        part = jax.tree.map(lambda leaf, k=k: leaf[k : k + length], given)
        state, plan = self.compiled(keys[k : k + length], state, self.view(t), part)
        plans.append(jax.tree.map(np.asarray, plan))
      plan = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(plan._replace(held=None) for plan in plans))
      found.append((t, keys, given, plan._replace(held=plans[0].held)))
    return found, jax.tree.map(np.asarray, state.memory)


CASES = {
  "ring": lambda: Case(lambda spec: ring(REPLAY, 15, T), lambda spec: empty_rings(15, T)),
  "short_ring": lambda: Case(lambda spec: ring(REPLAY, 6, T), lambda spec: empty_rings(6, T)),  # 2 places, batches of 4
  "earlier": lambda: Case(lambda spec: ring(REPLAY, 15, T, earlier=True), lambda spec: empty_rings(15, T)),
  "fifo": lambda: Case(lambda spec: ring(REPLAY, 10), lambda spec: empty_rings(10), boundaries=False),
  "balanced": lambda: Case(lambda spec: class_balanced(spec, REPLAY, 17), lambda spec: empty_balanced(17, spec)),
  "one_head": lambda: Case(
    lambda spec: class_balanced(spec, REPLAY, 17), lambda spec: empty_balanced(17, spec), boundaries=False
  ),
}


@functools.cache
def case(name):
  return CASES[name]()


@functools.cache
def ran(name):
  return case(name).run()


def check_replayed(plan, k, memory, expected):
  """The replayed columns of step k are what stands in their slots, each once, and as many as there should be."""
  live = plan.live[k, BATCH:]
  assert live.sum() == expected
  slots = plan.slot[k, BATCH:][live]
  assert len(set(slots.tolist())) == expected
  for slot, task, row in zip(slots, plan.place.task[k, BATCH:][live], plan.place.row[k, BATCH:][live], strict=True):
    assert memory[slot] == (task, row)


def write(plan, k, memory):
  """What the slots of the current rows say is stored."""
  slots = plan.slot[k, :BATCH]
  assert (slots[~plan.live[k, :BATCH]] == NONE).all()
  kept = slots[slots != NONE]
  assert len(set(kept.tolist())) == len(kept)
  for w in np.flatnonzero(slots != NONE):
    memory[slots[w]] = (plan.place.task[k, w], plan.place.row[k, w])


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
@pytest.mark.parametrize("length", [1, 3])
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


def drawn_plan(memory, steps=7, replay=REPLAY):
  live = np.ones((steps, BATCH), bool)
  live[-1] = False
  place = Place(np.ones(live.shape, np.int32), np.arange(steps * BATCH, dtype=np.int32).reshape(live.shape))
  plan = Plan(place, np.full(live.shape, NONE), live)
  keys = jax.random.split(jax.random.key(0), steps)
  state, found = jax.jit(draw_only(replay))(keys, State(memory), None, plan)
  return plan, jax.tree.map(np.asarray, state.memory), jax.tree.map(np.asarray, found), keys


@pytest.mark.parametrize("counts", [(2, 0, 4), (0, 0, 1), (0, 0, 0), (5, 5, 5)])
def test_draw_only_draws_from_what_is_filled_and_stores_nothing(counts):
  """Slots that hold nothing lie between those that do."""
  places = Place(np.arange(15, dtype=np.int32) // 5, np.arange(15, dtype=np.int32) + 100)
  memory = Rings(places, np.array(counts, np.int32))
  given, after, plan, keys = drawn_plan(memory)
  chex.assert_trees_all_equal(after, memory)
  chex.assert_trees_all_equal(plan.held, places)
  filled = {r * 5 + i for r, n in enumerate(counts) for i in range(n)}
  assert set(np.flatnonzero(memory.filled())) == filled
  assert (plan.slot[:, :BATCH] == NONE).all() and not plan.live[-1].any()
  np.testing.assert_array_equal(plan.live[:, :BATCH], given.live)
  drawn = set()
  for k in range(6):
    check_replayed(plan, k, dict(enumerate(zip(*places, strict=True))), min(REPLAY, len(filled)))
    drawn |= set(plan.slot[k, BATCH:][plan.live[k, BATCH:]].tolist())
  assert drawn <= filled and (len(filled) > 6 or drawn == filled)
  cut = jax.jit(draw_only(REPLAY))(keys[2:], State(memory), None, jax.tree.map(lambda leaf: leaf[2:], given))[1]
  whole = jax.tree.map(lambda leaf: leaf[2:], plan._replace(held=None))
  chex.assert_trees_all_equal(jax.tree.map(np.asarray, cut._replace(held=None)), whole)


def test_draw_only_takes_every_kind_of_memory():
  spec = Spec((4, 4, 1), T, 4, 1)
  for memory in (empty(9), empty_rings(9, 3), empty_balanced(9, spec)):
    assert not drawn_plan(memory)[2].live[:, BATCH:].any()
    some = memory._replace(seen=memory.seen + 2)
    assert drawn_plan(some)[2].live[:-1, BATCH:].sum() == 6 * min(REPLAY, int(some.filled().sum()))


def test_rows_are_kept_at_a_task_s_end():
  """Different rows of the task in its own ring; another key keeps others; a short task leaves places empty."""
  _, data = stream((30, 3, 41))
  data = jax.device_put(data)
  keep = jax.jit(lambda key, state, view: keep_rows(key, state, view, None))
  state, m = State(empty_rings(15, T)), 5
  for t, count in enumerate((30, 3, 41)):
    before, others = state.memory.place.row, np.arange(15) // m != t
    view = view_at(data, jnp.int32(t))
    state = keep(jax.random.key(t), state, view)
    place, live = jax.tree.map(np.asarray, state.memory.rows_of(t))
    assert live.sum() == min(m, count) and live[: live.sum()].all()
    rows = place.row[live].tolist()
    assert len(set(rows)) == len(rows) and set(rows) <= set(np.asarray(data.tasks.train.idx)[t, :count].tolist())
    assert (place.task[live] == t).all()
    np.testing.assert_array_equal(state.memory.place.row[others], before[others])
  np.testing.assert_array_equal(state.memory.seen, [5, 3, 5])
  other = keep(jax.random.key(9), state, view_at(data, jnp.int32(2)))
  assert (other.memory.place.row != state.memory.place.row).any()


def test_rows_picked_at_random_are_equally_likely():
  _, data = stream((12, 12))
  view = view_at(jax.device_put(data), jnp.int32(1))
  keys = jax.random.split(jax.random.key(0), 4000)
  rows = np.asarray(jax.jit(jax.vmap(lambda key: some_places(key, view, 4)[0].row))(keys))
  _, counts = np.unique(rows, return_counts=True)
  p = 4 / 12
  statistic = ((counts - 4000 * p) ** 2).sum() / (4000 * p * (1 - p)) * 11 / 12
  assert len(counts) == 12 and scipy.stats.chi2.sf(statistic, 11) > 1e-3, counts


def test_rows_of_a_split_by_number():
  """Live ones as the split has them, dead ones whatever their number."""
  _, data = stream()
  view = view_at(jax.device_put(data), jnp.int32(1))
  i, live = np.array([2, 0, 10**6, 1], np.int32), np.array([1, 1, 0, 1], bool)
  batch = some_rows(view, view.tasks.valid, jnp.int32(1), i, live)
  expected = split_batch(view.bank, view.tasks, view.tasks.valid, jnp.int32(1), np.array([2, 0, 0, 1]), live)
  chex.assert_trees_all_equal(batch, expected)
  np.testing.assert_array_equal(batch.place.row[live], np.asarray(view.tasks.valid.idx)[1, [2, 0, 1]])
  with pytest.raises(AssertionError):
    some_rows(view, view.tasks.valid, jnp.int32(1), i, live[:2])


@pytest.mark.parametrize("name", MEMORIES)
def test_replay_takes_every_memory(name):
  """A task by the method of that name: the memory fills, it is charged for its capacity, and shapes stay."""
  spec, data = stream(COUNTS)
  method = METHODS["er"](mlp(spec), sgd(0.1), spec, replay=4, capacity=12, memory=name)
  empty_memory, _ = memory_of(name, 4, 12, spec)
  state, planned = State(empty_memory()), jax.jit(method.phases[0].plan)
  begun = jax.eval_shape(method.init, jax.random.key(0)).memory
  chex.assert_trees_all_equal_shapes_and_dtypes(begun, state.memory)
  for t, keys, given in case("ring").steps():
    after, found = planned(keys, state, view_at(jax.device_put(data), jnp.int32(t)), given)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_tree_shape_prefix(found._replace(held=None), (STEPS, BATCH + 4))
    state = after
  report = method.report(state)
  assert report["memory_bytes"] == 12 * (16 + 8) and report["seen"] == sum(COUNTS) and state.memory.filled().all()


def test_the_reservoir_is_the_default():
  spec, _ = stream(COUNTS)
  method = METHODS["er"](mlp(spec), sgd(0.1), spec, replay=4, capacity=12)
  assert isinstance(jax.eval_shape(method.init, jax.random.key(0)).memory, Memory)


def test_memories_that_make_no_sense_are_refused():
  spec = Spec((4, 4, 1), 3, 4, 3)
  with pytest.raises(ConfigError, match="capacity=10 cannot be shared equally by 3 tasks; use 9 or 12"):
    memory_of("ring", 2, 10, spec)
  with pytest.raises(ConfigError, match="capacity=2 cannot be shared equally by 3 tasks; use 3"):
    memory_of("ring", 2, 2, spec)
  memory_of("ring", 2, 10, spec._replace(boundaries=False))
  with pytest.raises(ConfigError, match="config.method.memory='rings'.*Did you mean ring"):
    memory_of("rings", 2, 9, spec)
  for name in MEMORIES:
    assert memory_of(name, 2, 0, spec)[1] is as_it_is
    with pytest.raises(ConfigError, match="smaller than one replay batch"):
      memory_of(name, 9, 6, spec)
  _, data = stream(COUNTS, boundaries=False)
  plan = Plan(Place(*np.zeros((2, 1, BATCH), np.int32)), np.full((1, BATCH), NONE), np.ones((1, BATCH), bool))
  with pytest.raises(ValueError, match="hidden boundaries"):
    rings.ring(2, 9, 3)(jax.random.split(jax.random.key(0), 1), State(empty_rings(9, 3)), view_at(data, None), plan)
