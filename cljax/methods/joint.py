"""Joint training on the rows of all tasks so far, from a fresh start: the oracle that continual learning cannot see. It
is a plain baseline and belongs to no paper."""

import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import declared
from cljax.ops.trees import parameters
from cljax.pieces.learner import Fit, Trained, supervised
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Phase, Spec, View


@declared("method", given=3)
def joint(net: nn.Module, tx: optax.GradientTransformation, spec: Spec, *, fit: Fit = Fit()) -> Method:
  """Starts anew at each task and trains on all rows so far in one shuffled order, each row with its own task's head.

  A step's rows are of any task, and an epoch is a pass over all rows so far.
  """
  learner = supervised(net, tx, spec)

  def init(key: Key) -> Trained:
    return Trained(**learner.init(key))

  def enter(key: Key, state: Trained, view: View, clock: Clock) -> Trained:
    return init(key)

  def step(key: Key, state: Trained, batch: Batch, clock: Clock, view: View) -> tuple[Trained, Info]:
    return learner.step(At(key, clock, view), state, batch)

  def report(state: Trained) -> dict[str, Array]:
    return {"parameters": parameters(state.params), "memory_bytes": jnp.int32(0)}

  together = learner.block(step, fit.batch_size, fit.block)
  phase = Phase("fit", fit.batch_size, step, epochs=fit.epochs, joint=True, block=together, enter=enter)
  return Method(init, (phase,), learner.apply, report, needs_boundaries=True)
