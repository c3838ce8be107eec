"""The maths of Expert Gate's gate (Aljundi et al. 2017, sections 3.1 to 3.3): errors, probabilities, relatedness."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cljax.fit import mean_over
from cljax.nets.features import FeatureFn
from cljax.types import Array, Routes, Rows, View

LEAST_DEVIATION = 1e-6  # of a feature; a constant one would be divided by zero
LEAST_ERROR = 1e-12


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
  return jax.nn.sigmoid((phi(x) - standard.mean) / standard.std)


def entropy_error(logits: Array, target: Array) -> Array:
  """[...] binary cross-entropy summed over features: the training loss of a row."""
  return optax.sigmoid_binary_cross_entropy(logits, target).sum(axis=-1)


def squared_error(logits: Array, target: Array) -> Array:
  """[...] squared error summed over features: what gate and relatedness go by."""
  return ((jax.nn.sigmoid(logits) - target) ** 2).sum(axis=-1)


def gate_probabilities(errors: Array, temperature: Array | float) -> Array:
  """softmax(-errors / temperature) over the last axis; an error that is not finite gets 0, as do all where none is."""
  known = jnp.isfinite(errors)
  least = jnp.where(known, errors, jnp.inf).min(axis=-1, keepdims=True)
  weight = jnp.where(known, jnp.exp((jnp.where(known, least, 0) - jnp.where(known, errors, 0)) / temperature), 0)
  return weight / jnp.maximum(weight.sum(axis=-1, keepdims=True), 1e-30)


def gate_choice(errors: Array) -> Array:
  """int32 argmin of the errors [..., T]: the lowest place among equals, -1 where none is finite."""
  known = jnp.isfinite(errors)
  choice = jnp.where(known, errors, jnp.inf).argmin(axis=-1)
  return jnp.where(known.any(axis=-1), choice, -1).astype(jnp.int32)


def active(routes: Routes, classes: Array, labels: Array, above: Array | float) -> Array:
  """[B, T] bool: the best expert, and those of the same labels whose probability exceeds `above`.

  Args:
    classes, labels: [T, C] the live logits of each expert, and the global label of each logit.
  """
  best = jnp.maximum(routes.slot, 0)
  same = ((labels[best][:, None] == labels) & (classes[best][:, None] == classes)).all(axis=-1)
  return same & ((routes.probabilities > above) | (jnp.arange(len(labels)) == best[:, None]))


def relatedness(error: Array, own: Array) -> Array:
  """Rel(T_k, T_a) = 1 - (Er_a - Er_k) / Er_k = 2 - Er_a / Er_k of mean errors; -inf where one is not finite.

  Args:
    error: [...] Er_a, of earlier autoencoders on the new task's rows.
    own: [] Er_k, of the new task's autoencoder on the same rows.
  """
  related = 2 - error / jnp.maximum(own, LEAST_ERROR)
  return jnp.where(jnp.isfinite(error) & jnp.isfinite(own), related, -jnp.inf)
