"""Convolutions as layers, fast inside a loop on a CPU; taps see them as they see `nn.Conv`."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import flax.linen as nn
import jax

from cljax.ops.convolution import convolution
from cljax.types import Array


def general(
  x: Array,
  kernel: Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int],
  rhs_dilation: Sequence[int],
  dimension_numbers: Any,
  feature_group_count: int = 1,
  precision: Any = None,
) -> Array:
  """`ops.convolution`, called as `nn.Conv` calls a convolution; one in groups of channels is `lax`'s own."""
  if feature_group_count == 1:
    return convolution(x, kernel, strides, padding, lhs_dilation, rhs_dilation, precision)
  return jax.lax.conv_general_dilated(
    x, kernel, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision=precision
  )


class Conv(nn.Conv):
  """`nn.Conv` by the convolution of `ops`: x [B, H, W, C] -> [B, H', W', features], kernel [k, k, C, features]."""

  conv_general_dilated: Callable[..., Array] | None = general


class FlatConv(Conv):
  """One whose kernel is a matrix [k * k * C, features], as that of a dense layer over windows is."""

  @nn.nowrap
  def param(self, name: str, init: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
    """A leaf of the layer; the kernel [k, k, C, features] begins, and is kept, as a matrix."""
    if name != "kernel":
      return super().param(name, init, *arguments, **options)
    shape, *rest = arguments
    return super().param(name, init, (prod(shape[:-1]), shape[-1]), *rest, **options).reshape(shape)
