"""Where a run stands: what goes round the loop, and what a checkpoint says of it beside the arrays."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from cljax.checkpoint import Checkpoints
from cljax.experiment import Experiment
from cljax.mesh import gather
from cljax.timeline import Counts, Position
from cljax.types import State, View


@dataclass
class Carry:
  """What goes round the loop: the state and view on the device, and what the host has noted."""

  hyper: dict[str, jax.Array]  # of each row of the seed axis
  seeds: jax.Array
  state: State
  view: View | None
  row: int  # rows of the accuracy matrix that are done
  right: dict[str, np.ndarray]  # readout -> [S, T+1, T] right answers, -1 where not evaluated
  confusion: dict[str, np.ndarray]  # readout -> [S, T, slots] test rows by slot used, after the last row
  slot_of: np.ndarray  # [S, T] the slot of each task, -1 none
  reports: dict[str, np.ndarray]  # [S, T, ...] the method's report after each task
  looked: dict[str, Counts]  # look -> what it has found
  diverged: np.ndarray  # [S, 3] as in `divergence.blank`
  seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "train": 0.0, "eval": 0.0})


def to_cursor(at: Position, carry: Carry, lines: int) -> dict[str, Any]:
  """What a checkpoint says beside the arrays, as JSON."""
  return {
    "task": at.task,
    "phase": at.phase,
    "step": list(at.step),
    "row": carry.row,
    "lines": lines,
    "right": {name: counts.tolist() for name, counts in carry.right.items()},
    "confusion": {name: counts.tolist() for name, counts in carry.confusion.items()},
    "slot_of": carry.slot_of.tolist(),
    "looked": {name: {key: n.tolist() for key, n in counts.items()} for name, counts in carry.looked.items()},
    "diverged": carry.diverged.tolist(),
    "seconds": carry.seconds,
  }


def resume(carry: Carry, checkpoints: Checkpoints | None, experiment: Experiment) -> tuple[Carry, Position | None, int]:
  """(carry, cursor, lines of metrics.jsonl) of the newest whole checkpoint; or the carry as it is, None and 0."""
  if checkpoints is None:
    return carry, None, 0
  found = checkpoints.restore({"state": gather(carry.state, len(experiment.seeds)), "reports": carry.reports})
  if found is None:
    return carry, None, 0
  arrays, cursor = found
  carry.state = experiment.on_devices(arrays["state"], 0)
  carry.row, carry.seconds = cursor["row"], dict(cursor["seconds"])
  carry.reports = {name: np.array(value) for name, value in arrays["reports"].items()}
  carry.right = {name: np.array(counts) for name, counts in cursor["right"].items()}
  carry.confusion = {name: np.array(counts) for name, counts in cursor["confusion"].items()}
  carry.slot_of = np.array(cursor["slot_of"])
  looked = cursor.get("looked", {})  # which older versions do not have
  carry.looked = {name: {key: np.array(n) for key, n in counts.items()} for name, counts in looked.items()}
  carry.diverged = np.array(cursor.get("diverged", carry.diverged))  # nor this
  position = Position(cursor["task"], cursor["phase"], tuple(cursor["step"]))
  return carry, position, cursor["lines"]


def steps_done(experiment: Experiment, cursor: Position | None) -> int:
  """Steps before the cursor, of the seed that takes most."""
  if cursor is None:
    return 0
  timeline = experiment.timeline
  phases = range(len(timeline.phases))
  done = [timeline.phase_steps(t, p) for t in timeline.segments() if t < cursor.task for p in phases]
  done += [timeline.phase_steps(cursor.task, p) for p in phases[: cursor.phase]]
  return int(np.sum([*done, np.array(cursor.step)], axis=0).max())
