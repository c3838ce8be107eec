"""Every random number is named by a position: a seed, a purpose, a task, a phase, then an epoch or a step.

No key lives in a state. So resume, and cutting a run anywhere, give the same bits.
"""

import jax

from cljax.types import Array, Key

INIT, STREAM, TRAIN, META, HEADS = range(5)  # purposes of a seed's key

# Uses of a phase's key: an order takes the epoch beside it, all others the step within this task's phase.
ORDER, PLAN, STEP, ENTER, TICK, EXIT, VISIT = range(7)


def keys_of(seeds: jax.Array, positions: jax.Array) -> jax.Array:
  """[S] keys: key(seed), then a fold for each of the positions (purpose, task, phase)."""

  def one(seed):
    key = jax.random.key(seed)
    for i in range(positions.shape[0]):
      key = jax.random.fold_in(key, positions[i])
    return key

  return jax.vmap(one)(seeds)


def use(key: Key, purpose: int, position: Array) -> Key:
  """The key of one use at one position."""
  return jax.random.fold_in(jax.random.fold_in(key, purpose), position)
