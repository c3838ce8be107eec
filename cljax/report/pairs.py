"""What composes with what: accuracy at the end of each method under each guard, and behind each gate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cljax.report.apart import NO_MATTER, differing, learnt
from cljax.report.exhibits import Result
from cljax.report.plots import canvas, captioned, numbers, spread_note

Pair = tuple[str, str]  # method, what it is combined with
Cells = Mapping[Pair, float]  # accuracy, the mean over seeds
LEAST = 2  # methods, and what each is combined with, that make a map
TOLD, NONE = "task told", "none"


def mean_of(told: Mapping[str, Any]) -> float:
  """The mean of a metric of a result, NaN where some seed has none."""
  return float(np.mean([np.nan if value is None else value for value in told["ACC"]["values"]]))


def chosen(result: Result, *keys: str) -> str | None:
  """The name of a choice of a result's config; None where it has no such choice."""
  place: Any = result["config"]
  for key in (*keys, "name"):
    place = place.get(key) if isinstance(place, Mapping) else None
  return place


def alone(values: Mapping[Pair, Mapping[Any, float]]) -> dict[Pair, float]:
  """The value of each pair; NaN of one that was run with several settings, of which a map can show but one."""
  return {pair: next(iter(own.values())) if len(own) == 1 else np.nan for pair, own in values.items()}


def settings_but(result: Result, *leading: str) -> tuple[tuple[str, str], ...]:
  """All settings that move a number, but for keys that begin so."""
  return tuple(told for told in learnt(result) if not told[0].startswith(leading))


def under_guards(results: Sequence[Result]) -> dict[Pair, float]:
  """The accuracy after the last task of each method that may have a guard."""
  found: dict[Pair, dict[Any, float]] = {}
  for result in results:
    method, guard = chosen(result, "method"), chosen(result, "method", "guard")
    if method and guard and chosen(result, "gate") in (None, NONE):
      found.setdefault((method, guard), {})[learnt(result)] = mean_of(result["metrics"])
  return alone(found)


def behind_gates(results: Sequence[Result]) -> dict[Pair, float]:
  """The accuracy of each method behind a gate, where the gate finds the task, and where the task is told."""
  found: dict[Pair, dict[Any, float]] = {}
  for result in results:
    method, gate, inferred = chosen(result, "method"), chosen(result, "gate"), result["readouts"].get("inferred")
    if method and gate and gate != NONE and inferred:
      found.setdefault((method, gate), {})[learnt(result)] = mean_of(inferred["metrics"])
      told = settings_but(result, "gate.")  # which the answers with the task told do not depend on
      found.setdefault((method, TOLD), {})[told] = mean_of(result["metrics"])
  return alone(found)


def heat_map(cells: Cells, results: Sequence[Result], beside: str) -> Figure | None:
  """Methods down, what they are combined with across; None where fewer than two methods have two combinations."""
  counts = {method: sum(other == method for other, _ in cells) for method, _ in cells}
  methods = sorted(method for method, count in counts.items() if count >= LEAST)
  if len(methods) < LEAST:
    return None
  first = [name for name in (NONE, TOLD) if any(other == name for _, other in cells)]
  others = first + sorted({other for method, other in cells if method in methods and other not in first})
  values = np.array([[cells.get((method, other), np.nan) for other in others] for method in methods])
  figure, axes = canvas(2.2 + 0.8 * len(others), 1.6 + 0.5 * len(methods))
  image = axes[0, 0].imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
  numbers(axes[0, 0], values, most=values.size, size=8, dark_below=0.55)
  axes[0, 0].set_xticks(range(len(others)), others, rotation=30, ha="right")
  axes[0, 0].set_yticks(range(len(methods)), methods)
  axes[0, 0].set(xlabel=beside, ylabel="method")
  title = f"{results[0]['stream']}: accuracy after the last task {spread_note(results).replace(' ± s.d.', '')}"
  axes[0, 0].set_title(title, fontsize=10)
  figure.colorbar(image, ax=axes[0, 0])
  text = f"Accuracy after the last task of each method (row) with each {beside} (column); white was not run"
  several = [f"{method} with {other}" for (method, other), value in cells.items() if np.isnan(value)]
  text += f", or with several settings: {', '.join(several)}." if several else "."
  keys = [key for key in differing(results) if not key.startswith(("method.", "gate.")) and key not in NO_MATTER]
  text += f" Runs differ in {', '.join(keys)}, too." if keys else ""
  return captioned(figure, f"{results[0]['stream']}. {text}")


def figures(results: Sequence[Result]) -> dict[str, Figure]:
  """The maps of one stream's results that have one."""
  maps = {
    "under_guards": heat_map(under_guards(results), results, "guard"),
    "behind_gates": heat_map(behind_gates(results), results, "gate"),
  }
  return {name: figure for name, figure in maps.items() if figure is not None}
