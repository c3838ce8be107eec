"""Compiled experiments on the toys, each compiled once in a process and run as often as wanted."""

import functools
from typing import Any

import chex
import jax
import numpy as np
import optax
from etils import epath

from cljax import files
from cljax.checkpoint import Checkpoints
from cljax.cursor import Carry, resume, steps_done
from cljax.drive import Driver, drive, start
from cljax.experiment import Experiment
from cljax.journal import Noted
from cljax.methods import METHODS
from cljax.monitor import Monitor
from cljax.run import compile_events
from cljax.timeline import Unit
from cljax.types import Method, Rows, Spec, Stream
from tests.toys import columns, early_stop, experiment, mlp, onsets, pad, plain, routed, stream


class Subject:
  """One compiled experiment, run as often as wanted.

  Args:
    like: a subject whose functions are taken, but for those whose names end in one of `new`.
  """

  def __init__(self, it: Experiment, like: "Subject | None" = None, new: tuple[str, ...] = (".chunk",)):
    self.experiment = it
    self.compiled = compile_events(it)
    if like is not None:
      self.compiled = {**like.compiled, **{name: f for name, f in self.compiled.items() if name.endswith(new)}}
    self.rows: list[dict[str, Any]] = []  # what the last run wrote to metrics.jsonl

  @property
  def method(self) -> Method:
    return self.experiment.method

  @property
  def spec(self) -> Spec:
    return self.experiment.spec

  @property
  def data(self) -> Stream:
    """The stream as numpy arrays."""
    return jax.device_get(self.experiment.stream)

  def units(self) -> list[Unit]:
    return list(self.experiment.timeline.units(None, 0))

  def start(self) -> Carry:
    return start(self.experiment, self.compiled)

  def run(
    self, units=None, data: Stream | None = None, carry: Carry | None = None, compiled=None, after=lambda *_: None
  ) -> Carry:
    """All units in memory, or the given ones on the given carry; `after(unit, carry)` is called after each."""
    it = self.experiment
    it = it if data is None else it._replace(stream=it.on_devices(data, it.axes))
    carry = carry or self.start()
    monitor = Monitor(None, 1, 0, Noted(), "toy", quiet=True)
    self.rows = []
    monitor.write = lambda row: self.rows.append(files.plain(row))
    driver = Driver(it, compiled or self.compiled, monitor, None, lambda: False)
    for unit in self.units() if units is None else units:
      drive([unit], carry, driver)
      after(unit, carry)
    return carry

  def session(self, folder: epath.Path, stop_asked=lambda: False, on_open=lambda checkpoints: None) -> Carry:
    """What `run.train` does with a work dir: goes on where the last checkpoint stands."""
    checkpoints = Checkpoints(folder / "checkpoints")
    on_open(checkpoints)
    carry, cursor, noted = resume(self.start(), checkpoints, self.experiment)
    timeline = self.experiment.timeline
    units = list(timeline.units(cursor, carry.row))
    done = steps_done(self.experiment, cursor)
    assert done + sum(max(unit.stop) for unit in units if unit.kind == "chunk") == timeline.steps()
    monitor = Monitor(folder, timeline.steps(), done, noted, "toy", quiet=True)
    try:
      drive(units, carry, Driver(self.experiment, self.compiled, monitor, checkpoints, stop_asked))
    finally:
      monitor.close()
      checkpoints.close()
    assert monitor.done == monitor.total
    return carry


def first(tree):
  """Of the first seed, as numpy arrays."""
  return jax.tree.map(lambda leaf: leaf[0], jax.device_get(tree))


def cut(units, length):
  """The same steps in shorter chunks; `length()` gives the next one."""
  for unit in units:
    if unit.kind != "chunk":
      yield unit
      continue
    at, left = np.array(unit.at.step), np.array(unit.stop)
    while left.any():
      take = np.minimum(left, length())
      yield unit._replace(at=unit.at._replace(step=tuple(map(int, at))), stop=tuple(map(int, take)))
      at, left = at + take, left - take


# Subjects that several tests share, each compiled once in a process.

EPOCHS = 12  # of 3, 3 and 4 steps


def method_of(name, spec, epochs=EPOCHS):
  if name == "plain":
    return plain(spec, epochs=epochs)
  if name == "er":
    return METHODS["er"](mlp(spec), optax.sgd(0.1), spec, epochs=epochs, replay=4, capacity=12)
  fields = {
    "replay": 4,
    "capacity": 12,
    "k": 2,
    "sample": "gumbel_topk",
    "block": 1,
  }  # the state has a leaf without a number
  return METHODS["routing"](routed(spec), 0.1, spec, epochs=epochs, **fields)


@functools.cache
def compiled(name: str, chunk: int = 100, seeds: tuple[int, ...] = (0, 1), executor: str = "map") -> Subject:
  """`plain`, `er` or `routing` on the ragged stream."""
  spec, data = stream()
  it = experiment(method_of(name, spec), spec, data, seeds, executor, chunk=chunk)
  return Subject(it, compiled(name) if chunk != 100 else None)


@functools.cache
def finished(name: str, *args: Any) -> Carry:
  """What a whole run of `compiled(name, *args)` leaves."""
  return compiled(name, *args).run()


@functools.cache
def compiled_columns() -> Subject:
  spec, data = stream()
  return Subject(experiment(columns(spec), spec, data, chunk=48))


@functools.cache
def compiled_stopping(chunk: int = 100) -> Subject:
  spec, data = stream()
  return Subject(experiment(early_stop(spec), spec, data, chunk=chunk), compiled_stopping() if chunk != 100 else None)


def one_after_the_other(counts, changes=75):
  """150 rows of one label space, cut into `counts`: after `changes` of them two classes give way to two others."""
  spec, data = stream((8,) * len(counts), boundaries=False)
  random = np.random.default_rng(3)
  early, late = (np.flatnonzero(np.isin(data.bank.y, classes)) for classes in ((0, 1), (2, 3)))
  rows = np.concatenate([random.choice(early, changes), random.choice(late, 150 - changes)]).astype(np.int32)
  tables = np.split(rows, np.cumsum(counts)[:-1])
  train = Rows(*pad(tables), None)
  valid = data.tasks.valid._replace(warp=None)
  return spec, data._replace(tasks=data.tasks._replace(train=train, valid=valid), test=data.test._replace(warp=None))


CUT = (70, 80)


@functools.cache
def compiled_hidden(counts: tuple[int, ...] = CUT, chunk: int = 4, first: int = 0) -> Subject:
  spec, data = one_after_the_other(counts)
  it = experiment(onsets(spec, first=first), spec, data, chunk=chunk)
  return Subject(it._replace(readouts=("task", "domain")), compiled_hidden() if first else None, ("report",))


def assert_same(carry, other):
  chex.assert_trees_all_equal(carry.state, other.state)
  for name, right in other.right.items():
    np.testing.assert_array_equal(carry.right[name], right)
  chex.assert_trees_all_equal(carry.reports, other.reports)


def recording(compiled, log):
  """The functions of `compiled`, noting (event, the clock or the task and row that it was given)."""

  def wrap(name, function):
    def call(*args):
      if name.endswith((".enter", ".tick", ".exit", ".chunk")):
        clock = tuple(int(number) for number in args[4][:4])
        log.append((name, *clock, int(args[5])) if name.endswith("chunk") else (name, *clock))
      elif name.startswith("evaluate"):
        log.append((name, int(args[3]), int(args[4]) + 1))
      elif name == "view":
        log.append((name, int(args[1])))
      elif name != "keys":
        log.append((name,))
      return function(*args)

    return call

  return {name: wrap(name, function) for name, function in compiled.items()}


def evaluations(row, T):
  """What `recording` notes of a row of the matrix."""
  return ([("report",)] if row else []) + [("evaluate.task", task, row) for task in range(T)]
