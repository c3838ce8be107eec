"""The losses that a run noted in its metrics.jsonl, for a figure; runs without that file have none."""

import json
from typing import Any

import numpy as np
from etils import epath

FILE, KEY = "metrics.jsonl", "loss"


def is_step(row: Any) -> bool:
  """Whether it is what a run notes of steps: task, phase, step, and the loss of each seed, null where not finite."""
  if not (isinstance(row, dict) and row.get("event") == "step"):
    return False
  counts, losses = [row.get(key) for key in ("task", "step")], row.get(KEY)
  whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
  real = isinstance(losses, list) and all(value is None or isinstance(value, int | float) for value in losses)
  return whole and real and isinstance(row.get("phase"), str)


def rows_of(folder: epath.Path) -> list[dict[str, Any]]:
  """The rows of steps with a loss in the folder's metrics.jsonl; [] without one. A line that is not whole, or none that
  a run writes, is passed by: a run that was killed may leave one, and a damaged line takes no other with it."""
  path, found = epath.Path(folder) / FILE, []
  for line in path.read_bytes().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if is_step(row):
      found.append(row)
  return found


def curves_of(folder: epath.Path) -> dict[str, np.ndarray]:
  """{phase: [2, n] steps since the beginning of the run, and the finite losses then, mean over seeds}."""
  found: dict[str, list[tuple[float, float]]] = {}
  before, last, part = 0, 0, None
  for row in rows_of(folder):
    if (row["task"], row["phase"]) != part:  # steps begin anew with each phase of each task
      before, last, part = before + last, 0, (row["task"], row["phase"])
    last = row["step"] + 1
    known = [value for value in row[KEY] if value is not None and np.isfinite(value)]
    if known:
      found.setdefault(row["phase"], []).append((before + row["step"], float(np.mean(known))))
  return {phase: np.array(points, float).T for phase, points in found.items()}
