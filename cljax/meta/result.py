"""What a meta-training leaves as a result file, and what it notes for it on the way."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cljax.errors import ConfigError
from cljax.meta.settings import Settings
from cljax.named import own_files
from cljax.workdir import check_identity, environment

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
  config: dict[str, Any], settings: Settings, trained: Mapping[int, tuple[Progress, dict[str, float]]], data_hash: str
) -> dict[str, Any]:
  """The result file of a finished meta-training; lists are by seed, the curve has at most some hundred points."""
  ends = [progress for progress, _ in trained.values()]
  places = [place for _, place in trained.values()]
  curves = [np.array(end.curve).reshape(-1, 5)[:: max(-(-len(end.curve) // POINTS), 1)] for end in ends]
  named = ("segment", "loss", "threshold", "truncation", "episode")
  return {
    "schema": 1,
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
    "curve": {name: [curve[:, n].tolist() for curve in curves] for n, name in enumerate(named)},
    "timing": {"train_seconds": [end.seconds for end in ends]},
    "data_hash": data_hash,
    "environment": environment(own_files(config)),
    "config": config,
  }
