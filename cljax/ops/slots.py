"""Several networks of one shape, stacked on a leading axis, and a batch whose rows ask for different ones."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cljax.types import Array, Outputs


def parameters(tree: Any) -> Array:
  """[] int32: how many numbers a tree of arrays holds."""
  return jnp.int32(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)))


def take(stacked: Any, slot: Array) -> Any:
  """The tree of one slot out of leaves [T, ...]."""
  return jax.tree.map(lambda leaf: leaf[slot], stacked)


def put(stacked: Any, slot: Array, tree: Any) -> Any:
  """The leaves [T, ...] with one slot replaced."""
  return jax.tree.map(lambda all, leaf: all.at[slot].set(leaf), stacked, tree)


def apply_by_slot(apply: Callable[[Any, Array, Array], Outputs], stacked: Any, x: Array, slot: Array) -> Outputs:
  """Each row of x [B, ...] through the network of its own slot [B]; networks that no row asks for are not run."""
  stacked = jax.tree.map(jnp.asarray, stacked)  # a finished run's are numpy's
  shapes = jax.eval_shape(apply, take(stacked, jnp.int32(0)), x, slot)
  out = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

  def run(t, out):
    new = apply(take(stacked, t), x, slot)
    mine = slot == t
    return jax.tree.map(lambda old, new: jnp.where(mine.reshape((-1,) + (1,) * (new.ndim - 1)), new, old), out, new)

  def one(t, out):
    return jax.lax.cond((slot == t).any(), run, lambda t, out: out, t, out)

  return jax.lax.fori_loop(0, jax.tree.leaves(stacked)[0].shape[0], one, out)
