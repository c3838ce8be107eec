"""What a reader looks at first: what methods end with against what they forgot, and how they came there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cljax.report.exhibits import Result
from cljax.report.plots import (
  COLOURS,
  DASHES,
  along_tasks,
  band,
  canvas,
  captioned,
  legend_below,
  matrices,
  seeds_of,
  spread_note,
)

MARKERS = "os^Dv<>P"  # hollow, so that points on one another are seen


def lost(results: Sequence[Result]) -> tuple[str, list[list[float] | None]]:
  """(what the numbers are, of each result one a seed or None): how far accuracy fell.

  `forgetting` where every result that can be measured has it; else the drop from right after a task to the end, the
  negative of BWT, for which the matrix may have fewer rows. None: trained once, on all tasks.
  """
  found: dict[str, list[list[float] | None]] = {}
  for metric, sign in (("forgetting", 1), ("BWT", -1)):
    values = [result["metrics"][metric]["values"] for result in results]
    found[metric] = [None if None in own else [sign * value for value in own] for own in values]
  whole = all((a is None) == (b is None) for a, b in zip(found["forgetting"], found["BWT"], strict=True))
  if whole:
    return "forgetting (from a task's best to the end)", found["forgetting"]
  return "forgetting (from right after a task to the end)", found["BWT"]


def trade(axis: Axes, results: Sequence[Result], names: Sequence[str]) -> None:
  """Accuracy after the last task against forgetting, a point with bars of one standard deviation for each result; a
  dashed line at the accuracy of one that has no forgetting."""
  label, across = lost(results)
  for i, (result, x) in enumerate(zip(results, across, strict=True)):
    y, colour = result["metrics"]["ACC"]["values"], COLOURS[i % len(COLOURS)]
    if None in y:
      continue
    if x is None:
      axis.axhline(np.mean(y), color=colour, linestyle="--", linewidth=1, label=names[i])
      continue
    bars = [np.std(own, ddof=1) if len(own) > 1 else 0 for own in (x, y)]
    style: dict[str, Any] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "fillstyle": "none"}
    axis.errorbar(np.mean(x), np.mean(y), bars[1], bars[0], linestyle="", capsize=2, label=names[i], **style)
  axis.set(xlabel=label, ylabel="accuracy after the last task")
  axis.grid(alpha=0.3)


def accuracy_against_forgetting(results: Sequence[Result], names: Sequence[str]) -> Figure:
  """`trade` of the results of one stream."""
  figure, axes = canvas(6.4, 4.8)
  trade(axes[0, 0], results, names)
  axes[0, 0].set_title(f"{results[0]['stream']}: accuracy against forgetting {spread_note(results)}", fontsize=10)
  legend_below(figure, axes[0, 0])
  text = (
    f"What each method knows at the end of {results[0]['stream']}, against what it forgot on the way: the further up "
    f"and to the left, the better. Mean over {seeds_of(results)}, bars of one standard deviation."
  )
  once = any(None in result["metrics"]["BWT"]["values"] for result in results)
  return captioned(
    figure, text + (" A dashed line is trained once, on all tasks, and forgets nothing." if once else "")
  )


Panels = Mapping[str, tuple[Sequence[Result], Sequence[str]]]  # by title: results, and a name for each


def side_by_side(panels: Panels) -> Figure:
  """`trade` of several streams, two beside each other, each with its own legend."""
  columns = min(2, len(panels))
  figure, axes = canvas(5.2 * columns, 4.2 * -(-len(panels) // columns), -(-len(panels) // columns), columns)
  for axis, (title, (results, names)) in zip(axes.ravel(), panels.items(), strict=False):
    trade(axis, results, names)
    axis.set_title(f"{title} {spread_note(results)}", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
  for axis in axes.ravel()[len(panels) :]:
    axis.set_visible(False)
  return figure


def points(panels: Panels) -> dict[str, dict[str, list[float | None]]]:
  """{panel: {name: [forgetting, accuracy]}}, means over seeds to six places: the numbers that `side_by_side` shows."""
  found: dict[str, dict[str, list[float | None]]] = {}
  for title, (results, names) in panels.items():
    across = [None if own is None else round(float(np.mean(own)), 6) for own in lost(results)[1]]
    ends = [result["metrics"]["ACC"]["mean"] for result in results]
    shown = zip(names, across, ends, strict=True)
    found[title] = {name: [x, None if y is None else round(y, 6)] for name, x, y in shown}
  return found


def seen(result: Result) -> np.ndarray:
  """[S, T] mean accuracy over the tasks 1 to i after task i; NaN where one of them was not asked."""
  R = matrices(result)
  return np.stack([R[:, i, :i].mean(axis=1) for i in range(1, R.shape[2] + 1)], axis=1)


def seen_so_far(results: Sequence[Result], names: Sequence[str]) -> Figure:
  """Mean accuracy over the tasks seen so far, after each task, of those results that were asked more than once."""
  figure, axes = canvas(6.4, 4.6)
  for i, result in enumerate(results):
    values = seen(result)
    if (~np.isnan(values).any(axis=0)).sum() > 1:
      band(axes[0, 0], np.arange(1, values.shape[1] + 1), values, names[i], i)
  axes[0, 0].set(xlabel="after task", ylabel="mean test accuracy over the tasks so far")
  along_tasks(figure, axes[0, 0], results, "mean accuracy over the tasks so far")
  return captioned(
    figure,
    f"Accuracy on {results[0]['stream']} after each task, averaged over the tasks that were learnt until then. A line "
    f"that stays level forgets nothing and learns each task as well as the first. Bands are one standard deviation "
    f"over {seeds_of(results)}.",
  )


def smooth(values: np.ndarray, most: int = 150) -> tuple[np.ndarray, np.ndarray]:
  """([m] places, [m] means) of at most `most` runs of neighbours of values [n]."""
  parts = np.array_split(np.arange(len(values)), min(len(values), most))
  return np.array([part.mean() for part in parts]), np.array([values[part].mean() for part in parts])


def losses(curves: Sequence[Mapping[str, np.ndarray]], names: Sequence[str], stream: str) -> Figure:
  """The training loss of each result over its steps, a line for each phase.

  Args:
    curves: of each result, {phase: [2, n] steps since the beginning, and the loss then, mean over seeds}.
  """
  figure, axes = canvas(8, 4.4)
  axis = axes[0, 0]
  for i, phases in enumerate(curves):
    for p, (phase, (steps, loss)) in enumerate(phases.items()):
      at, shown = smooth(loss)
      label = names[i] if len(phases) == 1 else f"{names[i]}, {phase}"
      style: dict[str, Any] = {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": DASHES[(i // len(COLOURS) + p) % len(DASHES)],
      }
      axis.plot(np.interp(at, np.arange(len(steps)), steps), shown, linewidth=1, label=label, **style)
  axis.set(xlabel="step", ylabel="training loss")
  tops = [line.get_ydata() for line in axis.lines]
  if tops and min(map(np.nanmin, tops)) > 0 and max(map(np.nanmax, tops)) > 100 * min(map(np.nanmin, tops)):
    axis.set_yscale("log")
  axis.grid(alpha=0.3)
  axis.set_title(f"{stream}: training loss", fontsize=10)
  legend_below(figure, axis)
  return captioned(
    figure,
    f"Training loss on {stream} over all steps of the run, mean over seeds and over neighbouring steps. It jumps where "
    "a new task begins and falls as the task is learnt; a line that rises without a new task is in trouble.",
  )
