"""One run on one accelerator within a budget of time: what a step takes, seeds together, the shape of the loop.

Subjects are built in the order of SUBJECTS, so that what matters most is there when time runs out; each learns and is
checked before any is timed. Then all take turns, round after round, by wall time: a call ends when its device is done.
A ratio is made within a round, and what there was no time for is told.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import problem, timing
from benchmarks.chunks import Chunk
from benchmarks.ours import Library
from benchmarks.rows import Row, median, present, trouble
from benchmarks.subjects import SEEDS, Workshop
from benchmarks.suite import say
from benchmarks.timing import Ratio, Subject
from cljax.errors import choose

BUILDING = 0.7  # share of the budget after which nothing more is built
SHARE = 8  # PyTorch's turns take one step in so many: its steps all cost the same
SUBJECTS = (  # the order in which they are built
  "cljax.cotrain",
  "cljax.er",
  "torch.tuned",
  "torch.er",
  "cljax.cotrain_vmap",
  "cljax.cotrain_map",
  "cljax.cnn",
  "torch.cnn",
  "chunk.loop",
  "chunk.scan",
  "torch.stacked",
  "cljax.cotrain_plain",
  "cljax.er_vmap",
  "cljax.er_map",
  "cljax.cnn_vmap",
  "cljax.cnn_map",
  "torch.modulelist",
)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # the first part of a name -> method, what differs from the config
  "cotrain": ("routing", {}),
  "er": ("er", {}),
  "cnn": ("er", {"net": "cnn"}),
}
VARIANTS: dict[str, dict[str, Any]] = {  # its second part
  "": {},
  "vmap": {"seeds": SEEDS, "executor": "vmap"},
  "map": {"seeds": SEEDS, "executor": "map"},
  "plain": {"block": 1},
}
ONE = f"{SEEDS} seeds by {{}} against one, {{}}, a step of one seed"
COTRAIN, ER, CNN = "co-training", "ER in two steps", "ER with a convolution net"
TORCH = "step against eager PyTorch,"
ROWS = (
  Row("stacked", f"{COTRAIN} {TORCH} stacked experts", "cljax.cotrain", "torch.stacked", None, True),
  Row("modulelist", f"{COTRAIN} {TORCH} a ModuleList", "cljax.cotrain", "torch.modulelist", None, True),
  Row("tuned", f"{COTRAIN} {TORCH} tuned by hand", "cljax.cotrain", "torch.tuned", None, True),
  Row("er", f"{ER}, {TORCH.removesuffix(',')}", "cljax.er", "torch.er", None, True),
  Row("cnn", f"{CNN}, {TORCH.removesuffix(',')}", "cljax.cnn", "torch.cnn", None, True),
  Row("cotrain_vmap", ONE.format("vmap", COTRAIN), "cljax.cotrain_vmap", "cljax.cotrain", None, False, "learns"),
  Row("cotrain_map", ONE.format("map", COTRAIN), "cljax.cotrain_map", "cljax.cotrain", None, False, "learns"),
  Row("er_vmap", ONE.format("vmap", ER), "cljax.er_vmap", "cljax.er", None, False, "learns"),
  Row("er_map", ONE.format("map", ER), "cljax.er_map", "cljax.er", None, False, "learns"),
  Row("cnn_vmap", ONE.format("vmap", CNN), "cljax.cnn_vmap", "cljax.cnn", None, False, "learns"),
  Row("cnn_map", ONE.format("map", CNN), "cljax.cnn_map", "cljax.cnn", None, False, "learns"),
  Row("plain", f"{COTRAIN}, in blocks against step by step", "cljax.cotrain", "cljax.cotrain_plain", None, True),
  Row("loop", f"{ER}, a loop to a traced end against a full scan", "chunk.loop", "chunk.scan", None, True),
)
NAMES = tuple(row.name for row in ROWS)


class Budget(NamedTuple):
  """Seconds, counted from `began` on a clock."""

  seconds: float
  began: float
  now: Callable[[], float] = time.monotonic

  def left(self) -> float:
    """Seconds until the budget is spent."""
    return self.seconds - self.spent()

  def spent(self) -> float:
    """Seconds since the run began."""
    return self.now() - self.began


class Line(NamedTuple):
  """A measured row; microseconds of wall time a step, one number for each round in which both sides had their turn."""

  text: str
  ours: tuple[float, ...]
  other: tuple[float, ...]
  ratio: Ratio
  trouble: str


class Found(NamedTuple):
  """What a run found."""

  lines: list[Line]
  accuracy: dict[str, float]  # of each subject before it was timed
  left_out: dict[str, str]  # row -> why it is not there


class OnCard:
  """A PyTorch subject whose calls end when the card is done; the rest is the subject's own."""

  def __init__(self, subject: Any):
    self.subject = subject
    self.steps = subject.steps
    self.keep, self.accuracy = subject.keep, subject.accuracy

  def train(self, task: int) -> None:
    """Learns one task."""
    self.subject.train(task)
    self.wait()

  def shorten(self) -> None:
    """From now on a task is the first of its steps only; what was learnt so far stays."""
    self.steps = max(self.steps // SHARE, 1)
    if hasattr(self.subject, "plans"):
      self.subject.plans = [plan[: self.steps] for plan in self.subject.plans]
    rows = self.steps * problem.BATCH
    self.subject.tensors = [(x[:rows], y[:rows]) for x, y in self.subject.tensors]

  def back(self) -> None:
    """Returns to what was kept."""
    self.subject.back()
    self.wait()

  def wait(self) -> None:
    """Until the card is done."""
    torch = sys.modules.get("torch")  # the subject has imported it
    if torch is not None and torch.cuda.is_available():
      torch.cuda.synchronize()


class Yard(Workshop):
  """Builds the subjects of this suite, PyTorch's on the card that JAX runs on."""

  def one(self, name: str) -> Subject:
    """The subject of this name, `room.name`."""
    room, own = name.split(".")
    if room == "chunk":
      return Chunk(self.experiment("er"), scan=own == "scan")
    if room == "torch":
      return OnCard(self.torch(own))
    first, _, variant = own.partition("_")
    method, fields = METHODS[first]
    return Library(self.experiment(method, **fields, **VARIANTS[variant]))

  def torch(self, name: str) -> Any:
    """A peer, and the device on which its tensors are made."""
    import torch

    from benchmarks import torch_cnn, torch_er

    torch.set_default_device("cpu" if jax.default_backend() == "cpu" else "cuda")
    torch.backends.cudnn.allow_tf32 = False  # as exact as JAX at the precision `highest`
    if name == "cnn":
      return torch_er.Replay(torch_cnn.net_of(self.initial("er", net="cnn").params), self.tensors, union=False)
    return super().torch(name)


def chosen(only: Sequence[str]) -> list[str]:
  """The names asked for, or all.

  Raises:
    ConfigError: a name that there is not.
  """
  return [choose("--rows", name, NAMES) for name in only] or list(NAMES)


def without_torch() -> str:
  """Why PyTorch cannot stand beside JAX here; '' where it can."""
  if not present("torch"):
    return "PyTorch is not installed (pip install 'cljax[peers]')"
  import torch

  if jax.default_backend() != "cpu" and not torch.cuda.is_available():
    return "the installed PyTorch finds no card"
  return ""


def build(names: Sequence[str], make: Callable[[str], Subject], budget: Budget) -> dict[str, tuple[Subject, float]]:
  """Subjects that have learnt, with their accuracies, as many of the names as there is time for."""
  found = {}
  for name in names:
    if budget.spent() > BUILDING * budget.seconds:
      say(f"{name}: no time left to build it")
      continue
    subject = make(name)
    found[name] = subject, timing.learn(subject)
    if isinstance(subject, OnCard):
      subject.shorten()
    if isinstance(subject, Library) and subject.skipped():
      raise RuntimeError(f"{name} skipped {subject.skipped()} co-training steps: its time would mean nothing")
    say(f"{name}: accuracy {found[name][1]:.3f}, after {budget.spent():.0f} s")
  return found


def turns(subjects: Mapping[str, Subject], rounds: int, budget: Budget) -> dict[str, dict[int, float]]:
  """{subject: {round: microseconds of wall time a step}}: each subject once a round, every other round in reverse.

  A subject sits out where its last turn took longer than there is time left.
  """
  taken: dict[str, dict[int, float]] = {name: {} for name in subjects}
  last = dict.fromkeys(subjects, 0.0)
  for r in range(rounds):
    for name in list(subjects)[:: -1 if r % 2 else 1]:
      if last[name] >= budget.left():
        continue
      began = budget.spent()
      taken[name][r] = timing.one(subjects[name])[1]
      last[name] = budget.spent() - began
  return taken


def line_of(row: Row, taken: Mapping[str, Mapping[int, float]], accuracy: Mapping[str, float]) -> Line | None:
  """The row from the rounds in which both sides had their turn; None where there was none."""
  ours, other = taken.get(row.ours, {}), taken.get(row.other, {})
  both = sorted({*ours} & {*other})
  if not both:
    return None
  each = [other[r] / ours[r] if row.at_least else ours[r] / other[r] for r in both]
  ratio = Ratio(median(each), min(each), max(each))
  return Line(
    row.text, tuple(ours[r] for r in both), tuple(other[r] for r in both), ratio, trouble(row, dict(accuracy))
  )


def measure(
  names: Sequence[str], steps: int, rounds: int, budget: Budget, make: Callable[[str], Subject] | None = None
) -> Found:
  """The rows of these names.

  Args:
    make: builds a subject; None takes the real ones.
  """
  wanted = [row for row in ROWS if row.name in names]
  missing = without_torch() if any(row.other.startswith("torch") for row in wanted) else ""
  left_out = {row.name: missing for row in wanted if missing and row.other.startswith("torch")}
  wanted = [row for row in wanted if row.name not in left_out]
  needed = {name for row in wanted for name in (row.ours, row.other)}
  with jax.default_matmul_precision("highest"):
    built = build([name for name in SUBJECTS if name in needed], make or Yard(steps).one, budget)
    accuracy = {name: value for name, (_, value) in built.items()}
    say(f"timing {len(built)} subjects, up to {rounds} rounds, {budget.left():.0f} s left")
    taken = turns({name: subject for name, (subject, _) in built.items()}, rounds, budget)
  lines = {row.name: line_of(row, taken, accuracy) for row in wanted}
  left_out |= {name: "no time was left" for name, line in lines.items() if line is None}
  for name, why in left_out.items():
    print(f"left out: {name}, {why}", file=sys.stderr)
  return Found([line for line in lines.values() if line is not None], accuracy, left_out)


NET = ", ".join(f"{name} {value}" for name, value in problem.CNN.items())
SETTINGS = (
  f"{problem.BATCH} current and {problem.REPLAY} replayed rows of {problem.SIDE} x {problem.SIDE} pixels, a memory of "
  f"{problem.CAPACITY:,} rows, {problem.TASKS} tasks, float32 at the precision `highest`"
)
