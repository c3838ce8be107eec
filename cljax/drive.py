"""The loop on the host: units of the timeline, performed one after the other on what the device and the host carry."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from cljax import divergence
from cljax.callbacks import OnRow, asked, note
from cljax.checkpoint import Checkpoints
from cljax.cursor import Carry, to_cursor
from cljax.errors import ConfigError
from cljax.experiment import Experiment
from cljax.keys import INIT, TRAIN
from cljax.looks import pairs, told
from cljax.mesh import agree, gather
from cljax.monitor import Monitor, compile_seconds, rows_to_log
from cljax.timeline import Position, Unit
from cljax.types import Clock, View
from cljax.workdir import identity


class Stopped(Exception):  # noqa: N818 - not an error
  """The run was asked to stop, saved, and can be started again."""


def start(experiment: Experiment, compiled: Mapping[str, Callable[..., Any]]) -> Carry:
  """The carry before anything has happened."""
  S, T = len(experiment.seeds), experiment.spec.T
  hyper, seeds = experiment.on_devices((experiment.hyper, np.asarray(experiment.seeds, np.int32)), 0)
  state = compiled["init"](hyper, compiled["keys"](seeds, *experiment.numbers((INIT,))), experiment.parts)
  slots = experiment.method.slots or T
  report = jax.eval_shape(compiled["report"], hyper, state)
  return Carry(
    hyper,
    seeds,
    state,
    None,
    0,
    {name: np.full((S, T + 1, T), -1) for name in experiment.readouts},
    {name: np.zeros((S, T, slots), int) for name in experiment.readouts},
    np.full((S, T), -1) if experiment.method.slots else np.broadcast_to(np.arange(T), (S, T)).copy(),
    {name: np.zeros((S, T, *leaf.shape[1:]), leaf.dtype) for name, leaf in report.items()},
    experiment.timeline.blank(),
    divergence.blank(S),
  )


def event_of(answer: str, readout: str, split: str) -> str:
  """The name of the compiled function that answers about the rows of one task."""
  return f"{answer}.{readout}" if split == "test" else f"{answer}.{readout}.{split}"


def ask(
  experiment: Experiment,
  compiled: Mapping[str, Callable[..., Any]],
  carry: Carry,
  readout: str,
  tasks: Iterable[int],
  now: int,
  split: str = "test",
  answer: str = "evaluate",
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """Asks the state about the rows of some tasks, one after the other.

  Args:
    now: the last task trained, -1 before training.
    split: `test`, or `valid` where it was compiled.
    answer: as in `Look`.

  Yields:
    the task, and the counts of `loops.evaluate` with a leading [S]; right answers are -1 where the task has no slot.
  """
  for task in tasks:
    at = experiment.numbers(task, now)
    slots = carry.slot_of[:, task].astype(np.int32)
    slot = experiment.on_devices(slots, 0) if experiment.method.slots else experiment.on_devices(slots[0], None)
    pictures = compiled.get(f"pictures.{split}")
    x = pictures(experiment.stream, at[0]) if pictures else None
    answers = compiled[event_of(answer, readout, split)]
    counts = gather(answers(carry.hyper, carry.state, experiment.stream, *at, slot, x), len(experiment.seeds))
    known = carry.slot_of[:, task] >= 0
    yield task, {**counts, **{name: np.where(known, counts[name], -1) for name in ("right", "strict")}}


class Driver(NamedTuple):
  """Performs units; each method takes (unit, carry) and changes the carry."""

  experiment: Experiment
  compiled: Mapping[str, Callable[..., Any]]
  monitor: Monitor
  checkpoints: Checkpoints | None
  stop_asked: Callable[[], bool]
  on_row: OnRow | None = None

  def clock(self, at: Position) -> Clock:
    """The clock of a position: fields [S] where the tasks' lengths differ by seed, else []."""
    timeline = self.experiment.timeline
    steps = timeline.epoch_steps(at.task, at.phase)
    step = np.array(at.step)
    total = timeline.total_before(at.task, at.phase) + step
    length, whole = timeline.phase_steps(at.task, at.phase), timeline.stream_steps(at.phase)
    return Clock(*(self.by_seed(number) for number in (step // steps, step % steps, steps, total, length, whole)))

  def by_seed(self, numbers: Iterable[int]) -> jax.Array:
    numbers = np.asarray(numbers, np.int32)
    ragged = np.ptp(self.experiment.timeline.rows, axis=0).any()
    return self.experiment.on_devices(numbers, 0) if ragged else self.experiment.on_devices(numbers[0], None)

  def phase_args(self, at: Position, carry: Carry) -> tuple[Any, ...]:
    keys = self.compiled["keys"](carry.seeds, *self.experiment.numbers((TRAIN, at.task, at.phase)))
    return carry.hyper, keys, carry.state, carry.view

  def view(self, unit: Unit, carry: Carry) -> None:
    (t,) = self.experiment.numbers(unit.at.task)
    stream = self.experiment.stream
    carry.view = None  # the pool of the task before goes first
    tasks = self.compiled["view"](stream.tasks, t)
    pool = self.compiled["pool"](stream.bank, tasks, t) if "pool" in self.compiled else None
    carry.view = View(stream.bank, tasks, t if self.experiment.spec.boundaries else None, pool)

  def edge(self, unit: Unit, carry: Carry) -> None:
    phase = self.experiment.method.phases[unit.at.phase]
    at = unit.at
    if unit.kind == "tick":  # the clock of the epoch's last step
      at = at._replace(step=tuple(n - 1 for n in at.step))
    carry.state = self.compiled[f"{phase.name}.{unit.kind}"](*self.phase_args(unit.at, carry), self.clock(at))

  def chunk(self, unit: Unit, carry: Carry) -> None:
    phase = self.experiment.method.phases[unit.at.phase]
    args = (*self.phase_args(unit.at, carry), self.clock(unit.at), self.by_seed(unit.stop))
    began, compiled = time.monotonic(), compile_seconds()
    carry.state, info = self.compiled[f"{phase.name}.chunk"](*args)
    info = gather(info, len(self.experiment.seeds))
    self.check_losses(unit, info, carry)
    seconds = time.monotonic() - began - (compile_seconds() - compiled)
    every = self.experiment.settings.log_every_steps
    for row in rows_to_log(unit.at.step, unit.stop, every, info, self.experiment.seeds):
      self.monitor.write({"event": "step", "task": unit.at.task, "phase": phase.name, **row})
    last = {name: value[np.arange(len(value)), np.maximum(unit.stop, 1) - 1] for name, value in info.items()}
    where = f"task {unit.at.task + 1}/{self.experiment.spec.T} {phase.name}"
    self.monitor.steps(max(unit.stop), seconds, where, last)
    self.check_faults(carry)

  def check_losses(self, unit: Unit, info: Mapping[str, np.ndarray], carry: Carry) -> None:
    """Tells of each seed the first step whose loss is not finite, and stops there if that is asked for."""
    experiment = self.experiment
    new = divergence.note(carry.diverged, unit.at, unit.stop, info)
    phases, values = [phase.name for phase in experiment.method.phases], experiment.values
    each = len(experiment.seeds) // len(values)
    lines = [divergence.line(experiment.seeds[s], carry.diverged[s], phases, values[s // each]) for s in new]
    for line in lines:
      logging.warning("%s: %s", self.monitor.label, line)
    if lines and experiment.settings.on_divergence == "stop":
      divergence.stop(lines)

  def check_faults(self, carry: Carry) -> None:
    if "faults" not in self.compiled:
      return
    faults = gather(self.compiled["faults"](carry.hyper, carry.state), len(self.experiment.seeds))
    for key, fault in faults.items():
      seeds = [seed for seed, bad in zip(self.experiment.seeds, fault, strict=True) if bad]
      if seeds:
        raise ConfigError(
          f"the run cannot go on: config.{key} does not suffice (seeds {seeds}); nothing learnt so far is lost"
        )

  def evaluate(self, unit: Unit, carry: Carry) -> None:
    experiment, T, row = self.experiment, self.experiment.spec.T, unit.row
    if row:
      report = gather(self.compiled["report"](carry.hyper, carry.state), len(experiment.seeds))
      for name, value in report.items():
        carry.reports[name][:, row - 1] = value
      if experiment.method.slots:
        carry.slot_of[:, row - 1] = report["slot"]
    tasks = pairs(experiment.settings.evaluate, row, T, experiment.timeline.tasks)
    for readout in experiment.readouts:
      for task, counts in ask(experiment, self.compiled, carry, readout, tasks, row - 1):
        carry.right[readout][:, row, task] = counts["right"]
        carry.confusion[readout][:, task] = counts["confusion"]
      self.note(readout, row, carry)
    carry.row = row + 1

  def look(self, unit: Unit, carry: Carry) -> None:
    look, experiment = unit.look, self.experiment
    assert look is not None
    tasks = look.tasks(experiment.settings.evaluate, unit.row, experiment.spec.T, experiment.timeline.tasks)
    now = carry
    if unit.row and experiment.method.slots:  # inside a task its slot is not noted yet
      slot = gather(self.compiled["report"](carry.hyper, carry.state), len(experiment.seeds))["slot"]
      now = replace(carry, slot_of=carry.slot_of.copy())
      now.slot_of[:, unit.row - 1] = slot

    def answers(split: str) -> dict[int, np.ndarray]:
      readout = experiment.readouts[0]
      asked = ask(experiment, self.compiled, now, readout, tasks, unit.row - 1, split, look.answer)
      right = {task: counts["right"] for task, counts in asked}
      line, scalars = told(unit, split, right, experiment.split_rows(split))
      self.monitor.write(line)
      self.monitor.scalars(scalars)
      return right

    look.note(carry.looked[look.name], unit, answers)

  def note(self, readout: str, row: int, carry: Carry) -> None:
    """One row of a matrix, for the person who watches and for metrics.jsonl."""
    right = carry.right[readout][:, row]
    share = np.where(right < 0, np.nan, right / self.experiment.test_rows)
    self.monitor.write({"event": "evaluate", "row": row, "readout": readout, "accuracy": share})
    known = ~np.isnan(share).all(axis=0)
    means = {task: float(np.nanmean(share[:, task])) for task in np.flatnonzero(known)}
    prefix = "eval" if readout == self.experiment.readouts[0] else f"eval_{readout}"
    self.monitor.scalars({f"{prefix}/task_{task:02d}/acc": mean for task, mean in means.items()})
    seen = [mean for task, mean in means.items() if task < row]
    if seen:
      self.monitor.scalars({f"cl/{readout}/avg_acc_seen": float(np.mean(seen))})
      self.monitor.say(f"after task {row}: {readout} accuracy {np.mean(seen):.4f} over {len(seen)} tasks")

  def save(self, unit: Unit, carry: Carry) -> None:
    stopping = agree(self.stop_asked())
    if unit.due or stopping:
      self.keep(unit.at, carry)
    if stopping:
      raise Stopped

  def keep(self, at: Position, carry: Carry) -> None:
    """A checkpoint, where the run has a work dir."""
    if self.checkpoints is None:
      return
    self.monitor.flush()
    state = gather(carry.state, len(self.experiment.seeds))
    cursor = to_cursor(at, carry, self.monitor.noted()) | identity(self.experiment.config, self.experiment.data_hash)
    self.checkpoints.save({"state": state, "reports": carry.reports}, cursor)

  def call(self, unit: Unit, carry: Carry) -> None:
    """Asks `on_row`. Where it fails the run is saved and stops, and the row stays due; trained in memory alone it goes
    on, as it would be lost."""
    assert self.on_row is not None
    found, failure = {}, None
    try:
      found = asked(self.on_row, carry, unit.row)
    except ConfigError as error:
      failure = error
    if not agree(failure is not None):
      carry.due = None
      note(carry, unit.row, found)
      if found:
        self.monitor.write({"event": "own", "row": unit.row, "values": found})
      self.monitor.scalars({f"own/{name}": float(np.mean(numbers)) for name, numbers in found.items()})
      return
    said = failure or f"on_row failed at row {unit.row} in another process"
    if self.checkpoints is None and unit.row:
      logging.warning("%s: %s; without a work dir the run goes on, without its numbers", self.monitor.label, said)
      return
    carry.due = unit.row
    self.keep(unit.at, carry)
    way = "mend it, and the same call goes on from there and asks it again"
    raise ConfigError(f"{said}; nothing learnt so far is lost: {way}") from failure

  def perform(self, unit: Unit, carry: Carry) -> None:
    """One unit, timed; compiling is counted apart."""
    began, compiled = time.monotonic(), compile_seconds()
    act = {"enter": self.edge, "tick": self.edge, "exit": self.edge}.get(unit.kind) or getattr(self, unit.kind)
    act(unit, carry)
    compiling = compile_seconds() - compiled
    carry.seconds["compile"] += compiling
    if unit.kind != "save":
      name = "eval" if unit.kind in ("evaluate", "look", "call") else "train"
      carry.seconds[name] += max(time.monotonic() - began - compiling, 0.0)


def drive(units: Iterable[Unit], carry: Carry, driver: Driver) -> Carry:
  """Performs the units in order.

  Raises:
    Stopped: a stop was asked for, and everything up to here is saved.
  """
  for unit in units:
    driver.perform(unit, carry)
  return carry
