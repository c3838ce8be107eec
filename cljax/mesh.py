"""The seed axis: one function for one seed becomes one computation for all of them.

Executors: `vmap` batches seeds (accelerators); `map` runs them one after the other inside one program (CPU, where
batched small products leave the cache); `each` unrolls them (convolution gradients on CPU must not stand in a loop).
Equal seeds give equal bits by `map` and `each`, and results within rounding by `vmap`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

EXECUTORS = ("vmap", "map", "each")


def choose_executor(wanted: str, branches: bool) -> str:
  """`auto` is `map` on CPU and for methods with costly branches on their state, else `vmap`."""
  if wanted != "auto":
    return wanted
  return "map" if branches or jax.default_backend() == "cpu" else "vmap"


def over_seeds(fn: Callable[..., Any], axes: tuple[Any, ...], executor: str) -> Callable[..., Any]:
  """`fn` over a leading [S].

  Args:
    axes: one entry an argument, as `jax.vmap`'s in_axes: 0, None (shared by all seeds), or a tree of these.
    executor: one of EXECUTORS.

  Returns:
    a function whose every result leaf has a leading [S].
  """
  if executor == "vmap":
    return jax.vmap(fn, in_axes=axes)

  def mapped(*args):
    leaves, structure = jax.tree.flatten(args)
    by_seed = [axis == 0 for axis in leaf_axes(axes, args)]

    def one(own):
      # Do not simplify: without barriers XLA fuses the first and last operations with those around the loop, other ones
      # for one seed than for several, and their last bits differ.
      own = iter(jax.lax.optimization_barrier(own))
      args = jax.tree.unflatten(structure, [next(own) if b else x for b, x in zip(by_seed, leaves, strict=True)])
      return jax.lax.optimization_barrier(fn(*args))

    split = [leaf for b, leaf in zip(by_seed, leaves, strict=True) if b]
    if executor == "map":
      return jax.lax.map(one, split)
    results = [one([leaf[s] for leaf in split]) for s in range(split[0].shape[0])]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

  return mapped


def leaf_axes(axes: Any, tree: Any) -> list[int | None]:
  """The axis of each leaf of `tree`, with `axes` as a prefix of it."""
  flat: list[int | None] = []
  jax.tree.map(
    lambda axis, part: flat.extend([axis] * len(jax.tree.leaves(part))), axes, tree, is_leaf=lambda node: node is None
  )
  return flat
