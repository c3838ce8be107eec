"""Speed ratios against peers, against bare scans and of cljax against itself, all in one run.

python -m launch.bench
python -m launch.bench --rows=tuned,bare --rounds=3
python -m launch.bench --write
python -m launch.bench --suite=accelerator --write

The suite `core` runs on one CPU core, `accelerator` on one accelerator in less than six minutes (on a CPU it runs too,
and says so). Exit code 1 where two sides of a row do not learn the same thing. See benchmarks/README.md.
"""

import signal
import sys
import time

import jax
from absl import flags

from benchmarks import accelerator, accelerator_page, problem, rows, suite, table, timing
from cljax.errors import ConfigError
from launch import app, config_files, hosts

flags.adopt_module_key_flags(hosts)

SUITE = flags.DEFINE_enum("suite", "core", ["core", "accelerator"], "What is measured: see above.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "How often every subject has its turn.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2000, "Steps of a task, a multiple of 8.", lower_bound=8)
ROWS = flags.DEFINE_list(
  "rows", [], f"Some of the rows: {', '.join(rows.NAMES)}; of the accelerator suite {', '.join(accelerator.NAMES)}."
)
BUDGET = flags.DEFINE_integer("budget", 330, "Seconds after which the accelerator suite stops.", lower_bound=1)
WRITE = flags.DEFINE_bool(
  "write", False, "Writes benchmarks/README.md, or ACCELERATOR.md; needs all rows and at least 5 rounds."
)
LEAST_ROUNDS = 5
PAGES = config_files.ROOT / "benchmarks"


def steps() -> int:
  """Of a task.

  Raises:
    ConfigError: too few, or a number that blocks do not divide.
  """
  if STEPS.value % 8:
    raise ConfigError(f"--steps={STEPS.value} must be a multiple of 8")
  if STEPS.value * problem.BATCH < problem.CAPACITY:
    raise ConfigError(f"--steps={STEPS.value} does not fill a memory of {problem.CAPACITY} rows; use at least 104")
  return STEPS.value


def check_write(missing: list[str]) -> None:
  """
  Raises:
    ConfigError: --write with flags that do not go together with it.
  """
  if not WRITE.value:
    return
  if config_files.installed():
    raise ConfigError("--write writes into benchmarks/ of a checkout, and this is an installed package")
  if ROWS.value or ROUNDS.value < LEAST_ROUNDS:
    raise ConfigError(f"--write needs all rows and at least --rounds={LEAST_ROUNDS}")
  if missing:
    raise ConfigError(f"--write needs all rows; {rows.left_out(missing)}")


def write(name: str, text: str) -> None:
  """One of the pages in benchmarks/."""
  (PAGES / name).write_text(text)
  print(f"written: {PAGES / name}")


def on_one_core() -> int:
  """The suite `core`; the exit code."""
  names = rows.chosen(ROWS.value)
  missing = rows.without_peers(names)
  check_write(missing)
  n, cores = steps(), timing.cores()
  timing.pin()
  hosts.use_platform()
  names = [name for name in names if name not in missing]
  results, accuracy = suite.measure(names, n, ROUNDS.value, cores)
  print(table.table(results))
  print(table.accuracies(accuracy))
  if missing:
    print(rows.left_out(missing), file=sys.stderr)
  if WRITE.value:
    write("README.md", table.page(results, accuracy, table.facts(n, ROUNDS.value), suite.SETTINGS))
  return int(any(result.trouble for result in results))


def on_an_accelerator() -> int:
  """The suite `accelerator`; the exit code.

  Raises:
    ConfigError: several devices, or a page about an accelerator where there is none.
  """
  budget = accelerator.Budget(BUDGET.value, time.monotonic())
  names, n = accelerator.chosen(ROWS.value), steps()
  check_write([])
  jax.config.update("jax_num_cpu_devices", 1)
  hosts.use_platform()
  on_cpu = jax.default_backend() == "cpu"
  if jax.device_count() > 1:
    raise ConfigError(
      f"--suite=accelerator measures one device, and there are {jax.device_count()}: set CUDA_VISIBLE_DEVICES=0"
    )
  if on_cpu and WRITE.value:
    raise ConfigError("--write with --suite=accelerator needs an accelerator: JAX finds only a CPU here")
  found = accelerator.measure(names, n, ROUNDS.value, budget)
  if on_cpu:
    print(f"on {accelerator_page.ON_CPU}")
  print(accelerator_page.table(found))
  print(table.accuracies(found.accuracy))
  if WRITE.value:
    write("ACCELERATOR.md", accelerator_page.page(found, n, ROUNDS.value, budget))
  return int(any(line.trouble for line in found.lines))


def main() -> int:
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # there is nothing to save: a stop need not wait
  return on_one_core() if SUITE.value == "core" else on_an_accelerator()


if __name__ == "__main__":
  app.run(main)
