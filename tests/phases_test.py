"""Phases on toys: edges that decide, hidden boundaries, blocks."""

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import loops
from cljax.data.sample import fetch, view_at
from cljax.errors import ConfigError
from cljax.ops.slots import by_slot, mean_of_live, over_live
from cljax.types import Block, Phase
from tests import toys
from tests.subjects import Subject, assert_same, cut, evaluations, one_after_the_other, recording
from tests.subjects import compiled_columns as columns
from tests.subjects import compiled_hidden as hidden
from tests.subjects import compiled_stopping as stopping
from tests.tiers import at_release

# Edges that decide.


@functools.cache
def stopped():
  return stopping().run()


@pytest.mark.parametrize("chunk", [2, 5])
def test_early_stop_gives_the_same_bits_by_any_chunk_length(chunk):
  """Epochs have 3, 3 and 4 steps, which none of the lengths divides."""
  assert_same(stopping(chunk).run(), stopped())


def test_early_stop_freezes_at_its_best_epoch():
  """A tick after each epoch; after the first epoch that is no new best, nothing moves, and `exit` goes back."""
  state, spec = stopped().state, stopping().experiment.spec
  assert state.ticks.tolist() == [12, 12]
  losses = np.asarray(state.losses)
  assert np.isfinite(losses).all()
  froze = 0
  for s in range(2):
    for t in range(spec.T):
      row = losses[s, t]
      worse = np.flatnonzero(row[1:] >= np.minimum.accumulate(row)[:-1])
      if len(worse):
        froze += worse[0] + 1 < len(row) - 1
        assert (row[worse[0] + 1 :] == row[worse[0] + 1]).all()
  assert froze
  chex.assert_trees_all_equal(state.params, state.best)


def first_view(data=None, t=0):
  data = jax.device_put(toys.stream()[1] if data is None else data)
  return jax.jit(view_at, static_argnums=2)(data, jnp.int32(t), 3)


@pytest.mark.parametrize("group", [1, 7, 30, 100])
def test_mean_over_is_the_mean(group):
  """Trees of any rank and type against numpy, for groups that divide the rows and not; NaN in dead rows is ignored."""
  spec, data = toys.stream()
  view = first_view(t=2)

  def fn(batch):
    noise = jnp.where(batch.live, 0.0, jnp.nan)
    picture = batch.x + noise[:, None, None, None]
    return {"x": picture, "y": batch.y, "odd": batch.y % 2 == 1, "row": batch.place.row * 1.0, "task": batch.task}

  mean = jax.jit(lambda view, rows, t: loops.mean_over(fn, view, rows, t, group))
  for rows, split in ((view.tasks.train, data.tasks.train), (view.tasks.valid, data.tasks.valid)):
    for t in (1, 2):
      found = mean(view, rows, jnp.int32(t))
      idx = split.idx[t, : split.count[t]]
      x = (data.bank.x[idx] / np.float32(255)).reshape(len(idx), -1)[:, split.warp.index[t]].reshape(-1, 4, 4, 1)
      y = data.bank.y[idx]
      expected = {"x": x.mean(0), "y": y.mean(), "odd": (y % 2).mean(), "row": idx.mean(), "task": float(t)}
      for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
        assert found[name].dtype == jnp.float32


def test_what_a_loop_does_is_traced_once():
  """Tracing is Python, and a step may be a large network."""
  spec, data = toys.stream()
  view, calls = first_view(), []

  def counted(fn):
    def call(*args):
      calls.append(fn)
      return fn(*args)

    return call

  def traces(fn, *args):
    calls.clear()
    jax.eval_shape(fn, *args)
    return len(calls)

  method = toys.plain(spec)
  phase = method.phases[0]._replace(step=counted(method.phases[0].step))
  args = jax.random.key(0), method.init(jax.random.key(0)), view, clock(0, 3), jnp.int32(4)
  assert traces(partial(loops.fit_chunk, phase, 4), *args) == 1
  fn = counted(lambda batch: batch.x)
  assert traces(lambda view: loops.mean_over(fn, view, view.tasks.train), view) == 1
  for over in (over_live, mean_of_live, lambda run, live: by_slot(run, 2, live.astype(int))):
    run = counted(lambda slot: {"a": jnp.full(3, 0.5 * slot)})
    assert traces(partial(over, run), jnp.ones(3, bool)) == 1


def test_mean_over_takes_the_task_in_training():
  view = first_view(t=1)
  found = jax.jit(lambda view: loops.mean_over(lambda batch: batch.task, view, view.tasks.train))(view)
  assert float(found) == 1


def test_mean_over_an_empty_split_is_zero():
  _, data = toys.stream()
  valid = data.tasks.valid._replace(count=np.array([8, 0, 8], np.int32))
  view = first_view(data._replace(tasks=data.tasks._replace(valid=valid)), t=1)
  found = jax.jit(lambda view: loops.mean_over(lambda batch: {"x": batch.x / 0, "y": batch.y}, view, view.tasks.valid))(
    view
  )
  chex.assert_trees_all_equal(found, {"x": jnp.zeros((4, 4, 1)), "y": jnp.float32(0)})


def test_enter_copies_a_slot_and_leaves_the_others_alone():
  """Two phases; the second goes on from a stored network by a dynamic index; earlier slots keep their bits."""
  it = columns()
  units, carry, kept = it.units(), it.start(), []
  for task in range(3):
    it.run([unit for unit in units if unit.at.task == task and unit.kind not in ("evaluate", "save")], carry=carry)
    kept.append(jax.device_get(carry.state.store))
    for earlier in range(task):
      chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf, k=earlier: leaf[:, k], kept[task]),
        jax.tree.map(lambda leaf, k=earlier: leaf[:, k], kept[earlier]),
      )
    for later in range(task + 1, 3):
      chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf, k=later: leaf[:, k], kept[task]),
        jax.tree.map(lambda leaf, k=later: leaf[:, k], kept[0]),
      )
  state = carry.state
  chex.assert_trees_all_equal(state.params, jax.tree.map(lambda leaf: leaf[:, 2], state.store))
  parents = np.asarray(state.parent)
  assert (
    (parents[:, 0] == 0).all() and (parents[:, 1] == 0).all() and ((parents[:, 2] >= 0) & (parents[:, 2] < 2)).all()
  )
  assert state.opened.tolist() == [[0, 8, 14]] * 2
  assert_same(it.run(list(cut(units, lambda: 3))), it.run())


def test_the_order_of_events_of_two_phases():
  """Each phase has its own steps and total; edges that do nothing are absent."""
  it, log = columns(), []
  assert {"scout.enter", "fit.enter", "fit.exit"} == {
    name for name in it.compiled if name.endswith(("enter", "tick", "exit"))
  }
  it.run(compiled=recording(it.compiled, log))
  assert log == [
    *evaluations(0, 3),
    ("view", 0),
    ("scout.enter", 0, 0, 3, 0),
    ("scout.chunk", 0, 0, 3, 0, 4),
    ("fit.enter", 0, 0, 4, 0),
    ("fit.chunk", 0, 0, 4, 0, 8),
    ("fit.exit", 2, 0, 4, 8),
    *evaluations(1, 3),
    ("view", 1),
    ("scout.enter", 0, 0, 3, 4),
    ("scout.chunk", 0, 0, 3, 4, 4),
    ("fit.enter", 0, 0, 3, 8),
    ("fit.chunk", 0, 0, 3, 8, 6),
    ("fit.exit", 2, 0, 3, 14),
    *evaluations(2, 3),
    ("view", 2),
    ("scout.enter", 0, 0, 4, 8),
    ("scout.chunk", 0, 0, 4, 8, 4),
    ("fit.enter", 0, 0, 5, 14),
    ("fit.chunk", 0, 0, 5, 14, 10),
    ("fit.exit", 2, 0, 5, 24),
    *evaluations(3, 3),
  ]


# Hidden boundaries.


@functools.cache
def streamed(first=0):
  return hidden(first=first).run()


OTHERS = at_release(((41, 64, 45), 100), ((3, 2, 145), 6))


@pytest.mark.parametrize("counts, chunk", [((3, 2, 145), 100), *OTHERS])
def test_recut(counts, chunk):
  """The same rows in the same order, cut into other tasks: the same bits, the memory of places and the experts too."""
  it = hidden(counts, chunk)
  units = [unit for unit in it.units() if unit.kind != "evaluate"]
  assert len(it.experiment.stream.tasks.train.count) == len(counts)
  chex.assert_trees_all_equal(it.run(units).state, streamed().state)


def test_the_onset_is_found():
  """One switch in both seeds, after the classes changed (step 7 of 15), not before."""
  it, found = hidden(), []
  carry = it.start()
  for unit in it.units():
    it.run([unit], carry=carry)
    if unit.kind == "chunk":
      found.append(carry.state.slot.tolist())
  assert found[0] == [0, 0] and found[-1] == [1, 1]
  memory = carry.state.memory
  assert memory.seen.tolist() == [150, 150]
  assert ((np.asarray(memory.place.task) < 150) & (np.asarray(memory.place.task) >= 0)).all()
  rows = np.concatenate([table[:count] for table, count in zip(*it.experiment.stream.tasks.train[:2], strict=True)])
  np.testing.assert_array_equal(rows[np.asarray(memory.place.task)], memory.place.row)  # each place names its row


def test_hidden_boundaries_make_no_silent_transfer():
  """Nor do others: tests/engine_test.py."""
  carry = hidden().start()
  with jax.transfer_guard("disallow"):
    hidden().run(carry=carry)


def test_slots_are_noted_at_true_edges():
  """Task k is asked through the slot that was in training at its edge; before its edge it has none, which is -1."""
  carry = streamed()
  assert carry.slot_of.tolist() == [[0, 1], [0, 1]]
  right = carry.right["task"]
  assert (right[:, 0] == -1).all() and (right[:, 1, 1] == -1).all()
  assert (right[:, 1, 0] >= 0).all() and (right[:, 2] >= 0).all()
  it = hidden()
  for task, slot in ((0, 0), (1, 1)):
    ask = partial(loops.evaluate, it.experiment.method, "task", 60, "test")
    one = jax.tree.map(lambda leaf: leaf[0], carry.state)
    counts = jax.jit(ask)(one, it.experiment.stream, jnp.int32(task), jnp.int32(1), jnp.int32(slot))
    assert right[0, 2, task] == counts["right"]
    assert carry.confusion["task"][0, task].tolist() == counts["confusion"].tolist()


def test_rows_lie_at_the_edges():
  """The row of task 0 is taken when its last row has been learnt, from the state of that moment."""
  it = hidden()
  carry, before = it.start(), None
  for unit in it.units():
    if unit.kind == "evaluate" and unit.row == 1:
      assert unit.at.step == (7, 7)
      before = carry.right["task"][:, 1, 0].copy()
      assert carry.state.memory.seen.tolist() == [70, 70]
    it.run([unit], carry=carry)
  assert (before == -1).all() and (carry.right["task"][:, 1, 0] >= 0).all()
  assert carry.reports["slot"].tolist() == [[0, 1], [0, 1]]


def test_a_task_without_a_slot_is_null():
  """Slot -1: no answer is counted, whatever `apply` would say."""
  carry = streamed(first=1)
  assert carry.slot_of.tolist() == [[-1, 1], [-1, 1]]
  for right in carry.right.values():
    assert (right[:, :, 0] == -1).all()
    assert (right[:, 2, 1] >= 0).all()
  accuracies = [row["accuracy"] for row in hidden(first=1).rows if row["event"] == "evaluate" and row["row"] == 2]
  assert accuracies and all(seed[0] is None and seed[1] is not None for row in accuracies for seed in row)


def test_the_method_is_not_told():
  """Neither the task nor the classes of a row; rows come in the order of the table, across the edge."""
  _, data = one_after_the_other((12, 138))
  classes = np.array([[True, True, False, False], [False, False, True, True]])
  view = view_at(jax.device_put(data._replace(tasks=data.tasks._replace(classes=classes))), None)
  assert view.t is None
  phase = Phase("fit", 10, None, epochs=1)
  plan = loops.plan_current(phase, 3, jax.random.key(0), view, clock(0, 15), jnp.int32(3))
  batch = fetch(view, jax.tree.map(lambda leaf: leaf.reshape(-1), plan.place))
  assert (batch.task == 0).all() and batch.classes.all() and plan.live.all()
  np.testing.assert_array_equal(batch.place.task, np.arange(30))
  rows = np.concatenate([table[:count] for table, count in zip(*data.tasks.train[:2], strict=True)])
  np.testing.assert_array_equal(batch.place.row, rows[:30])


def clock(step, steps):
  return loops.clock_at(loops.Clock(jnp.int32(0), jnp.int32(0), jnp.int32(steps), jnp.int32(0)), jnp.int32(step))


def test_hidden_boundaries_take_one_phase_without_a_tick():
  """There are no epochs of a task to tick at; two loops over one stream would see it twice."""
  spec, data = toys.stream(boundaries=False)
  one = toys.plain(spec)
  ticking = toys.plain(spec, tick=lambda key, state, view, clock: state)
  for method in (ticking, one._replace(phases=one.phases * 2)):
    with pytest.raises(ConfigError, match="boundaries are hidden"):
      toys.experiment(method, spec, data)


# Blocks.


def counting(key, state, view, clock):
  return state


def blocked(spec, size, epochs=4):
  method = toys.plain(spec, epochs=epochs, tick=counting)
  phase = method.phases[0]

  def steps(key, state, batch, clock, view):
    def one(state, now):
      return phase.step(now[0], state, now[1], now[2], view)

    return jax.lax.scan(one, state, (key, batch, clock))

  return method._replace(phases=(phase._replace(block=Block(size, steps)),)), method


@functools.cache
def block_run(size, chunk):
  spec, data = toys.stream()
  method, plain = blocked(spec, size or 1)
  it = Subject(toys.experiment(method if size else plain, spec, data, chunk=chunk))
  return it.run([unit for unit in it.units() if unit.kind != "evaluate"]), it.rows


@pytest.mark.parametrize("size, chunk", [(4, 40), (3, 6)])
def test_a_block_is_its_steps(size, chunk):
  """Chunks of any multiple of the size, cut again by epochs of 3 and 4 steps: dead steps of a block do nothing."""
  (carry, rows), (expected, expected_rows) = block_run(size, chunk), block_run(0, 5)
  chex.assert_trees_all_close(carry.state, expected.state, atol=1e-5)
  assert len(rows) == len(expected_rows) == 4 * 10
  for row, wanted in zip(rows, expected_rows, strict=True):
    assert row.keys() == wanted.keys()
    assert (row["task"], row["step"], row["seeds"]) == (wanted["task"], wanted["step"], wanted["seeds"])
    np.testing.assert_allclose([row["loss"], row["accuracy"]], [wanted["loss"], wanted["accuracy"]], atol=1e-5)


def test_a_chunk_that_no_block_divides_is_refused():
  spec, data = toys.stream()
  method, _ = blocked(spec, 4)
  assert toys.experiment(method, spec, data, chunk=7).timeline.chunk == 8
  view, state = first_view(), None
  for n in (6, 0):
    with pytest.raises(ValueError, match="multiple of the block's 4 steps"):
      loops.fit_chunk(method.phases[0], n, jax.random.key(0), state, view, clock(0, 3), jnp.int32(n))
