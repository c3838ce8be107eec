"""kill -9 at any moment and the same command again give the bits of an uninterrupted run."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import orbax.checkpoint as ocp
import pytest
from etils import epath

from cljax.checkpoint import Checkpoints
from cljax.report import store
from tests.shell import Done, Running, begin, shell

SMALL = [
  "--config=configs/quickstart.py:method=er",
  "--config.num_seeds=2",
  "--config.stream.tasks=3",
  "--config.net.hidden=(16,16)",
  "--config.method.epochs=1",
  "--config.chunk=12",
  "--config.checkpoint_every_chunks=2",
  "--config.log_every_steps=5",
]


def words(workdir: Path, *more: str) -> list[str]:
  return ["launch.train", f"--workdir={workdir}", *SMALL, *more]


def launch(workdir: Path, *more: str) -> Done:
  return shell(*words(workdir, *more))


def rows(workdir: Path) -> list[dict]:
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def wait_for_task(process: Running, workdir: Path, task: int) -> None:
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    path = workdir / "metrics.jsonl"
    if path.exists() and f'"step", "task": {task}' in path.read_text():
      return
    assert process.poll() is None, process.finish()
    time.sleep(0.005)
  raise AssertionError("the run did not get there")


def final_checksum(workdir: Path) -> str:
  """Of the last checkpoint: state and reports."""
  manager = Checkpoints(epath.Path(workdir / "checkpoints")).manager
  found = manager.restore(manager.latest_step(), args=ocp.args.Composite(cursor=ocp.args.JsonRestore()))
  return found["cursor"]["checksum"]


def assert_same(workdir: Path, reference: Path) -> None:
  here, there = (store.read_result(folder / "result.json") for folder in (workdir, reference))
  assert store.equal(here, there) == []
  assert rows(workdir) == rows(reference)
  assert final_checksum(workdir) == final_checksum(reference)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "reference"
  done = launch(workdir)
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.fixture(scope="module")
def killed(reference):
  workdir = reference.parent / "killed"
  process = begin(*words(workdir))
  wait_for_task(process, workdir, 1)
  process.send_signal(signal.SIGKILL)
  assert process.finish().returncode == -signal.SIGKILL
  assert not (workdir / "result.json").exists()
  return workdir


def test_kill_in_the_middle_of_task_two(killed, reference):
  workdir = Path(shutil.copytree(killed, reference.parent / "gone_on"))
  done = launch(workdir)
  assert done.returncode == 0, done.stderr
  assert_same(workdir, reference)


def test_sigterm_saves_and_asks_for_a_requeue(reference):
  workdir = reference.parent / "stopped"
  process = begin(*words(workdir))
  wait_for_task(process, workdir, 0)
  process.send_signal(signal.SIGTERM)
  done = process.finish()
  assert done.returncode == 75, done.stderr
  assert "saved" in done.stderr and "Traceback" not in done.stderr
  assert not (workdir / "result.json").exists()
  done = launch(workdir)
  assert done.returncode == 0, done.stderr
  assert_same(workdir, reference)


def test_a_finished_run_prints_its_result_at_once(reference):
  before = (reference / "result.json").read_bytes()
  done = launch(reference)
  assert done.returncode == 0 and "er" in done.stdout.split()
  assert (reference / "result.json").read_bytes() == before


def test_another_config_is_refused_with_its_differences(reference):
  done = launch(reference, "--config.optimizer.lr=0.25")
  assert done.returncode == 2
  assert "config.optimizer.lr: 0.1 there, 0.25 here" in done.stderr and "Traceback" not in done.stderr


def test_a_truncated_newest_checkpoint_falls_back(killed, reference):
  workdir = Path(shutil.copytree(killed, reference.parent / "truncated"))
  newest = max((path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
  for path in newest.rglob("*"):
    if path.is_file():
      os.truncate(path, path.stat().st_size // 2)
  done = launch(workdir)
  assert done.returncode == 0, done.stderr
  assert "is damaged" in done.stderr and "falling back" in done.stderr
  assert_same(workdir, reference)


@pytest.mark.slow
def test_kill_at_random_moments(reference):
  """20 kills spread over a run's time: within a chunk, a save, an evaluation, between a row and its checkpoint."""
  began = time.monotonic()
  assert launch(reference.parent / "timed").returncode == 0
  whole = time.monotonic() - began
  moments, kills, begun, runs = random.Random(0), 0, 0, 0
  while kills < 20:
    workdir = reference.parent / f"random{runs}"
    runs += 1
    while True:
      process = begin(*words(workdir))
      time.sleep(moments.uniform(0.3, 1.0) * whole)
      finished = process.poll() is not None
      process.send_signal(signal.SIGKILL)
      done = process.finish()
      if finished:
        assert done.returncode == 0, done.stderr
        break
      kills += 1
      begun += (workdir / "metrics.jsonl").exists()
    assert_same(workdir, reference)
  assert begun > 10  # most of them hit a run that had begun to train
