"""Numbers of one's own beside each row of the accuracy matrix: `on_row(carry, row)`, which `fit` and `train` take."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from cljax.cursor import Carry
from cljax.declared import shown
from cljax.errors import ConfigError, in_short
from cljax.methods.exhibits import EXHIBITS
from cljax.timeline import Position, Timeline, Unit

OnRow = Callable[[Carry, int], Mapping[str, Any] | None]  # name -> a number, or [S], one for each seed
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def check_given(stop_asked: Any, on_row: Any, overrides: Any, quiet: Any) -> None:
  """Refuses what would fail once a run is under way.

  Raises:
    ConfigError: no functions, no mapping, or neither True nor False.
  """
  if not isinstance(quiet, bool | np.bool_):
    raise ConfigError(f"quiet={shown(quiet)} must be True or False")
  for name, value in (("stop_asked", stop_asked), ("on_row", on_row)):
    if not (callable(value) or (value is None and name == "on_row")):
      raise ConfigError(f"{name}={shown(value)} must be a function")
  if not isinstance(overrides, Mapping):
    raise ConfigError(f"overrides={shown(overrides)} must be a mapping of config keys to values")


def units_of(timeline: Timeline, cursor: Position | None, carry: Carry, on_row: OnRow | None) -> Iterator[Unit]:
  """The units from `cursor` on, with a call after each row, and first at a row at which the callback failed before."""
  due, carry.due = carry.due, None
  units = timeline._replace(calls=on_row is not None).units(cursor, carry.row)
  again = [] if on_row is None or cursor is None or due is None else [Unit("call", cursor, row=due)]
  return itertools.chain(again, units)


def asked(on_row: OnRow, carry: Carry, row: int) -> dict[str, np.ndarray]:
  """{name: [S] float64} that a callback tells of the state after a row's task.

  Raises:
    ConfigError: it failed, or told something else; one line.
  """
  try:
    told = on_row(carry, row)
  except Exception as error:  # of any type: it is not ours
    raise ConfigError(f"on_row failed at row {row} ({type(error).__name__}: {in_short(error)})") from error
  if told is None:
    return {}
  if not isinstance(told, Mapping):
    raise ConfigError(f"on_row gave a {type(told).__name__} at row {row}; it gives {{name: numbers}}, or None")
  return {name: numbers_of(name, value, carry) for name, value in told.items()}


def numbers_of(name: Any, value: Any, carry: Carry) -> np.ndarray:
  """[S] float64 of one entry.

  Raises:
    ConfigError: a name that a file cannot have or that is taken, or no numbers.
  """
  seeds = len(carry.slot_of)
  if not isinstance(name, str) or not NAME.fullmatch(name):
    raise ConfigError(f"on_row gave the name {name!r}; a name is a letter, and letters, digits and _ . - after it")
  if name in {*carry.reports, *(array for exhibit in EXHIBITS.values() for array in exhibit.arrays)}:
    raise ConfigError(f"on_row gave the name {name!r}, which is a method's own in reports; take another")
  try:
    found = np.asarray(jax.device_get(value))
  except (TypeError, ValueError) as error:  # ragged
    raise ConfigError(f"on_row gave no numbers as {name!r} ({in_short(error)})") from error
  if found.dtype.kind not in "biuf" or found.shape not in ((), (seeds,)):
    raise ConfigError(
      f"on_row gave {found.dtype} {list(found.shape)} as {name!r}; it is a number, or one for each of {seeds} seeds"
    )
  return np.broadcast_to(found, (seeds,)).astype(np.float64)


def note(carry: Carry, row: int, found: Mapping[str, np.ndarray]) -> None:
  """Writes the numbers of a row beside those of the rows before it."""
  S, rows, _ = next(iter(carry.right.values())).shape
  for name, numbers in found.items():
    carry.own.setdefault(name, np.full((S, rows), np.nan))[:, row] = numbers
