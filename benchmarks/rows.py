"""What is compared with what, and how far apart it should be."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.timing import Ratio, Timing, ratio
from cljax.errors import choose

TOLERANCE, LEARNT = 0.03, 0.5  # accuracies that differ by less are alike; less than this is not learning
PEERS = {"torch": "torch", "avalanche": "avalanche"}  # first part of a subject's name -> the module that it needs


class Row(NamedTuple):
  """One line of the table. The ratio is other / ours where it should be large, ours / other where small."""

  name: str
  text: str
  ours: str  # subjects, by their names in `subjects.py`
  other: str
  goal: float | None
  at_least: bool
  check: str = "same"  # accuracies alike | `learns`, both learn | `none`


class Result(NamedTuple):
  """A measured row; medians in microseconds a step (`unit` says otherwise), CPU and wall."""

  text: str
  ours: str
  other: str
  ratio: Ratio
  goal: float | None
  at_least: bool
  trouble: str = ""
  unit: str = ""

  def met(self) -> bool | None:
    if self.goal is None:
      return None
    return self.ratio.median >= self.goal if self.at_least else self.ratio.median <= self.goal


COTRAIN = "co-training step"
AVALANCHE = (  # what these learn is compared by parity.py: the orders of two runs do not end alike
  ("ewc", "EWC step against Avalanche's EWC", 6),
  ("ewc_all", "the same, Fisher over all rows: of each row here, of batches there", None),
  ("si", "SI step against Avalanche's SynapticIntelligence", 6),
  ("lwf", "LwF step against Avalanche's LwF", 6),
  ("agem", "A-GEM step against Avalanche's AGEM", 8),
  ("gem", "GEM step against Avalanche's GEM", 8),
  ("naive", "fine-tuning step against Avalanche's Naive", None),
  ("mas", "MAS step against Avalanche's MAS, importance over all rows: of each row here, of batches there", None),
  ("derpp", "DER++ step, which replays two draws, against Avalanche's DER, which replays one", None),
  ("mer", "MER step of one row, 5 batches of it and 4 replayed ones, against Avalanche's MER", None),
)
ROWS = (
  Row("stacked", f"{COTRAIN} against eager PyTorch, stacked experts", "cljax.cotrain", "torch.stacked", 7.5, True),
  Row("modulelist", f"{COTRAIN} against eager PyTorch, a ModuleList", "cljax.cotrain", "torch.modulelist", 14, True),
  Row("tuned", f"{COTRAIN} against eager PyTorch, tuned by hand", "cljax.cotrain", "torch.tuned", 6, True),
  Row(
    "avalanche", "ER step on the union against Avalanche's Replay", "cljax.er_one_head", "avalanche.replay", 3.8, True
  ),
  *(
    Row(f"avalanche_{name}", text, f"cljax.{name}", f"avalanche.{name}", goal, True, "learns")
    for name, text, goal in AVALANCHE
  ),
  Row("er", "ER in two steps against eager PyTorch", "cljax.er", "torch.er", 4.5, True),
  Row("cotraining", "step with co-training against without", "cljax.cotrain", "cljax.no_cotrain", 1.2, False, "learns"),
  Row("memory", "memory of 10,000 rows against 1,000", "cljax.memory", "cljax.cotrain", 1.1, False, "learns"),
  Row("tasks", "100 tasks against 20, a step", "cljax.tasks", "cljax.cotrain", 1.3, False, "learns"),
  Row("bare", "whole-task call against the bare scan, co-training", "cljax.cotrain", "bare.cotrain", 1.1, False),
  Row("bare_er", "whole-task call against the bare scan, ER in two steps", "cljax.er", "bare.er", 1.1, False),
  Row("bare_plain", "the same without blocks, co-training", "cljax.cotrain_plain", "bare.cotrain_plain", None, False),
  Row("plain", f"{COTRAIN}, default path against the plain path", "cljax.cotrain", "cljax.cotrain_plain", 1.5, True),
  Row(
    "guard",
    "fine-tuning under EWC (no blocks) against without",
    "cljax.finetune_ewc",
    "cljax.finetune",
    None,
    False,
    "learns",
  ),
  Row("guard_er", "the same, ER in two steps", "cljax.er_ewc", "cljax.er", None, False, "learns"),
  Row("seeds", "15 seeds against one, a step of one seed", "cljax.seeds", "cljax.cotrain", None, False, "none"),
)
# Measured by files of their own: apart, gating, convolving, sharing and unrolling.
SHARING = ("tree", "naive", "amortised", "groups", "alone_torch", "memory_tree", "memory_naive")
META = ("meta_dense", "meta_dense_second", "meta_conv", "meta_conv_second", "meta_torch", "meta_memory")
APART = ("start", "devices", "gating", "convolving", "convolving_torch", *SHARING, *META)
NAMES = (*(row.name for row in ROWS), *APART)


def chosen(only: Sequence[str]) -> list[str]:
  """The names asked for, or all.

  Raises:
    ConfigError: a name that there is not.
  """
  return [choose("--rows", name, NAMES) for name in only] or list(NAMES)


def subjects_of(rows: Iterable[Row]) -> list[str]:
  """Names of all that has to be timed for some rows, each once."""
  return list(dict.fromkeys(name for row in rows for name in (row.ours, row.other)))


def present(module: str) -> bool:
  """Whether a module is installed."""
  return importlib.util.find_spec(module) is not None


def without_peers(names: Sequence[str]) -> list[str]:
  """Those rows whose peer is not installed."""
  needs = {row.name: PEERS.get(row.other.split(".")[0]) for row in ROWS}
  needs |= dict.fromkeys(("convolving_torch", "alone_torch", "meta_torch"), PEERS["torch"])
  return [name for name in names if (module := needs.get(name)) and not present(module)]


def left_out(names: Sequence[str]) -> str:
  """What to tell a person about rows without their peer."""
  return f"left out for want of PyTorch or Avalanche: {', '.join(names)}; pip install 'cljax[peers]'"


def trouble(row: Row, accuracy: dict[str, float]) -> str:
  """Why the two sides of a row do not learn the same thing; '' where they do."""
  ours, other = accuracy[row.ours], accuracy[row.other]
  if row.check == "none":
    return ""
  if min(ours, other) < LEARNT:
    return f"not learnt: accuracy {ours:.3f} and {other:.3f}"
  if row.check == "same" and abs(ours - other) > TOLERANCE:
    return f"accuracies differ: {ours:.3f} and {other:.3f}"
  return ""


def median(values: Sequence[float]) -> float:
  """The middle one, or the mean of the two in the middle."""
  ordered, half = sorted(values), len(values) // 2
  return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def shown(timing: Timing) -> str:
  """Medians, wall time in brackets."""
  return f"{median(timing.cpu):.0f} ({median(timing.wall):.0f})"


def result(row: Row, timings: dict[str, Timing], accuracy: dict[str, float]) -> Result:
  """A row of the table from the times and accuracies of its two subjects."""
  found = result_of(row.text, timings[row.ours], timings[row.other], row.goal, row.at_least)
  return found._replace(trouble=trouble(row, accuracy))


def result_of(text: str, ours: Timing, other: Timing, goal: float | None, at_least: bool) -> Result:
  """A row of the table from the times of its two sides."""
  found = ratio(other, ours) if at_least else ratio(ours, other)
  return Result(text, shown(ours), shown(other), found, goal, at_least)
