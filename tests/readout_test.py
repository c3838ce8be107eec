"""Readout accuracy as the driver asks for it: against probes by hand, in every scenario, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import readout
from cljax.data.bank import load
from cljax.data.streams import split
from cljax.drive import ask
from cljax.errors import ConfigError
from cljax.loops import Question
from cljax.methods import METHODS
from cljax.ops import probe
from cljax.types import Bank, Method, Outputs, Rows, Spec, Stream, Task
from tests import subjects, toys
from tests.subjects import Subject
from tests.tiers import at_release

LOOKS = {"readout": "readout_newton", "readout_adam": "readout_adam"}
MADE = ("newton.task", "adam.task")


@functools.cache
def subject() -> Subject:
  """Ragged permuted tasks, two seeds."""
  spec, data = toys.stream()
  return Subject(
    toys.experiment(toys.plain(spec, epochs=12), spec, data, looks=tuple(LOOKS)), subjects.compiled("plain"), MADE
  )


@functools.cache
def finished():
  return subject().run()


def rows_of(data: Stream, bank: Bank, table: Rows, task: int) -> tuple[np.ndarray, np.ndarray, int]:
  """(pictures [Nmax, ...], labels [Nmax], how many are the task's) in the table's order."""
  index = table.idx[task]
  x = bank.x[index].astype(np.float32) / (255 if bank.x.dtype == np.uint8 else 1)
  if table.warp is not None:
    x = x.reshape(len(x), -1)[:, table.warp.index[task]].reshape(x.shape)
  return x, data.tasks.label_map[task, bank.y[index]].astype(np.int32), int(table.count[task])


@functools.cache
def answering(it: Subject):
  """A probe on all training rows, and what it answers to test rows."""

  @jax.jit
  def answer(state, train, y, count, classes, test, slot):
    features, other = (it.method.apply(state, x, jnp.full(len(x), slot, jnp.int32)).features for x in (train, test))
    return probe.newton(features, y, count, classes).logits(other).argmax(axis=1)

  return answer


def by_hand(it: Subject, carry, task: int, slots: list[int]) -> list[int]:
  """Right answers on a task of each seed, whose features are asked through the slot of each seed."""
  data, found = it.data, []
  (train, y, count), (test, right, asked) = (
    rows_of(data, *split, task) for split in ((data.bank, data.tasks.train), (data.test_bank, data.test))
  )
  for s, slot in enumerate(slots):
    state = jax.tree.map(lambda leaf, s=s: leaf[s], jax.device_get(carry.state))
    answers = answering(it)(state, train, y, count, data.tasks.classes[task], test, slot)
    found.append(int((np.asarray(answers) == right)[:asked].sum()))
  return found


def test_the_matrix_is_that_of_probes_by_hand():
  """Of the state as it is at each row; the last row here, and those of the untrained state."""
  it, carry = subject(), finished()
  right = carry.looked["readout"]["right"]
  for task in range(3):
    assert right[:, 3, task].tolist() == by_hand(it, carry, task, [task, task])
    assert right[:, 0, task].tolist() == by_hand(it, it.start(), task, [task, task])
  assert (right[:, 1:] != carry.right["task"][:, 1:]).any()
  near = np.abs(right - carry.looked["readout_adam"]["right"])
  assert near.max() <= 6 and near.any()  # of 46 to 60


def test_asking_twice_gives_the_same():
  it, carry = subject(), finished()
  for look, answer in LOOKS.items():
    for task, counts in ask(it.experiment, it.compiled, carry, "task", range(3), 2, "test", answer):
      np.testing.assert_array_equal(counts["right"], carry.looked[look]["right"][:, 3, task])


@pytest.mark.parametrize("executor", ["vmap", *at_release("each")])
def test_by_every_executor(executor):
  it = subject()
  other = Subject(toys.experiment(it.method, it.spec, it.data, (0, 1), executor, looks=("readout",)), it, MADE)
  for task, counts in ask(other.experiment, other.compiled, finished(), "task", [0, 2], 2, "test", "readout_newton"):
    far = np.abs(counts["right"] - finished().looked["readout"]["right"][:, 3, task])
    assert far.max() <= (1 if executor == "vmap" else 0)


def test_one_head_for_all_tasks():
  """The probe chooses among the task's own classes, whatever the output's answers compete with."""
  spec, data = split(load("digits"), jax.random.key(0), tasks=2, scenario="class", examples_per_task=100)
  method = METHODS["finetune"](toys.wide_mlp(spec), optax.adam(0.01), spec, epochs=8)
  experiment = toys.experiment(method, spec, data, looks=("readout",), evaluate_group=250)
  it = Subject(experiment._replace(readouts=("class",)))
  carry = it.run()
  right, output = carry.looked["readout"]["right"], carry.right["class"]
  for task in range(2):
    assert right[:, 2, task].tolist() == by_hand(it, carry, task, [0, 0])
  assert (right[:, 2] > 0.7 * data.test.count).all()
  assert (right[:, 2, 0] > output[:, 2, 0] + 0.3 * data.test.count[0]).all()  # forgotten by the output alone


def test_hidden_boundaries_and_slots_of_the_method_s_own():
  """A task is asked through its slot; without one it is not."""
  like = subjects.compiled_hidden(first=1)
  experiment = toys.experiment(like.method, like.spec, like.data, chunk=4, looks=("readout",))
  it = Subject(experiment._replace(readouts=("task", "domain")), like, ("newton.task",))
  carry = it.run()
  right = carry.looked["readout"]["right"]
  assert (right[:, 0] == -1).all()
  known = carry.slot_of >= 0
  assert known.any() and not known.all()
  for task in range(it.spec.T):
    expected = np.where(known[:, task], by_hand(it, carry, task, carry.slot_of[:, task].tolist()), -1)
    np.testing.assert_array_equal(right[:, -1, task], expected)


# Features that are known.


def looking(features, **fields) -> Method:
  """A method that has learnt nothing and whose features are the pictures."""

  def apply(state, x, slot):
    slot = jnp.full(len(x), 1, jnp.int32) if slot is None else slot
    return Outputs(jnp.zeros((len(x), 4)), features(x), slot)

  return Method(lambda key: jnp.zeros(()), (), apply, **fields)


def question(x, y, main="task", group=16, classes=(True,) * 4, task=0, now=0, **fields) -> tuple:
  """About a task of rows x [N, 1, 1, C] with labels y, which are test rows too."""
  rows = Rows(jnp.arange(len(y), dtype=jnp.int32)[None], jnp.array([len(y)], jnp.int32), None)
  labels = jnp.arange(4, dtype=jnp.int32)[None]
  bank = Bank(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))
  stream = Stream(bank, Task(rows, rows, labels, labels, jnp.array([classes])), bank, rows)
  method = looking(lambda x: x.reshape(len(x), -1), **fields)
  return (method, main, group, "test", jnp.int32(0), stream, jnp.int32(task), jnp.int32(now), jnp.int32(0))


@pytest.mark.parametrize("answer", ["readout_newton", "readout_adam"])
def test_perfect_features_give_all(answer):
  """Where the output knows nothing, and where the method says that it knows no slot, nothing."""
  y = np.arange(50) % 4
  asked = question(np.eye(4)[y][:, None, None], y)
  ask = jax.jit(lambda: readout.ANSWERS[answer](*asked))
  assert int(ask()["right"]) == 50 and int(ask()["strict"]) == 50 and ask()["confusion"].tolist() == [50]
  assert int(readout.ANSWERS["evaluate"](*asked)["right"]) == 13


def test_classes_that_are_not_the_task_s_are_no_answer():
  y = np.arange(50) % 4
  asked = question(np.eye(4)[y][:, None, None], y, classes=(True, True, False, True))
  assert int(jax.jit(lambda: readout.readout_newton(*asked))()["right"]) == 50 - (y == 2).sum()


def test_draws_are_named_by_the_task_and_the_row(monkeypatch):
  keys = []

  def listen(key, x, y, count, classes):
    keys.append(jax.random.key_data(key).tolist())
    return probe.Probe(0, 1, jnp.zeros((1, 4)), jnp.zeros(4), classes)

  monkeypatch.setattr(readout.probe, "adam", listen)
  for task, now in ((0, -1), (0, 0), (1, 0), (0, -1)):
    readout.readout_adam(*question(np.zeros((4, 1, 1, 1)), np.arange(4), task=task, now=now))
  assert keys[0] == keys[3] and len({tuple(key) for key in keys}) == 3


def test_a_task_that_is_inferred():
  """The probe reads features as the readout has them: here of slot 1, which is not the task's."""
  y = np.arange(50) % 4
  asked = question(np.eye(4)[y][:, None, None], y, "inferred", slots=2, infers=True)
  counts = jax.jit(lambda: readout.readout_newton(*asked))()
  assert [int(counts[name]) for name in ("right", "strict")] == [50, 0] and counts["confusion"].tolist() == [0, 50]


@pytest.mark.parametrize(("order", "group"), [("sorted", 7), ("in turns", 500)])
def test_rows_are_chosen_evenly(order, group, monkeypatch):
  """Of more rows than a probe takes, some of each class, none twice; else all of them."""
  y = np.arange(400) % 4
  y = np.sort(y) if order == "sorted" else y
  asked = question(np.arange(400)[:, None, None, None], y, group=group)
  for most, count in ((100, 100), (5000, 400)):
    monkeypatch.setattr(readout, "MOST_ROWS", most)
    features, labels, live = readout.features_of(Question(*asked))
    assert int(live) == count <= len(features) < count + group
    chosen = np.asarray(features[:count, 0]).astype(int)
    assert len(set(chosen)) == count and (y[chosen] == np.asarray(labels[:count])).all()
    assert (np.bincount(labels[:count], minlength=4) > 0.6 * count / 4).all()


# Refusals.


def test_a_matrix_that_is_too_large_is_refused():
  spec, data = toys.stream()

  def wide(width, looks):
    net = toys.mlp(spec).clone(hidden=(width,))
    method = METHODS["finetune"](net, optax.sgd(0.1), spec)
    return toys.experiment(method, spec, data, looks=looks)

  says = r"4000 x 4000 for each of 4 classes: 64,000,000 numbers, .* 16,777,216. Use config.looks=\('readout_adam',\)"
  with pytest.raises(ConfigError, match=says):
    wide(3999, ("readout",))
  wide(3999, ("readout_adam",)), wide(2047, ("readout",))


def test_the_size_is_that_of_the_net(monkeypatch):
  """Features and classes as the method answers them."""
  spec = Spec((4, 4, 1), 3, 4, 3)
  monkeypatch.setattr(readout, "MOST_NUMBERS", 4 * 9**2)
  readout.check_newton(toys.plain(spec), spec)
  monkeypatch.setattr(readout, "MOST_NUMBERS", 4 * 9**2 - 1)
  with pytest.raises(ConfigError, match="a matrix of 9 x 9 for each of 4 classes: 324 numbers"):
    readout.check_newton(toys.plain(spec), spec)
