"""Figures of methods that infer the task: who is taken for whom, and which task a new one grows from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cljax.ops.experts import MODES

Result = Mapping[str, Any]


def numbers(axis: Axes, values: np.ndarray) -> None:
  """The value of each cell, where there is room."""
  if values.size > 150:
    return
  for (row, column), value in np.ndenumerate(values):
    if np.isfinite(value):
      axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="black")


def confusion_figure(result: Result, canvas: Any, title: str) -> Figure:
  """Shares of each task's test rows by the slot inferred, mean over seeds."""
  counts = np.array(result["task_confusion"], float)
  share = (counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)).mean(axis=0)
  figure, axes = canvas(5.5, 4.6)
  image = axes[0, 0].imshow(share, vmin=0, vmax=1, cmap="Blues", aspect="auto")
  axes[0, 0].set(xlabel="slot inferred", ylabel="task")
  axes[0, 0].set_xticks(range(share.shape[1]), range(1, share.shape[1] + 1))
  axes[0, 0].set_yticks(range(share.shape[0]), range(1, share.shape[0] + 1))
  axes[0, 0].set_title(f"{title}: task inferred, share of test rows", fontsize=10)
  numbers(axes[0, 0], share)
  figure.colorbar(image, ax=axes[0, 0])
  return figure


def relatedness_figure(arrays: Mapping[str, np.ndarray], canvas: Any, title: str) -> Figure:
  """Rel(row's task, column's) of the first seed; the parent framed, the mode beside the row."""
  related, parent, mode = (arrays[name][0, -1] for name in ("relatedness", "parent", "mode"))
  T = len(related)
  shown = np.where(np.isfinite(related), related, np.nan)
  columns = T + int(np.isfinite(shown[:, T]).any())  # the root's last, where there is one
  figure, axes = canvas(1.2 + 0.75 * columns, 1.4 + 0.55 * T)
  axis = axes[0, 0]
  image = axis.imshow(np.clip(shown[:, :columns], 0, 1.1), vmin=0, vmax=1.1, cmap="Greens", aspect="auto")
  numbers(axis, shown[:, :columns])
  for task in range(T):
    if parent[task] >= 0:
      axis.plot(parent[task], task, marker="s", markersize=26, fillstyle="none", color="black")
  axis.set(xlabel="earlier task", ylabel="new task")
  axis.set_xticks(range(columns), [*range(1, T + 1), "root"][:columns])
  axis.set_yticks(range(T), [f"{task + 1}, {MODES[int(mode[task])]}" for task in range(T)])
  axis.set_title(f"{title}: relatedness, parent framed", fontsize=10)
  figure.colorbar(image, ax=axis)
  return figure


def gate_figures(result: Result, arrays: Mapping[str, np.ndarray], canvas: Any, name: str) -> dict[str, Figure]:
  """Those that the result and its report arrays have; `canvas` is that of `report.plots`."""
  found = {}
  if result["task_confusion"] is not None:
    found["gate_confusion"] = confusion_figure(result, canvas, name)
  if {"relatedness", "parent", "mode"} <= set(arrays):
    found["relatedness"] = relatedness_figure(arrays, canvas, f"{name}, seed {result['seeds'][0]}")
  return found
