"""What CAT reads off the features of the network behind the gates of other tasks."""

import chex
import jax
import jax.numpy as jnp

from cljax.nets.heads import initializer
from cljax.types import Array, Batch, Key

Readout = dict[str, Array]


def readout(key: Key, D: int, C: int) -> Readout:
  """A kernel [D, C] and a bias [C], as heads begin."""
  return {"kernel": initializer("glorot")(key, (D, C)), "bias": jnp.zeros(C)}


def reader(key: Key, D: int, C: int) -> Readout:
  """What a task reads off similar ones with: a query [D], the kernels of keys and values [D, D], a readout."""
  q, k, v, out = jax.random.split(key, 4)
  square = {name: initializer("glorot")(key, (D, D)) for name, key in (("keys", k), ("values", v))}
  return square | {"query": jax.random.normal(q, (D,))} | readout(out, D, C)


def read_off(own: Readout, features: Array, similar: Array) -> Array:
  """[B, C] what a task answers from the features [T, B, D] of similar tasks [T]; the readout's bias where none is.

  o = sum_k softmax_k(q . (h^k W_k) / sqrt(D)) h^k W_v, and the readout of it.
  """
  chex.assert_rank([features, similar], [3, 1])
  near = jnp.einsum("tbd,d->bt", features @ own["keys"], own["query"]) / features.shape[-1] ** 0.5
  shares = jax.nn.softmax(near, axis=-1, where=similar)
  seen = jnp.einsum("bt,tbd->bd", shares, features @ own["values"])
  return seen @ own["kernel"] + own["bias"]


def right(logits: Array, batch: Batch) -> Array:
  """[B] 1 where the largest live logit is the label."""
  chex.assert_equal_shape([logits, batch.classes])
  return jnp.float32(jnp.where(batch.classes, logits, -jnp.inf).argmax(axis=-1) == batch.y)
