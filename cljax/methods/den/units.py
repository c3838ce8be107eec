"""Units of a network with room for more: what they are connected by, what they shrink to, and their copies.

A unit is an output channel of a convolution or a unit of a layer above. The kernel of every layer is seen as
[P, I, O]: I units below, O units of the layer, P weights between two of them (the places of a window; where a layer
reads a whole map, the places of the map).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.nets.modes import begin
from cljax.ops.masks import keep_only
from cljax.types import NONE, Array, Key, Outputs, Spec


def connected(kernel: Array, chosen: Array) -> Array:
  """[I] bool, which units below a weight that is not zero leads from to a chosen unit [O]."""
  return ((kernel != 0) & chosen).any(axis=(0, 2))


def norms(kernel: Array, below: Array) -> Array:
  """[O] the norm of each unit's incoming weights from the units `below` [I]."""
  return jnp.sqrt(jnp.where(below[:, None], kernel**2, 0).sum(axis=(0, 1)))


def soft(weights: Array, bar: Array | float) -> Array:
  """The proximal step of bar * |w|_1: each weight nearer to zero by `bar`, and zero within it."""
  return jnp.sign(weights) * jnp.maximum(jnp.abs(weights) - bar, 0)


def group_soft(kernel: Array, below: Array, bar: Array | float) -> Array:
  """The proximal step of bar * the sum of `norms`: each unit's incoming weights shorter by `bar`, zero within it."""
  lengths = norms(kernel, below)
  shrunk = kernel * jnp.where(lengths > bar, 1 - bar / jnp.maximum(lengths, bar), 0)
  return jnp.where(below[:, None], shrunk, kernel)


def free_places(born: Array, count: int) -> Array:
  """[count] int32 the first places of a layer that no unit has; NONE where there are no more."""
  return jnp.nonzero(born == NONE, size=count, fill_value=NONE)[0].astype(jnp.int32)


def furthest(drift: Array, bar: float, count: int) -> tuple[Array, Array]:
  """([count] the units that drifted furthest, [count] bool, whether they did by more than `bar`); no more than O."""
  values, index = jax.lax.top_k(jnp.where(drift > bar, drift, 0), min(count, len(drift)))
  return index, values > 0


class Wide(NamedTuple):
  """A `Stack` with all its room; which of its units there are is told by masks [W], one a layer below the head."""

  net: Any  # a `Stack` with one head
  spec: Spec

  @property
  def names(self) -> tuple[str, ...]:
    """Of its layers in the params, the head last."""
    net = self.net
    return (*(f"layer_{l}" for l in range(net.depth)), *(f"hidden_{i}" for i in range(len(net.hidden))), "head")

  @property
  def widths(self) -> tuple[int, ...]:
    """W of each layer below the head."""
    return (*self.net.channels, *self.net.hidden)

  def fresh(self, key: Key) -> Any:
    """Params as the net draws them."""
    return begin(self.net, key, self.spec.x_shape)[0]

  def kernels(self, params: Any) -> list[Array]:
    """[P, I, O] of each layer."""
    incoming, layers = (self.spec.x_shape[-1], *self.widths), [params[name] for name in self.names]
    return [own["kernel"].reshape(-1, I, len(own["bias"])) for own, I in zip(layers, incoming, strict=True)]

  def ends(self, units: Sequence[Array], outside: bool = True) -> list[tuple[Array, Array]]:
    """(mask of the units below [I, 1], of the layer's own [O]) of each layer; `outside` of channels and classes."""
    first, last = jnp.full(self.spec.x_shape[-1], outside), jnp.full(self.spec.C, outside)
    every = [first, *units, last]
    return [(below[:, None], own) for below, own in pairwise(every)]

  def tree(self, params: Any, kernels: Sequence[Array], biases: Sequence[Array]) -> Any:
    """What is told of each layer, arrays that broadcast to its [P, I, O] and [O], in the shape of the params."""
    found = {}
    for name, old, kernel, bias in zip(self.names, self.kernels(params), kernels, biases, strict=True):
      whole = jnp.broadcast_to(kernel, old.shape).reshape(params[name]["kernel"].shape)
      found[name] = {"kernel": whole, "bias": jnp.broadcast_to(bias, old.shape[-1:])}
    return found

  def among(self, params: Any, units: Sequence[Array]) -> Any:
    """A tree of bools: the weights between these units, and their biases."""
    ends = self.ends(units)
    return self.tree(params, [below & own for below, own in ends], [own for _, own in ends])

  def answer(self, params: Any, units: Sequence[Array], x: Array, key: Key | None = None) -> Outputs:
    """What these units alone answer to x [B, ...], with dropout where there is a key."""
    slot, rngs = jnp.zeros(len(x), jnp.int32), None if key is None else {"dropout": key}
    kept = keep_only(params, self.among(params, units))
    return self.net.apply({"params": kept}, x, slot, key is not None, rngs=rngs)

  def traced(self, params: Any, classes: Array) -> list[Array]:
    """[W] bool of each layer below the head: the units that a path of weights leads from to one of `classes` [C]."""
    found, chosen = [], classes
    for kernel in self.kernels(params)[:0:-1]:
      chosen = connected(kernel, chosen)
      found.append(chosen)
    return found[::-1]
