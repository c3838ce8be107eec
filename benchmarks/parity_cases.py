"""Which methods are compared with which strategies of Avalanche, and under which settings.

A method stands in the table as Avalanche comes, and once more with what makes both sides the same algorithm. A strength
that is defined with another factor is given with that factor.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import avalanche_changes as changes
from benchmarks.avalanche_changes import Called
from benchmarks.parity_sides import Size
from cljax.errors import choose

APART = 1e-4  # weights of the same algorithm after two tasks differ by less
ALIKE, CLOSE = 0.01, 0.03  # accuracies of the same algorithm, and of two of one name
AS_IT_COMES, MADE_ALIKE = "as it comes", "made alike"
EWC, SI, DAMPING = 100.0, 1.0, 0.1  # strengths as cljax has them; the paper's xi
PER_TASK, DRAWN, MARGIN = 50, 50, 0.5
LWF: tuple[str, dict[str, Any]] = (
  "lwf",
  {"epochs": 1, "warmup_epochs": 0},
)  # without the paper's warm-up, as Avalanche
METHODS = ("finetune", "ewc", "si", "lwf", "agem", "gem")


class Case(NamedTuple):
  """One line of the table."""

  name: str  # of METHODS
  text: str
  setup: str
  ours: tuple[str, Mapping[str, Any]]  # a method and its fields
  called: Called
  alike: bool  # both sides are the same algorithm


class Found(NamedTuple):
  """What a case found."""

  case: Case
  ours: np.ndarray  # [S] accuracies
  theirs: np.ndarray  # [S]
  apart: float  # the largest difference of a weight after the second task
  moved: float  # that from plain fine-tuning: what the method does at all

  def difference(self) -> float:
    """Of the mean accuracies."""
    return float(self.theirs.mean() - self.ours.mean())

  def agrees(self) -> bool:
    """Whether both sides learnt the same: weights and accuracies where they are the same algorithm, else accuracies."""
    if self.case.alike:
      return self.apart <= APART and abs(self.difference()) <= ALIKE
    return abs(self.difference()) <= CLOSE


def chosen(names: Sequence[str]) -> list[str]:
  """The names asked for, or all.

  Raises:
    ConfigError: a name that there is not.
  """
  return [choose("--methods", name, METHODS) for name in names] or list(METHODS)


def cases(size: Size) -> list[Case]:
  """All lines of the table, in order; what keeps every row of a task needs to know how many there are."""
  every = size.rows * size.tasks
  ewc, si = guard("ewc", strength=EWC), guard("si", strength=SI, damping=DAMPING)
  its_ewc, its_si = {"ewc_lambda": EWC / 2}, {"si_lambda": 2 * SI, "eps": DAMPING}
  its_si_copied = Called("SynapticIntelligence", its_si, changes.weights_copied)
  its_si_unbounded = Called("SynapticIntelligence", its_si, changes.weights_copied_unbounded)
  agem, agem_all = ({"per_task": m, "drawn_rows": n} for m, n in ((PER_TASK, DRAWN), (size.rows, every)))
  its_agem, its_agem_all = (
    Called("AGEM", {"patterns_per_exp": own["per_task"], "sample_size": own["drawn_rows"]}) for own in (agem, agem_all)
  )
  its_gem, its_gem_all = ({"patterns_per_exp": m, "memory_strength": MARGIN} for m in (PER_TASK, size.rows))
  gem_all = guard("gem", per_task=size.rows, margin=MARGIN, margin_as="bound")
  return [
    Case("finetune", "fine-tuning", AS_IT_COMES, ("finetune", {}), Called("Naive"), True),
    Case("ewc", "EWC", AS_IT_COMES, ewc, Called("EWC", its_ewc), False),
    Case("ewc", "EWC", MADE_ALIKE, ewc, Called("EWC", its_ewc, changes.rows_alone), True),
    Case("si", "SI", AS_IT_COMES, si, Called("SynapticIntelligence", its_si), False),
    Case("si", "SI", "weights copied", si, its_si_copied, False),
    Case("si", "SI", MADE_ALIKE, si, its_si_unbounded, True),
    Case("lwf", "LwF", AS_IT_COMES, LWF, Called("LwF", {"alpha": 1.0, "temperature": 2.0}), True),
    Case("agem", "A-GEM", AS_IT_COMES, guard("agem", **agem), its_agem, False),
    Case("agem", "A-GEM", MADE_ALIKE, guard("agem", **agem_all), its_agem_all, True),
    Case(
      "gem",
      "GEM",
      AS_IT_COMES,
      guard("gem", per_task=PER_TASK, margin=MARGIN),
      Called("GEM", its_gem, changes.solved_somehow),
      False,
    ),
    Case("gem", "GEM", MADE_ALIKE, gem_all, Called("GEM", its_gem_all, changes.solved_without_ridge), True),
  ]


def guard(name: str, **fields: Any) -> tuple[str, dict[str, Any]]:
  """Fine-tuning under a guard."""
  return "finetune", {"guard": {"name": name, **fields}}
