"""One network for each task, all trained apart: no forgetting, no transfer, T times the parameters."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.ops.slots import apply_by_slot
from cljax.ops.trees import parameters, put, take
from cljax.pieces.learner import supervised
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State:
  params: Any  # of the network in training
  opt_state: Any  # of the network in training
  store: Any  # [T, ...] the networks of all tasks, from their own random start


def single(
  net: nn.Module, tx: optax.GradientTransformation, spec: Spec, *, batch_size: int = 10, epochs: int = 1, block: int = 0
) -> Method:
  """Trains the network of the current task only; a task's row is answered by its own network.

  The network in training is kept out of the stack, so that a step does not carry all T of them.

  Args:
    batch_size: rows a step.
    epochs: passes over each task.
    block: steps that share a pass over the first layer's weights (`pieces.blocks`); 0 chooses, 1 is step by step.
  """
  learner = supervised(net, tx, spec)

  def init(key: Key) -> State:
    store = jax.vmap(lambda t: learner.init(jax.random.fold_in(key, t))[0])(jnp.arange(spec.T))
    params = take(store, jnp.int32(0))
    return State(params, tx.init(params), store)

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    params = take(state.store, view.t)
    return state.replace(params=params, opt_state=tx.init(params))

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    params, opt_state, info = learner.learn(state.params, state.opt_state, batch, alike=True)
    return state.replace(params=params, opt_state=opt_state), info

  def finish(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(store=put(state.store, view.t, state.params))

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return apply_by_slot(learner.apply, state.store, x, slot)

  def report(state: State) -> dict[str, Array]:
    return {"parameters": parameters(state.store), "memory_bytes": jnp.int32(0)}

  together = learner.block(step, batch_size, block)
  phase = Phase("fit", batch_size, step, epochs=epochs, block=together, enter=enter, exit=finish)
  return Method(init, (phase,), apply, report, told=True)
