"""What training may see, and answers counted as by hand: readouts, slots, groups, pairs."""

import functools
from functools import partial

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import loops
from cljax.data.sample import view_at
from cljax.looks import pairs
from cljax.types import Bank, Method, Outputs, Rows, Spec, Stream, Task
from tests import toys
from tests.subjects import Subject, finished
from tests.subjects import compiled as subject
from tests.subjects import compiled_columns as columns
from tests.subjects import compiled_stopping as stopping

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
  ask = {split: jax.jit(partial(loops.evaluate, method, readout, group, split)) for split in ("test", "valid")}
  return method, method.init(jax.random.key(4)), ask


def test_evaluating_no_row_counts_nothing():
  _, data = answers_stream("task")
  _, state, ask = asked("task", "task", 0, 8)
  data = data._replace(test=data.test._replace(count=np.zeros(3, np.int32)))
  found = ask["test"](state, jax.device_put(data), *(jnp.int32(n) for n in (1, 0, 1)))
  assert not any(leaf.any() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("readout, group, at_once", [("task", 500, 45), ("task", 40, 23), ("inferred", 500, 500)])
def test_a_split_is_asked_in_evenly_filled_batches(readout, group, at_once):
  """Few rows cost what few rows cost; but whoever infers a task from a batch gets as large a one as was asked for."""
  spec, data = answers_stream("task")
  method, seen = linear(spec, 0), []

  def apply(state, x, slot):
    seen.append(len(x))
    return method.apply(state, x, slot)

  ask = partial(loops.evaluate, method._replace(apply=apply), readout, group, "test")
  most = data.test.idx.shape[-1]
  jax.eval_shape(ask, method.init(jax.random.key(4)), jax.device_put(data), *(jnp.int32(0),) * 3)
  assert most == 45 and set(seen) == {at_once}


def test_row_zero_is_the_untrained_net():
  it = subject("er")
  first = it.start()
  counts = it.compiled["evaluate.task"](
    first.hyper, first.state, it.experiment.stream, *it.experiment.numbers(1, -1, 1), None
  )
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
  settings = it.experiment.settings._replace(evaluate=mode)
  other = Subject(it.experiment._replace(settings=settings), it, ())
  right = other.run().right["task"]
  asked = np.array([[task in pairs(mode, row, 3, (0, 1, 2)) for task in range(3)] for row in range(4)])
  np.testing.assert_array_equal(right, np.where(asked, finished("er").right["task"], -1))
