"""Output layers. A net is a linen module with its heads: `apply({'params': p}, x, slot) -> Outputs`."""

from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.declared import one_of
from cljax.errors import choose
from cljax.types import Array

MOST_UNITS = 1_000_000  # of a layer

INITIALIZERS: dict[str, tuple[Any, ...]] = {
  "he": (2.0, "fan_in", "truncated_normal"),
  "glorot": (1.0, "fan_avg", "uniform"),
}

KernelInit = Annotated[str, one_of(tuple(INITIALIZERS), "of the hidden layers; heads are Glorot, biases zero")]


def initializer(name: str, **axes):
  """The kernel initializer of that name; `axes` as in `nn.initializers.variance_scaling`.

  Raises:
    ConfigError: an unknown name.
  """
  return nn.initializers.variance_scaling(*INITIALIZERS[choose("config.net.kernel_init", name, INITIALIZERS)], **axes)


def own_head(head: Any, slot: Array, classes: int) -> Any:
  """Of the params of `Heads`, those of the one head of `slot` []: the params of `Heads(heads=1)`."""
  return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, at(head, slot, classes), classes, -1), head)


def with_head(head: Any, own: Any, slot: Array, classes: int) -> Any:
  """The params of `Heads` with the head of `slot` [] replaced by `own`."""
  start = at(head, slot, classes)
  return jax.tree.map(lambda leaf, own: jax.lax.dynamic_update_slice_in_dim(leaf, own, start, -1), head, own)


def at(head: Any, slot: Array, classes: int) -> Array:
  """[] the first column of a slot's head."""
  return jnp.minimum(slot, head["bias"].shape[0] // classes - 1) * classes


class Heads(nn.Module):
  """One linear layer for each slot: features [B, D], slot [B] -> raw logits [B, classes].

  All heads lie side by side in one matrix [D, heads * classes]. All are computed and one is chosen per row; a batch
  that is small beside the number of heads fetches those of its rows instead. A head that no row asks for gets an
  exactly zero gradient. Slots beyond the last head take the last, so a net with one head serves every slot.
  """

  heads: int
  classes: int
  weight_scale: float | None = None  # of the truncated normal that kernels start from; None is Glorot
  bias: float = 0.0  # that biases start from

  @nn.compact
  def __call__(self, features: Array, slot: Array) -> Array:
    D, H, C = features.shape[-1], self.heads, self.classes
    glorot = initializer("glorot", in_axis=0, out_axis=2, batch_axis=1)
    each = glorot if self.weight_scale is None else nn.initializers.truncated_normal(self.weight_scale)
    kernel = self.param("kernel", lambda key: each(key, (D, H, C)).reshape(D, H * C))
    bias = self.param("bias", nn.initializers.constant(self.bias), (H * C,))
    head = jnp.minimum(slot, H - 1)
    if 4 * len(slot) < H:
      own = kernel.reshape(D, H, C)[:, head]  # [D, B, C]
      return (features.T[:, :, None] * own).sum(axis=0) + bias.reshape(H, C)[head]

    def alike(features):
      own = jax.lax.dynamic_slice_in_dim(kernel, head[0] * C, C, axis=1)
      return features @ own + jax.lax.dynamic_slice_in_dim(bias, head[0] * C, C)

    def mixed(features):
      logits = (features @ kernel + bias).reshape(-1, H, C)
      return jnp.take_along_axis(logits, head[:, None, None], axis=1)[:, 0]

    return jax.lax.cond((head == head[0]).all(), alike, mixed, features)
