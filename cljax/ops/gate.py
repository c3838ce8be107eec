"""The maths of Expert Gate's gate (Aljundi et al. 2017, sections 3.1 to 3.3): errors, probabilities, relatedness."""

import chex
import jax
import jax.numpy as jnp
import optax

from cljax.types import Array

LEAST_ERROR = 1e-12


def entropy_error(logits: Array, target: Array) -> Array:
  """[...] binary cross-entropy summed over features: the training loss of a row."""
  chex.assert_equal_shape([logits, target])
  chex.assert_type([logits, target], float)
  return optax.sigmoid_binary_cross_entropy(logits, target).sum(axis=-1)


def squared_error(logits: Array, target: Array) -> Array:
  """[...] squared error summed over features: what gate and relatedness go by."""
  chex.assert_equal_shape([logits, target])
  chex.assert_type([logits, target], float)
  return ((jax.nn.sigmoid(logits) - target) ** 2).sum(axis=-1)


def gate_probabilities(errors: Array, temperature: Array | float) -> Array:
  """softmax(-errors / temperature) over the last axis; an error that is not finite gets 0, as do all where none is."""
  chex.assert_type(errors, float)
  chex.assert_rank(temperature, 0)
  known = jnp.isfinite(errors)
  least = jnp.where(known, errors, jnp.inf).min(axis=-1, keepdims=True)
  weight = jnp.where(known, jnp.exp((jnp.where(known, least, 0) - jnp.where(known, errors, 0)) / temperature), 0)
  return weight / jnp.maximum(weight.sum(axis=-1, keepdims=True), 1e-30)


def gate_choice(errors: Array) -> Array:
  """int32 argmin of the errors [..., T]: the lowest place among equals, -1 where none is finite."""
  chex.assert_type(errors, float)
  known = jnp.isfinite(errors)
  choice = jnp.where(known, errors, jnp.inf).argmin(axis=-1)
  return jnp.where(known.any(axis=-1), choice, -1).astype(jnp.int32)


def active(slot: Array, probabilities: Array, classes: Array, labels: Array, above: Array | float) -> Array:
  """[B, T] bool: the best expert, and those of the same labels whose probability exceeds `above`.

  Args:
    slot: [B] the best expert of each row, -1 where no gate knows it.
    probabilities: [B, T] of the experts.
    classes, labels: [T, C] the live logits of each expert, and the global label of each logit.
  """
  chex.assert_rank([slot, probabilities, classes, labels, above], [1, 2, 2, 2, 0])
  chex.assert_type([slot, probabilities, classes, labels], [int, float, bool, int])
  best = jnp.maximum(slot, 0)
  same = ((labels[best][:, None] == labels) & (classes[best][:, None] == classes)).all(axis=-1)
  return same & ((probabilities > above) | (jnp.arange(len(labels)) == best[:, None]))


def relatedness(error: Array, own: Array) -> Array:
  """Rel(T_k, T_a) = 1 - (Er_a - Er_k) / Er_k = 2 - Er_a / Er_k of mean errors; -inf where one is not finite.

  Args:
    error: [...] Er_a, of earlier autoencoders on the new task's rows.
    own: [] Er_k, of the new task's autoencoder on the same rows.
  """
  chex.assert_rank(own, 0)
  chex.assert_type([error, own], float)
  related = 2 - error / jnp.maximum(own, LEAST_ERROR)
  return jnp.where(jnp.isfinite(error) & jnp.isfinite(own), related, -jnp.inf)
