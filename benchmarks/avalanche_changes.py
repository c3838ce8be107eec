"""How Avalanche's strategies are called, and what is otherwise within them: a solver where none is installed, and what
makes a strategy the same algorithm as cljax's. Each change is a context in which a strategy trains.
"""

import contextlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from benchmarks import problem

SOLVER = "quadprog"  # what Avalanche's GEM asks qpsolvers for; it may be left out where its requirements are
RIDGE = 1e-3  # what it adds to the diagonal of its program

Context = contextlib.AbstractContextManager[Any]
Change = Callable[[], Context]


class Called(NamedTuple):
  """How a strategy is called."""

  strategy: str  # of `avalanche.training.supervised`
  keywords: Mapping[str, Any] = {}
  change: Change = contextlib.nullcontext
  rows: int = problem.BATCH  # a step


def least(P: np.ndarray, q: np.ndarray, bound: np.ndarray) -> np.ndarray:
  """The v >= bound with the least v P v / 2 + q v, for a P of full rank; exact but for the rounding of doubles."""
  from scipy.linalg import cholesky, solve_triangular
  from scipy.optimize import nnls

  root = cholesky(P, lower=True)
  return bound + nnls(root.T, -solve_triangular(root, q + P @ bound, lower=True))[0]


def has_solver() -> bool:
  """Whether the solver that Avalanche's GEM asks for is installed."""
  return importlib.util.find_spec(SOLVER) is not None


def solved(ridge: float = 0.0) -> Context:
  """GEM with `least` in place of its solver.

  Args:
    ridge: what is taken off the diagonal of its program again.
  """

  def solve(P, q, G, h, solver):  # its constraints are G v <= h with G = -1 on the diagonal
    return least(P - ridge * np.eye(len(q)), q, -h)

  return mock.patch("avalanche.training.plugins.gem.qpsolvers.solve_qp", solve)


def solved_somehow() -> Context:
  """GEM with its own solver where there is one, else with `least`."""
  return contextlib.nullcontext() if has_solver() else solved()


def solved_without_ridge() -> Context:
  """GEM with `least`, on the program of the paper."""
  return solved(RIDGE)


def rows_alone() -> Context:
  """EWC that takes its Fisher over batches of one row: the mean of squares, not squares of batches' means."""
  from avalanche.training.plugins import EWCPlugin

  takes = EWCPlugin.compute_importances

  def alone(self, model, criterion, optimizer, dataset, device, batch_size, num_workers=0):
    return takes(self, model, criterion, optimizer, dataset, device, 1, num_workers)

  return mock.patch.object(EWCPlugin, "compute_importances", alone)


def first_rows(count: int) -> Change:
  """EWC that takes its Fisher over the first rows of a task only."""

  def change() -> Context:
    from avalanche.training.plugins import EWCPlugin

    takes = EWCPlugin.compute_importances

    def few(self, model, criterion, optimizer, dataset, *rest, **options):
      return takes(self, model, criterion, optimizer, dataset.subset(list(range(count))), *rest, **options)

    return mock.patch.object(EWCPlugin, "compute_importances", few)

  return change


@contextlib.contextmanager
def weights_copied(bounded: bool = True):
  """SI that copies the weights which it remembers, so that it works on a CPU.

  Args:
    bounded: its importances are at most 0.001, as it has them.
  """
  from avalanche.training.plugins import SynapticIntelligencePlugin as SI

  takes, updates = SI.extract_weights, SI.update_ewc_data

  def copied(model, target, excluded):
    takes(model, target, excluded)
    for each in target.values():
      each.data = each.data.clone()

  def updated(net, ewc, syn, most, *rest, **options):
    updates(net, ewc, syn, most if bounded else math.inf, *rest, **options)

  with (
    mock.patch.object(SI, "extract_weights", staticmethod(copied)),
    mock.patch.object(SI, "update_ewc_data", staticmethod(updated)),
  ):
    yield


def weights_copied_unbounded() -> Context:
  """SI as the paper has it, up to its path integral, which takes the penalty's gradient in."""
  return weights_copied(bounded=False)
