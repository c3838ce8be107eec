"""Joint training on the rows of all tasks so far, from a fresh start: the oracle that continual learning cannot see."""

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


def joint(
  net: nn.Module, tx: optax.GradientTransformation, spec: Spec, *, batch_size: int = 10, epochs: int = 1, block: int = 0
) -> Method:
  """Starts anew at each task and trains on all rows so far in one shuffled order, each row with its own task's head.

  Args:
    batch_size: rows a step, of any task.
    epochs: passes over all rows so far.
    block: steps that share a pass over the first layer's weights (`pieces.blocks`); 0 chooses, 1 is step by step.
  """
  learner = supervised(net, tx, spec)

  def init(key: Key) -> State:
    return State(*learner.init(key))

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    return init(key)

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    params, opt_state, info = learner.learn(state.params, state.opt_state, batch)
    return State(params, opt_state), info

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return learner.apply(state.params, x, slot)

  def report(state: State) -> dict[str, Array]:
    return {"parameters": parameters(state.params), "memory_bytes": jnp.int32(0)}

  together = learner.block(step, batch_size, block)
  phase = Phase("fit", batch_size, step, epochs=epochs, joint=True, block=together, enter=enter)
  return Method(init, (phase,), apply, report, told=True)
