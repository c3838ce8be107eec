"""A small convolutional net."""

from typing import Annotated

import flax.linen as nn

from cljax.declared import Checked, at_least
from cljax.nets.conv import FlatConv
from cljax.nets.heads import MOST_UNITS, Heads, KernelInit, initializer
from cljax.types import Array, Outputs


class CNN(Checked, nn.Module):
  """x [B, H, W, C] -> ReLU convolutions of the given `channels`, each `stride` times smaller -> ReLU layers of the
  widths `hidden` -> one head for each slot. Padding as SAME has it; kernels are matrices [window * window * C, O]."""

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
      start = initializer(self.kernel_init)
      window, strides = (self.window, self.window), (self.stride, self.stride)
      convolves = l < len(self.channels)
      layer = FlatConv(width, window, strides, kernel_init=start) if convolves else nn.Dense(width, kernel_init=start)
      setattr(self, name, layer)
    self.head = Heads(self.heads, self.classes)

  def __call__(self, x: Array, slot: Array) -> Outputs:
    for l in range(len(self.channels) + len(self.hidden)):
      layer = self.first if l == 0 else getattr(self, f"hidden_{l}")
      x = x if l < len(self.channels) else x.reshape(x.shape[0], -1)
      x = nn.relu(layer(x))
    features = x.reshape(x.shape[0], -1)
    return Outputs(self.head(features, slot), features, slot)
