"""A stack of convolutions that can be called layer by layer, under fully connected layers and heads.

The nets of Lee et al. 2021 (https://proceedings.mlr.press/v139/lee21a.html) are stacks: SAME convolutions of stride 1
with ReLU, an addition where a block skips, then max-pooling; dropout after the last of them; ReLU layers; heads.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn

from cljax.declared import Checked, at_least
from cljax.errors import ConfigError
from cljax.nets.conv import Conv
from cljax.nets.heads import MOST_UNITS, Heads
from cljax.ops.convolution import max_pool
from cljax.types import Array, Outputs

MOST_LAYERS = 64
SHARE = at_least(0, "of the features that dropout sets to zero in training", 0.99)


class Stack(Checked, nn.Module):
  """x [B, H, W, C] -> convolutions -> dropout -> ReLU layers of the widths `hidden` -> one head for each slot.

  `windows`, `pools` and `skips` hold an entry a convolution, or one for all. `skips[l]` is the number of the earlier
  layer whose output is added to that of layer l before it is pooled, -1 for none.
  """

  heads: int
  classes: int
  channels: Annotated[tuple[int, ...], at_least(1, "of each convolution", MOST_UNITS)] = (32, 32, 64, 64)
  windows: Annotated[tuple[int, ...], at_least(1, "side of each convolution's window", 64)] = (3,)
  pools: Annotated[tuple[int, ...], at_least(1, "side and stride of each max-pooling", 64)] = (
    1,
    2,
    1,
    2,
  )
  skips: Annotated[tuple[int, ...], at_least(-1, "layer that is added, -1 none", MOST_LAYERS)] = (-1,)
  hidden: Annotated[tuple[int, ...], at_least(1, "widths of the layers above", MOST_UNITS, least=0)] = (64,)
  dropout: Annotated[float, SHARE] = 0.5
  weight_scale: Annotated[float, at_least(0, "of the truncated normal that weights start from")] = 0.05
  bias: Annotated[float, at_least(-100, "that biases start from", 100)] = 0.2

  def setup(self):
    normal, constant = nn.initializers.truncated_normal(self.weight_scale), nn.initializers.constant(self.bias)
    for l, (width, window) in enumerate(zip(self.channels, self.each("windows"), strict=True)):
      setattr(self, f"layer_{l}", Conv(width, (window,) * 2, kernel_init=normal, bias_init=constant))
    for i, width in enumerate(self.hidden):
      setattr(self, f"hidden_{i}", nn.Dense(width, kernel_init=normal, bias_init=constant))
    self.drop = nn.Dropout(self.dropout)
    self.head = Heads(self.heads, self.classes, weight_scale=self.weight_scale, bias=self.bias)

  @property
  def depth(self) -> int:
    """How many convolutions there are."""
    return len(self.channels)

  def each(self, field: str) -> tuple[int, ...]:
    """A field with an entry for each convolution.

    Raises:
      ConfigError: neither one entry nor as many as there are convolutions.
    """
    given = getattr(self, field)
    if len(given) not in (1, self.depth):
      raise ConfigError(
        f"config.net.{field}={given} must have 1 entry or {self.depth}, as config.net.channels={self.channels} has"
      )
    return given * self.depth if len(given) == 1 else given

  def skip(self, l: int) -> int:
    """The earlier layer that is added to layer l, -1 for none.

    Raises:
      ConfigError: a layer that does not come before, or has other channels.
    """
    source = self.each("skips")[l]
    if source >= l or (source >= 0 and self.channels[source] != self.channels[l]):
      raise ConfigError(
        f"config.net.skips: layer {l} cannot add layer {source}, which must come before and have its channels"
      )
    return source

  def convolve(self, l: int, x: Array) -> Array:
    """One convolution of x [B, H, W, C] and its ReLU."""
    return nn.relu(getattr(self, f"layer_{l}")(x))

  def pooled(self, l: int, x: Array, added: Array | None = None) -> Array:
    """What follows on it: an earlier layer's output, where one is added, and the pooling."""
    return max_pool(x if added is None else x + added, self.each("pools")[l])

  def layer(self, l: int, x: Array, added: Array | None = None) -> Array:
    """A whole layer: convolution, ReLU, addition, pooling."""
    return self.pooled(l, self.convolve(l, x), added)

  def stem(self, x: Array) -> Array:
    """All convolutions: x [B, H, W, C] -> features [B, D]."""
    outputs: list[Array] = []
    for l in range(self.depth):
      source = self.skip(l)
      x = self.layer(l, x, outputs[source] if source >= 0 else None)
      outputs.append(x)
    return x.reshape(x.shape[0], -1)

  def top(self, features: Array, slot: Array, train: bool = False) -> Outputs:
    """From the features [B, D] of the stem on."""
    x = self.drop(features, deterministic=not train)
    for i in range(len(self.hidden)):
      x = nn.relu(getattr(self, f"hidden_{i}")(x))
    return Outputs(self.head(x, slot), x, slot)

  def __call__(self, x: Array, slot: Array, train: bool = False) -> Outputs:
    return self.top(self.stem(x), slot, train)


def parted(net: Stack, params: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
  """(the params of each convolution {"kernel", "bias"}, those of all that stands above)."""
  below = tuple(params[f"layer_{l}"] for l in range(net.depth))
  return below, {name: tree for name, tree in params.items() if not name.startswith("layer_")}
