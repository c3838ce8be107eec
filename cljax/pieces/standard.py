"""What gates of features see: the features of a picture, standardised once for all of them and squashed to (0, 1)."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.loops import mean_over
from cljax.nets.features import FeatureFn
from cljax.types import Array, Rows, View

LEAST_DEVIATION = 1e-6  # of a feature; a constant one would be divided by zero


class Standard(NamedTuple):
  """One frozen standardisation for all gates, so that their errors share a target."""

  mean: Array  # [d]
  std: Array  # [d] at least 1e-6
  constant: Array  # [] int32 features that never change


def standard_of(phi: FeatureFn, view: View, rows: Rows) -> Standard:
  """Mean and standard deviation of phi over one split of task t."""
  mean = mean_over(lambda batch: phi(batch.x), view, rows)
  variance = mean_over(lambda batch: (phi(batch.x) - mean) ** 2, view, rows)
  std = jnp.sqrt(variance)
  return Standard(mean, jnp.maximum(std, LEAST_DEVIATION), (std < LEAST_DEVIATION).sum(dtype=jnp.int32))


def target_of(phi: FeatureFn, standard: Standard, x: Array) -> Array:
  """[B, d] in (0, 1): sigmoid((phi(x) - mean) / std), the input and the target of every autoencoder."""
  chex.assert_rank([standard.mean, standard.std], 1)
  return jax.nn.sigmoid((phi(x) - standard.mean) / standard.std)
