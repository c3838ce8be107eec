"""Metrics on matrices small enough to work out by hand."""

import numpy as np
import pytest
import scipy.stats

from cljax import metrics
from cljax.metrics import METRICS, summarize

NAN = float("nan")
ACROSS = np.array([[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.8, 0.95, 0.2], [0.7, 0.85, 0.9]])  # row 0: before training


def of(name, R):
  return METRICS[name].compute(np.asarray(R, float))


def evaluated(R, pairs):
  """`R` with the pairs alone that config.evaluate=`pairs` asks for."""
  R = np.array(R, float)
  T = R.shape[1]
  for i in range(T + 1):
    for j in range(T):
      asked = {"seen": i == 0 or j <= i, "ends": i == T or j == i - 1}[pairs]
      if not asked:
        R[i, j] = NAN
  return R


HAND = {"ACC": 0.816667, "BWT": -0.15, "FWT": 0.05, "forgetting": 0.15, "learning_accuracy": 0.916667}


@pytest.mark.parametrize("name", HAND)
def test_hand_computed_values(name):
  assert of(name, ACROSS) == pytest.approx(HAND[name], abs=5e-7)


def test_accuracy_is_learning_accuracy_plus_what_was_lost():
  for seed in range(5):
    R = np.random.default_rng(seed).random((8, 7))
    assert of("ACC", R) == pytest.approx(of("learning_accuracy", R) + of("BWT", R) * 6 / 7, abs=1e-12)


def test_forgetting_counts_from_the_best_row_before_the_last():
  """Task 1 peaks after task 2 (.9), task 2 is learnt at .8; the last row may be better than any, and is no peak."""
  R = [[0.1, 0.1, 0.1], [0.6, 0.2, 0.1], [0.9, 0.8, 0.1], [0.5, 0.95, 0.9]]
  assert of("forgetting", R) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.95)) / 2)


def test_forgetting_sees_a_task_before_it_was_learnt_but_not_before_training():
  """Task 2 was best after task 1 (.85); the lucky .99 of the untrained network does not count."""
  R = [[0.1, 0.99, 0.1], [0.7, 0.85, 0.1], [0.7, 0.8, 0.1], [0.7, 0.6, 0.9]]
  assert of("forgetting", R) == pytest.approx((0 + 0.25) / 2)


def test_forward_transfer_is_against_the_untrained_network():
  R = [[0.5, 0.1, 0.2], [0.9, 0.3, 0.7], [0.9, 0.9, 0.6], [0.9, 0.9, 0.9]]
  assert of("FWT", R) == pytest.approx((0.2 + 0.4) / 2)


def test_evaluating_the_seen_tasks_defines_all_metrics():
  for name, expected in HAND.items():
    assert of(name, evaluated(ACROSS, "seen")) == pytest.approx(expected, abs=5e-7)


def test_evaluating_the_ends_defines_three():
  values = {name: of(name, evaluated(ACROSS, "ends")) for name in METRICS}
  assert {name for name, value in values.items() if not np.isnan(value)} == {"ACC", "BWT", "learning_accuracy"}
  assert values["BWT"] == pytest.approx(-0.15)


@pytest.mark.parametrize(
  ("row", "column", "lost"),
  [
    (3, 2, {"ACC", "learning_accuracy"}),
    (1, 0, {"BWT", "forgetting", "learning_accuracy"}),
    (2, 0, {"forgetting"}),
    (1, 1, {"FWT"}),
    (0, 1, {"FWT"}),
    (0, 0, set()),
    (1, 2, set()),
  ],
)
def test_a_missing_pair_undoes_the_metrics_that_need_it(row, column, lost):
  R = ACROSS.copy()
  R[row, column] = NAN
  assert {name for name in METRICS if np.isnan(of(name, R))} == lost


def test_one_task_has_no_transfer_and_no_forgetting():
  R = [[0.1], [0.8]]
  assert of("ACC", R) == of("learning_accuracy", R) == 0.8
  assert all(np.isnan(of(name, R)) for name in ("BWT", "FWT", "forgetting"))


def test_directions():
  assert {name for name, metric in METRICS.items() if metric.better == "lower"} == {"forgetting"}
  assert {metric.better for metric in METRICS.values()} == {"higher", "lower"}


def test_a_summary_has_the_standard_deviation_of_a_sample():
  low = ACROSS.copy()
  low[-1] -= 0.1
  found = summarize(np.stack([ACROSS, low]))["ACC"]
  assert found["values"] == pytest.approx([0.816667, 0.716667], abs=5e-7)
  assert found["mean"] == pytest.approx(0.766667, abs=5e-7) and found["std"] == pytest.approx(0.1 / 2**0.5)


def test_one_seed_has_no_standard_deviation():
  found = summarize(ACROSS[None])["ACC"]
  assert found["std"] is None and found["mean"] == pytest.approx(0.816667, abs=5e-7)


def test_an_undefined_seed_leaves_no_mean():
  broken = ACROSS.copy()
  broken[2, 0] = NAN
  found = summarize(np.stack([ACROSS, broken]))
  assert found["forgetting"]["values"] == [pytest.approx(0.15), None]
  assert found["forgetting"]["mean"] is None and found["forgetting"]["std"] is None
  assert found["ACC"]["mean"] is not None


def test_what_is_left_of_older_tasks():
  """(.5 + 1) / 2 over the tasks before the last; a task that was never right leaves nothing to compare."""
  assert metrics.forgetting_ratio(np.array([0.25, 0.4, 0.8]), np.array([0.5, 0.4, 0.8])) == 0.75
  assert np.isnan(metrics.forgetting_ratio(np.array([0.2, 0.4]), np.array([0.0, 0.4])))
  assert np.isnan(metrics.forgetting_ratio(np.array([0.2]), np.array([0.2])))


def test_half_of_a_confidence_interval():
  values = [0.38, 0.40, 0.41, 0.39, 0.42]
  assert metrics.half_interval(values) == pytest.approx(2.776 * np.std(values, ddof=1) / 5**0.5)
  for n in (2, 8, 16):
    exact = scipy.stats.t.ppf(0.975, n - 1) * np.std(range(n), ddof=1) / n**0.5
    assert metrics.half_interval(range(n)) == pytest.approx(exact, rel=1e-3)
  assert np.isnan(metrics.half_interval([0.4]))
