"""Sums over examples of a power of each one's own gradient, most of which are never made.

The gradient of an example in a dense layer is the outer product of its input x and of the derivative d of its loss by
what the layer gives. So the sum over examples of |x_i d_j| is the product |X|^T |D|, and that of (x_i d_j)^2 likewise.
In a convolution, a dense layer over the windows of a picture, the gradient is the sum of such products over the places
of the picture; that sum is made. A `power` is multiplicative: the absolute value, or the square.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cljax.ops.convolution import extents
from cljax.types import Array

PowerFn = Callable[[Array], Array]


def of_products(inputs: Array, slopes: Array, power: PowerFn) -> Array:
  """[D, F] of the kernel of a dense layer, from what goes in [B, ..., D] and the derivatives [B, ..., F]."""
  chex.assert_equal_rank([inputs, slopes])
  chex.assert_equal_shape_prefix([inputs, slopes], inputs.ndim - 1)
  if inputs.ndim == 2:
    return power(inputs).T @ power(slopes)
  places = (leaf.reshape(len(leaf), -1, leaf.shape[-1]) for leaf in (inputs, slopes))
  return power(jnp.einsum("bpi,bpo->bio", *places)).sum(axis=0)


def of_windows(windows: Array, slopes: Array, groups: int, power: PowerFn) -> Array:
  """[w, C / groups, F] of the kernel of a convolution, from its windows [B, ..., w, C] and the derivatives
  [B, ..., F]; each of the groups of channels has its own share of the F features."""
  chex.assert_equal_shape_prefix([windows, slopes], slopes.ndim - 1)
  B, F = len(slopes), slopes.shape[-1]
  size, C = windows.shape[-2:]
  x = windows.reshape(B, -1, size, groups, C // groups)
  d = slopes.reshape(B, -1, groups, F // groups)
  return power(jnp.einsum("bpwgi,bpgo->bwigo", x, d)).sum(axis=0).reshape(size, C // groups, F)


def of_sums(values: Array, power: PowerFn) -> Array:
  """[F] of what is added to, or multiplies, each place of an example: `values` [B, ..., F] summed over places."""
  chex.assert_scalar_in(values.ndim, 2, jnp.inf)
  return power(values.reshape(len(values), -1, values.shape[-1]).sum(axis=1)).sum(axis=0)


def windows_of(
  x: Array,
  size: Sequence[int],
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  input_dilation: Sequence[int],
  kernel_dilation: Sequence[int],
) -> Array:
  """[B, *places, w, C]: what a convolution of x [B, *space, C] multiplies with its kernel [*size, C, F] at each place,
  w = prod(size) in the order of the kernel; the other arguments are those of `jax.lax.conv_general_dilated`."""
  chex.assert_rank(x, len(size) + 2)
  covered = extents(size, kernel_dilation)
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(x.shape[1:-1], covered, strides, padding)
  around = [(*pair, d - 1) for pair, d in zip(padding, input_dilation, strict=True)]
  x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])
  ends = [n - k + 1 for n, k in zip(x.shape[1:-1], covered, strict=True)]

  def places(offset):
    """[B, *places, C] what one entry of the window looks at."""
    starts = [i * d for i, d in zip(offset, kernel_dilation, strict=True)]
    return x[:, *(slice(at, at + end, s) for at, end, s in zip(starts, ends, strides, strict=True))]

  return jnp.stack([places(offset) for offset in np.ndindex(*size)], axis=-2)
