"""Subnetworks on small streams, each compiled once in a process and run at any numbers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from cljax.data import STREAMS, bank
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.types import Rows, Spec, Stream
from tests import toys
from tests.subjects import Subject, first

GIVEN = {"batch_size": 10, "epochs": 20, "retrain": 60, "experts": 3, "fractions": (0.2, 0.2, 0.3)}
HIDDEN = {
  "batch_size": 16, "epochs": 1, "retrain": 60, "experts": 2, "slots": 6, "fractions": (0.15, 0.25), "warmup": 30,
  "onset_history": 20, "window": 2048, "infer": "features",
  "recurring_below": 1.2,
}  # fmt: skip
OPEN = {  # always shares
  "overlap_from": 0.0, "deviation_up_to": 1e9, "capacity_hidden": 1.0, "capacity_output": 1.0, "above": 1.0,
  "keep_accuracy": 0.97, "onset_factor": 4.0,
}  # fmt: skip
APART = {**OPEN, "overlap_from": 1.1}  # never
OTHER = {"score": "taylor", "centred": False, "bias": "per_task"}
AGAIN = ((1, 5), (2, 6), (1, 5), (3, 7))
BATCH = HIDDEN["batch_size"]


class Run:
  """One seed of a subject, run to the end."""

  def __init__(self, subject: Subject, units: Any = None):
    self.subject, self.experiment, self.spec = subject, subject.experiment, subject.spec
    self.kept: list[Any] = []  # the state after each task

    def keep(unit, carry):
      if unit.kind == "evaluate" and unit.row:
        self.kept.append(jax.tree.map(np.array, first(carry.state)))

    self.carry = subject.run(units, after=keep)

  @property
  def data(self) -> Stream:
    return self.subject.data

  @property
  def state(self) -> Any:
    return first(self.carry.state)

  def report(self, name: str) -> Any:
    return self.carry.reports[name][0, -1]

  def onsets(self) -> Any:
    steps = self.report("onset_step")
    return steps[steps >= 0]

  @property
  def edges(self) -> Any:
    """The first batch with a row of the next task."""
    return np.cumsum(self.data.tasks.train.count)[:-1] // BATCH


def subject(
  spec: Spec,
  data: Stream,
  numbers: dict[str, float],
  method: Callable,
  like: Subject | None = None,
  new: tuple[str, ...] = (),
  **settings: Any,
) -> Subject:
  """One seed at these numbers, which are arguments of the compiled functions; those of `like` are taken but for the
  `new` ones."""
  it = toys.experiment(lambda hyper: method(spec, **hyper), spec, data, seeds=(0,), hyper=numbers, **settings)
  return Subject(it, like, new)


def given(counts=(30, 23, 40), same=(), like=None, new=(), numbers=OPEN, **keywords) -> Subject:
  """Permuted tasks; task t of (t, of) in `same` is task `of` again."""
  spec, data = toys.stream(counts, heads=1)
  for t, of in same:

    def again(leaf, t=t, of=of):
      leaf = np.array(leaf)
      leaf[t] = leaf[of]
      return leaf

    data = data._replace(tasks=jax.tree.map(again, data.tasks), test=jax.tree.map(again, data.test))

  def method(spec, **hyper):
    return METHODS["subnetwork"](toys.wide_mlp(spec), optax.adam(0.01), spec, **{**GIVEN, **keywords, **hyper})

  return subject(spec, data, numbers, method, like, new)


@functools.cache
def digits(classes, passes) -> tuple[Spec, Stream]:
  return STREAMS["subsets"](bank.load("digits"), jax.random.key(0), classes=classes, boundaries=False, passes=passes)


def hidden(classes=AGAIN, passes=8, cut=None, change=None, like=None, new=(), numbers=OPEN, **keywords) -> Subject:
  """Tasks of the embedded digits whose boundaries nobody tells.

  Args:
    cut: where the rows are cut into tasks instead.
    change: the rows in their order -> other ones.
  """
  spec, data = digits(classes, passes)
  train = data.tasks.train
  rows = np.concatenate([idx[:count] for idx, count in zip(train.idx, train.count, strict=True)])
  ends = np.cumsum(train.count)[:-1] if cut is None else cut
  idx, count = toys.pad(np.split(rows if change is None else change(rows), ends))
  idx = np.pad(idx, ((0, 0), (0, len(rows) - idx.shape[1])))  # of one shape, however they are cut
  data = data._replace(tasks=data.tasks._replace(train=Rows(idx, count, None)))
  net = MLP(heads=1, classes=10, hidden=(32,))

  def method(spec, **hyper):
    return METHODS["subnetwork"](net, optax.adam(0.003), spec, **{**HIDDEN, **keywords, **hyper})

  return subject(spec, data, numbers, method, like, new, evaluate_group=32)


@functools.cache
def toy() -> Subject:
  """Three permuted tasks."""
  return given()


@functools.cache
def shared() -> Run:
  """All of them on one expert."""
  return Run(toy())


@functools.cache
def apart() -> Run:
  """Each on its own."""
  return Run(given(like=toy(), numbers=APART))


@functools.cache
def by_accuracy() -> Subject:
  """The toy with room for half of each layer in a mask, its size found by accuracy, and other choices with it."""
  return given(select="accuracy", **OTHER)


@functools.cache
def again() -> Run:
  """Hidden boundaries, the third task being the first again."""
  return Run(hidden())


@functools.cache
def answer() -> Callable:
  """(state, x, slot) -> what the toy answers, compiled."""
  return jax.jit(toy().method.apply)
