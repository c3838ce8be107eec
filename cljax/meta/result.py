"""What a meta-training leaves as a result file, and what it notes for it on the way."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cljax.errors import ConfigError
from cljax.files import read_sealed, telling
from cljax.meta.settings import Settings
from cljax.workdir import check_identity, environment

SCHEMA = 1
AGAIN = "delete it, and the same command computes it again"
LISTS = ("segments", "inner_steps", "episodes", "skipped", "largest_cell")  # of the result, a number for each seed
CURVE = ("segment", "loss", "threshold", "truncation", "episode")
POINTS = 500  # of the curve that the result file keeps


class Progress(NamedTuple):
  """What the host knows of a seed's training; as JSON in a checkpoint's cursor."""

  segment: int = 0
  inner_steps: int = 0
  finished: bool = False
  seconds: float = 0.0
  curve: tuple[tuple[float, ...], ...] = ()  # segment, loss, threshold, S, episode


COUNTS = ("segment", "inner_steps", "seconds", "lines")


def progress_of(cursor: Mapping[str, Any], data_hash: str) -> Progress:
  """What the cursor of a checkpoint says.

  Raises:
    ConfigError: a cursor of other data or other settings of JAX, or one that tells no progress.
  """
  check_identity(cursor, data_hash)
  wrong = [name for name in (*Progress._fields, "lines") if name not in cursor]
  wrong += [name for name in COUNTS if name not in wrong and not (is_number(cursor[name]) and cursor[name] >= 0)]
  if not wrong:
    points = cursor["curve"]
    if not (
      isinstance(points, list | tuple) and all(len(point) == 5 and all(map(is_number, point)) for point in points)
    ):
      wrong.append("curve")
  if wrong:
    raise ConfigError(
      f"its cursor is none of a meta-training at this version of cljax ({', '.join(wrong)}): go on with the version "
      "that began it, or use another --workdir"
    )
  return Progress(**{name: cursor[name] for name in Progress._fields})


def is_number(value: Any) -> bool:
  """Whether JSON has a number there."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def result_of(
  config: dict[str, Any],
  settings: Settings,
  trained: Mapping[int, tuple[Progress, dict[str, float]]],
  data_hash: str,
  files: Mapping[str, Any],
) -> dict[str, Any]:
  """The result file of a finished meta-training; lists are by seed, the curve has at most some hundred points.

  Args:
    files: of one's own, as they were read.
  """
  ends = [progress for progress, _ in trained.values()]
  places = [place for _, place in trained.values()]
  curves = [np.array(end.curve).reshape(-1, 5)[:: max(-(-len(end.curve) // POINTS), 1)] for end in ends]
  return {
    "schema": SCHEMA,
    "paper": config["paper"],
    "preset": config["preset"],
    "trains": settings.trains,
    "rule": settings.rule.label if settings.trains == "rule" else "",
    "seeds": list(settings.seeds),
    "segments": [end.segment for end in ends],
    "inner_steps": [end.inner_steps for end in ends],
    "episodes": [int(place["episode"]) for place in places],
    "skipped": [int(place["skipped"]) for place in places],
    "largest_cell": [place["largest"] for place in places],
    "curve": {name: [curve[:, n].tolist() for curve in curves] for n, name in enumerate(CURVE)},
    "timing": {"train_seconds": [end.seconds for end in ends]},
    "data_hash": data_hash,
    "environment": environment(files),
    "config": config,
  }


def read_result(path: epath.Path) -> dict[str, Any]:
  """What `result_of` gave, as it stands in a file.

  Raises:
    ConfigError: no result of a meta-training, or a damaged file; names the file.
    OSError: it cannot be read.
  """
  found = {"trains": "rule", **read_sealed(path, AGAIN)}  # which the first versions did not tell
  with telling(path, AGAIN):
    check_result(found)
  return found


def check_result(found: Mapping[str, Any]) -> None:
  """
  Raises:
    ValueError: a field of another kind than `result_of` writes.
    KeyError: one is missing.
  """
  if found["schema"] != SCHEMA:
    raise ValueError(f"it is no result of schema {SCHEMA}")
  for name in ("paper", "preset", "trains", "rule", "data_hash"):
    if not isinstance(found[name], str):
      raise ValueError(f"{name} is no word")
  for name in ("timing", "environment", "config", "curve"):
    if not isinstance(found[name], dict):
      raise ValueError(f"{name} is no JSON object")
  seeds = found["seeds"]
  if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
    raise ValueError("seeds are no whole numbers")
  told = {name: found[name] for name in LISTS}
  told |= {"timing": found["timing"]["train_seconds"], **{f"curve.{name}": found["curve"][name] for name in CURVE}}
  for name, values in told.items():
    if not isinstance(values, list) or len(values) != len(seeds):
      raise ValueError(f"{name} does not tell {len(seeds)} seeds")
    each = values if name in (*LISTS, "timing") else [point for points in values for point in points]
    if not all(value is None or is_number(value) for value in each):
      raise ValueError(f"{name} holds what is no number")
