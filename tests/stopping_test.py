"""Processes that must not run, or not run on: exit code 75, and the same command goes on."""

import os
import signal
import time
from pathlib import Path

from etils import epath

from cljax.lock import locked
from tests.shell import begin, shell

TRAIN = ["launch.train", "--config=configs/quickstart.py:method=er", "--config.num_seeds=2"]


def test_a_second_process_on_a_work_dir_is_told_to_try_again(tmp_path):
  """One line, exit code 75, and nothing is written."""
  with locked(epath.Path(tmp_path) / "run"):
    done = shell(*TRAIN, f"--workdir={tmp_path}/run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
  assert done.returncode == 75, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith(f"error: --workdir={tmp_path}/run is in use by process {os.getpid()} on host ")


def test_sigterm_before_the_first_chunk_ends_the_process_at_once(tmp_path):
  process = begin(*TRAIN, f"--workdir={tmp_path}/run")
  while "device(s)" not in Path(process.files[1].name).read_text():
    assert process.poll() is None, process.finish()
    time.sleep(0.005)
  process.send_signal(signal.SIGTERM)
  done = process.finish()
  assert done.returncode == 75 and "stopped before the first chunk" in done.stderr, done
  assert not list((tmp_path / "run").glob("checkpoints/*"))
