"""Losses and scores of a batch, averaged over its live rows only."""

import jax
import jax.numpy as jnp
import optax

from cljax.types import Array, Batch


def mean_live(values: Array, live: Array) -> Array:
  """Mean of [B] values over the live rows; 0 where no row is live."""
  return jnp.where(live, values, 0).sum() / jnp.maximum(live.sum(), 1)


def cross_entropy(logits: Array, batch: Batch) -> Array:
  """[] mean softmax cross-entropy over live rows; the logits [B, C] of `batch.classes` compete."""
  each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y, where=batch.classes)
  return mean_live(each, batch.live)


def accuracy(logits: Array, batch: Batch) -> Array:
  """[] share of live rows whose largest allowed logit is the row's label."""
  return mean_live(jnp.where(batch.classes, logits, -jnp.inf).argmax(axis=-1) == batch.y, batch.live)


def rows(batch: Batch, start: int, stop: int | None = None) -> Batch:
  """The columns start..stop of a batch, e.g. its current or its replayed rows."""
  return jax.tree.map(lambda leaf: leaf[start:stop], batch)
