"""Tables and figures from the result files under a work dir; nothing is trained.

python -m launch.report --workdir=runs/gem1000 [--compare=OTHER]
"""

from absl import flags

from cljax.report import store
from launch import app, cells

COMPARE = flags.DEFINE_string("compare", None, "Another such folder: prints the fields in which their results differ.")


def main() -> int:
  if COMPARE.value is None:
    cells.finish(app.workdir())
    return 0
  found = store.compare(app.workdir(), COMPARE.value)
  for cell, differences in found.items():
    print(f"{cell}: {', '.join(differences) or 'equal'}")
  return int(any(found.values()))  # as diff does: 1 where something differs


if __name__ == "__main__":
  app.run(main)
