"""The units of a net: gates on what they give, and between which units a weight lies; the net knows nothing of it.

A unit is an output of a dense layer or a channel of a convolution. Gates g >= 0 stand before the ReLU, and are the same
behind it: relu(g z) = g relu(z). What a normalisation gives belongs to the units of the layer before it, and is gated
too. Heads have no gates; a head is free until its task has ended.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.errors import ConfigError
from cljax.nets.heads import Heads
from cljax.nets.modes import begin
from cljax.nets.taps import NORMALISATIONS, Layer, layers, tapped
from cljax.types import Array, Spec

ROUNDING = 1e-6  # of what passes a mean over pixels
ByLayer = Mapping[str, Array]


class Units(NamedTuple):
  """A net as its units see it."""

  net: nn.Module
  x_shape: tuple[int, ...]
  called: Mapping[str, Layer]  # the layers in the order of the net
  home: Mapping[str, str]  # layer with gates -> the layer that its units are counted in

  @property
  def widths(self) -> dict[str, int]:
    """How many units each layer has."""
    return {name: self.called[name].output.shape[-1] for name in dict.fromkeys(self.home.values())}

  def scale(self, gates: ByLayer) -> dict[str, Array]:
    """What taps multiply each layer's output by; gates are [W] for all rows, or [B, W] for each."""
    chex.assert_rank(list(gates.values()), {1, 2})
    found = {}
    for name, home in self.home.items():
      *rows, width = gates[home].shape
      between = (1,) * (self.called[name].output.ndim - 2) if rows else ()
      found[name] = gates[home].reshape(*rows, *between, width)
    return found

  def gated(self, gates: ByLayer) -> Callable[..., Any]:
    """`net.apply` with these gates."""

    def apply(variables: Any, x: Array, slot: Array, **options: Any) -> Any:
      return tapped(self.net, variables, x, slot, scale=self.scale(gates), **options).out

    return apply

  def read(self, variables: Any, gates: ByLayer) -> dict[str, Array]:
    """[I] in 0..1 by layer with a kernel: the gates [W] of the units that it reads; 1 of the picture.

    They are what the net brings there when each unit gives its gate: by flattening, pooling, or as a sum of several.
    """
    x, slot = jnp.ones((1, *self.x_shape)), jnp.zeros(1, jnp.int32)
    found = tapped(self.net, variables, x, slot, scale=dict.fromkeys(self.home, 0.0), add=self.scale(gates))
    reading = [name for name, layer in self.called.items() if not isinstance(layer.module, NORMALISATIONS)]
    values = {name: found.inputs[name].reshape(-1, found.inputs[name].shape[-1]).max(axis=0) for name in reading}
    whole = {name: value > 1 - ROUNDING for name, value in values.items()} | {reading[0]: jnp.array(True)}
    return {name: jnp.where(whole[name], 1.0, value) for name, value in values.items()}

  def between(self, params: Any, read: ByLayer, gates: ByLayer, t: Array) -> Any:
    """A tree like the params: min(gate of the unit that a weight leads to, gate of the one that it comes from).

    Of a bias or a scale it is the unit's own. A head, and a normalisation of pictures, counts as a unit that is 1 once
    it has served one of the tasks before t [].

    Args:
      read: [I] by layer, see `read`.
      gates: [W] by layer.
    """
    chex.assert_rank(t, 0)

    def of(path: tuple[str, ...], leaf: Array) -> Array:
      name = "/".join(path[:-1])
      module, into = self.called[name].module, jnp.broadcast_to(jnp.float32(t > 0), leaf.shape[-1:])
      if isinstance(module, Heads):
        into = jnp.repeat(jnp.float32(jnp.arange(module.heads) < t), module.classes)
      elif name in self.home:
        into = gates[self.home[name]]
      if path[-1] != "kernel":
        return into
      pairs = jnp.minimum(read[name][:, None], into)
      return jnp.broadcast_to(pairs, (leaf.size // pairs.size, *pairs.shape)).reshape(leaf.shape)

    return unflatten_dict({path: of(path, leaf) for path, leaf in flatten_dict(params).items()})


def units_of(net: nn.Module, spec: Spec) -> Units:
  """The units of a net; nothing is computed.

  Raises:
    ConfigError: parameters that belong to no units: those of layers that taps cannot read, or of several groups.
  """
  params, collections = jax.eval_shape(partial(begin, net, x_shape=spec.x_shape), jax.random.key(0))
  x, slot = jax.ShapeDtypeStruct((1, *spec.x_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  called = layers(net, {"params": params, **collections}, x, slot)
  home: dict[str, str] = {}
  last = ""
  for name, layer in called.items():
    if not isinstance(layer.module, (Heads, *NORMALISATIONS)):
      last = name
    if last and not isinstance(layer.module, Heads):
      home[name] = last
  for path, leaf in flatten_dict(params, sep="/").items():
    name, _, kind = path.rpartition("/")
    if name not in called or not fits(called[name], called[home.get(name, name)], kind, leaf):
      raise ConfigError(f"{path} of shape {leaf.shape} belongs to no units of {type(net).__name__} that can have gates")
  return Units(net, spec.x_shape, called, home)


def fits(layer: Layer, home: Layer, kind: str, leaf: Any) -> bool:
  """Whether a parameter has an entry, or a column, for each unit of its layer's home."""
  inputs = layer.input.shape[-1] if kind == "kernel" else 1
  outputs = layer.output.shape[-1] * (layer.module.heads if isinstance(layer.module, Heads) else 1)
  grouped = getattr(layer.module, "feature_group_count", 1) != 1
  alike = layer.output.shape[-1] == home.output.shape[-1]
  return alike and not grouped and leaf.shape[-1] == outputs and leaf.size % (inputs * outputs) == 0
