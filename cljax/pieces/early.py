"""Early stopping inside a fixed number of epochs: the best epoch is kept, and what has stopped stays as it is.

A step rests where it has stopped: `descend(..., rests=best.stopped)`.
"""

from typing import Any

import chex
import flax.struct
import jax.numpy as jnp

from cljax.ops import trees
from cljax.types import Array


@flax.struct.dataclass
class Best:
  """The best epoch so far, and how long ago it was."""

  params: Any  # of the best epoch so far
  loss: Array  # [] its loss on the validation rows
  waited: Array  # [] int32 epochs since
  stopped: Array  # [] bool
  epochs: Array  # [] int32 epochs until it stopped


def begin(params: Any) -> Best:
  """Nothing measured yet."""
  return Best(params, jnp.float32(jnp.inf), jnp.int32(0), jnp.array(False), jnp.int32(0))


def measure(best: Best, params: Any, loss: Array, patience: int) -> Best:
  """After an epoch: keeps the params where the loss [] is a new least one, stops after `patience` epochs without."""
  chex.assert_rank(loss, 0)
  chex.assert_trees_all_equal_shapes_and_dtypes(best.params, params)
  better = ~best.stopped & (loss < best.loss)
  waited = jnp.where(better, 0, best.waited + 1).astype(jnp.int32)
  return Best(
    trees.where(better, params, best.params),
    jnp.where(better, loss, best.loss),
    waited,
    best.stopped | (waited >= patience),
    jnp.where(best.stopped, best.epochs, best.epochs + 1),
  )
