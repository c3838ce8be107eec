"""What a person sees of a run: a bar or lines, `metrics.jsonl`, TensorBoard, and boards that were asked for."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from cljax.journal import Board, Journal, Noted

SECONDS_BETWEEN_LINES = 10
# Makers (work dir, label) of boards beside TensorBoard's: each has scalar(name, value, step), flush() and close().
BOARDS: list[Callable[[epath.Path, str], Any]] = []
_compile_seconds = [0.0]


def _listen(event: str, duration_secs: float, **_: Any) -> None:
  if event == "/jax/core/compile/backend_compile_duration":
    _compile_seconds[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_seconds() -> float:
  """Seconds that XLA has spent compiling in this process."""
  return _compile_seconds[0]


class Monitor:
  """Progress and metrics of one run.

  Args:
    folder: the work dir; None writes nothing.
    total: steps of the run.
    done: steps done before a resume.
    noted: what the restored checkpoint knows of `metrics.jsonl`; later lines are dropped.
    label: the run's name on the bar.
    quiet: no bar and no lines.
  """

  def __init__(self, folder: epath.Path | None, total: int, done: int, noted: Noted, label: str, quiet: bool = False):
    self.done, self.total, self.label, self.quiet = done, total, label, quiet
    self.started, self.compiled, self.last_line, self.first = time.monotonic(), compile_seconds(), 0.0, done
    self.training = 0.0
    self.journal: Journal | None = None
    self.board: Board | None = None
    self.others: list[Any] = []
    if folder is not None:
      self.journal = Journal(folder, noted)
      if self.journal.remote:
        self.say("TensorBoard events are written to local work dirs only; metrics.jsonl has the same numbers")
      else:
        self.board = Board(folder, done, noted.events)
      self.others = [make(folder, label) for make in BOARDS]
    terminal = sys.stderr.isatty() and not quiet
    self.bar = tqdm(total=total, initial=done, desc=label, unit="step", dynamic_ncols=True) if terminal else None

  def write(self, row: Mapping[str, Any]) -> None:
    """One line of metrics.jsonl; `seconds` is the only field that may differ between equal runs."""
    if self.journal:
      self.journal.write({**row, "seconds": round(time.monotonic() - self.started, 3)})

  def scalars(self, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      for board in filter(None, (self.board, *self.others)):
        if np.isfinite(value):
          board.scalar(name, value, self.done)

  def steps(self, count: int, seconds: float, where: str, info: Mapping[str, np.ndarray]) -> None:
    """After a chunk of `count` steps that took `seconds` without compiling; `info` is the last step's, [S] each."""
    self.done += count
    self.training += seconds
    shown = {name: float(np.mean(value)) for name, value in info.items()}
    seeds = max((len(value) for value in info.values()), default=1)
    speed = seeds * (self.done - self.first) / max(self.training, 1e-9)  # of all seeds, as in result.json
    busy = time.monotonic() - self.started - (compile_seconds() - self.compiled)  # evaluation and saves too
    left = (self.total - self.done) * busy / max(self.done - self.first, 1)
    self.scalars({f"train/{name}": value for name, value in shown.items()} | {"perf/steps_per_sec": speed})
    text = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
    if self.bar is not None:
      self.bar.update(count)
      self.bar.set_postfix_str(f"{where}, {text}, {speed:.0f} steps/s without compiling, {left:.0f} s left")
    elif not self.quiet and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
      self.last_line = time.monotonic()
      self.say(
        f"step {self.done}/{self.total}, {where}, {text}, {speed:.0f} steps/s (compiling took "
        f"{compile_seconds() - self.compiled:.1f} s besides), {left:.0f} s left"
      )

  def say(self, text: str) -> None:
    if not self.quiet:
      tqdm.write(f"{self.label}: {text}", file=sys.stderr)

  def flush(self) -> None:
    """Brings the metrics to the disk, before a checkpoint counts their lines."""
    for each in filter(None, (self.journal, self.board, *self.others)):
      each.flush()

  def noted(self) -> Noted:
    """What a checkpoint that is saved now should know, after a `flush`."""
    noted = self.journal.noted() if self.journal else Noted()
    return noted._replace(events=self.board.events()) if self.board else noted

  def close(self) -> None:
    self.flush()
    for each in (self.journal, self.board, *self.others, self.bar):
      if each is not None:
        each.close()


def rows_to_log(
  start: Sequence[int], stop: Sequence[int], every: int, info: Mapping[str, np.ndarray], seeds: Sequence[int]
) -> list[dict[str, Any]]:
  """The Info [S, n] of a chunk at the positions that are multiples of `every`, one row a position."""
  rows = []
  first, last = min(start), max(a + b for a, b in zip(start, stop, strict=True))
  for position in range(-(-first // every) * every, last, every):
    here = [s for s in range(len(seeds)) if start[s] <= position < start[s] + stop[s]]
    if here:
      values = {name: [float(value[s, position - start[s]]) for s in here] for name, value in info.items()}
      rows.append({"step": position, "seeds": [seeds[s] for s in here], **values})
  return rows
