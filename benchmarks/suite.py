"""One run of the benchmark: learn, check, time, compare."""

import sys
from collections.abc import Sequence

import jax

from benchmarks import apart, convolving, gating, problem, rows, sharing, timing, unrolling
from benchmarks.ours import Library
from benchmarks.rows import Result
from benchmarks.subjects import Workshop

SETTINGS = (
  f"{problem.BATCH} current and {problem.REPLAY} replayed rows of {problem.SIDE} x {problem.SIDE} pixels, a memory of "
  f"{problem.CAPACITY:,} rows and {problem.TASKS} tasks; {problem.EXPERTS} experts of width {problem.WIDTH} in both "
  f"layers, {problem.K} of them drawn with Gumbel noise, or a shared bottom of {problem.HIDDEN} and {problem.HIDDEN}"
)


def say(text: str) -> None:
  """A line on stderr."""
  print(text, file=sys.stderr, flush=True)


def measure(names: Sequence[str], steps: int, rounds: int, cores: list[int]) -> tuple[list[Result], dict[str, float]]:
  """The rows of these names, and what every subject had learnt.

  Args:
    cores: of the machine, before this process was pinned to one of them.
  """
  wanted = [row for row in rows.ROWS if row.name in names]
  accuracy: dict[str, float] = {}
  with jax.default_matmul_precision("highest"):
    subjects = Workshop(steps).make(rows.subjects_of(wanted))
    for name, subject in subjects.items():
      accuracy[name] = timing.learn(subject)
      say(f"{name}: accuracy {accuracy[name]:.3f}")
      if isinstance(subject, Library) and subject.skipped():
        raise RuntimeError(f"{name} skipped {subject.skipped()} co-training steps: its time would mean nothing")
    say(f"timing {len(subjects)} subjects, {rounds} rounds")
    timings = timing.interleave(subjects, rounds)
  results = [rows.result(row, timings, accuracy) for row in wanted]
  if "start" in names:
    results.append(apart.second_start(rounds))
  if "gating" in names:
    results += gating.gating(rounds)
  results += convolving.convolving(names, rounds)
  results += sharing.sharing(names, rounds)
  results += unrolling.unrolling(names, rounds)
  if "devices" in names:
    results.append(apart.devices(cores, rounds, max(steps // apart.SEEDS, 8)))
  return results, accuracy
