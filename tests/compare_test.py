"""Two folders of results side by side."""

import numpy as np
import pytest
import scipy.stats

from cljax.report import compare
from tests.apart_test import run
from tests.published_test import scored
from tests.results import fake, leave


def both(tmp_path, ours, theirs):
  leave(tmp_path / "a" / "er", ours)
  leave(tmp_path / "b" / "er", theirs)
  table, told = compare.compare(tmp_path / "a", tmp_path / "b")
  return {(line[1], line[2]): line[3:] for line in table}, told["er"]


def test_work_dirs_are_compared_cell_by_cell(tmp_path):
  leave(tmp_path / "a" / "er", fake("er"))
  leave(tmp_path / "a" / "routing", fake("routing"))
  leave(
    tmp_path / "b" / "er", fake("er", timing=dict.fromkeys(("compile_seconds", "train_seconds", "eval_seconds"), 1.0))
  )
  leave(tmp_path / "b" / "routing", fake("routing", parameters=1))
  leave(tmp_path / "b" / "joint", fake("joint"))
  table, told = compare.compare(tmp_path / "a", tmp_path / "b")
  assert told == {
    "er": [],
    "joint": [f"only in {tmp_path / 'b'}"],
    "routing": ["fields that differ: parameters"],
  }
  assert {line[0] for line in table} == {"routing"} and {line[-1] for line in table} == {"equal"}


def test_numbers_are_compared_over_the_seeds_that_both_have(tmp_path):
  ours = scored(run(), (0.5, 0.6, 0.75, 0.9), seeds=(0, 1, 2, 3))
  theirs = scored(run(), (0.59, 0.72, 0.49, 0.1), seeds=(1, 2, 0, 8))
  for result in (ours, theirs):  # one metric of one readout is enough
    result["readouts"] = {}
    result["metrics"] = {name: result["metrics"]["ACC"] for name in result["metrics"]}
  table, told = both(tmp_path, ours, theirs)
  gaps = np.array([0.01, 0.01, 0.03])
  half = scipy.stats.t.ppf(0.975, 2) * gaps.std(ddof=1) / np.sqrt(3)
  expected = ["3", "0.6167", "0.6000", f"{gaps.mean():+.4f}", f"{half:.4f}", "within noise"]
  assert table["task", "ACC"] == expected
  assert told[:2] == ["seeds of ours alone: 3", "seeds of theirs alone: 8"]


@pytest.mark.parametrize(
  ("ours", "theirs", "noise"),
  [
    ((0.5, 0.6), (0.4, 0.5001), "beyond noise"),
    ((0.5, 0.6), (0.5, 0.6), "equal"),
    ((0.75, 0.5), (0.5, 0.75), "within noise"),  # of one mean, and not equal
    ((0.5,), (0.4,), "one seed"),
    ((0.5, None), (0.5, 0.6), "no number of some seed"),
  ],
)
def test_noise_is_told(tmp_path, ours, theirs, noise):
  results = [scored(run(parameters_changed=n), values) for n, values in enumerate((ours, theirs))]
  for result in results:
    result["readouts"] = {}
    result["metrics"] = {name: result["metrics"]["ACC"] for name in result["metrics"]}
  table, _ = both(tmp_path, *results)
  assert table["task", "ACC"][-1] == noise


def test_seeds_that_no_two_share_give_no_row(tmp_path):
  table, told = both(tmp_path, run(), {**run(), "seeds": [7, 8]})
  assert table == {} and "seeds of ours alone: 0, 1" in told


def test_config_differences_stand_apart_with_both_values(tmp_path):
  theirs = run(optimizer__lr=0.3, method__replay=10, stream__scenario="class")
  _, told = both(tmp_path, run(), theirs)
  assert told == [
    "config.method.replay: ours (absent), theirs 10",
    "config.optimizer.lr: ours 0.1, theirs 0.3",
    "config.stream.scenario: ours task, theirs class",
  ]
