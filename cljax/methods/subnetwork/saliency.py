"""How much each weight matters to a batch: per-example gradients of dense layers, without making most of them.

The gradient of an example in a dense layer is the outer product of its input x and of the loss's derivative d by what
the layer gives. So the mean over examples of |x_i d_j| is the product |X|^T |D| / B, of g^2 it is (X^2)^T D^2 / B. In a
convolution, a dense layer over patches, it is the sum of such products over the places of a picture, which is made.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.errors import choose
from cljax.nets.heads import Heads
from cljax.types import Array

KINDS = ("grad", "taylor", "fisher")
LAYERS = (nn.Dense, Heads)  # Heads of one head are a dense layer


def kernels(params: Any) -> dict[str, Array]:
  """The dense kernels [in, out] of a net by their layer's path, in the order of the tree."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  found = {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}
  return {
    path.removesuffix("/kernel"): leaf for path, leaf in found.items() if path.endswith("kernel") and leaf.ndim == 2
  }


def shifted(
  net: nn.Module, params: Any, x: Array, slot: Array, shifts: dict[str, Array]
) -> tuple[Any, dict[str, Array]]:
  """(what the net answers, the input of each dense layer), with `shifts` [B, ..., out] added to what layers give."""
  inputs: dict[str, Array] = {}

  def intercept(call, args, kwargs, context):
    name = "/".join(context.module.path)
    if context.method_name != "__call__" or name not in shifts or not isinstance(context.module, LAYERS):
      return call(*args, **kwargs)
    inputs[name] = args[0]
    return call(*args, **kwargs) + shifts[name]

  with nn.intercept_methods(intercept):
    out = net.apply({"params": params}, x, slot)
  return out, inputs


def given_shapes(net: nn.Module, params: Any, x: Array, slot: Array) -> dict[str, tuple[int, ...]]:
  """The shape [B, ..., out] of what each dense layer gives."""
  names, found = kernels(params), {}

  def intercept(call, args, kwargs, context):
    out = call(*args, **kwargs)
    name = "/".join(context.module.path)
    if context.method_name == "__call__" and name in names and isinstance(context.module, LAYERS):
      found[name] = out.shape
    return out

  with nn.intercept_methods(intercept):
    jax.eval_shape(lambda params, x: net.apply({"params": params}, x, slot), params, x)
  return found


def slopes(
  net: nn.Module, params: Any, x: Array, slot: Array, losses: Callable[[Any], Array]
) -> tuple[Any, dict[str, Array], dict[str, Array]]:
  """(what the net answers, inputs [B, ..., in], derivatives [B, ..., out] of each example's loss by what layers give).

  Args:
    losses: what the net answers -> [B], the loss of each example.
  """
  shifts = {name: jnp.zeros(shape) for name, shape in given_shapes(net, params, x, slot).items()}

  def total(shifts):
    out, inputs = shifted(net, params, x, slot, shifts)
    return losses(out).sum(), (out, inputs)

  found, (out, inputs) = jax.grad(total, has_aux=True)(shifts)
  return out, inputs, found


def dense_scores(
  net: nn.Module, params: Any, x: Array, slot: Array, losses: Callable[[Any], Array], kind: str = "grad"
) -> dict[str, Array]:
  """The mean over examples of each weight's score, by layer, of the kernels' shapes.

  Args:
    x: [B, ...]; slot: [B].
    losses: what the net answers -> [B], the loss of each example.
    kind: `grad`, |dL/dw|; `taylor`, |w dL/dw|; `fisher`, (dL/dw)^2.

  Raises:
    ConfigError: another kind.
  """
  choose("config.method.score", kind, KINDS)
  weights = kernels(params)
  _, inputs, found = slopes(net, params, x, slot, losses)
  power = (lambda leaf: leaf**2) if kind == "fisher" else jnp.abs
  scores = {name: summed(inputs[name], found[name], power) / len(x) for name in weights}
  return {name: jnp.abs(weights[name]) * score for name, score in scores.items()} if kind == "taylor" else scores


def summed(inputs: Array, found: Array, power: Callable[[Array], Array]) -> Array:
  """[in, out] the sum over examples of `power` of each one's gradient."""
  if inputs.ndim == 2:
    return power(inputs).T @ power(found)
  places = inputs.reshape(len(inputs), -1, inputs.shape[-1]), found.reshape(len(found), -1, found.shape[-1])
  return power(jnp.einsum("bpi,bpo->bio", *places)).sum(axis=0)


def mean_score(
  inputs: dict[str, Array],
  found: dict[str, Array],
  layers: Sequence[str],
  live: Array,
  masks: dict[str, Array] | None = None,
) -> Array:
  """[] the mean of |dL/dw| over live examples and over all weights of some layers, or of their masks, out of `slopes`.

  In a dense layer without a mask no array of the weights' shape is made: the sum of an outer product is the product of
  the sums.
  """
  total, weights = jnp.float32(0), jnp.float32(0)
  for name in layers:
    x, d = inputs[name], jnp.where(live.reshape((-1,) + (1,) * (found[name].ndim - 1)), found[name], 0)
    if masks is None and x.ndim == 2:
      total += (jnp.abs(x).sum(axis=1) * jnp.abs(d).sum(axis=1)).sum()
    else:
      score = summed(x, d, jnp.abs)
      total += score.sum() if masks is None else jnp.where(masks[name], score, 0).sum()
    weights += x.shape[-1] * d.shape[-1] if masks is None else masks[name].sum()
  return total / jnp.maximum(weights * live.sum(), 1)
