"""kill -9 at the k-th operation on a file, again and again until the run is done: the bits of a run in one go."""

import random
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from cljax.methods import METHODS
from cljax.report import store
from tests.journal_test import points
from tests.resume_test import final_checksum, rows
from tests.shell import shell

KILLS = 10  # of one run
SMALL = [
  "--config.num_seeds=2",
  "--config.chunk=12",
  "--config.checkpoint_every_chunks=2",
  "--config.log_every_steps=5",
]
QUICK = ["--config.stream.tasks=2", "--config.method.epochs=1", *SMALL]
HIDDEN = "configs/papers/subnetwork/table1.py:preset=smoke,stream=pairs,method=subnetwork_detected"
RUNS = {
  **{name: ["toy", name] for name in METHODS},
  "hidden boundaries": [
    "launch.train",
    f"--config={HIDDEN}",
    "--config.checkpoint_every_chunks=2",
    "--config.num_seeds=1",
  ],
  "a sweep": ["launch.train", "--config=configs/quickstart.py:method=er", *QUICK, "--config.sweep.lr=(0.1,0.03)"],
  "two devices": ["launch.train", "--config=configs/quickstart.py:method=routing", *QUICK],
}


def run(name, folder, last=0):
  """The run, killed at operation `last`."""
  words = RUNS[name] if RUNS[name][0] == "toy" else [*RUNS[name], f"--workdir={folder}"]
  devices = {"JAX_NUM_CPU_DEVICES": "2" if name == "two devices" else "1"}
  return shell("tests.killed", folder, last, *words, **devices)


def assert_same(folder, reference):
  """Results, report arrays, rows, points, the last checkpoint; and nothing of the dead lies about."""
  results = sorted(path.relative_to(reference) for path in reference.rglob("result.json"))
  assert results and results == sorted(path.relative_to(folder) for path in folder.rglob("result.json"))
  for path in results:
    here, there = (store.read_result(root / path) for root in (folder, reference))
    assert store.equal(here, there) == []
    arrays = [store.read_report_arrays((root / path).parent) for root in (folder, reference)]
    jax.tree.map(np.testing.assert_array_equal, *arrays)
  assert rows(folder) == rows(reference)
  assert points(folder)[0] == points(reference)[0]
  assert final_checksum(folder) == final_checksum(reference)
  here, there = ({path.relative_to(root) for path in root.rglob("*")} for root in (folder, reference))
  odd = {str(path) for path in here ^ there if "checkpoints" not in path.parts and "events.out" not in path.name}
  assert not odd
  assert not [path for path in here if re.search(r"^\..+\.\d+$|tmp", path.name)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_kills_at_operations_on_files(name, tmp_path):
  done = run(name, tmp_path / "reference")
  assert done.returncode == 0, done.stderr
  whole = int(re.search(r"operations (\d+)", done.stdout)[1])
  moments = random.Random(name)
  kills = 0
  folder = tmp_path / "run"
  for _ in range(KILLS):
    done = run(name, folder, moments.randint(1, whole * 2 // 3))
    if done.returncode == 0:
      break
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "damaged" not in done.stderr, done.stderr  # a kill damages nothing
    kills += 1
  assert kills
  done = run(name, folder)
  assert done.returncode == 0 and "damaged" not in done.stderr, done.stderr
  assert_same(folder, tmp_path / "reference")
  shutil.rmtree(tmp_path / "reference")
