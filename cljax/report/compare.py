"""Two folders of results side by side: ours, theirs, the difference, and whether noise alone makes as much."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cljax.files import flatten
from cljax.metrics import half_interval
from cljax.report import store
from cljax.report.apart import written
from cljax.report.exhibits import Result

ASKED = ("ACC", "BWT", "forgetting", "learning_accuracy")
HEADINGS = ["cell", "readout", "metric", "seeds", "ours", "theirs", "difference", "95 %", "verdict"]
NOISE = (
  "Over the seeds that both have run: the mean of ours minus theirs, seed by seed, and half of its 95 % interval by "
  "Student's t; within it the difference may be noise, beyond it is not; one seed cannot tell."
)


def difference(metric: str, one: Result, other: Result) -> tuple[float, float] | None:
  """(mean of one minus other, half of its 95 % interval, NaN of one seed); seed by seed where they share seeds.

  Args:
    one: a result, or one of its other readouts with the `seeds` of the result.

  Returns:
    None where one of them has no number.
  """
  a, b = (by_seed(metric, each) for each in (one, other))
  if None in (*a.values(), *b.values()):
    return None
  shared = [a[seed] - b[seed] for seed in a if seed in b]
  if shared:
    return float(np.mean(shared)), half_interval(shared)
  halves = np.hypot(half_interval(list(a.values())), half_interval(list(b.values())))
  return float(np.mean(list(a.values())) - np.mean(list(b.values()))), float(halves)


def by_seed(metric: str, result: Result) -> dict[int, float]:
  """{seed: value} of a metric."""
  return dict(zip(result["seeds"], result["metrics"][metric]["values"], strict=True))


def readouts_of(result: Result) -> dict[str, dict[str, Any]]:
  """{readout: its metrics, with the seeds}, the main one first."""
  found = {result["readout"]: result["metrics"]} | {name: one["metrics"] for name, one in result["readouts"].items()}
  return {name: {"seeds": result["seeds"], "metrics": metrics} for name, metrics in found.items()}


def lines_of(cell: str, ours: Result, theirs: Result) -> list[list[str]]:
  """The rows of the table: every metric that both have, over the seeds that both have run."""
  here, there = readouts_of(ours), readouts_of(theirs)
  seeds = [seed for seed in ours["seeds"] if seed in theirs["seeds"]]
  table = []
  for readout in [name for name in here if name in there]:
    for metric in ASKED:
      a, b = by_seed(metric, here[readout]), by_seed(metric, there[readout])
      means = [[each[seed] for seed in seeds] for each in (a, b)]
      if not seeds or None in (*means[0], *means[1]):
        told_none = seeds and not set(means[0]) == set(means[1]) == {None}
        table += [[cell, readout, metric, str(len(seeds)), *"----", "no number of some seed"]] if told_none else []
        continue
      both = [{"seeds": seeds, "metrics": {metric: {"values": values}}} for values in means]
      told = difference(metric, *both)
      assert told is not None
      mean, half = told
      equal = means[0] == means[1]
      settled = "one seed" if len(seeds) == 1 else "within noise" if abs(mean) <= half else "beyond noise"
      texts = [f"{np.mean(values):.4f}" for values in means] + [f"{mean:+.4f}"]
      texts += ["-" if len(seeds) == 1 else f"{half:.4f}", "equal" if equal else settled]
      table.append([cell, readout, metric, str(len(seeds)), *texts])
  return table


def config_lines(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
  """A line for each config key whose values differ, with both."""
  here, there = flatten(ours), flatten(theirs)
  texts = {key: [written(each[key]) if key in each else "(absent)" for each in (here, there)] for key in here | there}
  return [f"config.{key}: ours {a}, theirs {b}" for key, (a, b) in sorted(texts.items()) if a != b]


def compare(one: epath.Path | str, other: epath.Path | str) -> tuple[list[list[str]], dict[str, list[str]]]:
  """(rows of a table of numbers, {cell: what differs, a line each}) of the results under two work dirs.

  Cells are matched by their folders; a cell that is equal but for times and environment has no line and no row.

  Raises:
    ConfigError: one of them holds no result, or a damaged one.
  """
  here, there = ({path: result for path, result, _ in store.find_results(folder)} for folder in (one, other))
  table: list[list[str]] = []
  told: dict[str, list[str]] = {}
  for cell in sorted({*here, *there}):
    if not (cell in here and cell in there):
      told[cell] = [f"only in {one if cell in here else other}"]
      continue
    ours, theirs = here[cell], there[cell]
    fields = store.equal(ours, theirs)
    told[cell] = config_lines(ours["config"], theirs["config"]) + others(fields, ours, theirs)
    table += lines_of(cell, ours, theirs) if fields else []
  return table, told


def others(fields: Sequence[str], ours: Result, theirs: Result) -> list[str]:
  """Lines on what differs beside the config: seeds of one alone, and the names of fields."""
  lines = []
  for name, a, b in (("ours", ours, theirs), ("theirs", theirs, ours)):
    alone = [str(seed) for seed in a["seeds"] if seed not in b["seeds"]]
    lines += [f"seeds of {name} alone: {', '.join(alone)}"] if alone else []
  names = [name for name in fields if not name.startswith(("config.", "seeds"))]
  return lines + ([f"fields that differ: {', '.join(names)}"] if names else [])
