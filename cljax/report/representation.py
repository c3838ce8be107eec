"""What a report shows of results that were asked by a linear probe too: how much of what the output forgets is gone
from the representation (Figure 1 of Xiong, Ren and Urtasun 2019)."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from cljax.metrics import accuracy, backward_transfer, spread
from cljax.report.exhibits import Arrays, Exhibit, Result, Summary
from cljax.report.plots import COLOURS, band, canvas, captioned, legend_below, matrices, number_tasks, spread_note

CALLED = {"readout": "readout", "readout_adam": "readout by Adam"}  # by the look that asked
LEAST = 0.005  # forgotten by the output; of less a share would be noise


def probed(look: str, result: Result) -> np.ndarray:
  """[S, T+1, T] accuracies by the probe, with NaN."""
  return np.array(result["readouts"][look]["accuracy"], dtype=float)


def columns(look: str, result: Result) -> dict[str, Summary | str]:
  """Accuracy by the probe, and of output and probe what is forgotten from right after a task to the end, mean over the
  tasks before the last (the negative of BWT); their share is left open where the output forgets less than LEAST."""
  output, probe = ([-backward_transfer(R) for R in found] for found in (matrices(result), probed(look, result)))
  shares = [own / whole if whole >= LEAST else np.nan for whole, own in zip(output, probe, strict=True)]
  return {
    f"{CALLED[look]} ACC": spread([accuracy(R) for R in probed(look, result)]),
    "forgetting (output)": spread(output),
    f"forgetting ({CALLED[look]})": spread(probe),
    f"share in the representation ({CALLED[look]})": spread(shares),
  }


def over_tasks(look: str, results: Sequence[Result], title: str) -> Figure:
  """Accuracy on the first task, and the mean over all tasks before the one just trained, over tasks trained: by the
  output and by the probe, a colour for each result."""
  figure, axes = canvas(10.4, 4.4, 1, 2, sharey=True)
  for i, result in enumerate(results):
    for R, name, style in ((matrices(result), "output", i), (probed(look, result), CALLED[look], i + len(COLOURS))):
      T, name = R.shape[2], f"{result['method']}, {name}"
      band(axes[0, 0], np.arange(1, T + 1), R[:, 1:, 0], name, style)
      old = [R[:, row, : row - 1].mean(axis=1) for row in range(2, T + 1)]
      band(axes[0, 1], np.arange(2, T + 1), np.reshape(old, (T - 1, len(R))).T, name, style)
  for axis, label in zip(axes[0], ("test accuracy on task 1", "mean over the tasks before"), strict=True):
    axis.set(xlabel="after task", ylabel=label)
    number_tasks(axis)
  figure.suptitle(f"{title}: output against {CALLED[look]} {spread_note(results)}", fontsize=10)
  legend_below(figure, axes[0, 0])
  return captioned(
    figure,
    f"{title}: what the network still answers, and what a linear probe, learnt anew on its frozen features, still "
    "finds. Where the second stays up, the task is not forgotten but only no longer read out.",
  )


def figures(look: str, result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """That of one run."""
  return {look: over_tasks(look, [result], title)}


def table_figures(look: str, results: Sequence[Result], arrays: Sequence[Arrays]) -> dict[str, Figure]:
  """That of all results of a stream."""
  return {look: over_tasks(look, results, results[0]["stream"])}


def exhibit(look: str) -> Exhibit:
  """Of results that the look has asked."""
  shown = partial(columns, look), partial(figures, look), partial(table_figures, look)
  return Exhibit((), (f"readouts.{look}",), *shown)


READOUT, READOUT_ADAM = (exhibit(look) for look in CALLED)
