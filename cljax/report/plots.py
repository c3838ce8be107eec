"""Figures from results and report arrays; matplotlib without a display."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cljax.files import write_atomically
from cljax.report import apart
from cljax.report.exhibits import NO_EXHIBITS, Arrays, Exhibits, Result, figures_of, table_figures_of

# Okabe and Ito's palette, told apart by colour-blind readers too; more than seven lines differ by their dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **shared: Any) -> tuple[Figure, np.ndarray]:
  """(figure, axes [rows, columns]); inches."""
  figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
  FigureCanvasAgg(figure)
  return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def matrices(result: Result) -> np.ndarray:
  """[S, T+1, T] accuracies with NaN."""
  return np.array(result["accuracy"], dtype=float)


def band(axis: Axes, x: np.ndarray, values: np.ndarray, label: str, i: int) -> None:
  """Mean of values [S, n], where all seeds have one, with a band of one standard deviation, in the i-th style."""
  known = ~np.isnan(values).any(axis=0)
  x, values = x[known], values[:, known]
  mean, colour, dash = values.mean(axis=0), COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
  axis.plot(x, mean, label=label, color=colour, linestyle=dash, marker="o", markersize=3)
  if len(values) > 1:
    spread = values.std(axis=0, ddof=1)
    axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)


def number_tasks(axis: Axes) -> None:
  """Whole numbers along the axis of tasks, and a grid."""
  axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
  axis.grid(alpha=0.3)


def legend_below(figure: Figure, axis: Axes) -> None:
  """One legend for all axes of a figure, below them; the names are those of `axis`."""
  names = axis.get_legend_handles_labels()[1]
  figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(names)), frameon=False)


def spread_note(results: Sequence[Result]) -> str:
  """` (mean ± s.d. of 5 seeds)`."""
  counts = sorted({len(result["seeds"]) for result in results})
  seeds = f"{counts[0]} seed" if counts == [1] else f"{' or '.join(map(str, counts))} seeds"
  return f"({'mean ± s.d. of ' if counts[-1] > 1 else ''}{seeds})"


def accuracy_matrix(result: Result) -> Figure:
  """Mean over seeds: rows after each task, columns tasks; white where some seed was not asked."""
  mean = matrices(result).mean(axis=0)
  T = mean.shape[1]
  figure, axes = canvas(6, 5)
  image = axes[0, 0].imshow(mean, vmin=0, vmax=1, cmap="viridis", aspect="auto")
  axes[0, 0].set(xlabel="test task", ylabel="after task (0: before training)")
  axes[0, 0].set_title(f"{result['cell']} {spread_note([result]).replace(' ± s.d.', '')}", fontsize=10)
  axes[0, 0].set_xticks(range(0, T, step_of(T)), range(1, T + 1, step_of(T)))
  axes[0, 0].set_yticks(range(0, T + 1, step_of(T)))
  figure.colorbar(image, ax=axes[0, 0], label="test accuracy (white: not evaluated)")
  return figure


def step_of(count: int) -> int:
  """The distance of numbered rows, for about ten numbers along `count` rows."""
  return max(1, count // 10)


def task_curves(results: Sequence[Result], names: Sequence[str] | None = None) -> Figure:
  """Accuracy on tasks 1 and 10 (of at most ten tasks the middle one) from then on, by method (the paper's Figure 2).

  Args:
    names: of each result in the legend; None are their methods.
  """
  T = max(matrices(result).shape[2] for result in results)
  tasks = sorted({0, 9 if T > 10 else T // 2})
  figure, axes = canvas(5.2 * len(tasks), 4, 1, len(tasks), sharey=True)
  for axis, task in zip(axes[0], tasks, strict=True):
    for i, result in enumerate(results):
      R = matrices(result)
      if task < R.shape[2]:  # runs of fewer tasks may stand beside longer ones
        tasks_after = np.arange(task + 1, R.shape[2] + 1)
        band(axis, tasks_after, R[:, task + 1 :, task], names[i] if names else result["method"], i)
    axis.set(xlabel="after task", ylabel=f"test accuracy on task {task + 1}")
    number_tasks(axis)
  figure.suptitle(f"{results[0]['stream']}: accuracy over time {spread_note(results)}", fontsize=10)
  legend_below(figure, axes[0, 0])
  return figure


def drops(results: Sequence[Result], names: Sequence[str] | None = None) -> Figure:
  """Accuracy right after each task minus that at the end, by method (the paper's Figure 3); names as in task_curves."""
  figure, axes = canvas(8, 4)
  for i, result in enumerate(results):
    R = matrices(result)
    drop = np.diagonal(R[:, 1:], axis1=1, axis2=2) - R[:, -1]
    band(axes[0, 0], np.arange(1, R.shape[2] + 1), drop, names[i] if names else result["method"], i)
  axes[0, 0].axhline(0, color="black", linewidth=0.6)
  axes[0, 0].set(xlabel="task", ylabel="drop in test accuracy")
  number_tasks(axes[0, 0])
  title = f"{results[0]['stream']}: drop from right after the task to the end {spread_note(results)}"
  axes[0, 0].set_title(title, fontsize=10)
  legend_below(figure, axes[0, 0])
  return figure


def numbers(axis: Axes, values: np.ndarray) -> None:
  """The value of each cell, where there is room."""
  if values.size > 150:
    return
  for (row, column), value in np.ndenumerate(values):
    if np.isfinite(value):
      axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="black")


def confusion_figure(result: Result, title: str) -> Figure:
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


def run_figures(result: Result, arrays: Arrays, exhibits: Exhibits = NO_EXHIBITS) -> dict[str, Figure]:
  """The figures of one run by file name, its exhibits' among them; arrays [S, T, ...]."""
  found = {"accuracy_matrix": accuracy_matrix(result), "task_curves": task_curves([result]), "drops": drops([result])}
  return found | own_figures(result, arrays, result["cell"], exhibits)


def own_figures(result: Result, arrays: Arrays, title: str, exhibits: Exhibits) -> dict[str, Figure]:
  """The figures that only some results have: whom a method takes for whom, and what its exhibits show."""
  found = {} if result["task_confusion"] is None else {"gate_confusion": confusion_figure(result, title)}
  return found | figures_of(result, arrays, title, exhibits)


def table_figures(
  results: Sequence[Result],
  arrays: Sequence[Arrays],
  names: Sequence[str] | None = None,
  exhibits: Exhibits = NO_EXHIBITS,
) -> dict[str, Figure]:
  """The figures of a table by file name: curves and drops by stream and scenario, exhibits by these and by result.

  Args:
    arrays: of each result, its report arrays [S, T, ...].
    names: of each result, unique within its stream; None are their methods.
  """
  names = list(names) if names else [result["method"] for result in results]
  found: dict[str, Figure] = {}
  groups = apart.streams(results)
  for (name, scenario), group in groups.items():
    stream = name if sum(other == name for other, _ in groups) == 1 else f"{name}_{scenario}"
    ours, called = [results[i] for i in group], [names[i] for i in group]
    found |= {f"{stream}_task_curves": task_curves(ours, called), f"{stream}_drops": drops(ours, called)}
    own = table_figures_of(ours, [arrays[i] for i in group], exhibits)
    found |= {f"{stream}_{kind}": figure for kind, figure in own.items()}
    for i in group:
      own = own_figures(results[i], arrays[i], f"{stream}, {names[i]}", exhibits)
      found |= {f"{stream}_{file_name(names[i])}_{kind}": figure for kind, figure in own.items()}
  return found


def file_name(text: str) -> str:
  """`text` with what a file's name should not hold replaced by `_`."""
  return re.sub(r"[^\w.=-]+", "_", text)


def save(folder: epath.Path, figures: Mapping[str, Figure]) -> list[epath.Path]:
  """Each figure as a PNG in the folder; the paths.

  Raises:
    OSError: it cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for name, figure in figures.items():
    paths.append(folder / f"{name}.png")
    write_atomically(paths[-1], png(figure))
  return paths


def png(figure: Figure) -> bytes:
  """The bytes of a figure's PNG file."""
  content = io.BytesIO()
  figure.savefig(content, format="png")
  return content.getvalue()
