"""Residual nets with group normalisation in place of BatchNorm, and a plain stack of the same layers.

Depths 6n + 2 of He et al. 2016 for small pictures (https://arxiv.org/abs/1512.03385, section 4.2), shortcuts without
parameters (option A), GroupNorm (Wu and He 2018, https://arxiv.org/abs/1803.08494) after each convolution, as in Xiong,
Ren and Urtasun 2020 (https://arxiv.org/abs/1910.04650). Convolutions have no bias; each is fast inside a loop.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from cljax.declared import Checked, at_least
from cljax.errors import ConfigError
from cljax.nets.conv import Conv
from cljax.nets.heads import MOST_UNITS, Heads, KernelInit, initializer
from cljax.types import Array, Outputs

Groups = Annotated[
  int, at_least(1, "of channels normalised together, at most; fewer where they do not divide a layer's", MOST_UNITS)
]
BLOCKS_OF_A_STAGE, STAGES, BESIDE = 2, 3, 2  # convolutions of a block; stages; the first convolution and the head


def groups_of(channels: int, most: int) -> int:
  """The largest number of equal groups of the channels, at most so many."""
  return next(groups for groups in range(min(most, channels), 0, -1) if channels % groups == 0)


class Normed(nn.Module):
  """x [B, H, W, C] -> a 3x3 convolution [B, H', W', width], and GroupNorm."""

  width: int
  stride: int
  groups: int
  kernel_init: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    start, strides = initializer(self.kernel_init), (self.stride, self.stride)
    x = Conv(self.width, (3, 3), strides, use_bias=False, kernel_init=start, name="conv")(x)
    return nn.GroupNorm(groups_of(self.width, self.groups), epsilon=1e-5, name="norm")(x)


def shortcut(x: Array, width: int, stride: int) -> Array:
  """Every `stride`-th pixel of x [B, H, W, C], with zeros for the channels that are new."""
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))


class ResNet(Checked, nn.Module):
  """x [B, H, W, C] -> a convolution, three stages of (depth - 2) / 6 blocks, the later ones of half the side -> the
  mean over pixels [B, widths[-1]] -> one head for each slot."""

  heads: int
  classes: int
  depth: Annotated[int, at_least(8, "6n + 2: convolutions and the head", 1202)] = 32
  widths: Annotated[
    tuple[int, ...], at_least(1, "channels of the three stages, never fewer than before", MOST_UNITS)
  ] = (
    16,
    32,
    64,
  )
  groups: Groups = 8
  kernel_init: KernelInit = "he"

  @nn.compact
  def __call__(self, x: Array, slot: Array) -> Outputs:
    blocks, left = divmod(self.depth - BESIDE, BLOCKS_OF_A_STAGE * STAGES)
    if left:
      low = self.depth - left
      raise ConfigError(f"config.net.depth={self.depth} must be 6n + 2, for example {low} or {low + 6}")
    if len(self.widths) != STAGES or list(self.widths) != sorted(self.widths):
      raise ConfigError(f"config.net.widths={self.widths} must be three numbers, none smaller than the one before")
    x = nn.relu(Normed(self.widths[0], 1, self.groups, self.kernel_init, name="first")(x))
    for stage, width in enumerate(self.widths):
      for n in range(blocks):
        stride, name = 2 if stage and not n else 1, f"stage_{stage}_{n}"
        inner = nn.relu(Normed(width, stride, self.groups, self.kernel_init, name=f"{name}_a")(x))
        inner = Normed(width, 1, self.groups, self.kernel_init, name=f"{name}_b")(inner)
        x = nn.relu(inner + shortcut(x, width, stride))
    features = x.mean(axis=(1, 2))
    return Outputs(Heads(self.heads, self.classes, name="head")(features, slot), features, slot)


class NormedCNN(Checked, nn.Module):
  """x [B, H, W, C] -> ReLU convolutions of stride 2 with GroupNorm, of these `widths` -> the mean over pixels
  [B, widths[-1]] -> one head for each slot."""

  heads: int
  classes: int
  widths: Annotated[tuple[int, ...], at_least(1, "channels of each convolution", MOST_UNITS)] = (
    16,
    32,
    64,
  )
  groups: Groups = 8
  kernel_init: KernelInit = "he"

  @nn.compact
  def __call__(self, x: Array, slot: Array) -> Outputs:
    for l, width in enumerate(self.widths):
      x = nn.relu(Normed(width, 2, self.groups, self.kernel_init, name="first" if l == 0 else f"hidden_{l}")(x))
    features = x.mean(axis=(1, 2))
    return Outputs(Heads(self.heads, self.classes, name="head")(features, slot), features, slot)
