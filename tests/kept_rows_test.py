"""Memories that a method fills or only draws from, rows by their number, and replay from every kind."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cljax.data.sample import some_rows, split_batch, view_at
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.pieces import rings
from cljax.pieces.balanced import empty_balanced
from cljax.pieces.memories import MEMORIES, memory_of
from cljax.pieces.optimizers import sgd
from cljax.pieces.replay import Memory, draw_only, empty
from cljax.pieces.rings import Rings, empty_rings, keep_rows, some_places
from cljax.types import NONE, Place, Plan, Spec, as_it_is
from tests.plans import BATCH, COUNTS, REPLAY, STEPS, State, T, case, check_replayed
from tests.toys import mlp, stream


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
  state, planned = State(memory_of(name, 4, 12, spec).empty()), jax.jit(method.phases[0].plan)
  ended = jax.jit(method.phases[0].exit)
  begun = jax.eval_shape(method.init, jax.random.key(0)).memory
  chex.assert_trees_all_equal_shapes_and_dtypes(begun, state.memory)
  for t, keys, given in case("ring").steps():
    view = view_at(jax.device_put(data), jnp.int32(t))
    after, found = planned(keys, state, view, given)
    if name == "kept":
      drawn = np.where(given.live.any(axis=1), min(4 * t, 4), 0)  # nothing of the task itself
      np.testing.assert_array_equal(found.live[:, BATCH:].sum(axis=1), drawn)
      after = ended(jax.random.key(t), after, view, None)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_tree_shape_prefix(found._replace(held=None), (STEPS, BATCH + 4))
    state = after
  report, seen = method.report(state), 12 if name == "kept" else sum(COUNTS)
  assert report["memory_bytes"] == 12 * (16 + 8) and report["seen"] == seen and state.memory.filled().all()


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
    assert memory_of(name, 2, 0, spec).plan is as_it_is
    with pytest.raises(ConfigError, match="smaller than one replay batch"):
      memory_of(name, 9, 6, spec)
  _, data = stream(COUNTS, boundaries=False)
  plan = Plan(Place(*np.zeros((2, 1, BATCH), np.int32)), np.full((1, BATCH), NONE), np.ones((1, BATCH), bool))
  with pytest.raises(ValueError, match="hidden boundaries"):
    rings.ring(2, 9, 3)(jax.random.split(jax.random.key(0), 1), State(empty_rings(9, 3)), view_at(data, None), plan)
