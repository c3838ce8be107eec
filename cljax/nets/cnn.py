"""A small convolutional net, its convolutions as dense layers over patches."""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from cljax.declared import Checked, at_least
from cljax.nets.heads import MOST_UNITS, Heads, KernelInit, initializer
from cljax.types import Array, Outputs


def patches(x: Array, size: int, stride: int) -> Array:
  """[B, H', W', size * size * C]: each window of x [B, H, W, C] as a row, zeros outside, H' = ceil(H / stride).

  A dense layer over windows is a convolution. Written so, its gradient is a matrix product: inside a loop on a CPU the
  gradient of a convolution is 12 to 40 times slower than outside (jax issue 12868).
  """
  height, width = x.shape[1:3]
  rows, columns = -(-height // stride), -(-width // stride)
  down, right = ((n - 1) * stride + size for n in (rows, columns))
  before = (max(down - height, 0) // 2, max(right - width, 0) // 2)
  after = (max(down - height - before[0], 0), max(right - width - before[1], 0))
  x = jnp.pad(x, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))
  windows = [
    x[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
    for i in range(size)
    for j in range(size)
  ]
  return jnp.concatenate(windows, axis=-1)


class CNN(Checked, nn.Module):
  """x [B, H, W, C] -> ReLU convolutions of the given `channels`, each `stride` times smaller -> ReLU layers of the
  widths `hidden` -> one head for each slot. Padding as SAME has it."""

  heads: int
  classes: int
  channels: Annotated[tuple[int, ...], at_least(1, "of each convolution", MOST_UNITS)] = (16, 32)
  hidden: Annotated[tuple[int, ...], at_least(1, "widths of the layers above", MOST_UNITS, least=0)] = (128,)
  window: Annotated[int, at_least(1, "side of a convolution's window", 1024)] = 3
  stride: Annotated[int, at_least(1, "pixels from window to window", 1024)] = 2
  kernel_init: KernelInit = "he"

  def setup(self):
    for l, width in enumerate((*self.channels, *self.hidden)):
      name = "first" if l == 0 else f"hidden_{l}"
      setattr(self, name, nn.Dense(width, kernel_init=initializer(self.kernel_init)))
    self.head = Heads(self.heads, self.classes)

  def __call__(self, x: Array, slot: Array) -> Outputs:
    for l in range(len(self.channels) + len(self.hidden)):
      layer = self.first if l == 0 else getattr(self, f"hidden_{l}")
      x = patches(x, self.window, self.stride) if l < len(self.channels) else x.reshape(x.shape[0], -1)
      x = nn.relu(layer(x))
    features = x.reshape(x.shape[0], -1)
    return Outputs(self.head(features, slot), features, slot)
