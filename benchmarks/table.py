"""Results as text: the table that a command prints, and the page benchmarks/README.md around it."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.rows import LEARNT, TOLERANCE, Result
from cljax.workdir import command, git_commit, version

HEAD = ("quantity", "cljax", "other", "ratio", "goal", "met", "spread")
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "avalanche-lib")
ABOUT = f"""# Benchmarks

Written by `python -m launch.bench --write`; do not edit.

Each number is a median over rounds in which every subject had its turn, in one process on one core: microseconds of CPU
time a step, wall time in brackets. A ratio is made within each round; its median, least and largest are shown. It is
other / cljax where the goal is a least one (≥) and cljax / other where it is a most one (≤).

A step is the whole step of a method with {{settings}}. cljax is called as a run calls it: a whole task with its plan,
warps, live mask and metrics. Peers and bare scans get rows that are warped already. PyTorch keeps to one thread.
Before anything is timed, every subject learns the same two tasks from the same initial weights. Where both sides are
the same algorithm their accuracies must exceed {LEARNT} and differ by at most {TOLERANCE}; two settings of one method
must both learn. EWC takes its Fisher over 200 rows a task on both sides, but for the row that says all, which is part
of its time. A-GEM and GEM keep their share of the memory of each task; A-GEM asks as many of these rows as a step
replays, GEM all of the task before. What these methods learn beside Avalanche's, from the same rows, is in PARITY.md.

`python -m launch.bench --suite=accelerator` is the suite for one accelerator; with `--write` it makes ACCELERATOR.md.

"""
PEERS = """Peers: `pip install 'cljax[peers]'`. Where torchvision's compiled part does not load, its operators are
declared by name only, and what Avalanche imports for logging, downloads and methods that are not used here may be
absent: see `benchmarks/avalanche_peers.py`.
"""


def cells(result: Result) -> tuple[str, ...]:
  """The texts of a row."""
  ratio, unit = result.ratio, result.unit
  goal = "" if result.goal is None else f"{'≥' if result.at_least else '≤'} {result.goal:g}{unit}"
  met = {None: "", True: "yes", False: "no"}[result.met()]
  spread = f"{ratio.low:.2f}..{ratio.high:.2f}"
  met = f"check failed ({result.trouble})" if result.trouble else met
  return (result.text, result.ours, result.other, f"{ratio.median:.2f}{unit}", goal, met, spread)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table; columns padded, so that it reads well in a terminal too."""
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  rule = ["-" * width for width in widths]
  lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, rule, *rows)]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(results: Sequence[Result]) -> str:
  """All rows as markdown."""
  return markdown(HEAD, [cells(result) for result in results])


def accuracies(accuracy: Mapping[str, float]) -> str:
  """What every subject had learnt before it was timed."""
  return markdown(("subject", "accuracy"), [(name, f"{value:.3f}") for name, value in accuracy.items()])


def cpu_model() -> str:
  """What the system calls its processor."""
  path = Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()


def machine() -> list[tuple[str, str]]:
  """Where, with what and when."""
  load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
  versions = {name: version(name) for name in PACKAGES}
  return [
    ("machine", f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"),
    ("load average after the run", load),
    ("Python", platform.python_version()),
    *((name, number or "not installed") for name, number in versions.items()),
    ("command", f"`{command()}`"),
    ("commit", str(git_commit())),
    ("date", datetime.date.today().isoformat()),
  ]


def facts(steps: int, rounds: int) -> list[tuple[str, str]]:
  """Where, with what and when, and how much was timed."""
  return [*machine(), ("steps a task, rounds", f"{steps}, {rounds}")]


def page(
  results: Sequence[Result], accuracy: Mapping[str, float], about: Sequence[tuple[str, str]], settings: str
) -> str:
  """benchmarks/README.md whole."""
  known = markdown(("", ""), about)
  return f"{ABOUT.format(settings=settings)}{table(results)}\n{known}\n{accuracies(accuracy)}\n{PEERS}"
