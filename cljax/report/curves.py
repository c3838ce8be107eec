"""What a report shows of results that were asked inside tasks: accuracy on the first task and on those after it over
steps (Figures 3 to 5 of Xiong, Ren and Urtasun 2019, https://arxiv.org/abs/1910.04650)."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from cljax.report.exhibits import Arrays, Exhibit, Result
from cljax.report.plots import COLOURS, band, canvas, captioned, legend_below, spread_note

CALLED = {"output_within": "accuracy", "readout_within": "readout accuracy"}  # by the look that asked


def over_steps(look: str, result: Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(steps over all tasks [n], first task [S, n], mean over the tasks from the second to the one in training [S, n]).

  Of seeds that take different numbers of steps those of the longest are told.
  """
  curve = result["curves"][look]
  accuracy = np.array(curve["accuracy"], float)  # [S, T, M, T]
  steps = np.array(curve["steps"], float).max(axis=0)  # [T, M]
  before, at, first, later = 0.0, [], [], []
  for task in range(accuracy.shape[1]):
    known = np.flatnonzero(~np.isnan(steps[task]))
    for place in known:
      at.append(before + steps[task, place])
      row = accuracy[:, task, place]
      first.append(row[:, 0])
      later.append(row[:, 1 : task + 1].mean(axis=1) if task else np.full(len(row), np.nan))
    before += steps[task, known].max() if len(known) else 0.0
  return np.array(at), np.transpose(first), np.transpose(later)


def table_figures(look: str, results: Sequence[Result], arrays: Sequence[Arrays]) -> dict[str, Figure]:
  """A colour for each result: on the left what is kept of the first task, on the right what is learnt after it."""
  figure, axes = canvas(10.4, 4.8, 1, 2)
  banded = len(results) <= len(COLOURS)  # of more results bands hide each other
  for i, result in enumerate(results):
    at, *found = over_steps(look, result)
    for axis, values in zip(axes[0], found, strict=True):
      band(axis, at, values if banded else values.mean(axis=0, keepdims=True), result["method"], i)
  for axis, tasks in zip(axes[0], ("the first task", "the tasks after it"), strict=True):
    axis.set(xlabel="steps", ylabel=f"{CALLED[look]} on {tasks}")
    axis.grid(alpha=0.3)
  note = spread_note(results) if banded else spread_note(results).replace(" ± s.d.", "")
  figure.suptitle(f"{results[0]['stream']}: {CALLED[look]} in training {note}", fontsize=10)
  legend_below(figure, axes[0, 0])
  text = (
    f"{CALLED[look].capitalize()} on {results[0]['stream']} during training: what is kept of the first task, and how "
    "well the tasks after it are learnt."
  )
  return {look: captioned(figure, text)}


def figures(look: str, result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """That of one run."""
  return table_figures(look, [result], [arrays])


OUTPUT_WITHIN, READOUT_WITHIN = (
  Exhibit((), (f"curves.{look}",), figures=partial(figures, look), table_figures=partial(table_figures, look))
  for look in CALLED
)
