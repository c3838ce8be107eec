"""Old tasks against new ones: what a method keeps beyond what the choice of a learning rate alone would keep.

Results of one stream that differ in nothing but the learning rate, three or more, are a frontier: a lower rate learns
less of the new task and forgets less of the old one. Each seed has its own, linear between its points; beyond its ends
it is as high as they are. What another result keeps of the old task is compared with the frontier where it learns the
new tasks equally well (Xiong, Ren and Urtasun 2020, https://arxiv.org/abs/1910.04650, have one lower rate).

All numbers are readout accuracies at the end: the old task is the first, the new ones are those after it. Where every
result was asked within the last task too, the distance is that of the mean over its last places, which single steps
move less.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cljax.metrics import spread
from cljax.report.exhibits import Exhibit, Result, Summary
from cljax.report.plots import COLOURS, canvas, captioned

LOOK, WITHIN = "readout", "readout_within"
LATE = 3  # places of the last task, the end among them
LEAST = 3  # rates of a frontier
OTHERWISE = ("optimizer", "sweep", "seed", "num_seeds")  # sections and keys of a config in which its results may differ


def kept(result: Result) -> np.ndarray:
  """[S, 2] accuracy on the old task and the mean over the new ones, by readout after the last task."""
  last = np.array(result["readouts"][LOOK]["accuracy"], float)[:, -1]  # [S, T]
  return np.stack([last[:, 0], last[:, 1:].mean(axis=1)], axis=1)


def late(result: Result) -> np.ndarray | None:
  """[S, 2] the same, the mean over the last places of the last task; None where it was not asked so often."""
  if WITHIN not in result.get("curves", {}):
    return None
  last = np.array(result["curves"][WITHIN]["accuracy"], float)[:, -1]  # [S, M, T]
  asked = last[:, ~np.isnan(last).any(axis=(0, 2))]
  if asked.shape[1] < LATE:
    return None
  found = asked[:, -LATE:].mean(axis=1)
  return np.stack([found[:, 0], found[:, 1:].mean(axis=1)], axis=1)


def setting(result: Result) -> str:
  """The config of a result without its learning rate."""
  config = {key: value for key, value in result["config"].items() if key not in OTHERWISE}
  config["rates"] = {key: value for key, value in result["config"].get("optimizer", {}).items() if key != "lr"}
  return repr(sorted((key, repr(value)) for key, value in config.items() if key != "cell"))


def frontier_of(results: Sequence[Result]) -> list[Result]:
  """The results of the largest group that differs in the learning rate alone; [] where none has enough of them."""
  groups: dict[str, list[Result]] = {}
  for result in results:
    groups.setdefault(setting(result), []).append(result)
  largest = max(groups.values(), key=len, default=[])
  rates = {result["config"].get("optimizer", {}).get("lr") for result in largest}
  return largest if len(rates) >= LEAST else []


def beyond(point: np.ndarray, frontier: Sequence[np.ndarray]) -> np.ndarray:
  """[S] how far the old task's accuracy of `point` [S, 2] lies above the frontier, points [S, 2] each, seed by seed."""
  found = []
  for s, (old, new) in enumerate(point):
    at = np.array(sorted((other[s, 1], other[s, 0]) for other in frontier))
    found.append(old - np.interp(new, at[:, 0], at[:, 1]))
  return np.array(found)


def columns(result: Result) -> dict[str, Summary | str]:
  """Readout accuracy of the old task and of the new ones."""
  old, new = kept(result).T
  return {"old task, readout": spread(old.tolist()), "new tasks, readout": spread(new.tolist())}


def beside(result: Result, results: Sequence[Result]) -> dict[str, Summary | str]:
  """What the result keeps of the old task beyond the learning rate's frontier among the results."""
  base = [other for other in frontier_of(results) if other["seeds"] == result["seeds"]]
  if len(base) < LEAST or any(other is result for other in base):
    return {}
  all_of = [result, *base]
  places = [point for point in map(late, all_of) if point is not None]
  everywhere = len(places) == len(all_of)
  own, *line = places if everywhere else map(kept, all_of)
  told = "old task beyond the rate's frontier" + (f" (mean of the last {LATE} places)" if everywhere else "")
  return {told: spread(beyond(own, line).tolist())}


def plane(results: Sequence[Result], arrays: Sequence[Any]) -> dict[str, Figure]:
  """Accuracy on the old task against that on the new ones, means over seeds, with the frontier as a line."""
  base = frontier_of(results)
  figure, axes = canvas(6, 5)
  axis = axes[0, 0]
  if base:
    line = np.array(sorted(kept(result).mean(axis=0)[::-1].tolist() for result in base))
    axis.plot(line[:, 0], line[:, 1], color="black", marker="o", markersize=3, label="learning rates alone")
  others = [result for result in results if not any(result is other for other in base)]
  for i, result in enumerate(others):
    points = kept(result)
    old, new = points.mean(axis=0)
    deviations = points.std(axis=0, ddof=1) if len(points) > 1 else (0, 0)
    style = {"color": COLOURS[i % len(COLOURS)], "marker": "os^Dv"[i // len(COLOURS) % 5], "capsize": 2}
    axis.errorbar(new, old, deviations[0], deviations[1], linestyle="", label=result["method"], **style)
  axis.set(xlabel="new tasks, readout accuracy", ylabel="old task, readout accuracy")
  axis.set_title("forgetting against learning", fontsize=10)
  axis.grid(alpha=0.3)
  figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
  text = (
    "What is kept of the old task against what is learnt of the new ones, by a linear probe at the end. The line is "
    "what the choice of a learning rate alone gives; a method that does more lies above it."
  )
  return {"forgetting_against_learning": captioned(figure, text)}


FIELDS = (f"readouts.{LOOK}", "config.stream.old")
FRONTIER = Exhibit((), FIELDS, columns=columns, beside=beside, table_figures=plane)
