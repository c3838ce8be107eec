"""What a person sees of a run: a bar or lines, `metrics.jsonl`, TensorBoard."""

import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from cljax.files import plain

SECONDS_BETWEEN_LINES = 10
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
    lines: lines of `metrics.jsonl` that the restored checkpoint knows of; later ones are dropped.
    label: the run's name on the bar.
    quiet: no bar and no lines.
  """

  def __init__(self, folder: epath.Path | None, total: int, done: int, lines: int, label: str, quiet: bool = False):
    self.done, self.total, self.label, self.quiet = done, total, label, quiet
    self.started, self.compiled, self.last_line, self.first = time.monotonic(), compile_seconds(), 0.0, done
    self.training = 0.0
    self.file: TextIO | None = None
    self.board, self.lines = None, lines
    self.remote: epath.Path | None = None
    if folder is not None:
      path = folder / "metrics.jsonl"
      kept = path.read_text().splitlines(keepends=True)[:lines] if path.exists() else []
      path.write_text("".join(kept))
      if "://" in os.fspath(folder):  # an object store cannot append: the lines stay here and are written whole
        self.remote, self.file = path, io.StringIO()
        self.file.write("".join(kept))
        self.say("TensorBoard events are written to local work dirs only; metrics.jsonl has the same numbers")
      else:
        self.file = open(os.fspath(path), "a")  # noqa: SIM115 - closed by `close`
        self.board = SummaryWriter(os.fspath(folder), purge_step=done or None)
    terminal = sys.stderr.isatty() and not quiet
    self.bar = tqdm(total=total, initial=done, desc=label, unit="step", dynamic_ncols=True) if terminal else None

  def write(self, row: Mapping[str, Any]) -> None:
    """One line of metrics.jsonl; `seconds` is the only field that may differ between equal runs."""
    if self.file:
      seconds = round(time.monotonic() - self.started, 3)
      self.file.write(json.dumps(plain({**row, "seconds": seconds}), allow_nan=False) + "\n")
      self.lines += 1

  def scalars(self, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      if self.board and np.isfinite(value):
        self.board.add_scalar(name, value, self.done)

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
    if self.remote is not None and isinstance(self.file, io.StringIO):
      self.remote.write_text(self.file.getvalue())
    elif self.file:
      self.file.flush()
      os.fsync(self.file.fileno())
    if self.board:
      self.board.flush()

  def close(self) -> None:
    self.flush()
    if self.file:
      self.file.close()
    if self.board:
      self.board.close()
    if self.bar is not None:
      self.bar.close()


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
