"""Whose the weights of a network are that tasks share by masks: the free ones, and those that masks are not for."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from cljax.types import Array, Spec

FREE = -1


def first_owners(params: Any, spec: Spec) -> Any:
  """The owners before the first task, a tree of int8 like the params: kernels are free, with an entry for each weight;
  a head's columns are its task's; what is no kernel is the first task's, one entry for all of a leaf."""
  kind = jnp.int8 if spec.T <= 127 else jnp.int32

  def of(path: Any, leaf: Array) -> Array:
    if spec.heads > 1 and path[0].key == "head":
      return jnp.repeat(jnp.arange(spec.heads, dtype=kind), spec.C)
    return jnp.full(leaf.shape, FREE, kind) if path[-1].key == "kernel" else jnp.zeros((), kind)

  return jax.tree_util.tree_map_with_path(of, params)


def is_shared(owner: Array, weights: Array) -> bool:
  """Whether a leaf is a kernel that masks are for."""
  chex.assert_type(owner, int)
  return owner.shape == weights.shape and weights.ndim > 1
