"""What needs processes of its own: the second start of a run, and seeds on several host devices.

Run as a module it is such a process: `python -m benchmarks.apart start FOLDER` or `... seeds DEVICES CORES STEPS`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Result, median
from benchmarks.timing import Ratio

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 4


def child(*words: str) -> Any:
  """This module in a process of its own that answers by lines; a `subprocess.Popen`."""
  command = [sys.executable, "-m", "benchmarks.apart", *words]
  return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: Any, question: str = "") -> Any:
  """The next line of a child, as JSON.

  Raises:
    RuntimeError: it ended without one.
  """
  if question:
    process.stdin.write(f"{question}\n")
    process.stdin.flush()
  line = process.stdout.readline()
  if not line:
    raise RuntimeError(f"a process of the benchmark ended with code {process.wait()}; what it said stands above")
  return json.loads(line)


def finish(*processes: Any) -> None:
  """Closes the pipes of child processes and waits for them."""
  for process in processes:
    process.stdin.close()
    process.stdout.close()
    process.wait()


def second_start(rounds: int) -> Result:
  """Compile seconds of a run whose programs an earlier process left in the compilation cache."""
  with tempfile.TemporaryDirectory() as folder:
    seconds = []
    for _ in range(rounds + 1):
      process = child("start", folder)
      seconds.append(answer(process))
      finish(process)
  first, later = seconds[0], seconds[1:]
  found = Ratio(median(later), min(later), max(later))
  text = "compile seconds of a second start, beside the first"
  return Result(text, f"{found.median:.1f} s", f"{first:.1f} s", found, 2, False, unit=" s")


def devices(cores: Sequence[int], rounds: int, steps: int) -> Result:
  """Throughput of several seeds on two host devices against one device on one core, by wall time.

  Both sides call the library in the same way; it is the library that spreads seeds over the devices it finds.
  """
  text = f"{SEEDS} seeds on two host devices against one core, wall"
  sides = [child("seeds", str(n), ",".join(map(str, cores[-n:])), str(steps)) for n in (2, 1)]
  found = [[answer(side, "again") for side in sides] for _ in range(rounds + 1)][1:]  # the first compiles
  finish(*sides)
  two, one = zip(*found, strict=True)
  each = [b / a for a, b in found]
  ratio = Ratio(median(each), min(each), max(each))
  return Result(text, f"({median(two):.0f})", f"({median(one):.0f})", ratio, 1.8, True)


def run_start(folder: str) -> None:
  """A short co-training run of all tasks; prints the seconds it compiled."""
  import jax

  from benchmarks import problem
  from benchmarks.ours import config_of
  from cljax.monitor import compile_seconds
  from cljax.recipe import build_stream, recipe
  from cljax.run import fit
  from cljax.sweep import hyperparameters

  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # as launch.hosts sets it
  config = config_of("routing")
  spec, stream, axes, _ = build_stream(config, (0,), source=problem.source(500))
  numbers = hyperparameters(config)[0]
  fit(recipe(config, spec), spec, stream, axes=axes, hyper=numbers, evaluate="ends", quiet=True)
  print(json.dumps(compile_seconds()), flush=True)


def run_seeds(count: int, cores: list[int], steps: int) -> None:
  """Trains task 1 whenever a line comes in; prints microseconds of wall time a step of one seed."""
  if cores and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, cores)
  import jax

  jax.config.update("jax_num_cpu_devices", count)
  from benchmarks import problem
  from benchmarks.ours import Library, config_of, experiment_of

  with jax.default_matmul_precision("highest"):
    subject = Library(experiment_of(config_of("routing", seeds=SEEDS), problem.source(steps * problem.BATCH)))
    subject.train(0)
    subject.keep()
    for _ in sys.stdin:
      subject.back()
      began = time.perf_counter()
      subject.train(1)
      print(json.dumps((time.perf_counter() - began) / subject.steps * 1e6), flush=True)


if __name__ == "__main__":
  if sys.argv[1] == "start":
    run_start(sys.argv[2])
  else:
    run_seeds(int(sys.argv[2]), [int(core) for core in sys.argv[3].split(",") if core], int(sys.argv[4]))
