"""How much each weight matters to a batch: scores by the gradients of single examples."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cljax.errors import choose
from cljax.nets.taps import Derivatives, derivatives
from cljax.types import Array

POWERS = {"grad": jnp.abs, "taylor": jnp.abs, "fisher": jnp.square}
KINDS = tuple(POWERS)


def scores(
  net: nn.Module,
  params: Any,
  x: Array,
  slot: Array,
  losses: Callable[[Any], Array],
  kind: str = "grad",
  leaf: str = "kernel",
) -> dict[str, Array]:
  """The mean over examples of each parameter's score, by layer, of the shapes of the layers' kernels, or of another
  `leaf` of theirs (bias, or scale of a normalisation).

  Args:
    x: [B, ...]; slot: [B].
    losses: what the net answers -> [B], the loss of each example.
    kind: `grad`, |dL/dw|; `taylor`, |w dL/dw|; `fisher`, (dL/dw)^2.

  Raises:
    ConfigError: another kind.
  """
  power = POWERS[choose("config.method.score", kind, KINDS)]
  found = derivatives(net, {"params": params}, x, slot, losses)
  means = {name: total / len(x) for name, total in found.power_sums(leaf, power).items()}
  if kind != "taylor":
    return means
  return {name: jnp.abs(found.leaf(name, leaf)) * mean for name, mean in means.items()}


def mean_score(found: Derivatives, layers: Sequence[str], live: Array, masks: dict[str, Array] | None = None) -> Array:
  """[] the mean of |dL/dw| over live examples and over all weights of some layers, or of their masks.

  In a dense layer without a mask no array of the weights' shape is made: the sum of an outer product is the product of
  the sums.
  """
  total, weights = jnp.float32(0), jnp.float32(0)
  for name in layers:
    x, slopes = found.inputs[name], found.slopes[name]
    d = jnp.where(live.reshape((-1,) + (1,) * (slopes.ndim - 1)), slopes, 0)
    if masks is None and x.ndim == 2:
      total += (jnp.abs(x).sum(axis=1) * jnp.abs(d).sum(axis=1)).sum()
    else:
      score = found._replace(slopes={name: d}).power_sum(name, "kernel", jnp.abs)
      total += score.sum() if masks is None else jnp.where(masks[name], score, 0).sum()
    weights += jnp.size(found.leaf(name, "kernel")) if masks is None else masks[name].sum()
  return total / jnp.maximum(weights * live.sum(), 1)
