"""The whole vocabulary of cljax on one screen: what a bank, a stream, a phase and a method are.

A method is a record of pure functions (`Method`), as an optax `GradientTransformation` is, and `State` one pytree.
Shape legend, used in every file: S seeds, T tasks, L layers, E experts, K candidates, B batch, N rows, M memory,
D features, C classes; inside a `Plan`, n steps and W columns.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from cljax.errors import ConfigError

Array = Any  # a jax.Array; numpy's before it is on the device
PyTree = Any
Key = Array  # a typed key, `jax.random.key`
State = PyTree  # each method's own flax.struct.dataclass
Info = dict[str, Array]  # scalars, the same keys at each step of a phase: `loss`, and `accuracy` where it classifies

NONE = np.int32(2**31 - 1)  # "no slot": a scatter with mode='drop' ignores it, where -1 would wrap to the last row


class Bank(NamedTuple):
  """One data set, resident once on the device, shared by every task and every seed."""

  x: Array  # [N, height, width, channels] uint8, decoded to [0, 1] per batch; float32 passes as it is
  y: Array  # [N] int32, global label


class Rows(NamedTuple):
  """One split of one task: a table into a bank."""

  idx: Array  # [Nmax] int32 bank rows, padded with zeros
  count: Array  # [] int32, how many of them are live
  warp: PyTree  # None, or a record of arrays with `__call__(x [B, ...]) -> [B, ...]` (data/warp.py)


class Task(NamedTuple):
  """One task; leaves stack on a leading T ([S, T] where streams differ by seed). Its name is its place there."""

  train: Rows
  valid: Rows
  label_map: Array  # [C_all] int32, global label -> logit
  label_unmap: Array  # [C] int32, logit -> global label
  classes: Array  # [C] bool, live logits


class Stream(NamedTuple):
  """Tasks one after the other: index tables into a bank of training pictures and one of test pictures."""

  bank: Bank
  tasks: Task  # leaves [T, ...]
  test_bank: Bank
  test: Rows  # leaves [T, ...], rows of `test_bank`


class Pool(NamedTuple):
  """The training pictures of the current task, warped once for all epochs (and for all seeds that share them)."""

  x: Array  # [Nmax, ...] float32
  at: Array  # [N] int32, bank row -> place in x; means nothing for rows of other tasks


class View(NamedTuple):
  """What training may see: no test row, and nothing of the tasks after `t`. Made by `data.sample.view_at`."""

  bank: Bank
  tasks: Task  # tasks after t are zeroed; with one head, classes[k] is the union seen so far
  t: Array  # [] int32, the task in training; None where boundaries are hidden
  pool: Pool | None = None  # only where a warp is costly; the same numbers as warping each batch
  visit: Key | None = None  # [] or [W], of a step, for what is drawn anew each time that a picture is seen


class Place(NamedTuple):
  """An example by name: a bank row, and the task it was seen through. This is what a memory stores."""

  task: Array  # int32; where boundaries are hidden its position in the stream, which only `fetch` resolves
  row: Array  # int32


class Plan(NamedTuple):
  """The schedule of n steps with W columns each, current rows first."""

  place: Place  # [n, W]
  slot: Array  # [n, W] int32: where a current row is written in a memory (or NONE), where a replayed one came from
  live: Array  # [n, W] bool: False for padding, an empty memory, and steps at or after `stop`
  held: Place | None = None  # [M] the memory as the chunk found it, for a pool of its pictures


class Batch(NamedTuple):
  """The rows of one step, decoded: W columns, current rows first."""

  x: Array  # [W, ...] float32
  y: Array  # [W] int32, the logit of the row's label
  task: Array  # [W] int32, 0 where boundaries are hidden
  classes: Array  # [W, C] bool, logits in the loss; all of them where boundaries are hidden
  place: Place  # [W]
  slot: Array  # [W]
  live: Array  # [W]; every loss averages over live rows only


class Clock(NamedTuple):
  """A position, never a state."""

  epoch: Array  # [] int32
  step: Array  # [] int32, in this epoch of this task
  steps: Array  # [] int32, of such an epoch
  total: Array  # [] int32, steps of this phase since the stream began
  length: Array = None  # [] int32, steps of this phase in this task; None where nobody counts them
  whole: Array = None  # [] int32, steps of this phase in the whole stream; likewise

  @property
  def position(self) -> Array:
    """[] int32, steps of this phase in this task before this one."""
    return self.epoch * self.steps + self.step


class At(NamedTuple):
  """Where a step is."""

  key: Key
  clock: Clock
  view: View


class Outputs(NamedTuple):
  """What a method answers to rows."""

  logits: Array  # [B, C] raw: masks live in the loss and in `evaluate`
  features: Array  # [B, D]
  task: Array  # [B] int32, the slot used: as given, or inferred


class Spec(NamedTuple):
  """What a net and a method must know before they are built; static."""

  x_shape: tuple[int, ...]
  T: int
  C: int
  heads: int  # T where the task is given, else 1
  boundaries: bool = True  # False: the method is not told where tasks begin
  rows: tuple[int, ...] = ()  # training rows of each task, of the seed that has most
  x_bytes: int = 1  # of each number of an example where it is stored: 1 for uint8

  def steps(self, batch: int, epochs: int, joint: bool = False) -> tuple[int, ...]:
    """Steps of a phase of so many epochs in each task, or in the whole stream, one entry, where boundaries are hidden.

    For a schedule of an optimizer. Where the tasks of two seeds differ in length, no seed takes more.

    Args:
      batch: rows a step.
      joint: whether an epoch is the rows of all tasks so far.

    Raises:
      ConfigError: the rows are not told.
    """
    if len(self.rows) != self.T:
      raise ConfigError(f"spec.rows={self.rows} must tell the training rows of {self.T} tasks for steps to be counted")
    counts = [sum(self.rows)] if not self.boundaries else accumulate(self.rows) if joint else self.rows
    return tuple(epochs * -(-count // batch) for count in counts)


EdgeFn = Callable[[Key, State, View, Clock], State]
PlanFn = Callable[[Key, State, View, Plan], tuple[State, Plan]]  # keys [n]; reads no weights
StepFn = Callable[[Key, State, Batch, Clock, View], tuple[State, Info]]


def keep(key: Key, state: State, view: View, clock: Clock) -> State:
  """The edge that does nothing."""
  return state


def in_turn(*edges: EdgeFn) -> EdgeFn:
  """The edge that does what all of them do, one after the other, with the same key; `keep` where that is nothing."""
  doing = [edge for edge in edges if edge is not keep]

  def both(key: Key, state: State, view: View, clock: Clock) -> State:
    for edge in doing:
      state = edge(key, state, view, clock)
    return state

  return both if len(doing) > 1 else doing[0] if doing else keep


def as_it_is(key: Key, state: State, view: View, plan: Plan) -> tuple[State, Plan]:
  """The plan of current rows only."""
  return state, plan


def loads_nothing(state: State, parts: Mapping[str, Mapping[str, Array]]) -> State:
  """The state as it is, for a method that reads no file."""
  return state


def nothing(state: State) -> dict[str, Any]:
  """The report of a method that has nothing to tell."""
  return {}


class Block(NamedTuple):
  """The same `size` steps at once: key, batch, clock and info carry a leading [size]; dead steps have no live row."""

  size: int
  step: StepFn


class Phase(NamedTuple):
  """One fused loop inside a task (inside the whole stream where boundaries are hidden)."""

  name: str
  batch: int  # current rows a step
  step: StepFn  # always there: the reference
  epochs: int = 0  # exactly one of epochs and steps is positive; an epoch has ceil(rows / batch) steps
  steps: int = 0
  joint: bool = False  # rows of all tasks so far: an oracle, marked in every table
  trials: int = 1  # trainings of equally many epochs that the phase is made of, one after the other
  plan: PlanFn = as_it_is
  block: Block | None = None  # optional and faster; tested equal to `step`
  enter: EdgeFn = keep  # before the first step
  tick: EdgeFn = keep  # after each epoch
  exit: EdgeFn = keep  # after the last step


def unguarded(params: PyTree) -> PyTree:
  """The past of a guard that keeps nothing."""
  return None


def past_as_it_is(key: Key, past: PyTree, params: PyTree, view: View) -> PyTree:
  """The edge of a guard that does nothing."""
  return past


def no_pull(past: PyTree, params: PyTree, batch: Batch) -> Array | float:
  """The loss of a guard that adds none."""
  return 0.0


def as_asked(at: At, past: PyTree, gradient: PyTree, ask: Callable[[Batch], PyTree]) -> PyTree:
  """The gradient of a guard that projects nothing."""
  return gradient


def unmoved(past: PyTree, before: PyTree, gradient: PyTree, after: PyTree) -> PyTree:
  """The past of a guard that watches no step."""
  return past


class Guard(NamedTuple):
  """What holds a network to its past. These hooks and no others, in this order, and none may change the params: the
  guard's loss is added, the whole gradient is projected once, and the step that came of it is told."""

  init: Callable[[PyTree], PyTree] = unguarded  # params -> past, the guard's own state
  enter: Callable[[Key, PyTree, PyTree, View], PyTree] = past_as_it_is  # as a task begins
  loss: Callable[[PyTree, PyTree, Batch], Array | float] = no_pull  # (past, params, batch) -> []
  project: Callable[[At, PyTree, PyTree, Callable[[Batch], PyTree]], PyTree] = as_asked  # ask(batch) -> its gradient
  moved: Callable[[PyTree, PyTree, PyTree, PyTree], PyTree] = unmoved  # (past, before, the loss's own gradient, after)
  exit: Callable[[Key, PyTree, PyTree, View], PyTree] = past_as_it_is  # as a task ends
  stored: int = 0  # rows of earlier tasks that the past names, for `memory_bytes`


FREE = Guard()


class Routes(NamedTuple):
  """Which expert a gate sends each row to, and why."""

  slot: Array  # [B] int32, -1 where no gate knows the row
  probabilities: Array  # [B, T]
  errors: Array  # [B, T] what the gate went by, the least is chosen


class Serve(NamedTuple):
  """Prediction from `parts` alone: the gate first, then one expert (`cljax.predict`)."""

  route: Callable[[PyTree, Array], Routes]  # (part "gate", x [B, ...])
  answer: Callable[[PyTree, Array], Array]  # (part "expert_<slot>", x [B, ...]) -> logits [B, C]


class Method(NamedTuple):
  """The protocol. A factory `(net, tx, spec, *, ...) -> Method` stands in `methods.METHODS`."""

  init: Callable[[Key], State]
  phases: tuple[Phase, ...]
  apply: Callable[[State, Array, Array | None], Outputs]  # (state, x [B, ...], slot [B]); None: infer it
  report: Callable[[State], dict[str, Array]] = nothing  # after each task; always `parameters` and `memory_bytes`
  faults: Callable[[State], dict[str, Array]] = nothing  # after each chunk: config key -> bool, True stops the run
  slots: int = 0  # 0: slots are tasks; else the method numbers its own and reports `slot` [], -1 for none
  parts: Callable[[State], dict[str, PyTree]] = nothing  # at the end: file name -> what can be loaded alone
  load: Callable[[State, Mapping[str, Mapping[str, Array]]], State] = loads_nothing  # part -> its leaves by path
  reads: Mapping[str, str] = {}  # part -> path of the file that it is read from, once, before anything is compiled
  infers: bool = False  # apply(state, x, None) works; then x comes from one task
  serve: Serve | None = None  # how `parts` answer; then parts has `gate` and `expert_<slot>`
  told: bool = False  # answers by what belongs to a slot: refused where tasks are neither told nor found
  needs_boundaries: bool = False  # has to know where tasks begin: refused where boundaries are hidden
  needs_valid: bool = False  # asks validation rows of each task: refused where one has none
  branches: bool = False  # a costly cond on state in a step: seeds run one after the other, never by vmap
  made_for: Spec | None = None  # what its factory was told; a run holds it to the stream's
