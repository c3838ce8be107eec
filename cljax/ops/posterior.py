"""Which of K configurations of G binary choices explains a batch: likelihood, posterior, prior.

Configuration k takes the first side of choice g where bit g of k is 0: 0 is the first side everywhere, choice 0 toggles
fastest. All in log space: a batch's log-likelihood reaches -75 nats, where float32 products are 0.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cljax.types import Array


def configurations(count: int) -> np.ndarray:
  """[2^count, count] bool, True where a configuration takes the first side."""
  return (np.arange(2**count)[:, None] >> np.arange(count)) % 2 == 0


def log_likelihood(logp: Array, live: Array, mean: bool = False) -> Array:
  """[K] of a batch: the log of the product of its live rows' probabilities, or of their mean.

  Args:
    logp: [K, B] log-probability of each row's label under each configuration.
    live: [B] bool.
  """
  chex.assert_rank([logp, live], [2, 1])
  chex.assert_type(live, bool)
  if not mean:
    return jnp.where(live, logp, 0).sum(axis=1)
  return jax.nn.logsumexp(jnp.where(live, logp, -jnp.inf), axis=1) - jnp.log(jnp.maximum(live.sum(), 1))


def posterior(prior: Array, likelihood: Array) -> Array:
  """[K] prior times likelihood, normalised: Equation 2 of Lee et al. 2021 (https://proceedings.mlr.press/v139/lee21a.html).

  Args:
    prior: [K]; likelihood: [K], its logarithm.
  """
  chex.assert_equal_shape([prior, likelihood])
  chex.assert_rank(prior, 1)
  return jax.nn.softmax(jnp.log(prior) + likelihood)


def prior_of(weights: Array, smoothing: float) -> Array:
  """[K] what was counted, or the sum of posteriors, as probabilities; uniform where nothing was.

  Args:
    weights: [K] how often each configuration was the most probable (Equation 1 with `smoothing` 1), or sums of
      posteriors (`smoothing` 0).
  """
  chex.assert_rank(weights, 1)
  chex.assert_type(weights, float)
  K = weights.shape[0]
  total = weights.sum() + smoothing * K
  return jnp.where(total > 0, (weights + smoothing) / jnp.where(total > 0, total, 1), 1 / K)


def counted(weights: Array, q: Array, whole: bool) -> Array:
  """[K] the weights after a posterior q [K]: one more for the most probable (the first of equals), or q itself."""
  chex.assert_equal_shape([weights, q])
  return weights + (q if whole else jax.nn.one_hot(q.argmax(), len(q), dtype=weights.dtype))


def leaning(weight: Array | float, best: int, count: int) -> Array:
  """[count] a fixed posterior: `weight` on one configuration, the rest spread evenly over the others."""
  others = (1 - weight) / max(count - 1, 1)
  return jnp.where(jnp.arange(count) == best, weight, others)


def effective(prior: Array) -> Array:
  """[] over how many configurations a prior [K] is spread, the exponential of its entropy."""
  chex.assert_rank(prior, 1)
  return jnp.exp(-jax.scipy.special.xlogy(prior, prior).sum())


def orthogonality(matrix: Array) -> Array:
  """[] the Frobenius norm of U^T U - I, not squared; its slope at an orthogonal U is 0."""
  chex.assert_rank(matrix, 2)
  square = ((matrix.T @ matrix - jnp.eye(matrix.shape[1], dtype=matrix.dtype)) ** 2).sum()
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def glorot_limit(shape: tuple[int, ...]) -> float:
  """Of the uniform distribution that TensorFlow 1 draws variables from: sqrt(6 / (fan in + fan out)), a vector's
  sqrt(3 / n)."""
  if len(shape) == 1:
    return math.sqrt(3 / shape[0])
  field = math.prod(shape[:-2])
  return math.sqrt(6 / (field * (shape[-2] + shape[-1])))
