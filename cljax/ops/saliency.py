"""How much each weight matters to a batch: per-example gradients of dense layers, without making one of them.

The gradient of an example in a dense layer is the outer product of its input x and of the loss's derivative d by what
the layer gives. So the mean over examples of |x_i d_j| is the product |X|^T |D| / B, of g^2 it is (X^2)^T D^2 / B.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.nets.heads import Heads
from cljax.types import Array, choose

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
  """(what the net answers, the input [B, in] of each dense layer), with `shifts` [B, out] added to what layers give."""
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


def slopes(
  net: nn.Module, params: Any, x: Array, slot: Array, losses: Callable[[Any], Array]
) -> tuple[Any, dict[str, Array], dict[str, Array]]:
  """(what the net answers, inputs [B, in], derivatives [B, out] of each example's loss by what its layers give).

  Args:
    losses: what the net answers -> [B], the loss of each example.
  """
  shifts = {name: jnp.zeros((len(x), kernel.shape[1])) for name, kernel in kernels(params).items()}

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
  scores = {name: power(inputs[name]).T @ power(found[name]) / len(x) for name in weights}
  return {name: jnp.abs(weights[name]) * score for name, score in scores.items()} if kind == "taylor" else scores


def mean_score(
  inputs: dict[str, Array],
  found: dict[str, Array],
  layers: Sequence[str],
  live: Array,
  masks: dict[str, Array] | None = None,
) -> Array:
  """[] the mean of |dL/dw| over live examples and over all weights of some layers, or of their masks, out of `slopes`.

  Without masks no array of the weights' shape is made: the sum of an outer product is the product of the sums.
  """
  total, weights = jnp.float32(0), jnp.float32(0)
  for name in layers:
    x, d = jnp.abs(inputs[name]), jnp.abs(found[name]) * live[:, None]
    if masks is None:
      total += (x.sum(axis=1) * d.sum(axis=1)).sum()
      weights += x.shape[1] * d.shape[1]
    else:
      total += jnp.where(masks[name], x.T @ d, 0).sum()
      weights += masks[name].sum()
  return total / jnp.maximum(weights * live.sum(), 1)
