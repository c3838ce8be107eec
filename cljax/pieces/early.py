"""Early stopping inside a fixed number of epochs: the best epoch is kept, and what has stopped stays as it is."""

from typing import Any

import flax.struct
import jax.numpy as jnp
import optax

from cljax.ops import trees
from cljax.types import Array


@flax.struct.dataclass
class Best:
  params: Any  # of the best epoch so far
  loss: Array  # [] its loss on the validation rows
  waited: Array  # [] int32 epochs since
  stopped: Array  # [] bool
  epochs: Array  # [] int32 epochs until it stopped


def begin(params: Any) -> Best:
  """Nothing measured yet."""
  return Best(params, jnp.float32(jnp.inf), jnp.int32(0), jnp.array(False), jnp.int32(0))


def measure(best: Best, params: Any, loss: Array, patience: int) -> Best:
  """After an epoch: keeps the params where the loss is a new least one, stops after `patience` epochs without."""
  better = ~best.stopped & (loss < best.loss)
  waited = jnp.where(better, 0, best.waited + 1).astype(jnp.int32)
  return Best(
    trees.where(better, params, best.params),
    jnp.where(better, loss, best.loss),
    waited,
    best.stopped | (waited >= patience),
    jnp.where(best.stopped, best.epochs, best.epochs + 1),
  )


def update(rests: Array, tx: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
  """(params, opt_state) after a step of the optimizer, or as they are where it rests []."""
  updates, new = tx.update(grads, opt_state, params)
  return trees.where(rests, params, optax.apply_updates(params, updates)), trees.where(rests, opt_state, new)
