"""A net and an optimizer in training: what every method that trains one classifier would write again."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import flax.struct
import optax
from flax import linen as nn

from cljax.declared import at_least
from cljax.errors import ConfigError
from cljax.nets.heads import own_head, with_head
from cljax.nets.modes import at_rest, begin, in_training, trains_apart
from cljax.ops.losses import accuracy, cross_entropy, rows
from cljax.pieces import blocks
from cljax.pieces.descent import GradientFn, LossFn, descend, gradient_of
from cljax.pieces.guards import guarding
from cljax.pieces.guards.examples import Answer
from cljax.pieces.optimizers import PlainSGD
from cljax.pieces.replay import memory_bytes
from cljax.types import (
  FREE,
  Array,
  At,
  Batch,
  Block,
  Clock,
  EdgeFn,
  Guard,
  Info,
  Key,
  Outputs,
  Spec,
  StepFn,
  View,
  keep,
  past_as_it_is,
)


class Fit(NamedTuple):
  """How a method goes through a task."""

  batch_size: Annotated[int, at_least(1, "current rows a step")] = 10
  epochs: Annotated[int, at_least(1, "passes over each task")] = 1
  block: Annotated[int, at_least(0, "steps that share a pass over the first layer; 0 chooses, 1: step by step")] = 0


class Passes(NamedTuple):
  """The same for a method that takes its steps one by one."""

  batch_size: Annotated[int, at_least(1, "rows a step")] = 64
  epochs: Annotated[int, at_least(1, "passes over each task")] = 5


@flax.struct.dataclass
class Trained:
  """A network in training; a method's state may add fields to it."""

  params: Any  # of the net
  opt_state: Any  # of the optimizer
  collections: Any = flax.struct.field(default_factory=dict)  # the net's others, such as BatchNorm's statistics
  past: Any = None  # of the guard


class Learner(NamedTuple):
  """The functions of one network in training, on states that have the fields of `Trained`."""

  net: Any
  tx: Any
  spec: Spec
  current: int | None  # leading rows of a batch that the reported accuracy is about; None is all
  protect: Callable[[Answer], Guard] | None  # makes the guard, where there is one

  @property
  def plain(self) -> bool:
    """Whether steps are plain SGD, which `pieces.blocks` can take block by block."""
    fits = isinstance(self.tx, PlainSGD) and hasattr(self.net, "after_first") and not trains_apart(self.net)
    return fits and self.protect is None

  def init(self, key: Key) -> dict[str, Any]:
    """The fields of `Trained`, as a dict."""
    params, collections = begin(self.net, key, self.spec.x_shape)
    past = self.guard(collections).init(params)
    return {"params": params, "opt_state": self.tx.init(params), "collections": collections, "past": past}

  def apply(self, state: Any, x: Array, slot: Array) -> Outputs:
    """What the net answers at rest to x [B, ...] and slot [B]."""
    return at_rest(self.net, state.params, state.collections, x, slot)

  def guard(self, collections: Any) -> Guard:
    """The guard of a net with these collections."""
    if self.protect is None:
      return FREE

    def answer(params: Any, collections: Any, batch: Batch) -> Array:
      return at_rest(self.net, params, collections, batch.x, batch.task).logits

    return self.protect(Answer(answer, collections))

  def loss(self, state: Any, at: At, still: Array | None = None) -> LossFn:
    """(params, batch) -> (cross-entropy of the live rows, each with its own task's head; (info, collections))."""

    def loss(params: Any, batch: Batch) -> tuple[Array, tuple[Info, Any]]:
      given = self.net, params, state.collections, batch.x, batch.task, at.key, batch.live
      out, moved = in_training(*given, still=still)
      value, info = self.judged(out, batch)
      return value, (info, moved)

    return loss

  def judged(self, out: Outputs, batch: Batch) -> tuple[Array, Info]:
    """(loss, info) of what the net answers."""
    value = cross_entropy(out.logits, batch)
    right = accuracy(out.logits[: self.current], rows(batch, 0, self.current))
    return value, {"loss": value, "accuracy": right}

  def gradient(self, state: Any, at: At) -> GradientFn:
    """(params, batch) -> (gradient of the loss, (info, collections)), for a method that makes its own of several."""
    return gradient_of(self.loss(state, at))

  def step(
    self,
    at: At,
    state: Any,
    batch: Batch,
    *,
    alike: bool = False,
    gradient: GradientFn | None = None,
    frozen: Any = None,
    rests: Array | bool = False,
    still: Array | None = None,
    **extra: Any,
  ) -> tuple[Any, Info]:
    """One step; where no row is live (an empty memory, padding) nothing moves, the optimizer's state included.

    Args:
      alike: all rows ask for the head of the first.
      gradient: in place of the learner's own.
      frozen, rests: what does not move, see `descend`.
      still: whether the net's statistics do not, see `in_training`.
      extra: handed on to the optimizer.
    """
    if self.plain and gradient is None and frozen is None and rests is False and not extra:
      return self.plain_step(state, batch, alike)
    params, opt_state, past, (info, collections) = descend(
      self.tx,
      self.loss(state, at, still),
      state.params,
      state.opt_state,
      batch,
      at,
      gradient=gradient,
      guard=self.guard(state.collections),
      past=state.past,
      frozen=frozen,
      rests=rests,
      **extra,
    )
    return state.replace(params=params, opt_state=opt_state, collections=collections, past=past), info

  def plain_step(self, state: Any, batch: Batch, alike: bool) -> tuple[Any, Info]:
    """By plain SGD, inside a block or alone; where no row is live the gradient is exactly zero."""
    net, slot, params, C = self.net.clone(heads=1) if alike else self.net, batch.task[0], state.params, self.spec.C

    def loss(params, z):
      return self.judged(net.apply({"params": params}, z, batch.task, method="after_first"), batch)

    moved = params | {"head": own_head(params["head"], slot, C)} if alike else params
    moved, info = blocks.descend(loss, moved, batch.x, dict.fromkeys(params, self.tx.rate))
    if alike:
      moved["head"] = with_head(params["head"], moved["head"], slot, C)
    return state.replace(params=moved), info

  def block(self, step: StepFn, width: int, size: int) -> Block | None:
    """The step of `width` rows in blocks of `size` (`pieces.blocks`), where it is plain SGD and it pays."""
    if self.protect is not None and isinstance(self.tx, PlainSGD):
      blocks.off_under_a_guard(size)
    return blocks.blocked(step, width, size) if self.plain else None

  @property
  def memory_bytes(self) -> int:
    """What the rows that the guard stores would take."""
    return memory_bytes(self.spec, self.guard({}).stored)

  @property
  def bound(self) -> bool:
    """Whether the guard has to know where tasks begin or end."""
    guard = self.guard({})
    return guard.enter is not past_as_it_is or guard.exit is not past_as_it_is

  def edge(self, name: str) -> EdgeFn:
    """What the guard does at the `enter` or the `exit` of a task's training; `keep` where that is nothing."""
    if getattr(self.guard({}), name) is past_as_it_is:
      return keep
    return partial(self.at_edge, name)

  def at_edge(self, name: str, key: Key, state: Any, view: View, clock: Clock) -> Any:
    """The state after the guard's `enter` or `exit`."""
    past = getattr(self.guard(state.collections), name)(key, state.past, state.params, view)
    return state.replace(past=past)


def supervised(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  current: int | None = None,
  guard: Mapping[str, Any] | Guard = FREE,
) -> Learner:
  """A learner of one classifier.

  Args:
    current: how many leading rows of a batch the reported accuracy is about; None is all.
    guard: what holds the net to its past, see `pieces.guards.guarding`.

  Raises:
    ConfigError: a net with gates, or a wrong guard.
  """
  if hasattr(net, "experts"):
    raise ConfigError("this method trains a net without gates: set config.net.name='mlp'")
  return Learner(net, tx, spec, current, guarding(guard, spec))
