"""The benchmark `reduced` of the learned rule, half as long: what the rule must keep and learn beside plain SGD."""

import os

import pytest

from cljax.meta.train import train as meta_train
from cljax.report.frontier import kept
from cljax.run import train
from configs.papers.metateacher import meta, table1


@pytest.mark.slow
def test_a_rule_keeps_more_of_the_old_task_and_learns_nearly_as_much(tmp_path):
  """After 3,000 of 6,500 segments: at least 1.5 points more of the old task, at most 2 less of the new one."""
  folder = os.environ.get("TFDS_DATA_DIR", "")
  if not folder or not os.path.isdir(os.path.join(folder, "mnist")):
    pytest.skip("needs the prepared data sets: set TFDS_DATA_DIR")
  trained = meta.get_config("preset=reduced,rule=lstm").to_dict()
  trained |= {"num_seeds": 1, "length": {**trained["length"], "segments": 3000}}
  meta_train(trained, tmp_path / "lstm", quiet=True)
  (tmp_path / "static").symlink_to(tmp_path / "lstm")  # plain SGD begins with the same network
  points = {}
  for method in ("sgd", "lstm"):
    config = table1.get_config(f"preset=reduced,meta={tmp_path},method={method}")
    config.num_seeds, config.looks = 1, ("readout",)
    ((old, new),) = kept(train(config, quiet=True).result)
    points[method] = old, new
  assert points["lstm"][0] >= points["sgd"][0] + 0.015, points
  assert points["lstm"][1] >= points["sgd"][1] - 0.02, points
