"""The engine on toys: cutting, seeds, compilations, order of events, edges, hidden boundaries, blocks, evaluation."""

import functools
from functools import partial

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import fit
from cljax.data.sample import fetch, view_at
from cljax.data.streams import stack
from cljax.drive import Driver, Stopped, drive, pairs, start
from cljax.monitor import Monitor, rows_to_log
from cljax.types import Bank, Block, ConfigError, Method, Outputs, Phase, Rows, Spec, Stream, Task
from tests import toys
from tests.toys import Subject, assert_same, cut, method_of, one_after_the_other
from tests.toys import compiled as subject
from tests.toys import compiled_columns as columns
from tests.toys import compiled_hidden as hidden
from tests.toys import compiled_stopping as stopping

compilations = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, seconds, **_: compilations.append(event) if event.endswith("/backend_compile_duration") else None
)


@functools.cache
def finished(name, *args):
  return subject(name, *args).run()


def seed_of(tree, s):
  return jax.tree.map(lambda leaf: leaf[s : s + 1], tree)


NAMES = pytest.mark.parametrize("name", ["plain", "er", "routing"])


# Cutting and seeds.


@pytest.mark.parametrize(
  "name, chunk", [("plain", 48), ("plain", 7), ("plain", 1), ("er", 7), ("er", 1), ("routing", 7), ("routing", 1)]
)
def test_any_chunk_length_gives_the_same_bits(name, chunk):
  """Longer than a phase, across epochs, and step by step (there is no loop then: within rounding)."""
  if chunk > 1:
    assert_same(finished(name, chunk), finished(name))
  else:
    chex.assert_trees_all_close(finished(name, chunk).state, finished(name).state, atol=1e-5)
    np.testing.assert_allclose(finished(name, chunk).right["task"], finished(name).right["task"], atol=2)


@NAMES
def test_irregular_stops_give_the_same_bits(name):
  random = np.random.default_rng(1)
  units = list(cut(subject(name).units(), lambda: int(random.integers(1, 12))))
  assert_same(subject(name).run(units), finished(name))


@NAMES
def test_a_repeated_run_gives_the_same_bits(name):
  """Nothing is kept between runs, and programs compiled anew are the same."""
  before = finished(name)
  assert_same(subject(name).run(), before)


def test_seeds_differ():
  first, second = (seed_of(finished("er").state, s) for s in range(2))
  assert not np.array_equal(first.params["first"]["kernel"], second.params["first"]["kernel"])
  assert not np.array_equal(first.memory.place.row, second.memory.place.row)


@pytest.mark.parametrize("name, executor", [("er", "map"), ("plain", "each")])
def test_a_seed_alone_has_the_bits_it_has_among_others(name, executor):
  among = finished(name, 100, (0, 1), executor)
  alone = finished(name, 100, (1,), executor)
  chex.assert_trees_all_equal(seed_of(among.state, 1), alone.state)
  np.testing.assert_array_equal(among.right["task"][1:], alone.right["task"])


@pytest.mark.parametrize("name, executor", [("er", "vmap"), ("plain", "each")])
def test_executors_agree(name, executor):
  """Within rounding; what a memory holds to the bit."""
  other = finished(name, 100, (0, 1), executor)
  chex.assert_trees_all_close(other.state, finished(name).state, atol=1e-5)
  if name == "er":
    chex.assert_trees_all_equal(other.state.memory, finished(name).state.memory)


# Compilations, transfers and the order of events.


def marked_edge(key, state, view, clock):
  return state


def with_edges(counts):
  spec, data = toys.stream(counts)
  method = toys.plain(spec, epochs=5, enter=marked_edge, tick=marked_edge, exit=marked_edge)
  return Subject(toys.experiment(method, spec, data, chunk=20))


@functools.cache
def edged():
  return with_edges((30, 23))


@functools.cache
def counted(counts, cut_to):
  """(sizes of the caches after a run, programs compiled by the loop)."""
  subject = with_edges(counts)
  carry = subject.start()
  subject.compiled["keys"](jnp.arange(2), jnp.arange(3))  # shared by all subjects: only the first would compile it
  units = list(cut(subject.units(), lambda: cut_to))
  before = len(compilations)
  subject.run(units, carry=carry)
  sizes = {name: function._cache_size() for name, function in subject.compiled.items() if name != "keys"}
  return sizes, len(compilations) - before, sum(unit.kind == "chunk" for unit in units)


def test_compilations_do_not_depend_on_tasks():
  """T = 2 against T = 5: every function once, and nothing beside them."""
  two, many = counted((30, 23), 20), counted((30, 23, 40, 12, 35), 20)
  events = {"init", "view", "fit.chunk", "fit.enter", "fit.tick", "fit.exit", "evaluate.task", "report"}
  assert two[0] == many[0] == dict.fromkeys(events, 1)
  assert two[1] == many[1] == len(events) - 1  # init came before the loop


def test_compilations_do_not_depend_on_chunks():
  few, many = counted((30, 23), 20), counted((30, 23), 1)
  assert few[2] == 10 and many[2] == 30
  assert few[0] == many[0] and few[1] == many[1]


def test_the_loop_makes_no_silent_transfer():
  """Every number goes to the device by `device_put`; compiling inside the loop as well."""
  for it in (edged(), hidden(), by_seed()):
    carry = it.start()
    with jax.transfer_guard("disallow"):
      it.run(carry=carry)


def recording(compiled, log):
  """The functions of `compiled`, noting (event, the clock or the task and row that it was given)."""

  def wrap(name, function):
    def call(*args):
      if name.endswith((".enter", ".tick", ".exit", ".chunk")):
        clock = tuple(int(number) for number in args[3])
        log.append((name, *clock, int(args[4])) if name.endswith("chunk") else (name, *clock))
      elif name.startswith("evaluate"):
        log.append((name, int(args[2]), int(args[3]) + 1))
      elif name == "view":
        log.append((name, int(args[1])))
      elif name != "keys":
        log.append((name,))
      return function(*args)

    return call

  return {name: wrap(name, function) for name, function in compiled.items()}


def evaluations(row, T):
  return ([("report",)] if row else []) + [("evaluate.task", task, row) for task in range(T)]


def test_the_order_of_events():
  """Row 0 before training; clocks are (epoch, step, steps, total); a tick has the clock of its epoch's last step."""
  it, log = edged(), []
  phase = it.experiment.method.phases[0]._replace(epochs=2)
  timeline = it.experiment.timeline._replace(phases=(phase,))
  short = Subject(it.experiment._replace(timeline=timeline), it, ())
  short.run(list(cut(short.units(), lambda: 2)), compiled=recording(it.compiled, log))
  assert log == [
    *evaluations(0, 2),
    ("view", 0),
    ("fit.enter", 0, 0, 3, 0),
    ("fit.chunk", 0, 0, 3, 0, 2),
    ("fit.chunk", 0, 2, 3, 2, 1),
    ("fit.tick", 0, 2, 3, 2),
    ("fit.chunk", 1, 0, 3, 3, 2),
    ("fit.chunk", 1, 2, 3, 5, 1),
    ("fit.tick", 1, 2, 3, 5),
    ("fit.exit", 2, 0, 3, 6),
    *evaluations(1, 2),
    ("view", 1),
    ("fit.enter", 0, 0, 3, 6),
    ("fit.chunk", 0, 0, 3, 6, 2),
    ("fit.chunk", 0, 2, 3, 8, 1),
    ("fit.tick", 0, 2, 3, 8),
    ("fit.chunk", 1, 0, 3, 9, 2),
    ("fit.chunk", 1, 2, 3, 11, 1),
    ("fit.tick", 1, 2, 3, 11),
    ("fit.exit", 2, 0, 3, 12),
    *evaluations(2, 2),
  ]


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


def test_every_use_has_its_own_key():
  """Edges, plans, steps and orders of all positions draw different numbers; enter of two tasks too."""
  key = jax.random.key(0)
  purposes = (fit.ORDER, fit.PLAN, fit.STEP, fit.ENTER, fit.TICK, fit.EXIT)
  uses = [fit.use(key, purpose, jnp.int32(p)) for purpose in purposes for p in range(20)]
  assert len({tuple(np.asarray(jax.random.key_data(use)).tolist()) for use in uses}) == 120


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

  mean = jax.jit(lambda view, rows, t: fit.mean_over(fn, view, rows, t, group))
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


def test_mean_over_takes_the_task_in_training():
  view = first_view(t=1)
  found = jax.jit(lambda view: fit.mean_over(lambda batch: batch.task, view, view.tasks.train))(view)
  assert float(found) == 1


def test_mean_over_an_empty_split_is_zero():
  _, data = toys.stream()
  valid = data.tasks.valid._replace(count=np.array([8, 0, 8], np.int32))
  view = first_view(data._replace(tasks=data.tasks._replace(valid=valid)), t=1)
  found = jax.jit(lambda view: fit.mean_over(lambda batch: {"x": batch.x / 0, "y": batch.y}, view, view.tasks.valid))(
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


# Hidden boundaries.


@functools.cache
def streamed(first=0):
  return hidden(first=first).run()


@pytest.mark.parametrize("counts, chunk", [((41, 64, 45), 100), ((3, 2, 145), 6)])
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


def test_slots_are_noted_at_true_edges():
  """Task k is asked through the slot that was in training at its edge; before its edge it has none, which is -1."""
  carry = streamed()
  assert carry.slot_of.tolist() == [[0, 1], [0, 1]]
  right = carry.right["task"]
  assert (right[:, 0] == -1).all() and (right[:, 1, 1] == -1).all()
  assert (right[:, 1, 0] >= 0).all() and (right[:, 2] >= 0).all()
  it = hidden()
  for task, slot in ((0, 0), (1, 1)):
    ask = partial(fit.evaluate, it.experiment.method, "task", 60, "test")
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
  plan = fit.plan_current(phase, 3, jax.random.key(0), view, clock(0, 15), jnp.int32(3))
  batch = fetch(view, jax.tree.map(lambda leaf: leaf.reshape(-1), plan.place))
  assert (batch.task == 0).all() and batch.classes.all() and plan.live.all()
  np.testing.assert_array_equal(batch.place.task, np.arange(30))
  rows = np.concatenate([table[:count] for table, count in zip(*data.tasks.train[:2], strict=True)])
  np.testing.assert_array_equal(batch.place.row, rows[:30])


def clock(step, steps):
  return fit.clock_at(fit.Clock(jnp.int32(0), jnp.int32(0), jnp.int32(steps), jnp.int32(0)), jnp.int32(step))


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
  view, state = first_view(), method.init(jax.random.key(0))
  for n in (6, 0):
    with pytest.raises(ValueError, match="multiple of the block's 4 steps"):
      fit.fit_chunk(method.phases[0], n, jax.random.key(0), state, view, clock(0, 3), jnp.int32(n))


# What training may see.


def spoil(tree, t, random):
  """Other entries of the same kind in all tasks after `t`."""

  def other(leaf):
    leaf = np.array(leaf)
    leaf[t + 1 :] = random.permutation(leaf[t + 1 :].ravel()).reshape(leaf[t + 1 :].shape)
    if leaf.ndim > 1 and leaf.dtype != bool:
      leaf[t + 1 :] = leaf[t + 1 :][..., ::-1]
    elif leaf.dtype == bool:
      leaf[t + 1 :] ^= True
    else:
      leaf[t + 1 :] //= 2
    return leaf

  return jax.tree.map(other, tree)


def spoilt(data, t):
  random = np.random.default_rng(t)
  test_bank = Bank(255 - data.test_bank.x, data.test_bank.y[::-1].copy())
  return data._replace(tasks=spoil(data.tasks, t, random), test_bank=test_bank, test=spoil(data.test, -1, random))


@pytest.mark.parametrize("heads", [3, 1])
def test_a_view_holds_nothing_of_later_tasks_and_no_test_row(heads):
  """Every leaf of the view is the same, whatever stands in the tables of later tasks."""
  data = answers_stream("class" if heads == 1 else "task")[1]
  for t in range(3):
    views = [view_at(jax.device_put(it), jnp.int32(t), heads) for it in (data, spoilt(data, t))]
    chex.assert_trees_all_equal(*views)
    for leaf in jax.tree.leaves(views[0].tasks):
      assert not np.asarray(leaf)[t + 1 :].any()
    seen = np.logical_or.accumulate(data.tasks.classes)[t]
    np.testing.assert_array_equal(views[0].tasks.classes[t], seen if heads == 1 else data.tasks.classes[t])


@pytest.mark.parametrize("name", ["er", "stopping", "columns"])
def test_no_peek(name):
  """Garbage in tables, labels and warps of later tasks and in test rows changes no bit of the state after a task."""
  it = {"er": lambda: subject("er"), "stopping": stopping, "columns": columns}[name]()
  data = toys.stream()[1]
  for t in range(2):
    units = [unit for unit in it.units() if unit.at.task <= t and unit.kind not in ("evaluate", "save")]
    assert not np.array_equal(spoilt(data, t).tasks.train.idx, data.tasks.train.idx)
    chex.assert_trees_all_equal(it.run(units, spoilt(data, t)).state, it.run(units).state)


# Streams that differ by seed.


@functools.cache
def own_streams():
  """Two seeds with rows, permutations and lengths of their own; one bank."""
  specs, streams = zip(toys.stream((30, 23, 40), seed=0), toys.stream((12, 41, 19), seed=5), strict=True)
  return specs[0], streams


def differing(name, spec, data, seeds, axes=None):
  method = toys.early_stop(spec, 3) if name == "stopping" else method_of(name, spec)
  it = toys.experiment(method, spec, data, seeds, chunk=5, log_every_steps=2) if axes is None else None
  if axes is not None:
    solo = toys.experiment(method, spec, own_streams()[1][0], seeds, chunk=5, log_every_steps=2)
    rows = np.asarray(data.tasks.train.count, np.int64)
    it = solo._replace(
      stream=jax.device_put(data),
      axes=axes,
      timeline=solo.timeline._replace(rows=rows),
      test_rows=np.tile(data.test.count, (2, 1)),
    )
  return Subject(it)


@functools.cache
def by_seed(name="stopping"):
  spec, streams = own_streams()
  return differing(name, spec, stack(streams)[0], (0, 1), stack(streams)[1])


@functools.cache
def by_seed_run(name):
  return by_seed(name).run(), by_seed(name).rows


def values_by_seed(rows):
  """(task, step, seed) -> values of the step rows."""
  found = {}
  for row in rows:
    if row["event"] == "step":
      for i, seed in enumerate(row["seeds"]):
        found[row["task"], row["step"], seed] = tuple(row[name][i] for name in ("loss", "accuracy"))
  return found


def test_stacked_streams_share_the_bank():
  spec, streams = own_streams()
  data, axes = stack(streams)
  assert axes.bank.x is None and axes.test.idx is None
  assert axes.tasks.train.count == 0 and axes.tasks.train.idx == 0 and axes.tasks.train.warp.index == 0
  assert data.tasks.train.idx.shape == (2, 3, 41)


@pytest.mark.parametrize("name, s", [("er", 1), ("stopping", 0)])
def test_ragged_seeds_equal_their_solo_runs(name, s):
  """Each seed takes its own number of steps, ticks at its own epochs, and has the bits it has alone."""
  spec, streams = own_streams()
  carry, rows = by_seed_run(name)
  alone = differing(name, spec, streams[s], (s,))
  solo = alone.run()
  chex.assert_trees_all_equal(seed_of(carry.state, s), solo.state)
  np.testing.assert_array_equal(carry.right["task"][s], solo.right["task"][0])
  assert values_by_seed(alone.rows) == {at: values for at, values in values_by_seed(rows).items() if at[2] == s}


def test_ragged_seeds_by_any_cut():
  """Bits, and the positions and values of the metrics of each seed."""
  it = by_seed("stopping")
  carry, rows = by_seed_run("stopping")
  again = it.run(list(cut(it.units(), lambda: 2)))
  assert_same(again, carry)
  assert values_by_seed(it.rows) == values_by_seed(rows)


# Evaluation.


@flax.struct.dataclass
class Linear:
  w: jax.Array  # [slots, D, C]
  gate: jax.Array  # [D, slots]


def answers_stream(scenario):
  """Three tasks of some of six labels: own heads of 3 logits, or one head of 6."""
  random = np.random.default_rng(9)
  noise = [random.integers(0, 256, (rows, 4, 4, 1)).astype(np.uint8) for rows in (120, 90)]  # so that answers differ
  train, test = (Bank(x, (np.arange(len(x)) % 6).astype(np.int32)) for x in noise)
  labels = [np.array([1, 4, 5]), np.array([5, 1]), np.array([4, 0])]
  C = 3 if scenario == "task" else 6
  label_map, unmap, classes = np.zeros((3, 6), np.int32), np.zeros((3, C), np.int32), np.zeros((3, C), bool)
  for t, own in enumerate(labels):
    logits = np.arange(len(own)) if scenario == "task" else own
    label_map[t, own], unmap[t, logits], classes[t, logits] = logits, own, True
  if scenario != "task":
    unmap[:] = np.arange(6)
  warp = toys.Permutation(np.stack([random.permutation(16) for _ in range(3)]).astype(np.int32))
  tables = [
    [random.permutation(np.flatnonzero(np.isin(bank.y, own))) for own in labels] for bank in (train, train, test)
  ]
  tables[1] = [table[:7] for table in tables[1]]
  train_rows, valid, tested = (Rows(*toys.pad(tables), warp) for tables in tables)
  spec = Spec((4, 4, 1), 3, C, 3 if scenario == "task" else 1)
  return spec, Stream(train, Task(train_rows, valid, label_map, unmap, classes), test, tested)


def linear(spec, slots=0):
  """A classifier by row: given or inferred slots, of which it has `slots` of its own or one for each task."""
  count = slots or spec.T

  def apply(state, x, slot):
    flat = x.reshape(len(x), -1) - 0.5
    slot = (flat @ state.gate).argmax(axis=-1).astype(jnp.int32) if slot is None else slot
    return Outputs(jnp.einsum("bd,bdc->bc", flat, state.w[slot]), flat, slot)

  def init(key):
    w = jax.random.normal(key, (count, 16, spec.C))
    return Linear(w, jax.random.normal(jax.random.fold_in(key, 1), (16, count)))

  return Method(init, (), apply, infers=True, slots=slots)


def by_hand(state, data, readout, split, task, now, slot, slots):
  """The counts row by row in numpy."""
  bank, rows = (data.test_bank, data.test) if split == "test" else (data.bank, data.tasks.valid)
  w, gate = np.asarray(state.w, float), np.asarray(state.gate, float)
  right, strict, confusion = 0, 0, np.zeros(slots or 3, int)
  for row in rows.idx[task, : rows.count[task]]:
    x = bank.x[row].ravel()[rows.warp.index[task]] / 255 - 0.5
    used = {"task": slot, "class": 0, "domain": 0, "inferred": (x @ gate).argmax()}[readout]
    if readout == "task":
      mask = data.tasks.classes[task]
    elif readout == "class":
      mask = data.tasks.classes[: now + 1 if now >= 0 else None].any(axis=0)
    elif readout == "inferred" and not slots:
      mask = data.tasks.classes[used]
    else:
      mask = np.ones(w.shape[-1], bool)
    answer = np.where(mask, x @ w[used], -np.inf).argmax()
    of = used if readout == "inferred" and not slots else task
    good = data.tasks.label_unmap[of, answer] == bank.y[row]
    right, strict = right + good, strict + (good and used == slot)
    confusion[used] += 1
  return {"right": right, "strict": strict, "confusion": confusion}


@pytest.mark.parametrize("scenario, readout, slots, group", [
  ("task", "task", 0, 1),
  ("task", "task", 0, 15),
  ("task", "task", 0, 200),
  ("class", "class", 0, 8),
  ("class", "domain", 0, 8),
  ("task", "inferred", 0, 8),
  ("class", "inferred", 5, 8),
  ("class", "task", 5, 16),
])  # fmt: skip
def test_evaluation_counts_as_by_hand(scenario, readout, slots, group):
  """Right answers, right slots and slots used, of test and validation rows, before training (-1) and after any task."""
  spec, data = answers_stream(scenario)
  method, state, ask = asked(scenario, readout, slots, group)
  for split in ("test", "valid") if group == 8 else ("test",):
    for task in range(3):
      for now in (-1, 0, 2):
        slot = (2 * task) % slots if slots else task
        found = ask[split](state, jax.device_put(data), *(jnp.int32(n) for n in (task, now, slot)))
        expected = by_hand(state, data, readout, split, task, now, slot, slots)
        assert {name: np.asarray(value).tolist() for name, value in found.items()} == {
          name: np.asarray(value).tolist() for name, value in expected.items()
        }, (split, task, now)
        assert all(value.dtype == jnp.int32 for value in found.values())
        assert int(found["confusion"].sum()) == (data.test if split == "test" else data.tasks.valid).count[task]


@functools.cache
def asked(scenario, readout, slots, group):
  method = linear(answers_stream(scenario)[0], slots)
  ask = {split: jax.jit(partial(fit.evaluate, method, readout, group, split)) for split in ("test", "valid")}
  return method, method.init(jax.random.key(4)), ask


def test_evaluating_no_row_counts_nothing():
  _, data = answers_stream("task")
  _, state, ask = asked("task", "task", 0, 8)
  data = data._replace(test=data.test._replace(count=np.zeros(3, np.int32)))
  found = ask["test"](state, jax.device_put(data), *(jnp.int32(n) for n in (1, 0, 1)))
  assert not any(leaf.any() for leaf in jax.tree.leaves(found))


def test_row_zero_is_the_untrained_net():
  it = subject("er")
  first = it.start()
  counts = it.compiled["evaluate.task"](first.state, it.experiment.stream, *(jnp.int32(n) for n in (1, -1, 1)))
  np.testing.assert_array_equal(finished("er").right["task"][:, 0, 1], counts["right"])
  assert (finished("er").right["task"] >= 0).all()


def test_pairs():
  """Which tasks a row asks about."""
  every = tuple(range(4))
  assert [pairs("all", row, 4, every) for row in range(5)] == [[0, 1, 2, 3]] * 5
  assert [pairs("seen", row, 4, every) for row in range(5)] == [
    [0, 1, 2, 3],
    [0, 1],
    [0, 1, 2],
    [0, 1, 2, 3],
    [0, 1, 2, 3],
  ]
  assert [pairs("ends", row, 4, every) for row in range(5)] == [[], [0], [1], [2], [0, 1, 2, 3]]
  for mode in ("all", "seen", "ends"):
    assert [pairs(mode, row, 4, (3,)) for row in (0, 4)] == [[0, 1, 2, 3]] * 2  # an oracle has no other rows


@pytest.mark.parametrize("mode", ["all", "seen", "ends"])
def test_what_is_not_asked_is_null(mode):
  it = subject("er")
  config = it.experiment.config.copy_and_resolve_references()
  config.evaluate = mode
  other = Subject(it.experiment._replace(config=config), it, ())
  right = other.run().right["task"]
  asked = np.array([[task in pairs(mode, row, 3, (0, 1, 2)) for task in range(3)] for row in range(4)])
  np.testing.assert_array_equal(right, np.where(asked, finished("er").right["task"], -1))


# Faults and metrics.


@flax.struct.dataclass
class Filling:
  limit: jax.Array
  count: jax.Array


def filling(spec):
  """Says that config.method.capacity is exceeded once it has taken more steps than a seed's own limit."""
  method = toys.plain(spec)

  def step(key, state, batch, clock, view):
    return state.replace(count=state.count + 1), {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}

  def apply(state, x, slot):
    return Outputs(jnp.zeros((len(x), spec.C)), x.reshape(len(x), -1), slot)

  return Method(
    lambda key: Filling(jax.random.randint(key, (), 0, 1000), jnp.int32(0)),
    (method.phases[0]._replace(step=step, epochs=0, steps=1000),),
    apply,
    method.report,
    lambda state: {"method.capacity": state.count > state.limit, "method.replay": jnp.array(False)},
  )


def test_a_fault_stops_the_run_and_names_the_key_and_the_seeds():
  """After the first chunk in which it is true; the seeds are those of the config."""
  spec, data = toys.stream()
  it = Subject(toys.experiment(filling(spec), spec, data, (5, 6, 7), chunk=50))
  carry = it.start()
  limits = carry.state.limit.tolist()
  assert len({limit // 50 for limit in limits}) == 3
  first = 5 + int(np.argmin(limits))
  with pytest.raises(ConfigError, match=rf"config\.method\.capacity is exceeded \(seeds \[{first}\]\)") as raised:
    it.run(carry=carry)
  assert "replay" not in str(raised.value)
  assert carry.state.count.tolist() == [(min(limits) // 50 + 1) * 50] * 3


def test_a_chunk_s_info_becomes_rows_at_fixed_positions():
  info = {"loss": np.arange(10.0).reshape(2, 5)}
  assert rows_to_log((4, 4), (5, 5), 3, info, (7, 8)) == [{"step": 6, "seeds": [7, 8], "loss": [2.0, 7.0]}]
  assert rows_to_log((0, 0), (1, 1), 3, info, (7, 8)) == [{"step": 0, "seeds": [7, 8], "loss": [0.0, 5.0]}]
  assert rows_to_log((1, 1), (2, 2), 3, info, (7, 8)) == []
  assert rows_to_log((2, 4), (4, 1), 2, info, (7, 8)) == [
    {"step": 2, "seeds": [7], "loss": [0.0]},
    {"step": 4, "seeds": [7, 8], "loss": [2.0, 5.0]},
  ]


@pytest.mark.parametrize("every", [1, 5])
def test_metrics_do_not_depend_on_the_cut(every):
  """Positions and values to the bit; evaluations stand in the same places among them."""
  it = subject("er")
  config = it.experiment.config.copy_and_resolve_references()
  config.log_every_steps = every
  other = Subject(it.experiment._replace(config=config), it, ())
  found = []
  for length in (48, 7, 2):
    other.run(list(cut(it.units(), lambda length=length: length)))
    found.append(other.rows)
  assert found[0] == found[1] == found[2]
  steps = [row["step"] for row in found[0] if row["event"] == "step" and row["task"] == 2]
  assert steps == list(range(0, 48, every))


def test_hidden_boundaries_take_one_phase_without_a_tick():
  """There are no epochs of a task to tick at; two loops over one stream would see it twice."""
  spec, data = toys.stream(boundaries=False)
  one = toys.plain(spec)
  ticking = toys.plain(spec, tick=lambda key, state, view, clock: state)
  for method in (ticking, one._replace(phases=one.phases * 2)):
    with pytest.raises(ConfigError, match="boundaries are hidden"):
      toys.experiment(method, spec, data)


def test_a_stop_without_a_work_dir_stops():
  """There is nothing to save, and nothing goes on in secret."""
  it = subject("plain")
  driver = Driver(it.experiment, it.compiled, Monitor(None, 1, 0, 0, "toy", True), None, lambda: True)
  with pytest.raises(Stopped):
    drive(it.experiment.timeline.units(None, 0), start(it.experiment, it.compiled), driver)
