"""Which unit of work comes next: a run as a list of named units, from any position on. Plain integers, no JAX.

A position is (task, phase, step): `step` steps of that phase of that task are done, and its `enter` and every `tick` up
to there have run. At a phase's end it means that `exit` has not run. Steps are kept for each seed, because the tasks of
two seeds may have different lengths; where they agree all entries are equal.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cljax.errors import ConfigError
from cljax.types import Phase, Spec, keep


class Position(NamedTuple):
  task: int
  phase: int
  step: tuple[int, ...]  # [S]


class Unit(NamedTuple):
  """One call on the device or the disk.

  kind: `view` | `enter` | `chunk` | `tick` | `exit` | `evaluate` | `save`.
  """

  kind: str
  at: Position  # before the unit; for `evaluate` and `save` the position that a checkpoint records
  stop: tuple[int, ...] = ()  # chunk: steps of each seed
  row: int = 0  # evaluate: row of the accuracy matrix (0 is before training)
  due: bool = False  # save: by the calendar; others are chances to save before stopping early


class Timeline(NamedTuple):
  """What decides the units; `rows` are training rows [S, T]."""

  phases: tuple[Phase, ...]
  spec: Spec
  rows: np.ndarray
  tasks: tuple[int, ...]  # tasks that are trained: all, or the last one for an oracle
  chunk: int  # n of fit_chunk
  save_every: int  # chunks between saves within a phase; 0: at task ends only

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
    return np.full_like(steps, it.steps) if it.steps else it.epochs * steps

  def total_before(self, task: int, phase: int) -> np.ndarray:
    """[S] steps of this phase in the tasks before."""
    zero = np.zeros(len(self.rows), np.int64)
    return sum((self.phase_steps(t, phase) for t in self.tasks if t < task), zero)

  def steps(self) -> int:
    """Steps of the whole run, of the seed that takes most."""
    return int(np.sum([self.phase_steps(t, p) for t in self.segments() for p in range(len(self.phases))], axis=0).max())

  def marks(self, task: int, phase: int) -> list[tuple[str, np.ndarray, int]]:
    """Steps [S] of a phase where the host looks, in order: (kind, steps, row)."""
    it, end = self.phases[phase], self.phase_steps(task, phase)
    if not self.spec.boundaries:
      # A batch that an edge lies in may already begin the next slot: a task is looked at before it.
      edges = np.cumsum(self.rows, axis=1) // it.batch
      return [("evaluate", edges[:, k], k + 1) for k in range(self.spec.T - 1)] + [("end", end, 0)]
    epoch = self.epoch_steps(task, phase)
    ticks = range(1, int((end // epoch).max()) + 1) if "tick" in edges_of(it) else ()
    if len(ticks) != (end // epoch).min() and ticks:
      raise ConfigError(f"phase {it.name!r} counts steps and ticks by epochs, which differ by seed; count it in epochs")
    inside = [("tick", np.minimum(e * epoch, end), 0) for e in ticks]
    return [*inside, ("end", end, 0)]

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
      yield Unit("evaluate", cursor or Position(self.segments()[0], 0, zero), row=0)
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
      yield Unit("evaluate", after, row=last)
      yield Unit("save", after, due=True)

  def phase_units(self, task: int, p: int, step: np.ndarray, row: int) -> Iterator[Unit]:
    def at():
      return Position(task, p, tuple(int(n) for n in step))

    edges = edges_of(self.phases[p])
    if "enter" in edges and not step.any():
      yield Unit("enter", at())
    chunks = 0
    for kind, mark, mark_row in self.marks(task, p):
      reached = not (step < mark).any()  # before a resume
      while (step < mark).any():
        stop = np.clip(mark - step, 0, self.chunk)
        yield Unit("chunk", at(), stop=tuple(int(n) for n in stop))
        step = step + stop
        chunks += 1
        if (step < mark).any():
          yield self.save(at(), chunks)
      if kind == "tick" and not reached:
        yield Unit("tick", at())
      if kind == "evaluate" and mark_row >= row:
        yield Unit("evaluate", at(), row=mark_row)
        yield Unit("save", at(), due=True)
      elif not reached:
        yield self.save(at(), chunks)
    if "exit" in edges:
      yield Unit("exit", at())

  def save(self, at: Position, chunks: int) -> Unit:
    return Unit("save", at, due=bool(self.save_every and chunks % self.save_every == 0))


def edges_of(phase: Phase) -> set[str]:
  """The edges that do something."""
  return {name for name in ("enter", "tick", "exit") if getattr(phase, name) is not keep}
