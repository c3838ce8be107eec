"""What a meta-training leaves as a result file, and what it notes for it on the way."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cljax.meta.settings import Settings
from cljax.workdir import environment

POINTS = 500  # of the curve that the result file keeps


class Progress(NamedTuple):
  """What the host knows of a seed's training; as JSON in a checkpoint's cursor."""

  segment: int = 0
  inner_steps: int = 0
  finished: bool = False
  seconds: float = 0.0
  curve: tuple[tuple[float, ...], ...] = ()  # segment, loss, threshold, S, episode


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
    "environment": environment(),
    "config": config,
  }
