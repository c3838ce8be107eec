"""A net as a learned rule sees it: parameter tensors by their neurons, and what goes into and comes out of these.

The "pre" and "post" of Xiong, Ren and Urtasun 2020 (https://arxiv.org/abs/1910.04650) are what a layer takes in and
gives out, as means over batch and window. Of a dense layer the latter is past its ReLU, of a convolution before its
normalisation. A bias has the mean before the ReLU as "pre", a normalisation's scale and bias the mean of what is
normalised.
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cljax.errors import ConfigError
from cljax.nets.heads import Heads
from cljax.nets.taps import NORMALISATIONS, Layer, Tapped, at_path, layers, normalised
from cljax.types import Array, PyTree

Acts = Mapping[str, Mapping[str, Array]]  # layer -> pre [Cin], mid [Cout], post [Cout]


class Tensor(NamedTuple):
  """One parameter tensor, as the rule sees it."""

  layer: str
  leaf: str  # kernel, bias or scale
  window: int  # kH * kW, 1 of what is no convolution
  fan: int  # Cin, 1 of a bias or a scale
  neurons: int  # Cout

  @property
  def outputs(self) -> int:
    """Numbers that the rule gives a neuron."""
    return self.window * self.fan

  @property
  def inputs(self) -> int:
    """Numbers that the rule takes for a neuron: weights, gradients, pre and post."""
    return 2 * self.outputs + self.fan + 1

  @property
  def vector(self) -> bool:
    """Whether it is a bias or a scale."""
    return self.leaf != "kernel"

  def rows(self, leaf: Array) -> Array:
    """[neurons, outputs] of an array of the tensor's shape."""
    return leaf.reshape(-1, self.neurons).T

  def shaped(self, rows: Array, like: Array) -> Array:
    """The inverse of `rows`, in the shape of `like`."""
    return rows.T.reshape(like.shape)


def tensors_of(called: Mapping[str, Layer], params: PyTree) -> dict[str, Tensor]:
  """The tensors of a net that the rule updates: all but those of heads.

  Args:
    called: the net's layers, `nets.taps.layers`.
    params: of the net; shapes do.

  Raises:
    ConfigError: parameters that the rule has no form for.
  """
  found: dict[str, Tensor] = {}
  for path, leaf in flatten_dict(params, sep="/").items():
    name, _, own = path.rpartition("/")
    layer = called.get(name)
    if layer is None or (isinstance(layer.module, nn.Conv) and layer.module.feature_group_count != 1):
      what = "no layer that taps can read" if layer is None else "a convolution in groups"
      raise ConfigError(f"the learned rule has no form for {path} of shape {leaf.shape}: {name or path} is {what}")
    if isinstance(layer.module, Heads):
      continue
    neurons = leaf.shape[-1]
    fan = layer.input.shape[-1] if own == "kernel" else 1
    size = int(np.prod(leaf.shape, dtype=int)) // neurons
    found[path] = Tensor(name, own, size // fan, fan, neurons)
  return found


def tensors_of_net(
  net: nn.Module, variables: PyTree, x_shape: tuple[int, ...]
) -> tuple[dict[str, Layer], dict[str, Tensor]]:
  """(the layers of a net for pictures of `x_shape`, its tensors); nothing is computed, shapes do for `variables`."""
  x, slot = jax.ShapeDtypeStruct((1, *x_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  called = layers(net, variables, x, slot)
  return called, tensors_of(called, variables["params"])


def activations(
  found: Tapped, called: Mapping[str, Layer], variables: PyTree, live: Array | None = None
) -> dict[str, dict[str, Array]]:
  """The means over batch and window that the rule takes.

  Args:
    found: what the taps of one call found.
    called: the net's layers.
    variables: the net's collections.
    live: [B] bool, the rows that are counted; None is all.
  """

  def mean(values):
    each = values.reshape(len(values), -1, values.shape[-1]).mean(axis=1)
    if live is None:
      return each.mean(axis=0)
    chex.assert_rank(live, 1)
    return jnp.where(live[:, None], each, 0).sum(axis=0) / jnp.maximum(live.sum(), 1)

  means: dict[str, dict[str, Array]] = {}
  for name, layer in called.items():
    if isinstance(layer.module, Heads):
      continue
    x, z = found.inputs[name], found.outputs[name]
    mid, post = z, nn.relu(z) if isinstance(layer.module, nn.Dense) else z
    if isinstance(layer.module, NORMALISATIONS):
      own = {kind: at_path(tree, name) for kind, tree in variables.items() if kind != "params"}
      mid = normalised(layer.module, own, x)
    means[name] = {"pre": mean(x), "mid": mean(mid), "post": mean(post)}
  return means
