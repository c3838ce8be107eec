"""Learning without forgetting (Li and Hoiem 2016): one network through all tasks, held to its own earlier answers.

At a task's start the network is copied; on the new task's rows each old head is held to what the copy answers. No row
of an earlier task is stored. With `distill_weight` 0 and no warm-up it is fine-tuning.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.ops.losses import accuracy, cross_entropy, distillation, mean_live
from cljax.ops.trees import parameters
from cljax.pieces.learner import supervised
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State:
  params: Any  # of the net
  opt_state: Any  # of the optimizer
  teacher: Any  # the net as the task found it
  old: Array  # [heads, C] bool, live logits of earlier tasks


def lwf(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: int = 64,
  epochs: int = 5,
  warmup_epochs: int = 1,
  distill_weight: float = 1.0,
  distill_temperature: float = 2.0,
) -> Method:
  """Fine-tuning with distillation from the network before the task.

  Args:
    batch_size, epochs: rows a step; passes over each task.
    warmup_epochs: passes before these that move the heads only; none in the first task.
    distill_weight, distill_temperature: L = L_new + weight * sum over old heads of `distillation`.
  """
  learner = supervised(net, tx, spec)
  H, C = spec.heads, spec.C

  def init(key: Key) -> State:
    params, opt_state = learner.init(key)
    return State(params, opt_state, params, jnp.zeros((H, C), bool))

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(teacher=state.params)

  def restart(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(opt_state=tx.init(state.params))

  def finish(key: Key, state: State, view: View, clock: Clock) -> State:
    head = jnp.minimum(view.t, H - 1)
    return state.replace(old=state.old.at[head].set(state.old[head] | view.tasks.classes[view.t]))

  def all_heads(params: Any, features: Array) -> Array:
    """[B, heads, C] the answers of every head."""
    return (features @ params["head"]["kernel"] + params["head"]["bias"]).reshape(-1, H, C)

  def stepping(warmup: bool):
    def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
      def loss(params):
        out = learner.apply(params, batch.x, batch.task)
        before = all_heads(state.teacher, learner.apply(state.teacher, batch.x, batch.task).features)
        held = distillation(all_heads(params, out.features), before, state.old, distill_temperature).sum(axis=-1)
        value = cross_entropy(out.logits, batch) + distill_weight * mean_live(held, batch.live)
        return value, {"loss": value, "accuracy": accuracy(out.logits, batch)}

      def update(state):
        grads, info = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        if warmup:
          still = jax.tree.map(jnp.zeros_like, updates)
          updates = {**still, "head": jax.tree.map(lambda leaf: jnp.where(view.t > 0, leaf, 0), updates["head"])}
        return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state), info

      def rest(state):
        return state, {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}

      return jax.lax.cond(batch.live.any(), update, rest, state)

    return step

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return learner.apply(state.params, x, slot)

  def report(state: State) -> dict[str, Array]:
    return {"parameters": parameters(state.params), "memory_bytes": jnp.int32(0)}

  enter_fit = restart if warmup_epochs else enter
  fit = Phase("fit", batch_size, stepping(False), epochs=epochs, enter=enter_fit, exit=finish)
  warmup = Phase("warmup", batch_size, stepping(True), epochs=warmup_epochs, enter=enter)
  return Method(init, (warmup, fit) if warmup_epochs else (fit,), apply, report, told=True)
