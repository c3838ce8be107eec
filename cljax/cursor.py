"""Where a run stands: what goes round the loop, and what a checkpoint says of it beside the arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from cljax.checkpoint import Checkpoints
from cljax.errors import ConfigError
from cljax.experiment import Experiment
from cljax.files import plain
from cljax.journal import Noted
from cljax.mesh import gather
from cljax.timeline import Counts, Position
from cljax.types import State, View
from cljax.workdir import check_identity


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
  own: dict[str, np.ndarray] = field(default_factory=dict)  # name -> [S, T+1] what `on_row` told, NaN where it did not
  due: int | None = None  # the last row, where `on_row` failed at it
  seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "train": 0.0, "eval": 0.0})


def to_cursor(at: Position, carry: Carry, noted: Noted) -> dict[str, Any]:
  """What a checkpoint says beside the arrays, as JSON."""
  return {
    "task": at.task,
    "phase": at.phase,
    "step": list(at.step),
    "row": carry.row,
    "lines": noted.lines,
    "metrics": noted.proof(),
    "right": {name: counts.tolist() for name, counts in carry.right.items()},
    "confusion": {name: counts.tolist() for name, counts in carry.confusion.items()},
    "slot_of": carry.slot_of.tolist(),
    "looked": {name: {key: n.tolist() for key, n in counts.items()} for name, counts in carry.looked.items()},
    "diverged": carry.diverged.tolist(),
    "seconds": carry.seconds,
    **({"own": plain(carry.own), "due": carry.due} if carry.own or carry.due is not None else {}),
  }


# Keys that cursors of older versions do not have; the last two only where `on_row` was given.
LATER = {"looked", "diverged", "metrics", "data_hash", "switches", "own", "due"}
KEYS = {"task", "phase", "step", "row", "lines", "right", "confusion", "slot_of", "seconds", "config"} | LATER


def check(cursor: Mapping[str, Any], carry: Carry, experiment: Experiment) -> None:
  """
  Args:
    carry: before anything has happened.

  Raises:
    ConfigError: a cursor of other data or other settings of JAX, or one that says what no cursor of this run can say.
  """
  check_identity(cursor, experiment.data_hash)
  wrong = sorted(set(cursor) ^ KEYS - (LATER - set(cursor)))
  if not wrong:
    wrong = [name for name, right in sound(cursor, carry, experiment).items() if not right]
  if wrong:
    raise ConfigError(
      f"its cursor is not one of this run at this version of cljax ({', '.join(wrong)}): go on with the version that "
      "began the run, or use another --workdir"
    )


def sound(cursor: Mapping[str, Any], carry: Carry, experiment: Experiment) -> dict[str, bool]:
  """Which keys of a cursor say what a cursor of this run can say."""
  T, S, timeline = experiment.spec.T, len(experiment.seeds), experiment.timeline
  at = task, phase, row, lines = [cursor[name] for name in ("task", "phase", "row", "lines")]
  whole = all(type(number) is int and number >= 0 for number in at)
  step, last = cursor["step"], timeline.segments()[-1]
  whole_steps = isinstance(step, list) and len(step) == S and all(type(n) is int and n >= 0 for n in step)
  within = False
  if whole and whole_steps and (task in timeline.segments() or task == last + 1):
    most = timeline.phase_steps(task, phase) if task <= last and phase < len(timeline.phases) else np.zeros(S, int)
    within = phase < max(len(timeline.phases), 1) and bool((np.array(step) <= most).all())
  seconds = cursor["seconds"]
  looked, own = cursor.get("looked", {}), cursor.get("own", {})
  return {
    "task, phase, step": within,
    "row": whole and row <= T + 1,
    "lines": whole,
    "right": alike(cursor["right"], carry.right),
    "confusion": alike(cursor["confusion"], carry.confusion),
    "slot_of": alike({"": cursor["slot_of"]}, {"": carry.slot_of}),
    "looked": not looked or set(looked) == set(carry.looked) and all(alike(looked[n], carry.looked[n]) for n in looked),
    "diverged": alike({"": cursor.get("diverged", carry.diverged)}, {"": carry.diverged}),
    "own": isinstance(own, dict) and all(np.shape(each) == (S, T + 1) for each in own.values()),
    "due": cursor.get("due") is None or (whole and cursor["due"] == row - 1),
    "seconds": isinstance(seconds, dict)
    and set(seconds) == set(carry.seconds)
    and all(isinstance(n, float | int) and n >= 0 for n in seconds.values()),
  }


def alike(found: Any, like: Mapping[str, np.ndarray]) -> bool:
  """Whether lists hold whole numbers of the same names and shapes."""
  if not isinstance(found, dict) or set(found) != set(like):
    return False
  try:
    arrays = {name: np.array(value) for name, value in found.items()}
  except ValueError:  # ragged
    return False
  return all(arrays[n].shape == like[n].shape and arrays[n].dtype.kind == like[n].dtype.kind for n in like)


def resume(
  carry: Carry, checkpoints: Checkpoints | None, experiment: Experiment
) -> tuple[Carry, Position | None, Noted]:
  """(carry, cursor, what it knows of metrics.jsonl) of the newest whole checkpoint; or the carry as it is, None and
  nothing.

  Raises:
    ConfigError: a whole checkpoint of another run.
    OSError: one that cannot be read now.
  """
  if checkpoints is None:
    return carry, None, Noted()
  tree = {"state": gather(carry.state, len(experiment.seeds)), "reports": carry.reports}
  found = checkpoints.restore(tree, lambda cursor: check(cursor, carry, experiment))
  if found is None:
    return carry, None, Noted()
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
  carry.own = {name: np.array(rows, np.float64) for name, rows in cursor.get("own", {}).items()}
  carry.due = cursor.get("due")
  position = Position(cursor["task"], cursor["phase"], tuple(cursor["step"]))
  return carry, position, Noted.of(cursor["lines"], cursor.get("metrics"))


def steps_done(experiment: Experiment, cursor: Position | None) -> int:
  """Steps before the cursor, of the seed that takes most."""
  if cursor is None:
    return 0
  timeline = experiment.timeline
  phases = range(len(timeline.phases))
  done = [timeline.phase_steps(t, p) for t in timeline.segments() if t < cursor.task for p in phases]
  done += [timeline.phase_steps(cursor.task, p) for p in phases[: cursor.phase]]
  return int(np.sum([*done, np.array(cursor.step)], axis=0).max())
