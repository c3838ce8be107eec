"""Tables and figures from the result files under a work dir; nothing is trained.

python -m launch.report --workdir=runs/gem1000 [--compare=OTHER]
"""

from pathlib import Path

from absl import flags

from cljax.report import store
from launch import app, cells

COMPARE = flags.DEFINE_string("compare", None, "Another such folder: prints the fields in which their results differ.")


def compare(one: str, other: str) -> int:
  """Prints the differences cell by cell; the exit code says whether there are any."""
  here, there = ({path: result for path, result, _ in store.find_results(folder)} for folder in (one, other))
  count = 0
  for cell in sorted({*here, *there}):
    if cell not in here or cell not in there:
      found = [f"only in {one if cell in here else other}"]
    else:
      found = store.equal(here[cell], there[cell])
    count += len(found)
    print(f"{Path(cell)}: {', '.join(found) or 'equal'}")
  return int(count > 0)


def main() -> int:
  if COMPARE.value:
    return compare(app.WORKDIR.value, COMPARE.value)
  cells.finish(app.WORKDIR.value)
  return 0


if __name__ == "__main__":
  flags.mark_flags_as_required(["workdir"])
  app.run(main)
