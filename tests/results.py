"""Results made by hand: nothing is trained."""

import json
from pathlib import Path

import numpy as np

from cljax import files
from cljax.report import store

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
READ = json.loads((CONFIGS / "papers" / "cotraining" / "published.json").read_text())
PUBLISHED = {**READ, "changed": lambda result: []}  # settings are as the preset has them
S, T, L, E = 2, 3, 2, 4
RIGHT = np.array(
  [
    [[10, 10, 10], [90, 10, -1], [80, 95, 20], [70, 85, 90]],
    [[10, 10, 10], [90, 10, -1], [80, 95, 20], [60, 75, 80]],
  ]
)


def fake(method="routing_cotrain", stream="mnist_perm", preset="paper", **changes):
  """A result of two seeds and three tasks, with the pairs of `seen` evaluated."""
  fields = {
    "right": {"task": RIGHT, "class": RIGHT // 2},
    "rows": np.full((S, T), 100),
    "train_rows": np.full((S, T), 600),
    "readout": "task",
    "task_confusion": None,
    "slot_of": np.tile(np.arange(T), (S, 1)),
    "report": {},
    "looked": {},
    "paper": "cotraining",
    "preset": preset,
    "cell": f"{stream}/{method}",
    "method": method,
    "stream": stream,
    "seeds": [0, 1],
    "oracle": method == "joint",
    "parameters": np.int64(310700),
    "memory_bytes": np.int32(792000),
    "state_bytes": 4000,
    "diverged": [None, None],
    "timing": {"compile_seconds": 6.0, "train_seconds": 60.0, "eval_seconds": 6.0, "steps": 9, "steps_per_second": 1.0},
    "environment": {"devices": ["cpu"], "git_commit": "0123456789abcdef", "command": "train --config=<a>&b"},
    "data_hash": "00ff",
    "experiment": {"precision": "highest", "executor": "map", "device_count": 1},
    "config": {"seed": 0, "net": {"widths": (19, 19)}},
  }
  return store.make_result(**(fields | changes))


def published_of(paper):
  return PUBLISHED if paper == "cotraining" else {}


def looked():
  """What looks found: validation rows before and after the last task, and the best epochs of all tasks but one."""
  valid = np.full((S, T + 1, T), -1)
  valid[:, 0], valid[:, T] = 2, [[9, 6, 3], [12, 9, 6]]
  rows = {"valid_rows": np.full((S, T), 12), "test_rows": np.full((S, T), 100)}
  peak = {
    "valid": np.array([[12, 6, 9], [-1, 3, 12]]),
    "test": np.array([[80, 50, 70], [-1, 30, 90]]),
    "epoch": np.array([[3, 1, 2], [-1, 1, 4]]),
    "phase": np.array([[0, 0, 1], [-1, 0, 1]]),
  }
  return {"valid": {"right": valid, "right_rows": rows["valid_rows"]}, "watch": {**peak, **rows}}


def report_arrays():
  draw = np.random.default_rng(0)
  return {
    "routing": draw.random((S, T, L, T, E)),
    "unused": draw.integers(0, E, (S, T, L)),
    "skipped": draw.integers(0, 9, (S, T, T)),
  }


def summary(mean, std=None):
  return {"mean": mean, "std": std, "values": []}


def with_metric(result, name, mean, std=None):
  return {**result, "metrics": {**result["metrics"], name: summary(mean, std)}}


def leave(folder, result, arrays=None):
  folder.mkdir(parents=True)
  files.write_json(folder / "result.json", result)
  if arrays:
    store.write_report_arrays(folder / "report.npz", arrays)


def two_streams(tmp_path):
  """Two streams of two methods."""
  for stream in ("mnist_perm", "mnist_rot"):
    leave(tmp_path / stream / "er", fake("er", stream))
    leave(tmp_path / stream / "routing", fake("routing", stream), report_arrays())
  return tmp_path


def flipped(content, bit):
  """Bytes with one bit the other way."""
  content = bytearray(content)
  content[bit // 8] ^= 1 << bit % 8
  return bytes(content)
