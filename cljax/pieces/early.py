"""Early stopping inside a fixed number of epochs: the best epoch is kept, and what has stopped stays as it is.

A step rests where it has stopped: `descend(..., rests=best.stopped)`.
"""

from typing import Annotated, Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from cljax.declared import at_least
from cljax.ops import trees
from cljax.types import Array

NEVER = 2**31 - 1  # epochs


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


class Cooling(NamedTuple):
  """Keywords of a rate that drops where the validation loss stays, until training stops."""

  patience: Annotated[
    int, at_least(0, "epochs without a new least validation loss after which the rate drops; 0: it never does")
  ] = 0
  rate_drop: Annotated[Array | float, at_least(1, "what the rate is divided by then")] = 3.0
  least_rate: Annotated[Array | float, at_least(0, "share of the rate below which training stops", 1)] = 0.002


@flax.struct.dataclass
class Cooled:
  """A rate on its way down."""

  best: Best  # `waited` counts from the last drop
  rate: Array  # [] what the updates are multiplied by

  def slowed(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer with updates of this rate; its state is the same."""

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
      updates, state = tx.update(gradient, state, params)
      return jax.tree.map(lambda leaf: self.rate * leaf, updates), state

    return optax.GradientTransformation(tx.init, update)


def cool(cooled: Cooled, params: Any, loss: Array, by: Cooling) -> Cooled:
  """After an epoch: keeps the params where the loss [] is a new least one, and drops the rate where it is time."""
  best = measure(cooled.best, params, loss, NEVER)
  drops = ~best.stopped & (best.waited >= by.patience)
  rate = jnp.where(drops, cooled.rate / by.rate_drop, cooled.rate)
  return Cooled(best.replace(waited=jnp.where(drops, 0, best.waited), stopped=rate < by.least_rate), rate)
