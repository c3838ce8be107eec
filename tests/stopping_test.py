"""Processes that must not run, or not run on: exit code 75, and the same command goes on."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

from etils import epath

from cljax.errors import Busy, ConfigError
from cljax.lock import locked
from launch import app
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


def test_every_error_of_the_disk_names_a_place(monkeypatch, capsys):
  monkeypatch.setattr(app, "WORKDIR", SimpleNamespace(value="runs/mine"))
  assert app.refuse(OSError(28, "No space left on device")) == 74
  assert app.refuse(OSError(28, "No space left on device", "a/file")) == 74
  assert app.refuse(ConfigError("wrong")) == 2 and app.refuse(Busy("in use")) == 75
  lines = capsys.readouterr().err.splitlines()
  assert lines[0].endswith("No space left on device; make room, the work was in --workdir=runs/mine")
  assert lines[1].endswith("'a/file'; make room") and lines[2:] == ["error: wrong", "error: in use"]


def test_sigterm_before_the_first_chunk_ends_the_process_at_once(tmp_path):
  process = begin(*TRAIN, f"--workdir={tmp_path}/run")
  while "device(s)" not in Path(process.files[1].name).read_text():
    assert process.poll() is None, process.finish()
    time.sleep(0.005)
  process.send_signal(signal.SIGTERM)
  done = process.finish()
  assert done.returncode == 75 and "stopped before the first chunk" in done.stderr, done
  assert not list((tmp_path / "run").glob("checkpoints/*"))
