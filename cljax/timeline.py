"""Which unit of work comes next: a run as a list of named units, from any position on. Plain integers, no JAX.

A position is (task, phase, step): `step` steps of that phase of that task are done, and its `enter` and every `tick` up
to there have run. At a phase's end it means that `exit` has not run. Steps are kept for each seed, because the tasks of
two seeds may have different lengths; where they agree all entries are equal.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cljax.errors import ConfigError
from cljax.types import Method, Phase, Spec, keep


class Position(NamedTuple):
  """Where a run stands."""

  task: int
  phase: int
  step: tuple[int, ...]  # [S]


class Unit(NamedTuple):
  """One call on the device or the disk.

  kind: `view` | `enter` | `chunk` | `tick` | `exit` | `evaluate` | `look` | `call` | `save`.
  """

  kind: str
  at: Position  # before the unit; for `evaluate` and `save` the position that a checkpoint records
  stop: tuple[int, ...] = ()  # chunk: steps of each seed
  row: int = 0  # evaluate, look, call: row of the accuracy matrix (0: before training), inside a task the one to come
  due: bool = False  # save: by the calendar; others are chances to save before stopping early
  look: "Look | None" = None  # look: what is asked
  epoch: int = 0  # look: epochs of the phase that are done; 1 at the end of a phase that counts steps
  trial: int = 0  # look: of the phase's trials, the one that this epoch was of
  done: tuple[int, ...] = ()  # look: steps [S] of all phases of the task that are done


class Extent(NamedTuple):
  """How much a look may find."""

  seeds: int  # S
  tasks: int  # T
  trials: int  # K, the most of a phase
  marks: int  # M, the most places inside a task, see `Look.when`


Counts = dict[str, np.ndarray]  # what a look has found so far: integers, which go into the cursor of a checkpoint
Answers = Callable[[str], Mapping[int, np.ndarray]]  # split -> {task: [S] right answers, -1 where it has no slot}


def of_any_method(method: Method, spec: Spec) -> None:
  """The check of a look that any method can answer."""


WHEN = {
  "row": "beside each row of the matrix",
  "epoch": "after each epoch",
  "steps": "every config.look_every_steps steps of a phase, and at its end",
  "exit": "before the `exit` of a task's end",
}


class Look(NamedTuple):
  """A question beside the readouts, which are asked at every row of the accuracy matrix; the table is `looks.LOOKS`."""

  name: str  # of config.looks, and of what it leaves in the result
  split: str  # of the rows asked about: test | valid
  tasks: Callable[[str, int, int, tuple[int, ...]], list[int]]  # (config.evaluate, row, T, tasks trained)
  when: str  # one of WHEN
  blank: Callable[[Extent], Counts]  # before anything was asked
  note: Callable[[Counts, Unit, Answers], None]  # asks, and writes into the counts
  answer: str = "evaluate"  # of `readout.ANSWERS`: what answers for one task, with the arguments of `loops.evaluate`
  check: Callable[[Method, Spec], None] = of_any_method  # raises ConfigError for a method that cannot be asked


class Timeline(NamedTuple):
  """What decides the units; `rows` are training rows [S, T]."""

  phases: tuple[Phase, ...]
  spec: Spec
  rows: np.ndarray
  tasks: tuple[int, ...]  # tasks that are trained: all, or the last one for an oracle
  chunk: int  # n of fit_chunk
  save_every: int  # chunks between saves within a phase; 0: at task ends only
  looks: tuple[Look, ...] = ()  # where boundaries are hidden those beside rows of the matrix only
  given: int = 0  # leading tasks that were learnt before: their edges run, and no step
  look_every: int = 100  # steps between looks inside a phase
  calls: bool = False  # whether one's own `on_row` is called after each row

  def epoch_steps(self, task: int, phase: int) -> np.ndarray:
    """[S] steps of one epoch."""
    it = self.phases[phase]
    if not self.spec.boundaries:
      rows = self.rows.sum(axis=1)
    else:
      rows = self.rows[:, : task + 1].sum(axis=1) if it.joint else self.rows[:, task]
    return -(-rows // it.batch)

  def phase_steps(self, task: int, phase: int) -> np.ndarray:
    """[S] steps of one phase in one task."""
    it = self.phases[phase]
    steps = self.epoch_steps(task, phase)
    if task < self.given:
      return np.zeros_like(steps)
    return np.full_like(steps, it.steps) if it.steps else it.epochs * steps

  def total_before(self, task: int, phase: int) -> np.ndarray:
    """[S] steps of this phase in the tasks before."""
    zero = np.zeros(len(self.rows), np.int64)
    return sum((self.phase_steps(t, phase) for t in self.tasks if t < task), zero)

  def stream_steps(self, phase: int) -> np.ndarray:
    """[S] steps of this phase in the whole stream."""
    return sum((self.phase_steps(t, phase) for t in self.segments()), np.zeros(len(self.rows), np.int64))

  def blank(self) -> dict[str, Counts]:
    """What each look has found before anything was asked."""
    phases = range(len(self.phases))
    marks = max(sum(len(self.inside(self.phase_steps(t, p))) for p in phases) for t in self.tasks)
    extent = Extent(len(self.rows), self.spec.T, max(phase.trials for phase in self.phases), marks)
    return {look.name: look.blank(extent) for look in self.looks}

  def inside(self, end: np.ndarray) -> list[int]:
    """Steps of a phase of `end` [S] steps after which there are looks inside it."""
    if not any(look.when == "steps" for look in self.looks):
      return []
    most = int(end.max())
    return [*range(self.look_every, most, self.look_every), *[most] * bool(most)]

  def steps(self) -> int:
    """Steps of the whole run, of the seed that takes most."""
    return int(np.sum([self.phase_steps(t, p) for t in self.segments() for p in range(len(self.phases))], axis=0).max())

  def marks(self, task: int, phase: int) -> list[tuple[set[str], np.ndarray, int]]:
    """Steps [S] of a phase where the host looks, in order: (kinds, steps, row)."""
    it, end = self.phases[phase], self.phase_steps(task, phase)
    if not self.spec.boundaries:
      # A batch that an edge lies in may already begin the next slot: a task is looked at before it.
      edges = np.cumsum(self.rows, axis=1) // it.batch
      return [({"evaluate"}, edges[:, k], k + 1) for k in range(self.spec.T - 1)] + [({"end"}, end, 0)]
    epoch = self.epoch_steps(task, phase)
    kind = "tick" if "tick" in edges_of(it) else "epoch"
    watched = it.epochs and any(look.when == "epoch" for look in self.looks)
    ticks = range(1, int((end // epoch).max()) + 1) if kind == "tick" or watched else ()
    if len(ticks) != (end // epoch).min() and ticks:
      raise ConfigError(f"phase {it.name!r} counts steps and ticks by epochs, which differ by seed; count it in epochs")
    inside = self.inside(end)
    places = [(np.minimum(e * epoch, end), kind) for e in ticks]
    places += [(np.minimum(steps, end), "steps") for steps in inside] + [(end, "end")]
    kinds: dict[tuple[int, ...], set[str]] = {}
    for at, name in places:
      kinds.setdefault(tuple(int(n) for n in at), set()).add(name)
    found = sorted(kinds)
    if any((np.array(one) > np.array(other)).any() for one, other in itertools.pairwise(found)):
      raise ConfigError(
        f"config.look_every_steps={self.look_every} falls on either side of an epoch's end, which differs by seed: "
        "leave out the looks that are asked by steps, or give all seeds as many rows"
      )
    return [(kinds[at], np.array(at), 0) for at in found]

  def segments(self) -> Sequence[int]:
    """Tasks, or one entry for a whole stream with hidden boundaries."""
    return self.tasks if self.spec.boundaries else (0,)

  def units(self, cursor: Position | None, row: int) -> Iterator[Unit]:
    """All units from `cursor` on; None is the very start.

    Args:
      row: rows of the accuracy matrix that are done.
    """
    zero = (0,) * len(self.rows)
    if row == 0:
      yield from self.row_units(cursor or Position(self.segments()[0], 0, zero), 0)
    for task in self.segments():
      if cursor and task < cursor.task:
        continue
      yield Unit("view", Position(task, 0, zero))
      for p in range(len(self.phases)):
        resumed = cursor if cursor and task == cursor.task else None
        if resumed and p < resumed.phase:
          continue
        step = np.array(resumed.step if resumed and p == resumed.phase else zero)
        yield from self.phase_units(task, p, step, row)
      last = self.spec.T if not self.spec.boundaries else task + 1
      after = Position(task + 1, 0, zero)
      yield from self.row_units(after, last)
      yield Unit("save", after, due=True)

  def phase_units(self, task: int, p: int, step: np.ndarray, row: int) -> Iterator[Unit]:
    def at():
      return Position(task, p, tuple(int(n) for n in step))

    edges = edges_of(self.phases[p])
    if "enter" in edges and not step.any():
      yield Unit("enter", at())
    chunks = 0
    for kinds, mark, mark_row in self.marks(task, p):
      reached = not (step < mark).any()  # before a resume
      while (step < mark).any():
        stop = np.clip(mark - step, 0, self.chunk)
        yield Unit("chunk", at(), stop=tuple(int(n) for n in stop))
        step = step + stop
        chunks += 1
        if (step < mark).any():
          yield self.save(at(), chunks)
      if not reached and (kinds & {"epoch", "tick"} if self.phases[p].epochs else "end" in kinds):
        epoch = int(mark[0] // self.epoch_steps(task, p)[0]) if self.phases[p].epochs else 1
        trial = (epoch - 1) * self.phases[p].trials // max(self.phases[p].epochs, 1)
        yield from self.look_units("epoch", at(), task + 1, epoch, trial)
      if not reached and "steps" in kinds:
        yield from self.look_units("steps", at(), task + 1)
      if not reached and "tick" in kinds:
        yield Unit("tick", at())
      if "evaluate" in kinds and mark_row >= row:
        yield from self.row_units(at(), mark_row)
        yield Unit("save", at(), due=True)
      elif not reached:
        yield self.save(at(), chunks)
    if p == len(self.phases) - 1:
      yield from self.look_units("exit", at(), task + 1)
    if "exit" in edges:
      yield Unit("exit", at())

  def row_units(self, at: Position, row: int) -> Iterator[Unit]:
    """A row of the accuracy matrix, and what is asked beside it."""
    yield Unit("evaluate", at, row=row)
    yield from self.look_units("row", at, row)
    if self.calls:
      yield Unit("call", at, row=row)

  def look_units(self, when: str, at: Position, row: int, epoch: int = 0, trial: int = 0) -> Iterator[Unit]:
    done = tuple(int(n) for n in self.done_before(at) + at.step) if when == "steps" else ()
    return (Unit("look", at, (), row, False, look, epoch, trial, done) for look in self.looks if look.when == when)

  def done_before(self, at: Position) -> np.ndarray:
    """[S] steps of the task in the phases before."""
    return sum((self.phase_steps(at.task, p) for p in range(at.phase)), np.zeros(len(self.rows), np.int64))

  def save(self, at: Position, chunks: int) -> Unit:
    return Unit("save", at, due=bool(self.save_every and chunks % self.save_every == 0))


def edges_of(phase: Phase) -> set[str]:
  """The edges that do something."""
  return {name for name in ("enter", "tick", "exit") if getattr(phase, name) is not keep}
