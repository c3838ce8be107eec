"""Numbers from an accuracy matrix, in numpy.

A matrix R is [T+1, T]: row 0 before training, row i after task i, column j the accuracy on task j; NaN where a pair was
not evaluated. A metric that needs such a pair is NaN, as is one that one task cannot have (BWT, FWT, forgetting).
Values are shares of 1, so BWT and FWT lie in [-1, 1]. In the formulas tasks count from 1 to T, so R[i, j] there is
`R[i, j - 1]` here. With the pairs of `seen` (tasks so far, the next one, row 0) all five are defined; with those of
`ends` (diagonal and last row) ACC, BWT and learning accuracy are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


def accuracy(R: np.ndarray) -> float:
  """ACC = mean_j R[T, j]: the last row."""
  return float(np.mean(R[-1]))


def learning_accuracy(R: np.ndarray) -> float:
  """mean_i R[i, i]: each task right after it was learnt."""
  return float(np.mean(np.diagonal(R[1:])))


def backward_transfer(R: np.ndarray) -> float:
  """BWT = 1/(T-1) sum_{i<T} (R[T, i] - R[i, i]) (Lopez-Paz and Ranzato 2017)."""
  return mean_or_nan(R[-1, :-1] - np.diagonal(R[1:])[:-1])


def forward_transfer(R: np.ndarray) -> float:
  """FWT = 1/(T-1) sum_{i>=2} (R[i-1, i] - R[0, i]): against the untrained network."""
  return mean_or_nan(np.diagonal(R[1:], offset=1) - R[0, 1:])


def forgetting(R: np.ndarray) -> float:
  """1/(T-1) sum_{i<T} (max_{l<T} R[l, i] - R[T, i]) over rows l in 1..T-1 (Chaudhry et al. 2018).

  The rows i..T-1 are needed; earlier ones count where they were evaluated.
  """
  T = R.shape[1]
  drops = []
  for i in range(T - 1):
    needed = R[i + 1 : T, i]
    best = np.nan if np.isnan(needed).any() else np.nanmax(R[1:T, i])
    drops.append(best - R[T, i])
  return mean_or_nan(np.array(drops))


def forgetting_ratio(last: np.ndarray, then: np.ndarray) -> float:
  """mean_{t<T} last[t] / then[t], what is left of each task's accuracy at the end; 1 is no forgetting.

  Args:
    last: [T] accuracy of each task at the end.
    then: [T] accuracy to compare with: at the end of its own training, or its peak.
  """
  return mean_or_nan(np.divide(last, then, out=np.full(len(last), np.nan), where=np.asarray(then) > 0)[:-1])


# Quantiles .975 of Student's distribution with 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def half_interval(values: Sequence[float]) -> float:
  """Half of the 95 % confidence interval of the mean of a number a seed, by Student's t; NaN of one seed.

  Beyond 16 seeds the quantile is that of 15 degrees of freedom, which is a little too wide.
  """
  n = len(values)
  return STUDENT[min(n - 2, len(STUDENT) - 1)] * float(np.std(values, ddof=1)) / n**0.5 if n > 1 else float("nan")


def mean_or_nan(values: np.ndarray) -> float:
  """The mean; NaN of no values."""
  return float(np.mean(values)) if len(values) else float("nan")


class Metric(NamedTuple):
  """A number from an accuracy matrix, how it is read and what it means."""

  compute: Callable[[np.ndarray], float]
  better: str  # higher | lower
  meaning: str  # one line, printed under every table


METRICS = {
  "ACC": Metric(accuracy, "higher", "mean accuracy over all tasks after the last one"),
  "BWT": Metric(backward_transfer, "higher", "mean change of a task's accuracy from right after it to the end"),
  "FWT": Metric(forward_transfer, "higher", "mean accuracy on the next task over that of the untrained network"),
  "forgetting": Metric(forgetting, "lower", "mean drop of a task's accuracy from its best before the end"),
  "learning_accuracy": Metric(learning_accuracy, "higher", "mean accuracy of each task right after it"),
}


def summarize(matrices: np.ndarray, growing: bool = False) -> dict[str, dict[str, Any]]:
  """{metric: {mean, std (ddof 1), values [S]}} over matrices [S, T+1, T]; None where a value is undefined.

  With one seed std is None; where one seed's value is undefined, so are mean and std of all.

  Args:
    growing: answers are among the classes seen so far, so that no method is right about the next task, and all of them
      have the same FWT, which is left out.
  """
  found = {name: spread([metric.compute(np.asarray(R, float)) for R in matrices]) for name, metric in METRICS.items()}
  return {**found, "FWT": spread([float("nan")] * len(matrices))} if growing else found


def spread(values: Sequence[float]) -> dict[str, Any]:
  """{mean, std (ddof 1), values} of one number a seed, as in `summarize`."""
  whole = not np.isnan(values).any()
  return {
    "mean": float(np.mean(values)) if whole else None,
    "std": float(np.std(values, ddof=1)) if whole and len(values) > 1 else None,
    "values": [None if np.isnan(value) else float(value) for value in values],
  }
