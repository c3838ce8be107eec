"""Whole trees of arrays at once."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from cljax.types import Array


def where(condition: Array, yes: Any, no: Any) -> Any:
  """One of two trees of the same shapes, by a condition []."""
  chex.assert_rank(condition, 0)
  chex.assert_trees_all_equal_structs(yes, no)
  return jax.tree.map(lambda one, other: jnp.where(condition, one, other), yes, no)


def inner(one: Any, other: Any) -> Array:
  """[] the inner product of two trees of the same shapes."""
  chex.assert_trees_all_equal_shapes(one, other)
  each = jax.tree.map(lambda a, b: jnp.vdot(a, b, precision="highest"), one, other)
  return sum(jax.tree.leaves(each))


def amount(n: int) -> Array:
  """[] n for a report: int32 where it holds n, else float32, which has its first seven digits."""
  return jnp.int32(n) if n <= jnp.iinfo(jnp.int32).max else jnp.float32(n)


def parameters(tree: Any) -> Array:
  """[] how many numbers a tree of arrays holds, as an `amount`."""
  return amount(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)))


def take(stacked: Any, slot: Array | int) -> Any:
  """The tree of one slot out of leaves [T, ...]."""
  chex.assert_rank(slot, 0)
  return jax.tree.map(lambda leaf: leaf[slot], stacked)


def put(stacked: Any, slot: Array | int, tree: Any) -> Any:
  """The leaves [T, ...] with one slot replaced."""
  chex.assert_rank(slot, 0)
  return jax.tree.map(lambda all, leaf: all.at[slot].set(leaf), stacked, tree)
