"""Several networks of one shape, stacked on a leading axis, and a batch whose rows ask for different ones."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from cljax.ops.tracing import traced
from cljax.ops.trees import put, take
from cljax.types import Array


def apply_by_slot(apply: Callable[[Any, Array, Array], Any], stacked: Any, x: Array, slot: Array) -> Any:
  """Each row of x [B, ...] through the network of its own slot [B]; networks that no row asks for are not run."""
  chex.assert_equal_shape_prefix([x, slot], 1)
  return by_slot(lambda s: apply(take(stacked, s), x, slot), jax.tree.leaves(stacked)[0].shape[0], slot)


def by_slot(run: Callable[[Array], Any], slots: int, slot: Array) -> Any:
  """Each row from `run(s)`, a tree of [B, ...], of its own slot s = slot[b]; zeros where there is no such slot."""
  chex.assert_rank(slot, 1)
  chex.assert_type(slot, int)
  run, shapes = traced(run, jnp.int32(0))
  out = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

  def take_rows(s, out):
    mine = slot == s

    def mix(old, new):
      return jnp.where(mine.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(mix, out, run(s))

  def one(s, out):
    return jax.lax.cond((slot == s).any(), take_rows, lambda s, out: out, s, out)

  return jax.lax.fori_loop(0, slots, one, out)


def over_live(run: Callable[[Array], Any], live: Array) -> Any:
  """[S, ...] what `run(s)` gives for each live slot [S]; zeros for the others, which are not run."""
  chex.assert_rank(live, 1)
  chex.assert_type(live, bool)
  run, shapes = traced(run, jnp.int32(0))
  out = jax.tree.map(lambda leaf: jnp.zeros((len(live), *leaf.shape), leaf.dtype), shapes)

  def one(s, out):
    return jax.lax.cond(live[s], lambda out: put(out, s, run(s)), lambda out: out, out)

  return jax.lax.fori_loop(0, len(live), one, out)


def mean_of_live(run: Callable[[Array], Any], live: Array) -> Any:
  """The mean of the trees `run(s)` over the live slots [S], one at a time; zeros where none is live."""
  chex.assert_rank(live, 1)
  chex.assert_type(live, bool)
  run, shapes = traced(run, jnp.int32(0))
  none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  share = 1 / jnp.maximum(live.sum(), 1)

  def add(s, total):
    return jax.tree.map(lambda total, leaf: total + share * leaf, total, run(s))

  def one(s, total):
    return jax.lax.cond(live[s], lambda total: add(s, total), lambda total: total, total)

  return jax.lax.fori_loop(0, len(live), one, none)


def largest_of_live(run: Callable[[Array], Any], live: Array) -> Any:
  """Entry by entry the largest of the trees `run(s)` over the live slots [S], one at a time; zeros where none is live
  or all are negative."""
  chex.assert_rank(live, 1)
  chex.assert_type(live, bool)
  run, shapes = traced(run, jnp.int32(0))
  none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

  def one(s, most):
    return jax.lax.cond(live[s], lambda most: jax.tree.map(jnp.maximum, most, run(s)), lambda most: most, most)

  return jax.lax.fori_loop(0, len(live), one, none)
