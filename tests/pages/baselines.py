"""What configs/papers/baselines/README.md tells."""

import csv
import re

from configs.papers.baselines.table1 import TUNED
from tests.prose import RESULTS, row, runs, written

LEFT_OUT = ("| MNIST permuted | online / EWC...pictures a task is .891 there",)  # published
SEARCH, PAPER = "baselines/search", "baselines/paper"
VALID, TEST = "ACC, validation rows", "ACC (last)"


def searches():
  """[(cell of a stream, method, rows of its search's report.csv)]."""
  for path in sorted((RESULTS / SEARCH).glob("*/*.csv")):
    with path.open(newline="") as file:
      yield path.parent.name, path.stem, list(csv.DictReader(file))


def best(tried):
  """The winner by validation rows."""
  return max(tried, key=lambda one: float(one[VALID] or "-inf"))


def settings(one):
  """{name: number} of a row, as its label tells them, and its rate."""
  told = re.findall(r"(\w+)=([^,]+)", re.search(r"\((.*?)\)", one["method"])[1])
  return {name: float(value) for name, value in told} | ({"lr": float(one["lr"])} if one.get("lr") else {})


def line_of(cell, method, tried):
  """A line of the table of searches."""
  one = best(tried)
  numbers = ", ".join(f"{name} {value:g}" for name, value in settings(one).items())
  spread = f" ± {float(one[TEST + ', s.d.']):.4f}" if one.get(TEST + ", s.d.") else ""
  acc = written("{:.4f}", float(one[TEST])) + re.sub(r"0\.", ".", spread)
  return row(f"`{cell}`", method, f"{len(tried)} x {one['seeds']}", numbers, acc)


def phrases():
  for cell, method, tried in searches():
    yield line_of(cell, method, tried)
    rate, number = TUNED[cell][method]
    own = settings(best(tried))
    assert own.get("lr", rate) == rate and (number is None or number in own.values()), (cell, method, own)
  assert runs(PAPER)
