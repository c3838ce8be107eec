"""Figures from results and report arrays; matplotlib without a display."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cljax.report.store import write_atomically

# Okabe and Ito's palette, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
Result = Mapping[str, Any]


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
  """(figure, axes [rows, columns])."""
  figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
  FigureCanvasAgg(figure)
  return figure, figure.subplots(rows, columns, squeeze=False)


def matrices(result: Result) -> np.ndarray:
  """[S, T+1, T] accuracies with NaN."""
  return np.array(result["accuracy"], dtype=float)


def band(axis, x: np.ndarray, values: np.ndarray, label: str, colour: str) -> None:
  """Mean of values [S, n] with a band of one standard deviation."""
  known = ~np.isnan(values).any(axis=0)
  if not known.any():
    return
  x, values = x[known], values[:, known]
  mean = values.mean(axis=0)
  axis.plot(x, mean, label=label, color=colour, marker="o", markersize=3)
  if len(values) > 1:
    spread = values.std(axis=0, ddof=1)
    axis.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)


def accuracy_matrix(result: Result) -> Figure:
  """Mean over seeds: rows after each task, columns tasks."""
  mean = matrices(result).mean(axis=0)
  figure, axes = canvas(6, 5)
  image = axes[0, 0].imshow(mean, vmin=0, vmax=1, cmap="viridis", aspect="auto")
  axes[0, 0].set(
    xlabel="asked about task", ylabel="after task (0: before training)", title=f"{result['cell']}: accuracy"
  )
  axes[0, 0].set_xticks(range(mean.shape[1]), range(1, mean.shape[1] + 1))
  figure.colorbar(image, ax=axes[0, 0], label="accuracy")
  return figure


def task_curves(results: Sequence[Result]) -> Figure:
  """Accuracy on tasks 1 and 10 (or the middle one) after each task, by method (the paper's Figure 2)."""
  T = matrices(results[0]).shape[2]
  tasks = sorted({0, 9 if T > 10 else T // 2})
  figure, axes = canvas(5.2 * len(tasks), 3.6, 1, len(tasks))
  for axis, task in zip(axes[0], tasks, strict=True):
    for result, colour in zip(results, COLOURS, strict=False):
      values = matrices(result)[:, task + 1 :, task]
      band(axis, np.arange(task + 1, T + 1), values, result["method"], colour)
    axis.set(xlabel="after task", ylabel=f"test accuracy on task {task + 1}", title=f"task {task + 1}")
    axis.grid(alpha=0.3)
    axis.xaxis.get_major_locator().set_params(integer=True)
  outside_legend(figure, axes[0, 0])
  return figure


def drops(results: Sequence[Result]) -> Figure:
  """Accuracy right after a task minus at the end, for each task and method (the paper's Figure 3)."""
  figure, axes = canvas(8, 3.6)
  axis = axes[0, 0]
  width = 0.8 / len(results)
  for i, (result, colour) in enumerate(zip(results, COLOURS, strict=False)):
    R = matrices(result)
    drop = np.diagonal(R[:, 1:], axis1=1, axis2=2) - R[:, -1]
    axis.bar(np.arange(1, R.shape[2] + 1) + (i - (len(results) - 1) / 2) * width, drop.mean(axis=0), width,
             label=result["method"], color=colour)  # fmt: skip
  axis.axhline(0, color="black", linewidth=0.6)
  axis.set(xlabel="task", ylabel="drop in accuracy", title="from right after the task to the end")
  axis.xaxis.get_major_locator().set_params(integer=True)
  outside_legend(figure, axis)
  return figure


def outside_legend(figure: Figure, axis) -> None:
  handles, labels = axis.get_legend_handles_labels()
  if handles:
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)


def routing_matrices(routing: np.ndarray, title: str) -> Figure:
  """Gates [L, T, E] of one seed after the last task (the paper's Figure 4)."""
  L, T, E = routing.shape
  figure, axes = canvas(4.6 * L, 4, 1, L)
  for l, axis in enumerate(axes[0]):
    image = axis.imshow(routing[l], cmap="Blues", vmin=0, vmax=max(routing.max(), 1e-9), aspect="auto")
    axis.set(xlabel="expert", ylabel="task", title=f"{title}, layer {l + 1}")
    axis.set_yticks(range(0, T, max(1, T // 10)), range(1, T + 1, max(1, T // 10)))
  figure.colorbar(image, ax=axes[0].tolist(), label="routing weight")
  return figure


def task_similarity(routing: np.ndarray, title: str) -> Figure:
  """R R^T of each layer (the paper's Figure 5); routing [L, T, E]."""
  L, T, _ = routing.shape
  figure, axes = canvas(4.6 * L, 4, 1, L)
  similarity = np.einsum("lte,lse->lts", routing, routing)
  for l, axis in enumerate(axes[0]):
    image = axis.imshow(similarity[l], cmap="Blues", vmin=0, vmax=max(similarity.max(), 1e-9))
    axis.set(xlabel="task", ylabel="task", title=f"{title}, layer {l + 1}")
    axis.set_xticks(range(0, T, max(1, T // 5)), range(1, T + 1, max(1, T // 5)))
    axis.set_yticks(range(0, T, max(1, T // 5)), range(1, T + 1, max(1, T // 5)))
  figure.colorbar(image, ax=axes[0].tolist(), label="similarity $R R^T$")
  return figure


def expert_use(arrays: Mapping[str, np.ndarray], title: str) -> Figure:
  """Unused experts [S, T, L] after each task, and co-training steps skipped in it [S, T, T]."""
  unused, skipped = arrays["unused"].astype(float), arrays["skipped"][:, -1].astype(float)
  figure, axes = canvas(9, 3.4, 1, 2)
  tasks = np.arange(1, unused.shape[1] + 1)
  for l in range(unused.shape[2]):
    band(axes[0, 0], tasks, unused[:, :, l], f"layer {l + 1}", COLOURS[l])
  band(axes[0, 1], tasks, skipped, "skipped steps", COLOURS[3])
  axes[0, 0].set(xlabel="after task", ylabel="experts that no task uses", title=title)
  axes[0, 1].set(xlabel="in task", ylabel="co-training steps skipped")
  axes[0, 0].legend(frameon=False)
  for axis in axes[0]:
    axis.grid(alpha=0.3)
    axis.xaxis.get_major_locator().set_params(integer=True)
  return figure


def run_figures(result: Result, arrays: Mapping[str, np.ndarray]) -> dict[str, Figure]:
  """The figures of one run by file name, the routing ones where its report has them."""
  found = {"accuracy_matrix": accuracy_matrix(result), "task_curves": task_curves([result]), "drops": drops([result])}
  if "routing" in arrays:
    last = arrays["routing"][0, -1]
    title = f"{result['cell']}, seed {result['seeds'][0]}"
    found |= {"routing": routing_matrices(last, title), "task_similarity": task_similarity(last, title)}
    found["expert_use"] = expert_use(arrays, result["cell"])
  return found


def table_figures(results: Sequence[Result], arrays: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Figure]:
  """The figures of a table by file name: curves and drops by stream, routing by cell."""
  found = {}
  for stream in dict.fromkeys(result["stream"] for result in results):
    group = [result for result in results if result["stream"] == stream]
    found |= {f"{stream}_task_curves": task_curves(group), f"{stream}_drops": drops(group)}
  for result, own in zip(results, arrays, strict=True):
    if "routing" in own:
      names = ("routing", "task_similarity", "expert_use")
      prefix = f"{result['stream']}_{result['method']}"
      found |= {f"{prefix}_{name}": figure for name, figure in run_figures(result, own).items() if name in names}
  return found


def save(folder: epath.Path, figures: Mapping[str, Figure]) -> list[epath.Path]:
  """Each figure as a PNG; the paths."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for name, figure in figures.items():
    paths.append(folder / f"{name}.png")
    write_atomically(paths[-1], png(figure))
  return paths


def png(figure: Figure) -> bytes:
  content = io.BytesIO()
  figure.savefig(content, format="png")
  return content.getvalue()
