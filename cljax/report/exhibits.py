"""Columns and figures that not every result has: a record of what they need and how they are made.

An exhibit is asked about every result. It answers where the result has what it needs, whatever the method is called;
so `report/` knows no method, and a method brings its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

Result = Mapping[str, Any]  # as in result.json
Arrays = Mapping[str, np.ndarray]  # as in report.npz: what the method told after each task, [S, T, ...]
Summary = Mapping[str, Any]  # {mean, std, values}, as `cljax.metrics.spread` makes it


def no_columns(result: Result) -> dict[str, Summary | str]:
  """No column of a table."""
  return {}


def nothing_beside(result: Result, results: Sequence[Result]) -> dict[str, Summary | str]:
  """No column that other results decide."""
  return {}


def no_figures(result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """No figure of a run."""
  return {}


def no_table_figures(results: Sequence[Result], arrays: Sequence[Arrays]) -> dict[str, Figure]:
  """No figure of a table."""
  return {}


class Exhibit(NamedTuple):
  """What a report shows of results that have certain arrays and fields, beside what it shows of all."""

  arrays: tuple[str, ...]  # names in the method's report: columns find them in result.json, figures in report.npz
  fields: tuple[str, ...] = ()  # dotted, of the result; there and not null: `train_rows`, `config.stream.x`
  columns: Callable[[Result], dict[str, Summary | str]] = no_columns  # {heading: summary over seeds, or a text}
  figures: Callable[[Result, Arrays, str], dict[str, Figure]] = no_figures  # (of one run; title) -> by name
  table_figures: Callable[[Sequence[Result], Sequence[Arrays]], dict[str, Figure]] = no_table_figures  # of a stream
  beside: Callable[[Result, Sequence[Result]], dict[str, Summary | str]] = (
    nothing_beside  # columns in the sight of its stream
  )

  def met(self, result: Result, told: Mapping[str, Any]) -> bool:
    """Whether the result has the fields, and what the method told has the arrays."""
    return set(self.arrays) <= set(told) and all(field_of(result, path) is not None for path in self.fields)


Exhibits = Mapping[str, Exhibit]  # by name
NO_EXHIBITS: Exhibits = {}


def field_of(result: Result, path: str) -> Any:
  """The value at a dotted path; None where there is none."""
  found: Any = result
  for name in path.split("."):
    found = found.get(name) if isinstance(found, Mapping) else None
  return found


def columns_of(result: Result, exhibits: Exhibits, results: Sequence[Result] = ()) -> dict[str, Summary | str]:
  """{heading: summary over seeds, or a text} of all exhibits whose needs the result meets.

  Args:
    results: of the same table; an exhibit is shown those of the result's stream that meet its needs.
  """
  found: dict[str, Summary | str] = {}
  for exhibit in exhibits.values():
    if exhibit.met(result, result["report"]):
      alike = [other for other in results if other["stream"] == result["stream"]]
      others = [other for other in alike if exhibit.met(other, other["report"])]
      found |= {**exhibit.columns(result), **exhibit.beside(result, others)}
  return found


def figures_of(result: Result, arrays: Arrays, title: str, exhibits: Exhibits) -> dict[str, Figure]:
  """The figures of one run by name, of all exhibits whose needs it meets."""
  found: dict[str, Figure] = {}
  for exhibit in exhibits.values():
    if exhibit.met(result, arrays):
      found |= exhibit.figures(result, arrays, title)
  return found


def table_figures_of(results: Sequence[Result], arrays: Sequence[Arrays], exhibits: Exhibits) -> dict[str, Figure]:
  """The figures by name of several results of one stream; an exhibit sees those that meet its needs."""
  found: dict[str, Figure] = {}
  for exhibit in exhibits.values():
    fit = [i for i, result in enumerate(results) if exhibit.met(result, arrays[i])]
    if fit:
      found |= exhibit.table_figures([results[i] for i in fit], [arrays[i] for i in fit])
  return found
