"""Which figures stand in a run's folder and in a report, in the order in which one reads them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from cljax.report import apart, pairs
from cljax.report.exhibits import NO_EXHIBITS, Arrays, Exhibits, Result, figures_of, table_figures_of
from cljax.report.overview import accuracy_against_forgetting, losses, seen_so_far
from cljax.report.plots import accuracy_matrix, confusion_figure, drops, file_name, not_empty, task_curves

KINDS = ("against", "seen", "pairs", "matrices", "losses", "tasks", "own")  # in the order of a report
Curves = Mapping[str, np.ndarray]  # of a result, as `losses.curves_of` has them


def run_figures(result: Result, arrays: Arrays, exhibits: Exhibits = NO_EXHIBITS) -> dict[str, Figure]:
  """The figures of one run by file name, its exhibits' among them; arrays [S, T, ...]."""
  found = {"accuracy_matrix": accuracy_matrix(result), "seen_so_far": seen_so_far([result], [result["method"]])}
  found |= {"task_curves": task_curves([result]), "drops": drops([result])}
  return not_empty(found | own_figures(result, arrays, result["cell"], exhibits))


def own_figures(result: Result, arrays: Arrays, title: str, exhibits: Exhibits) -> dict[str, Figure]:
  """The figures that only some results have: whom a method takes for whom, and what its exhibits show."""
  found = {} if result["task_confusion"] is None else {"gate_confusion": confusion_figure(result, title)}
  return found | figures_of(result, arrays, title, exhibits)


def table_figures(
  results: Sequence[Result],
  arrays: Sequence[Arrays],
  names: Sequence[str] | None = None,
  exhibits: Exhibits = NO_EXHIBITS,
  curves: Sequence[Curves] = (),
) -> dict[str, Figure]:
  """The figures of a table by name, those of a kind together, each by stream and scenario: accuracy against
  forgetting, accuracy so far, what composes with what, a matrix for each result, losses, curves and drops, exhibits.

  Args:
    arrays: of each result, its report arrays [S, T, ...].
    names: of each result, unique within its stream; None are their methods.
    curves: of each result, its losses; () are none.
  """
  names = list(names) if names else [result["method"] for result in results]
  found: dict[str, dict[str, Figure]] = {kind: {} for kind in KINDS}
  groups = apart.streams(results)
  for (name, scenario), group in groups.items():
    stream = name if sum(other == name for other, _ in groups) == 1 else f"{name}_{scenario}"
    ours, called = [results[i] for i in group], [names[i] for i in group]
    found["against"][f"{stream}_accuracy_against_forgetting"] = accuracy_against_forgetting(ours, called)
    found["seen"][f"{stream}_seen_so_far"] = seen_so_far(ours, called)
    found["pairs"] |= {f"{stream}_{kind}": figure for kind, figure in pairs.figures(ours).items()}
    for i in group:
      matrix = accuracy_matrix(results[i], f"{name}, {names[i]}")
      found["matrices"][f"{stream}_{file_name(names[i])}_accuracy_matrix"] = matrix
    if curves:
      found["losses"][f"{stream}_loss"] = losses([curves[i] for i in group], called, name)
    found["tasks"] |= {f"{stream}_task_curves": task_curves(ours, called), f"{stream}_drops": drops(ours, called)}
    own = table_figures_of(ours, [arrays[i] for i in group], exhibits)
    found["own"] |= {f"{stream}_{kind}": figure for kind, figure in own.items()}
    for i in group:
      own = own_figures(results[i], arrays[i], f"{stream}, {names[i]}", exhibits)
      found["own"] |= {f"{stream}_{file_name(names[i])}_{kind}": figure for kind, figure in own.items()}
  return not_empty({name: figure for kind in KINDS for name, figure in found[kind].items()})
