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
from cljax.report.exhibits import Result

# Okabe and Ito's palette, told apart by colour-blind readers too; more than seven lines differ by their dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MOST_NUMBERED = 24  # tasks of an accuracy matrix whose cells have numbers


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


def captioned(figure: Figure, text: str) -> Figure:
  """The figure, with what a page says below it."""
  figure.set_label(text)
  return figure


def caption_of(figure: Figure) -> str:
  """What the figure says of itself: its caption, else its title."""
  titles = [figure.get_suptitle(), *(axis.get_title() for axis in figure.axes)]
  return str(figure.get_label()) or next(filter(None, titles), "")


def is_empty(axis: Axes) -> bool:
  """Whether a panel shows no number; a line across it, such as zero, is none."""
  bounds = np.stack([axis.dataLim.intervalx, axis.dataLim.intervaly])
  shown: list[np.ndarray] = [np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan) for image in axis.images]
  return not np.isfinite(bounds).all() or (bool(shown) and all(np.isnan(values).all() for values in shown))


def trimmed(figure: Figure) -> Figure | None:
  """The figure without panels that show no number, the others side by side where some go; None where all go."""
  panels = [axis for axis in figure.axes if axis.get_visible() and axis.get_subplotspec() is not None]
  kept = [axis for axis in panels if not is_empty(axis)]
  if not kept:
    return None
  if len(kept) < len(panels):
    grid = figure.add_gridspec(1, len(kept))
    for axis in set(panels) - set(kept):
      figure.delaxes(axis)
    for place, axis in enumerate(kept):
      axis.set_subplotspec(grid[place])
      axis.tick_params(labelleft=True, labelbottom=True)
    figure.set_size_inches(figure.get_figwidth() * len(kept) / len(panels), figure.get_figheight())
  return figure


def not_empty(figures: Mapping[str, Figure]) -> dict[str, Figure]:
  """The figures with something to see, each without its empty panels."""
  return {name: kept for name, figure in figures.items() if (kept := trimmed(figure)) is not None}


def seeds_of(results: Sequence[Result]) -> str:
  """`5 seeds`, `1 seed`, `3 or 5 seeds`."""
  counts = sorted({len(result["seeds"]) for result in results})
  return f"{' or '.join(map(str, counts))} seed{'' if counts == [1] else 's'}"


def spread_note(results: Sequence[Result]) -> str:
  """` (mean ± s.d. of 5 seeds)`."""
  several = any(len(result["seeds"]) > 1 for result in results)
  return f"({'mean ± s.d. of ' if several else ''}{seeds_of(results)})"


def accuracy_matrix(result: Result, name: str = "") -> Figure:
  """Mean over seeds, with numbers where there is room: rows after each task, columns tasks; white where some seed was
  not asked.

  Args:
    name: of the result in the title; "" is its cell.
  """
  mean = matrices(result).mean(axis=0)
  T = mean.shape[1]
  side = min(max(5.0, 0.36 * T + 1.6), 10.0)
  figure, axes = canvas(side + 1, side)
  image = axes[0, 0].imshow(mean, vmin=0, vmax=1, cmap="viridis", aspect="auto")
  if T <= MOST_NUMBERED:
    numbers(axes[0, 0], mean, most=mean.size, size=8 if T <= 12 else 6, dark_below=0.55)
  axes[0, 0].set(xlabel="test task", ylabel="after task (0: before training)")
  axes[0, 0].set_title(f"{name or result['cell']} {spread_note([result]).replace(' ± s.d.', '')}", fontsize=10)
  axes[0, 0].set_xticks(range(0, T, step_of(T)), range(1, T + 1, step_of(T)))
  axes[0, 0].set_yticks(range(0, T + 1, step_of(T)))
  figure.colorbar(image, ax=axes[0, 0], label="test accuracy (white: not evaluated)")
  return captioned(
    figure,
    f"{name or result['cell']}: accuracy on each task (column) after each task (row), mean over {seeds_of([result])}. "
    "Down a column one sees a task being learnt and forgotten; the last row is what is left. White was not asked.",
  )


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
  which = " and ".join(f"task {task + 1}" for task in tasks)
  return captioned(
    figure,
    f"How {which} of {results[0]['stream']} fare{'s' if len(tasks) == 1 else ''} while later tasks are learnt: test "
    f"accuracy from the end of the task's own training on. Bands are one standard deviation over {seeds_of(results)}.",
  )


def along_tasks(figure: Figure, axis: Axes, results: Sequence[Result], title: str) -> None:
  """Whole numbers of tasks below, what is shown above, and the legend, where lines run along the tasks."""
  number_tasks(axis)
  axis.set_title(f"{results[0]['stream']}: {title} {spread_note(results)}", fontsize=10)
  legend_below(figure, axis)


def drops(results: Sequence[Result], names: Sequence[str] | None = None) -> Figure:
  """Accuracy right after each task minus that at the end, by method (the paper's Figure 3); names as in task_curves."""
  figure, axes = canvas(8, 4)
  for i, result in enumerate(results):
    R = matrices(result)
    drop = np.diagonal(R[:, 1:], axis1=1, axis2=2) - R[:, -1]
    band(axes[0, 0], np.arange(1, R.shape[2] + 1), drop, names[i] if names else result["method"], i)
  axes[0, 0].axhline(0, color="black", linewidth=0.6)
  axes[0, 0].set(xlabel="task", ylabel="drop in test accuracy")
  along_tasks(figure, axes[0, 0], results, "drop from right after the task to the end")
  return captioned(
    figure,
    f"How much of each task of {results[0]['stream']} is lost between the end of its own training and the end of the "
    "run. Early tasks have longer to be forgotten; below zero a task gained by what came after it.",
  )


def numbers(axis: Axes, values: np.ndarray, most: int = 150, size: int = 8, dark_below: float = -np.inf) -> None:
  """The value of each cell, two places behind the point, where there is room: at most `most` cells.

  Args:
    dark_below: cells below are dark, their numbers white.
  """
  if values.size > most:
    return
  for (row, column), value in np.ndenumerate(values):
    if np.isfinite(value):
      colour = "white" if value < dark_below else "black"
      text = axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=colour)
      text.set_in_layout(False)  # else the layout measures every one


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
  return captioned(
    figure,
    f"{title}: for which task's own part the method takes the test rows of each task when it is not told. On the "
    "diagonal it is right.",
  )


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


def png(figure: Figure, about: str = "") -> bytes:
  """The bytes of a figure's PNG file, with a text about it inside."""
  content = io.BytesIO()
  figure.savefig(content, format="png", metadata={"Description": about} if about else None)
  return content.getvalue()
