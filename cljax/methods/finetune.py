"""Fine-tuning: one network trained on task after task, with nothing against forgetting. The lower bound.

With the MLP of widths 256-256 this is the "shared bottom" of Collier et al. 2020.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.ops.trees import parameters
from cljax.pieces.learner import supervised
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State:
  params: Any  # of the net
  opt_state: Any  # of the optimizer


def finetune(
  net: nn.Module, tx: optax.GradientTransformation, spec: Spec, *, batch_size: int = 10, epochs: int = 1, block: int = 0
) -> Method:
  """Plain training on each task in turn; the optimizer's state goes on from task to task.

  Args:
    batch_size: rows a step.
    epochs: passes over each task.
    block: steps that share a pass over the first layer's weights (`pieces.blocks`); 0 chooses, 1 is step by step.
  """
  learner = supervised(net, tx, spec)

  def init(key: Key) -> State:
    return State(*learner.init(key))

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    params, opt_state, info = learner.learn(state.params, state.opt_state, batch, alike=True)
    return State(params, opt_state), info

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return learner.apply(state.params, x, slot)

  def report(state: State) -> dict[str, Array]:
    return {"parameters": parameters(state.params), "memory_bytes": jnp.int32(0)}

  phase = Phase("fit", batch_size, step, epochs=epochs, block=learner.block(step, batch_size, block))
  return Method(init, (phase,), apply, report)
