"""Tables and figures from the result files under a work dir; nothing is trained.

python -m launch.report --workdir=runs/gem1000
python -m launch.report --workdir=runs/gem1000 --compare=results/cotraining/gem1000
python -m launch.report --workdir=results/cotraining/gem1000 --readme=gem1000
python -m launch.report --workdir=results/cotraining/paper --readme=paper --search=results/cotraining/search/scale
python -m launch.report --workdir=results --picture=docs/forgetting.png --panels=cotraining/paper,subnetwork/robust/long
"""

from absl import flags

from cljax.errors import ConfigError
from cljax.paths import located
from cljax.report.compare import HEADINGS, NOISE, compare
from cljax.report.tables import aligned
from launch import app, cells

flags.declare_key_flag("workdir")

COMPARE = flags.DEFINE_string("compare", None, "Another such folder: prints both, and in what they differ.")
SEARCH = flags.DEFINE_string("search", None, "With --readme: other settings, for the orderings at the best of each.")
README = flags.DEFINE_string(
  "readme",
  None,
  "Only writes the table between the markers of this name in docs/results.md and in the README of its paper.",
)
PICTURE = flags.DEFINE_string("picture", None, "Only draws accuracy against forgetting, a panel a stream, as this PNG.")
PANELS = flags.DEFINE_list("panels", ["."], "With --picture: the folders below --workdir whose results it shows.")


def check_flags() -> None:
  """
  Raises:
    ConfigError: flags of which one would mean nothing.
  """
  if SEARCH.value is not None and README.value is None:
    raise ConfigError("--search goes with --readme=NAME: other settings beside the table between its markers")
  if PANELS.value != ["."] and PICTURE.value is None:
    raise ConfigError("--panels goes with --picture=FILE.png: the folders that it shows")
  each = {"--compare": COMPARE.value, "--readme": README.value, "--picture": PICTURE.value}
  given = [name for name, value in each.items() if value is not None]
  if len(given) > 1:
    raise ConfigError(f"{' and '.join(given)} are two things to do: give one of them")


def main() -> int:
  check_flags()
  if PICTURE.value is not None:
    cells.draw(app.workdir(), PANELS.value, located(PICTURE.value))
    print(f"written: {PICTURE.value}")
    return 0
  if README.value is not None:
    cells.write_readme(app.workdir(), README.value, SEARCH.value)
    return 0
  if COMPARE.value is None:
    cells.finish(app.workdir())
    return 0
  table, told = compare(app.workdir(), COMPARE.value)
  if table:
    print(aligned(HEADINGS, table), NOISE, sep="\n")
  for cell, lines in told.items():
    print("\n  ".join([f"{cell}: {'' if lines else 'equal'}".rstrip(), *lines]))
  return int(any(told.values()))  # as diff does: 1 where something differs


if __name__ == "__main__":
  app.run(main)
