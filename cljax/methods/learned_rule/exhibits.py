"""What a report shows of a rule that told its multipliers: how they are spread, tensor by tensor (Figure 7 of Xiong,
Ren and Urtasun 2019, https://arxiv.org/abs/1910.04650)."""

import numpy as np
from matplotlib.figure import Figure

from cljax.report.exhibits import Arrays, Exhibit, Result
from cljax.report.plots import canvas, captioned

PREFIX, COLUMNS = "multipliers/", 4
WIDEST = 3.0  # of the bins' outer edges, as `pieces.rule` counts; an exhibit imports nothing that trains


def figures(result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """Shares of all multipliers in the steps of the last task, mean over seeds, a panel for each tensor."""
  found = {name.removeprefix(PREFIX): counts[:, -1] for name, counts in arrays.items() if name.startswith(PREFIX)}
  if not found:
    return {}
  rows = -(-len(found) // COLUMNS)
  figure, axes = canvas(2.6 * COLUMNS, 2 * rows, rows, COLUMNS, sharex=True)
  for axis, (name, counts) in zip(axes.ravel(), found.items(), strict=False):
    share = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).mean(axis=0)
    edges = np.linspace(-WIDEST, WIDEST, len(share) + 1)
    axis.stairs(share, edges, fill=True, color="#0072B2")
    axis.axvline(1, color="black", linewidth=0.6, linestyle=":")
    axis.set_title(name, fontsize=8)
    axis.set_yscale("log")
  for axis in axes.ravel()[len(found) :]:
    axis.set_visible(False)
  figure.suptitle(f"{title}: multipliers of the last task's steps (share; dotted: plain SGD)", fontsize=10)
  text = (
    f"{title}: by what the learned rule multiplies the gradients of each tensor in the last task. Plain SGD would put "
    "everything at 1 (dotted); mass near 0 is what the rule protects."
  )
  return {"multipliers": captioned(figure, text)}


MULTIPLIERS = Exhibit((), ("config.method.count_multipliers",), figures=figures)
