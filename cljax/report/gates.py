"""Figures of methods that infer the task: who is taken for whom, and which task a new one grows from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cljax.pieces.experts import MODES

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


def turned_figure(result: Result, arrays: Mapping[str, np.ndarray], canvas: Any, title: str) -> Figure:
  """Relatedness of each turned copy to the first task against its angle; one line a seed."""
  angles = result["config"]["stream"]["angles"]
  figure, axes = canvas(5.5, 4)
  axis = axes[0, 0]
  for related in arrays["relatedness"][:, -1]:
    axis.plot(angles[1:], related[1 : len(angles), 0], marker="o", markersize=3, color="#0072B2", alpha=0.6)
  axis.axhline(result["config"]["method"]["threshold"], color="black", linewidth=0.6, linestyle="--")
  axis.set(xlabel="degrees", ylabel="relatedness to task 1 (dashed: the threshold)")
  axis.set_title(title, fontsize=10)
  axis.grid(alpha=0.3)
  return figure


def parent_relatedness(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  """[S, T] of each task to the parent that it chose; NaN without one."""
  related, parent = arrays["relatedness"][:, -1], arrays["parent"][:, -1]
  found = np.take_along_axis(related, np.maximum(parent, 0)[..., None], axis=2)[..., 0]
  return np.where(parent >= 0, found, np.nan)


def transfer_figure(
  results: Sequence[Result], arrays: Sequence[Mapping[str, np.ndarray]], canvas: Any
) -> dict[str, Figure]:
  """What LwF gave over fine-tuning, task by task, against the relatedness to the parent; {} unless both are there.

  The two are told by the modes of their own reports, and must have taken the same parents.
  """
  modes = {}
  for i, own in enumerate(arrays):
    if {"mode", "parent", "relatedness"} <= set(own):
      kinds = set(own["mode"][:, -1].ravel().tolist()) - {0}
      if len(kinds) == 1:
        modes[kinds.pop()] = i
  if not {1, 2} <= set(modes):
    return {}
  tuned, held = (modes[kind] for kind in (1, 2))
  if not np.array_equal(arrays[tuned]["parent"], arrays[held]["parent"]):
    return {}
  last = [np.array(results[i]["accuracy"], float)[:, -1] for i in (tuned, held)]
  figure, axes = canvas(5.5, 4)
  axes[0, 0].scatter(parent_relatedness(arrays[held]), 100 * (last[1] - last[0]), s=14, color="#D55E00")
  axes[0, 0].axhline(0, color="black", linewidth=0.6)
  axes[0, 0].axvline(0.85, color="black", linewidth=0.6, linestyle="--")
  axes[0, 0].set(xlabel="relatedness to the parent (dashed: .85)", ylabel="LwF minus fine-tuning, points of accuracy")
  axes[0, 0].set_title(f"{results[held]['stream']}: every task of every seed", fontsize=10)
  axes[0, 0].grid(alpha=0.3)
  return {"transfer": figure}


def gate_figures(result: Result, arrays: Mapping[str, np.ndarray], canvas: Any, name: str) -> dict[str, Figure]:
  """Those that the result and its report arrays have; `canvas` is that of `report.plots`."""
  found = {}
  if result["task_confusion"] is not None:
    found["gate_confusion"] = confusion_figure(result, canvas, name)
  if {"relatedness", "parent", "mode"} <= set(arrays):
    found["relatedness"] = relatedness_figure(arrays, canvas, f"{name}, seed {result['seeds'][0]}")
    if "angles" in result["config"]["stream"]:
      found["turned"] = turned_figure(result, arrays, canvas, name)
  return found
