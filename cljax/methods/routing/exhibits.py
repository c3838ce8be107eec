"""What a report shows of routers: which task uses which experts, how alike tasks are, and how many experts are left."""

import numpy as np
from matplotlib.figure import Figure

from cljax.report.exhibits import Arrays, Exhibit, Result
from cljax.report.plots import COLOURS, band, canvas, captioned, legend_below, number_tasks, spread_note, step_of


def per_layer(values: np.ndarray, title: str, columns: str, label: str) -> Figure:
  """Matrices [L, T, n] side by side on one scale from 0; rows are tasks, `columns` names the others."""
  L, T, n = values.shape
  figure, axes = canvas(4.6 * L, 4.4, 1, L)
  for l, axis in enumerate(axes[0]):
    image = axis.imshow(values[l], cmap="Blues", vmin=0, vmax=max(values.max(), 1e-9), aspect="auto")
    axis.set(xlabel=columns, ylabel="task", title=f"layer {l + 1}")
    axis.set_xticks(range(0, n, step_of(n)), range(1, n + 1, step_of(n)))
    axis.set_yticks(range(0, T, step_of(T)), range(1, T + 1, step_of(T)))
  figure.suptitle(title, fontsize=10)
  figure.colorbar(image, ax=axes[0].tolist(), label=label)
  return figure


def routing_matrices(routing: np.ndarray, title: str) -> Figure:
  """Gates [L, T, E] of one seed after the last task (the paper's Figure 4)."""
  return captioned(
    per_layer(routing, f"{title}: routing after the last task", "expert", "routing weight"),
    f"{title}: which experts each task (row) uses, layer by layer, after the last task. Tasks that share a column "
    "share an expert.",
  )


def task_similarity(routing: np.ndarray, title: str) -> Figure:
  """R R^T of each layer (the paper's Figure 5); routing [L, T, E]."""
  similarity = np.einsum("lte,lse->lts", routing, routing)
  return captioned(
    per_layer(similarity, f"{title}: similarity of tasks", "task", "$R R^T$"),
    f"{title}: how alike two tasks are routed, the inner product of their rows of weights. Dark off the diagonal means "
    "shared experts; related tasks should stand out.",
  )


def expert_use(arrays: Arrays, title: str) -> Figure:
  """Unused experts [S, T, L] after each task, and co-training steps skipped in it [S, T, T]."""
  unused, skipped = arrays["unused"].astype(float), arrays["skipped"][:, -1].astype(float)
  figure, axes = canvas(9, 4, 1, 2)
  tasks = np.arange(1, unused.shape[1] + 1)
  for l in range(unused.shape[2]):
    band(axes[0, 0], tasks, unused[:, :, l], f"layer {l + 1}", l)
  band(axes[0, 1], tasks, skipped, "skipped", len(COLOURS) - 1)
  axes[0, 0].set(xlabel="after task", ylabel="experts that no task uses")
  axes[0, 1].set(xlabel="in task", ylabel="co-training steps skipped")
  for axis in axes[0]:
    axis.set_ylim(bottom=0)
    number_tasks(axis)
  figure.suptitle(title, fontsize=10)
  legend_below(figure, axes[0, 0])
  return captioned(
    figure,
    f"{title}: how many experts no task uses yet, and how many steps of co-training were skipped in each task because "
    "a layer had no free expert left.",
  )


def figures(result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """Routing and similarity of the first seed, and the use of experts over all."""
  last, one = arrays["routing"][0, -1], f"{title}, seed {result['seeds'][0]}"
  return {
    "routing": routing_matrices(last, one),
    "task_similarity": task_similarity(last, one),
    "expert_use": expert_use(arrays, f"{title} {spread_note([result])}"),
  }


ROUTING = Exhibit(("routing", "unused", "skipped"), figures=figures)
