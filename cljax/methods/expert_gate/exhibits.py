"""What a report shows of gates: which task a new one grew from, and what its way of learning gave."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cljax.pieces.experts import MODES
from cljax.report.exhibits import Arrays, Exhibit, Result
from cljax.report.plots import canvas, captioned, numbers


def relatedness_figure(arrays: Arrays, title: str) -> Figure:
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
  return captioned(
    figure,
    f"{title}: how related each new task (row) is to the earlier ones by their autoencoders. The frame is the task "
    "whose expert the new one started from; beside the row stands how it was trained.",
  )


def turned_figure(result: Result, arrays: Arrays, title: str) -> Figure:
  """Relatedness of each turned copy to the first task against its angle; one line a seed."""
  angles = result["config"]["stream"]["angles"]
  held = "EWC" if result["config"]["method"].get("mode") == "auto_ewc" else "LwF"
  figure, axes = canvas(5.5, 4)
  axis = axes[0, 0]
  for related in arrays["relatedness"][:, -1]:
    axis.plot(angles[1:], related[1 : len(angles), 0], marker="o", markersize=3, color="#0072B2", alpha=0.6)
  axis.axhline(result["config"]["method"]["threshold"], color="black", linewidth=0.6, linestyle="--")
  axis.set(xlabel="degrees", ylabel="relatedness to task 1 (dashed: the threshold)")
  axis.set_title(title, fontsize=10)
  axis.grid(alpha=0.3)
  return captioned(
    figure,
    f"{title}: relatedness of the first task to copies of it that are turned, one line a seed. Above the dashed "
    f"threshold an expert is trained by {held}, below it by fine-tuning.",
  )


def parent_relatedness(arrays: Arrays) -> np.ndarray:
  """[S, T] of each task to the parent that it chose; NaN without one."""
  related, parent = arrays["relatedness"][:, -1], arrays["parent"][:, -1]
  found = np.take_along_axis(related, np.maximum(parent, 0)[..., None], axis=2)[..., 0]
  return np.where(parent >= 0, found, np.nan)


def transfer_figures(results: Sequence[Result], arrays: Sequence[Arrays]) -> dict[str, Figure]:
  """What LwF gave over fine-tuning, task by task, against the relatedness to the parent; {} unless both are there.

  The two are told by the modes of their own reports, and must have taken the same parents.
  """
  modes = {}
  for i, own in enumerate(arrays):
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
  text = (
    f"What training by LwF in place of fine-tuning gave each task of {results[held]['stream']}, against its "
    "relatedness to the expert it started from. Above zero LwF was the better choice."
  )
  return {"transfer": captioned(figure, text)}


def relatedness_figures(result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """The relatedness of tasks and their parents, of the first seed."""
  return {"relatedness": relatedness_figure(arrays, f"{title}, seed {result['seeds'][0]}")}


def turned_figures(result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """Relatedness by angle, where the tasks are turned copies of one."""
  return {"turned": turned_figure(result, arrays, title)}


TOLD = ("relatedness", "parent", "mode")
RELATEDNESS = Exhibit(TOLD, figures=relatedness_figures, table_figures=transfer_figures)
TURNED = Exhibit(TOLD, ("config.stream.angles", "config.method.threshold"), figures=turned_figures)
