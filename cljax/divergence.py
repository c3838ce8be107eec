"""Where a seed's loss stopped being a number: noted as training goes on, told once, kept in cursor and result."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cljax.errors import ConfigError

WHAT = "the loss is not a finite number; a smaller config.optimizer.lr, or clipping, keeps it finite"


def blank(seeds: int) -> np.ndarray:
  """[S, 3] task, phase and step of each seed's first loss that is not finite; -1 none."""
  return np.full((seeds, 3), -1)


def note(
  found: np.ndarray, at: tuple[int, int, Sequence[int]], stop: Sequence[int], info: Mapping[str, np.ndarray]
) -> list[int]:
  """Writes the first step without a finite loss of the seeds that had none before; returns their places.

  Args:
    found: [S, 3], as `blank`; written to.
    at: task, phase, and steps [S] of it that were done.
    stop: [S] steps of the chunk.
    info: [S, n] of each of its steps; those from `stop` on were not taken.
  """
  if "loss" not in info:
    return []
  task, phase, done = at
  new = []
  for s, bad in enumerate(~np.isfinite(info["loss"])):
    where = np.flatnonzero(bad[: stop[s]])
    if len(where) and found[s, 0] < 0:
      found[s] = task, phase, done[s] + where[0]
      new.append(s)
  return new


def told(found: np.ndarray) -> list[dict[str, int] | None]:
  """The field `diverged` of a result."""
  return [dict(zip(("task", "phase", "step"), map(int, row), strict=True)) if row[0] >= 0 else None for row in found]


def line(seed: int, row: np.ndarray, phases: Sequence[str], values: Mapping[str, Any]) -> str:
  """What is said of one seed; tasks counted from 1, as elsewhere on the screen."""
  task, phase, step = map(int, row)
  swept = "".join(f", {key}={value:g}" for key, value in values.items())
  return f"seed {seed}{swept}, task {task + 1}, {phases[phase]}, step {step}: {WHAT}"


def stop(lines: Sequence[str]) -> None:
  """
  Raises:
    ConfigError: what was found, as config.on_divergence=stop asks for.
  """
  raise ConfigError("; ".join(lines) + " (config.on_divergence=stop; the last checkpoint stands)")
