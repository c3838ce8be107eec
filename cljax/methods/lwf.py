"""Learning without forgetting (Li and Hoiem 2016, https://arxiv.org/abs/1606.09282): one network through all tasks,
held to its own earlier answers.

At a task's start the network is copied; on the new task's rows each old head is held to what the copy answers. No row
of an earlier task is stored. With `distill_weight` 0 and no warm-up it is fine-tuning.
"""

from typing import Annotated, Any

import flax.struct
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import above, at_least, declared, free, one_of
from cljax.nets.modes import at_rest, in_training
from cljax.nets.own import check_heads
from cljax.ops.losses import accuracy, cross_entropy, held_to
from cljax.ops.trees import parameters
from cljax.pieces.descent import descend
from cljax.pieces.learner import Passes, Trained, supervised
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Phase, Spec, View


@flax.struct.dataclass
class State(Trained):
  """The network, and the copy that it is held to."""

  teacher: Any = None  # the net as the task found it
  old: Any = None  # [heads, C] bool, live logits of earlier tasks
  teacher_collections: Any = flax.struct.field(default_factory=dict)


@declared("method", given=3)
def lwf(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  passes: Passes = Passes(),
  warmup_epochs: Annotated[int, at_least(0, "passes before these that move the heads only; none in task 1")] = 1,
  distill_weight: Annotated[Array | float, at_least(0, "of the sum over old heads of `distillation`")] = 1.0,
  distill_temperature: Annotated[Array | float, above(0, "that softens teacher and student")] = 2.0,
  weigh_by_tasks: Annotated[bool, free("L_new counts 1/t and L_old 1 - 1/t of it, in task t of 1, 2, ...")] = False,
  rivals: Annotated[
    str, one_of(("old", "seen"), "what an old answer competes with: old classes, or those of the new task, too")
  ] = "old",
) -> Method:
  """Fine-tuning with distillation from the network before the task: L = L_new + distill_weight * L_old.

  With `weigh_by_tasks` the more tasks there are the more the old ones count, as van de Ven and Tolias (2019) have it;
  their L_old is the square of the temperature times that of `distillation`. So is `seen` theirs: under one head old
  answers hold classes of the new task down, too.

  Raises:
    ConfigError: a net without heads, or with gates.
  """
  learner = supervised(net, tx, spec)
  check_heads(net, spec)
  H, C = spec.heads, spec.C

  def init(key: Key) -> State:
    own = learner.init(key)
    return State(**own, teacher=own["params"], old=jnp.zeros((H, C), bool), teacher_collections=own["collections"])

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(teacher=state.params, teacher_collections=state.collections)

  def restart(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(opt_state=tx.init(state.params))

  def joined(old: Array, view: View) -> Array:
    """[heads, C] with the classes of task t, in its head."""
    head = jnp.minimum(view.t, H - 1)
    return old.at[head].set(old[head] | view.tasks.classes[view.t])

  def leave(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(old=joined(state.old, view))

  def all_heads(params: Any, features: Array) -> Array:
    """[B, heads, C] the answers of every head."""
    return (features @ params["head"]["kernel"] + params["head"]["bias"]).reshape(-1, H, C)

  def loss_of(state: State, at: At):
    def loss(params: Any, batch: Batch) -> tuple[Array, tuple[Info, Any]]:
      out, moved = in_training(net, params, state.collections, batch.x, batch.task, at.key, batch.live)
      features = at_rest(net, state.teacher, state.teacher_collections, batch.x, batch.task).features
      before = all_heads(state.teacher, features)
      others = joined(state.old, at.view) if rivals == "seen" else None
      held = held_to(all_heads(params, out.features), before, state.old, batch.live, distill_temperature, others)
      value = cross_entropy(out.logits, batch)
      if weigh_by_tasks:
        value = value / (at.view.t + 1) + distill_weight * held * at.view.t / (at.view.t + 1)
      else:
        value = value + distill_weight * held
      return value, ({"loss": value, "accuracy": accuracy(out.logits, batch)}, moved)

    return loss

  def stepping(warmup: bool):
    def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
      at, still = At(key, clock, view), dict.fromkeys(state.params, True) | {"head": view.t == 0}
      params, opt_state, _, (info, collections) = descend(
        tx, loss_of(state, at), state.params, state.opt_state, batch, at, frozen=still if warmup else None
      )
      return state.replace(params=params, opt_state=opt_state, collections=collections), info

    return step

  def report(state: State) -> dict[str, Array]:
    return {"parameters": parameters(state.params), "memory_bytes": jnp.int32(0)}

  enter_fit = restart if warmup_epochs else enter
  fit = Phase("fit", passes.batch_size, stepping(False), epochs=passes.epochs, enter=enter_fit, exit=leave)
  warmup = Phase("warmup", passes.batch_size, stepping(True), epochs=warmup_epochs, enter=enter)
  return Method(init, (warmup, fit) if warmup_epochs else (fit,), learner.apply, report, needs_boundaries=True)
