"""Losses and scores of a batch, averaged over its live rows only."""

import chex
import jax
import jax.numpy as jnp
import optax

from cljax.types import Array, Batch


def mean_live(values: Array, live: Array) -> Array:
  """Mean of [B] values over the live rows; 0 where no row is live."""
  chex.assert_equal_shape([values, live])
  chex.assert_rank(values, 1)
  chex.assert_type(live, bool)
  return jnp.where(live, values, 0).sum() / jnp.maximum(live.sum(), 1)


def moments(values: Array, live: Array) -> Array:
  """[2, F] mean and variance of [B, F] values over the live rows."""
  chex.assert_rank([values, live], [2, 1])
  mean = jax.vmap(mean_live, (1, None))(values, live)
  return jnp.stack([mean, jax.vmap(mean_live, (1, None))((values - mean) ** 2, live)])


def cross_entropies(logits: Array, batch: Batch) -> Array:
  """[B] softmax cross-entropy of each row; the logits [B, C] of `batch.classes` compete."""
  chex.assert_equal_shape([logits, batch.classes])
  chex.assert_type([logits, batch.y, batch.classes], [float, int, bool])
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y, where=batch.classes)


def cross_entropy(logits: Array, batch: Batch) -> Array:
  """[] mean of `cross_entropies` over live rows."""
  return mean_live(cross_entropies(logits, batch), batch.live)


def hits(logits: Array, batch: Batch) -> Array:
  """[B] bool, whether the largest allowed logit is the row's label."""
  chex.assert_equal_shape([logits, batch.classes])
  chex.assert_type([logits, batch.classes], [float, bool])
  return jnp.where(batch.classes, logits, -jnp.inf).argmax(axis=-1) == batch.y


def accuracy(logits: Array, batch: Batch) -> Array:
  """[] share of live rows that are `hits`."""
  return mean_live(hits(logits, batch), batch.live)


def rows(batch: Batch, start: int, stop: int | None = None) -> Batch:
  """The columns start..stop of a batch, e.g. its current or its replayed rows."""
  chex.assert_equal_shape_prefix(jax.tree.leaves(batch), 1)
  return jax.tree.map(lambda leaf: leaf[start:stop], batch)


def distillation(
  logits: Array, teacher: Array, classes: Array, temperature: Array | float, rivals: Array | None = None
) -> Array:
  """[...] cross-entropy between two softened softmaxes, -sum_c y'_c log p'_c with y' = softmax(teacher / T) and
  p' = softmax(logits / T) (Hinton et al. 2015; LwF, Li and Hoiem 2016); 0 where no class is live.

  Args:
    logits, teacher: [..., C]; gradients flow into the first only.
    classes: [..., C] bool, the logits that compete.
    rivals: [..., C] bool, those that compete with them in p' alone, `classes` among them; None is no other.
  """
  chex.assert_equal_shape([logits, teacher])
  chex.assert_type([logits, teacher, classes], [float, float, bool])
  live = classes.any(axis=-1, keepdims=True)
  where = classes | ~live
  teacher = jax.nn.softmax(jax.lax.stop_gradient(teacher) / temperature, axis=-1, where=where)
  each = jax.nn.log_softmax(logits / temperature, axis=-1, where=where if rivals is None else where | rivals)
  return jnp.where(live[..., 0], -jnp.where(where, teacher * jnp.where(where, each, 0), 0).sum(axis=-1), 0)


def held_to(
  logits: Array, teacher: Array, old: Array, live: Array, temperature: Array | float, rivals: Array | None = None
) -> Array:
  """[] mean over the live rows of the sum over heads of `distillation`, the L_old of LwF (Li and Hoiem 2016).

  Args:
    logits, teacher: [B, H, C] what each head answers; gradients flow into the first only.
    old: [H, C] bool, the logits of each head that earlier tasks have.
    live: [B] bool.
    rivals: [H, C] bool, see `distillation`.
  """
  chex.assert_rank([logits, old, live], [3, 2, 1])
  held = distillation(logits, teacher, old, temperature, rivals)
  return mean_live(held.sum(axis=-1), live)


def probabilities(logits: Array, classes: Array) -> Array:
  """softmax over the live classes [..., C]; all zero where none is live."""
  chex.assert_type([logits, classes], [float, bool])
  live = classes.any(axis=-1, keepdims=True)
  return jnp.where(live, jax.nn.softmax(logits, axis=-1, where=classes | ~live), 0)
