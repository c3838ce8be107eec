"""Speed ratios against peers, against bare scans and of cljax against itself, all in one run.

python -m launch.bench
python -m launch.bench --rows=tuned,bare --rounds=3
python -m launch.bench --write

Exit code 1 where two sides of a row do not learn the same thing. See benchmarks/README.md.
"""

import signal
import sys

from absl import flags

from benchmarks import problem, rows, suite, table, timing
from cljax.errors import ConfigError
from launch import app, config_files, hosts

ROUNDS = flags.DEFINE_integer("rounds", 5, "How often every subject has its turn.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2000, "Steps of a task, a multiple of 8.", lower_bound=8)
ROWS = flags.DEFINE_list("rows", [], f"Some of the rows: {', '.join(rows.NAMES)}.")
WRITE = flags.DEFINE_bool("write", False, "Writes benchmarks/README.md; needs all rows and at least 5 rounds.")
LEAST_ROUNDS = 5
PAGE = config_files.ROOT / "benchmarks" / "README.md"


def check(missing: list[str]) -> None:
  """
  Raises:
    ConfigError: flags that do not go together.
  """
  if STEPS.value % 8:
    raise ConfigError(f"--steps={STEPS.value} must be a multiple of 8")
  if STEPS.value * problem.BATCH < problem.CAPACITY:
    raise ConfigError(f"--steps={STEPS.value} does not fill a memory of {problem.CAPACITY} rows; use at least 104")
  if not WRITE.value:
    return
  if ROWS.value or ROUNDS.value < LEAST_ROUNDS:
    raise ConfigError(f"--write needs all rows and at least --rounds={LEAST_ROUNDS}")
  if missing:
    raise ConfigError(f"--write needs all rows; {rows.left_out(missing)}")


def main() -> int:
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # there is nothing to save: a stop need not wait
  names = rows.chosen(ROWS.value)
  missing = rows.without_peers(names)
  check(missing)
  cores = timing.cores()
  timing.pin()
  hosts.use_platform()
  names = [name for name in names if name not in missing]
  results, accuracy = suite.measure(names, STEPS.value, ROUNDS.value, cores)
  print(table.table(results))
  print(table.accuracies(accuracy))
  if missing:
    print(rows.left_out(missing), file=sys.stderr)
  if WRITE.value:
    about = table.facts(STEPS.value, ROUNDS.value)
    PAGE.write_text(table.page(results, accuracy, about, suite.SETTINGS))
    print(f"written: {PAGE}")
  return int(any(result.trouble for result in results))


if __name__ == "__main__":
  app.run(main)
