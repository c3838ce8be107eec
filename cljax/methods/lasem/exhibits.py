"""What a report shows of tasks that share layers: which, how much is left of older tasks, and how EM came to it."""

import numpy as np
from matplotlib.figure import Figure

from cljax.metrics import forgetting_ratio, half_interval, spread
from cljax.report.exhibits import Arrays, Exhibit, Result, Summary
from cljax.report.plots import canvas, captioned, matrices, step_of


def ratios(result: Result) -> dict[str, Summary]:
  """The forgetting ratio of each seed: against the end of each task's training, and against its peak."""
  R = matrices(result)  # [S, T + 1, T]
  ends = [forgetting_ratio(one[-1], np.diagonal(one[1:])) for one in R]
  found: dict[str, Summary] = {"forgetting ratio": spread(ends)}
  if result["peak"]:
    peaks = np.array(result["peak"]["test"], float)
    found["ratio to peaks"] = spread([forgetting_ratio(one[-1], peak) for one, peak in zip(R, peaks, strict=True)])
  before, config = result["readouts"].get("before_exit"), result.get("config") or {}
  if before and config.get("method", {}).get("choose") != "search":  # before a search ends, its last trial answers
    then = np.array(before["accuracy"], float)  # row t before the roll-back at the end of task t
    found["ratio before roll-back"] = spread(
      [forgetting_ratio(one[-1], np.diagonal(other[1:])) for one, other in zip(R, then, strict=True)]
    )
  return found


def columns(result: Result) -> dict[str, Summary | str]:
  """Forgetting ratios, the share of layers that tasks share, and the interval of the peak accuracy."""
  shared = np.array(result["report"]["shared_layers"], float)  # [S, T, L]
  found: dict[str, Summary | str] = {**ratios(result), "layers shared": spread(shared.mean(axis=(1, 2)).tolist())}
  if result["peak"] and len(result["seeds"]) > 1:
    values = result["peak"]["values"]
    found["peak, 95 % interval by t"] = f"{np.mean(values):.4f} ± {half_interval(values):.4f}"
  return found


def figures(result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """The layers that each task shares, as shares of the seeds, and over all tasks (the paper's Figure 5)."""
  shared = arrays["shared_layers"][:, -1].astype(float)  # [S, T, L]
  S, T, L = shared.shape
  figure, axes = canvas(9, 4, 1, 2)
  image = axes[0, 0].imshow(shared.mean(axis=0), cmap="Blues", vmin=0, vmax=1, aspect="auto")
  axes[0, 0].set(xlabel="layer", ylabel="task", title=f"share of {S} seeds")
  axes[0, 0].set_xticks(range(0, L, step_of(L)), range(1, L + 1, step_of(L)))
  axes[0, 0].set_yticks(range(0, T, step_of(T)), range(1, T + 1, step_of(T)))
  figure.colorbar(image, ax=axes[0, 0], label="shared")
  axes[0, 1].bar(range(1, L + 1), shared.mean(axis=(0, 1)))
  axes[0, 1].set(xlabel="layer", ylabel="share of tasks and seeds", title="how often each layer is shared", ylim=(0, 1))
  figure.suptitle(title, fontsize=10)
  text = (
    f"{title}: which layers each task shares with the others, as a share of the seeds, and on the right how often each "
    "layer is shared over all tasks."
  )
  return {"shared_layers": captioned(figure, text)}


def em_columns(result: Result) -> dict[str, Summary | str]:
  """How sure the choices were, and when they were made."""
  told = result["report"]
  return {
    "prior maximum": spread(np.mean(told["prior_max"], axis=1).tolist()),
    "effective configurations": spread(np.mean(told["effective"], axis=1).tolist()),
    "last change at batch": spread(np.mean(told["changed"], axis=1).tolist()),
  }


SHARED = Exhibit(("shared_layers",), columns=columns, figures=figures)
CHOSEN = Exhibit(("prior_max", "effective", "changed"), columns=em_columns)
