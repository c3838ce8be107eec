"""Experts that grow one by one: each starts as a copy of a parent, learns its task, and stays as it is for ever.

An expert is the net with one head. In training it also carries a copy of its parent's head, through which learning
without forgetting (Li and Hoiem 2016) holds it to the parent's answers on the new task's rows; that head is dropped at
the end. Methods keep the record as `state.experts`, take the numbers of `Training` as keywords of their own and say by
`decide` where a new expert comes from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.artifacts import fill, read
from cljax.errors import ConfigError, choose
from cljax.nets.heads import Heads
from cljax.ops import trees
from cljax.ops.losses import accuracy, cross_entropy, distillation, mean_live
from cljax.ops.slots import apply_by_slot
from cljax.ops.trees import put, take
from cljax.types import Array, Batch, Clock, Info, Key, Outputs, Phase, Spec, State, View

SCRATCH, FINETUNE, LWF = range(3)  # how an expert was trained
MODES = ("scratch", "finetune", "lwf")


@flax.struct.dataclass
class Experts:
  params: Any  # of the expert in training: {"net", "old_head"}
  opt_state: Any
  store: Any  # [T + 1, ...] nets; slot T is the root
  classes: Array  # [T + 1, C] bool, live logits of each
  labels: Array  # [T + 1, C] int32, the global label of each logit
  parent: Array  # [T] int32 slot that a task's expert started from, -1 none
  mode: Array  # [T] int32, SCRATCH, FINETUNE or LWF
  finished: Array  # [T + 1] bool


class Training(NamedTuple):
  """How an expert learns its task: L_new + distill_weight * L_old under LwF, L_new alone in the other modes."""

  batch_size: int  # rows a step
  epochs: int  # passes over the task
  warmup_epochs: int  # passes before these that move the new head only; an expert without a parent sits them out
  distill_weight: Array | float  # of L_old, the `distillation` from the frozen parent
  distill_temperature: Array | float


# (key, state, view) -> (state, parent [], mode []); parent -1 starts from scratch, whatever the mode
DecideFn = Callable[[Key, State, View], tuple[State, Array, Array]]


class Growing(NamedTuple):
  init: Callable[[Key], Experts]
  phases: Callable[[DecideFn], tuple[Phase, ...]]
  apply: Callable[[Experts, Array, Array], Outputs]  # each row through the expert of its slot [B]
  apply_all: Callable[[Experts, Array], Array]  # logits [T, B, C]
  answer: Callable[[Any, Array], Array]  # (net of one expert, x [B, ...]) -> logits [B, C]


def growing(net: nn.Module, tx: optax.GradientTransformation, spec: Spec, training: Training) -> Growing:
  """The functions of experts that grow; all modes run the same program.

  Raises:
    ConfigError: a net without heads.
  """
  if hasattr(net, "experts") or not hasattr(net, "heads"):
    raise ConfigError("this method trains nets with heads and without gates: set config.net.name='mlp'")
  batch_size, epochs, warmup_epochs, distill_weight, distill_temperature = training
  net, head, T, C = net.clone(heads=1, parent=None), Heads(1, spec.C, parent=None), spec.T, spec.C

  def run(params: Any, x: Array) -> Outputs:
    out: Any = net.apply({"params": params}, x, jnp.zeros(len(x), jnp.int32))
    return out

  def fresh(key: Key) -> Any:
    return net.init(key, jnp.zeros((1, *spec.x_shape)), jnp.zeros(1, jnp.int32))["params"]

  def init(key: Key) -> Experts:
    store = jax.vmap(lambda t: fresh(jax.random.fold_in(key, t)))(jnp.arange(T + 1))
    first = take(store, jnp.int32(0))
    params = {"net": first, "old_head": first["head"]}
    off, none = jnp.zeros(T + 1, bool), jnp.full(T, -1, jnp.int32)
    labels = jnp.zeros((T + 1, C), jnp.int32)
    return Experts(params, tx.init(params), store, off[:, None] & jnp.zeros(C, bool), labels, none, none, off)

  def begin(key: Key, experts: Experts, view: View, parent: Array, mode: Array) -> Experts:
    new, has = fresh(key), parent >= 0
    old = take(experts.store, jnp.maximum(parent, 0))
    params = {"net": trees.where(has, {**old, "head": new["head"]}, new), "old_head": old["head"]}
    return experts.replace(
      params=params,
      opt_state=tx.init(params),
      classes=experts.classes.at[view.t].set(view.tasks.classes[view.t]),
      labels=experts.labels.at[view.t].set(view.tasks.label_unmap[view.t]),
      parent=experts.parent.at[view.t].set(parent),
      mode=experts.mode.at[view.t].set(jnp.where(has, mode, SCRATCH)),
    )

  def loss(params: Any, experts: Experts, batch: Batch, t: Array) -> tuple[Array, Info]:
    out = run(params["net"], batch.x)
    slot = jnp.maximum(experts.parent[t], 0)
    teacher = run(take(experts.store, slot), batch.x).logits
    student = head.apply({"params": params["old_head"]}, out.features, jnp.zeros(len(batch.x), jnp.int32))
    held = mean_live(distillation(student, teacher, experts.classes[slot], distill_temperature), batch.live)
    value = cross_entropy(out.logits, batch) + jnp.where(experts.mode[t] == LWF, distill_weight, 0.0) * held
    return value, {"loss": value, "accuracy": accuracy(out.logits, batch)}

  def learn(experts: Experts, batch: Batch, t: Array, warmup: bool) -> tuple[Experts, Info]:
    def update(experts):
      grads, info = jax.grad(loss, has_aux=True)(experts.params, experts, batch, t)
      updates, opt_state = tx.update(grads, experts.opt_state, experts.params)
      if warmup:
        still = jax.tree.map(jnp.zeros_like, updates)
        moves = experts.parent[t] >= 0
        still["net"]["head"] = jax.tree.map(lambda leaf: jnp.where(moves, leaf, 0), updates["net"]["head"])
        updates = still
      return experts.replace(params=optax.apply_updates(experts.params, updates), opt_state=opt_state), info

    def rest(experts):
      return experts, {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}

    return jax.lax.cond(batch.live.any(), update, rest, experts)

  def phases(decide: DecideFn) -> tuple[Phase, ...]:
    def start(key: Key, state: Any, view: View, clock: Clock) -> Any:
      state, parent, mode = decide(key, state, view)
      return state.replace(experts=begin(key, state.experts, view, parent, mode))

    def restart(key: Key, state: Any, view: View, clock: Clock) -> Any:
      experts = state.experts
      return state.replace(experts=experts.replace(opt_state=tx.init(experts.params)))

    def finish(key: Key, state: Any, view: View, clock: Clock) -> Any:
      experts = state.experts
      store, finished = put(experts.store, view.t, experts.params["net"]), experts.finished.at[view.t].set(True)
      return state.replace(experts=experts.replace(store=store, finished=finished))

    def stepping(warmup: bool) -> Callable[..., tuple[Any, Info]]:
      def step(key: Key, state: Any, batch: Batch, clock: Clock, view: View) -> tuple[Any, Info]:
        experts, info = learn(state.experts, batch, view.t, warmup)
        return state.replace(experts=experts), info

      return step

    enter = restart if warmup_epochs else start
    fit = Phase("fit", batch_size, stepping(False), epochs=epochs, enter=enter, exit=finish)
    warmup = Phase("warmup", batch_size, stepping(True), epochs=warmup_epochs, enter=start)
    return (warmup, fit) if warmup_epochs else (fit,)

  def apply(experts: Experts, x: Array, slot: Array) -> Outputs:
    own = jax.tree.map(lambda leaf: leaf[:T], experts.store)
    return apply_by_slot(lambda params, x, slot: run(params, x), own, x, slot)._replace(task=slot)

  def apply_all(experts: Experts, x: Array) -> Array:
    return jax.vmap(lambda params: run(params, x).logits)(jax.tree.map(lambda leaf: leaf[:T], experts.store))

  return Growing(init, phases, apply, apply_all, lambda params, x: run(params, x).logits)


def part(experts: Experts, slot: int) -> dict[str, Any]:
  """One expert as a file of its own holds it."""
  return {"net": take(experts.store, slot), "classes": experts.classes[slot], "labels": experts.labels[slot]}


def with_root(experts: Experts, path: str) -> Experts:
  """The experts with that of a file in the root's slot.

  Raises:
    ConfigError: no such file, or an expert of other shapes.
  """
  root = fill(part(experts, 0), read(path), path)
  return experts.replace(
    store=put(experts.store, -1, root["net"]),
    classes=experts.classes.at[-1].set(root["classes"]),
    labels=experts.labels.at[-1].set(root["labels"]),
    finished=experts.finished.at[-1].set(True),
  )


def chained(parent: str, t: Array, first: int = -1) -> Array:
  """[] int32 the parent of task t: the task before it, or `first`, if `parent` is `previous`; -1 if it is `none`."""
  before = jnp.where(t > 0, t - 1, first) if parent == "previous" else jnp.full_like(t, -1)
  return before.astype(jnp.int32)


def chain(parent: str, mode: str) -> DecideFn:
  """Experts that go on one from the other, all in one mode.

  Args:
    parent: `previous`, or `none` for experts from scratch.
    mode: `finetune` or `lwf`.

  Raises:
    ConfigError: an unknown choice.
  """
  choose("config.method.parent", parent, ("previous", "none"))
  always = MODES.index(choose("config.method.mode", mode, ("finetune", "lwf")))

  def decide(key: Key, state: Any, view: View) -> tuple[Any, Array, Array]:
    return state, chained(parent, view.t), jnp.int32(always)

  return decide
