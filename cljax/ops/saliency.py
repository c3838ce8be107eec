"""How much each weight matters to a batch: per-example gradients of dense layers, without making one of them.

The gradient of an example in a dense layer is the outer product of its input x and of the loss's derivative d by what
the layer gives. So the mean over examples of |x_i d_j| is the product |X|^T |D| / B, of g^2 it is (X^2)^T D^2 / B.
"""

from collections.abc import Callable
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
  shifts = {name: jnp.zeros((len(x), kernel.shape[1])) for name, kernel in weights.items()}

  def total(shifts):
    out, inputs = shifted(net, params, x, slot, shifts)
    return losses(out).sum(), inputs

  slopes, inputs = jax.grad(total, has_aux=True)(shifts)
  power = (lambda leaf: leaf**2) if kind == "fisher" else jnp.abs
  scores = {name: power(inputs[name]).T @ power(slopes[name]) / len(x) for name in weights}
  return {name: jnp.abs(weights[name]) * score for name, score in scores.items()} if kind == "taylor" else scores
