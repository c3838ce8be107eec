"""Experts that grow one by one: each starts as a copy of a parent, learns its task, and stays as it is for ever.

An expert is the net with one head. In training it also carries a copy of its parent's head, through which learning
without forgetting (Li and Hoiem 2016, https://arxiv.org/abs/1606.09282) holds it to the parent's answers on the new
task's rows; that head is dropped at the end. In its place, elastic weight consolidation (Kirkpatrick et al. 2017,
https://arxiv.org/abs/1612.00796) holds the weights to the parent's, each by the Fisher information of the parent's
task; the new head is free. A net's other collections, such as BatchNorm's statistics, belong to each
expert: a new one goes on from its parent's. Methods keep the experts as `state.experts` and say by `decide` where a new
one comes from.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.artifacts import fill
from cljax.declared import above, at_least, one_of
from cljax.errors import ConfigError
from cljax.nets.heads import Heads
from cljax.nets.modes import at_rest, begin, in_training
from cljax.nets.own import check_heads
from cljax.ops import trees
from cljax.ops.losses import accuracy, cross_entropy, distillation, mean_live
from cljax.ops.slots import apply_by_slot
from cljax.ops.trees import put, take
from cljax.pieces.descent import LossFn, descend
from cljax.pieces.guards.examples import fisher_of
from cljax.pieces.guards.penalties import pull
from cljax.types import Array, At, Batch, Clock, Info, Key, Outputs, Phase, Spec, State, View

SCRATCH, FINETUNE, LWF, EWC = range(4)  # how an expert was trained
MODES = ("scratch", "finetune", "lwf", "ewc")


@flax.struct.dataclass
class Experts:
  """The experts of all tasks, and the one in training."""

  params: Any  # of the expert in training: {"net", "old_head"}
  opt_state: Any
  store: Any  # [T + 1, ...] nets; slot T is the root
  classes: Array  # [T + 1, C] bool, live logits of each
  labels: Array  # [T + 1, C] int32, the global label of each logit
  parent: Array  # [T] int32 slot that a task's expert started from, -1 none
  mode: Array  # [T] int32, SCRATCH, FINETUNE, LWF or EWC
  finished: Array  # [T + 1] bool
  collections: Any = flax.struct.field(default_factory=dict)  # of the expert in training
  store_collections: Any = flax.struct.field(default_factory=dict)  # [T + 1, ...]
  fisher: Any = flax.struct.field(default_factory=dict)  # [T + 1, ...] of all but heads; {} where none learns by EWC


class Training(NamedTuple):
  """How an expert learns its task: L_new + distill_weight * L_old under LwF, L_new alone from scratch and fine-tuned,
  L_new + ewc_strength / 2 * sum F (w - w_parent)^2 under EWC, over all weights but the head's."""

  batch_size: Annotated[int, at_least(1, "rows a step of an expert", 1_000_000)] = 64
  epochs: Annotated[int, at_least(1, "passes of an expert over its task", 1_000_000)] = 5
  warmup_epochs: Annotated[
    int, at_least(0, "passes before these that move the new head only; an expert without a parent sits them out", 10**6)
  ] = 1
  distill_weight: Annotated[Array | float, at_least(0, "of L_old, the `distillation` from the frozen parent")] = 1.0
  distill_temperature: Annotated[Array | float, above(0, "that softens parent and child")] = 2.0
  ewc_strength: Annotated[Array | float, at_least(0, "of EWC's pull to the parent; 0 is fine-tuning")] = 10.0
  fisher_rows: Annotated[int, at_least(0, "rows of a task that EWC's Fisher is taken over; 0: all")] = 0


class Chain(NamedTuple):
  """Experts that go on one from the other, all in one mode."""

  parent: Annotated[str, one_of(("previous", "none"), "where an expert starts: at the one before, or from scratch")] = (
    "previous"
  )
  mode: Annotated[str, one_of(MODES[1:], "how an expert with a parent learns")] = MODES[FINETUNE]

  def decide(self, key: Key, state: State, view: View) -> tuple[State, Array, Array]:
    """(state, parent [], mode []) of a new expert."""
    return state, chained(self.parent, view.t), jnp.int32(MODES.index(self.mode))

  @property
  def consolidates(self) -> bool:
    """Whether an expert may learn by EWC."""
    return self.mode == MODES[EWC]


# (key, state, view) -> (state, parent [], mode []); parent -1 starts from scratch, whatever the mode
DecideFn = Callable[[Key, State, View], tuple[State, Array, Array]]


class ExpertLearner(NamedTuple):
  """The functions of experts that grow, on states with a field `experts`; all modes run the same program, to which
  EWC's pull is added where an expert may learn by it."""

  net: Any  # of one expert, with one head
  tx: Any
  spec: Spec
  training: Training
  consolidates: bool = False  # each expert keeps the Fisher of its task

  def init(self, key: Key) -> Experts:
    """Before the first task: every slot holds a net of its own, and none has learnt."""
    T, C = self.spec.T, self.spec.C
    fresh = jax.vmap(lambda t: begin(self.net, jax.random.fold_in(key, t), self.spec.x_shape))
    store, store_collections = fresh(jnp.arange(T + 1))
    first, collections = take((store, store_collections), jnp.int32(0))
    params = {"net": first, "old_head": first["head"]}
    none, off = jnp.full(T, -1, jnp.int32), jnp.zeros(T + 1, bool)
    return Experts(
      params=params,
      opt_state=self.tx.init(params),
      store=store,
      classes=jnp.zeros((T + 1, C), bool),
      labels=jnp.zeros((T + 1, C), jnp.int32),
      parent=none,
      mode=none,
      finished=off,
      collections=collections,
      store_collections=store_collections,
      fisher=jax.tree.map(jnp.zeros_like, body(store)) if self.consolidates else {},
    )

  def enter(self, decide: DecideFn, key: Key, state: Any, view: View, clock: Clock) -> Any:
    """The expert of task t starts: a copy of its parent with a new head, or anew."""
    state, parent, mode = decide(key, state, view)
    experts, has, t = state.experts, parent >= 0, view.t
    new, collections = begin(self.net, key, self.spec.x_shape)
    old, old_collections = take((experts.store, experts.store_collections), jnp.maximum(parent, 0))
    params = {"net": trees.where(has, {**old, "head": new["head"]}, new), "old_head": old["head"]}
    experts = experts.replace(
      params=params,
      opt_state=self.tx.init(params),
      classes=experts.classes.at[t].set(view.tasks.classes[t]),
      labels=experts.labels.at[t].set(view.tasks.label_unmap[t]),
      parent=experts.parent.at[t].set(parent),
      mode=experts.mode.at[t].set(jnp.where(has, mode, SCRATCH)),
      collections=trees.where(has, old_collections, collections),
    )
    return state.replace(experts=experts)

  def restart(self, key: Key, state: Any, view: View, clock: Clock) -> Any:
    """After the warm-up: the optimizer starts anew."""
    experts = state.experts
    return state.replace(experts=experts.replace(opt_state=self.tx.init(experts.params)))

  def leave(self, key: Key, state: Any, view: View, clock: Clock) -> Any:
    """The expert of task t is finished."""
    experts, t = state.experts, view.t
    own = experts.params["net"], experts.collections
    store, collections = put((experts.store, experts.store_collections), t, own)
    finished = experts.finished.at[t].set(True)
    experts = experts.replace(store=store, store_collections=collections, finished=finished)
    if self.consolidates:
      experts = experts.replace(fisher=put(experts.fisher, t, body(self.fisher(*own, view))))
    return state.replace(experts=experts)

  def fisher(self, params: Any, collections: Any, view: View) -> Any:
    """The diagonal of the Fisher matrix of task t at an expert's weights, with the labels of the data."""

    def answer(params: Any, batch: Batch) -> Array:
      return self.answer(params, collections, batch.x).logits

    return fisher_of(answer, params, view, most=self.training.fisher_rows)

  def loss(self, experts: Experts, at: At) -> LossFn:
    """(params, batch) -> (L_new, under LwF with L_old, under EWC with its pull; (info, collections))."""
    weight, temperature = self.training.distill_weight, self.training.distill_temperature
    head, t = Heads(1, self.spec.C, parent=None), at.view.t
    parent = jnp.maximum(experts.parent[t], 0)
    teacher, teacher_collections = take((experts.store, experts.store_collections), parent)

    def loss(params: Any, batch: Batch) -> tuple[Array, tuple[Info, Any]]:
      slot = jnp.zeros(len(batch.x), jnp.int32)
      out, moved = in_training(self.net, params["net"], experts.collections, batch.x, slot, at.key, batch.live)
      student = head.apply({"params": params["old_head"]}, out.features, slot)
      before = at_rest(self.net, teacher, teacher_collections, batch.x, slot).logits
      held = mean_live(distillation(student, before, experts.classes[parent], temperature), batch.live)
      value = cross_entropy(out.logits, batch) + jnp.where(experts.mode[t] == LWF, weight, 0.0) * held
      if self.consolidates:
        strength = jnp.where(experts.mode[t] == EWC, self.training.ewc_strength, 0.0)
        value += strength / 2 * pull(take(experts.fisher, parent), body(params["net"]), body(teacher))
      return value, ({"loss": value, "accuracy": accuracy(out.logits, batch)}, moved)

    return loss

  def step(self, warmup: bool, key: Key, state: Any, batch: Batch, clock: Clock, view: View) -> tuple[Any, Info]:
    """One step of the expert in training; in the warm-up its new head alone moves, and only where it has a parent."""
    experts, at = state.experts, At(key, clock, view)
    still = dict.fromkeys(experts.params["net"], True) | {"head": experts.parent[view.t] < 0}
    params, opt_state, _, (info, collections) = descend(
      self.tx,
      self.loss(experts, at),
      experts.params,
      experts.opt_state,
      batch,
      at,
      frozen={"net": still, "old_head": True} if warmup else None,
    )
    experts = experts.replace(params=params, opt_state=opt_state, collections=collections)
    return state.replace(experts=experts), info

  def phases(self, decide: DecideFn) -> tuple[Phase, ...]:
    """The warm-up, where there is one, and the fit."""
    batch_size, epochs, warmup_epochs, *_ = self.training
    enter = partial(self.enter, decide)
    fit = Phase("fit", batch_size, partial(self.step, False), epochs=epochs, exit=self.leave)
    if not warmup_epochs:
      return (fit._replace(enter=enter),)
    warmup = Phase("warmup", batch_size, partial(self.step, True), epochs=warmup_epochs, enter=enter)
    return warmup, fit._replace(enter=self.restart)

  def answer(self, params: Any, collections: Any, x: Array) -> Outputs:
    """What one expert answers to x [B, ...]."""
    return at_rest(self.net, params, collections, x, jnp.zeros(len(x), jnp.int32))

  def of_tasks(self, experts: Experts) -> Any:
    """(params, collections) [T, ...] of all experts but the root."""
    return jax.tree.map(lambda leaf: leaf[: self.spec.T], (experts.store, experts.store_collections))

  def apply(self, experts: Experts, x: Array, slot: Array) -> Outputs:
    """Each row of x [B, ...] through the expert of its slot [B]."""
    chex.assert_rank(slot, 1)
    chex.assert_type(slot, int)
    out: Outputs = apply_by_slot(lambda own, x, slot: self.answer(own[0], own[1], x), self.of_tasks(experts), x, slot)
    return out._replace(task=slot)

  def apply_all(self, experts: Experts, x: Array) -> Array:
    """[T, B, C] the logits of all experts."""
    return jax.vmap(lambda own: self.answer(own[0], own[1], x).logits)(self.of_tasks(experts))


def body(params: Any) -> Any:
  """The params of an expert but for its head, which is its own."""
  return {name: tree for name, tree in params.items() if name != "head"}


def expert_learner(
  net: nn.Module, tx: optax.GradientTransformation, spec: Spec, training: Training, consolidates: bool = False
) -> ExpertLearner:
  """The learner of experts of one net, whatever heads that has.

  Args:
    consolidates: whether an expert may learn by EWC, so that each keeps the Fisher of its task.

  Raises:
    ConfigError: a net without heads.
  """
  if hasattr(net, "experts") or not hasattr(net, "heads"):
    raise ConfigError("this method trains nets with heads and without gates: set config.net.name='mlp'")
  alone = net.clone(heads=1, parent=None)
  check_heads(alone, spec._replace(heads=1))
  return ExpertLearner(alone, tx, spec, training, consolidates)


def part(experts: Experts, slot: int) -> dict[str, Any]:
  """One expert as a file of its own holds it, with the Fisher of its task where one is kept."""
  net, collections = take((experts.store, experts.store_collections), slot)
  own = {"net": net, "classes": experts.classes[slot], "labels": experts.labels[slot], "collections": collections}
  return own | {"fisher": take(experts.fisher, slot)}


def with_root(experts: Experts, leaves: Mapping[str, Array], source: str) -> Experts:
  """The experts with that of a file in the root's slot.

  Args:
    leaves: of the file, by their paths.
    source: the file, for a message.

  Raises:
    ConfigError: an expert of other shapes.
  """
  root = fill(part(experts, 0), leaves, source)
  return experts.replace(
    store=put(experts.store, -1, root["net"]),
    store_collections=put(experts.store_collections, -1, root["collections"]),
    fisher=put(experts.fisher, -1, root["fisher"]),
    classes=experts.classes.at[-1].set(root["classes"]),
    labels=experts.labels.at[-1].set(root["labels"]),
    finished=experts.finished.at[-1].set(True),
  )


def chained(parent: str, t: Array, first: int = -1) -> Array:
  """[] int32 the parent of task t: the task before it, or `first`, if `parent` is `previous`; -1 if it is `none`."""
  chex.assert_rank(t, 0)
  before = jnp.where(t > 0, t - 1, first) if parent == "previous" else jnp.full_like(t, -1)
  return before.astype(jnp.int32)
