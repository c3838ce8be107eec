"""Convolutions that are as fast inside a loop as outside, and pooling.

The gradient of a convolution as `lax` writes it permutes the dimensions of its operands, which XLA's CPU compiler takes
30 to 40 times as long for inside a loop (jax issue 12868). Here both derivatives are convolutions of the same plain
kind, [B, *space, C] with [*window, C, O]. With y = conv(x, w; strides s, dilations a of x and b of w, padding lo, hi),
windows of k, places n, and D(n, d) = (n - 1) d + 1 the extent of n places d apart:

  dx = conv(dy, w turned round, its channels swapped; strides a, dilations s and b),
       lo' = D(k, b) - 1 - lo, hi' = D(n_x, a) + D(k, b) - 1 - lo' - D(n_y, s)
  dw = conv(x with C as its batch, dy with B as its channels; strides b, dilations a and s),
       lo' = lo, hi' = D(k, b) - 1 + D(n_y, s) - D(n_x, a) - lo

So the family is closed, and a derivative has derivatives of the same kind.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.types import Array

Pads = tuple[tuple[int, int], ...]


class Geometry(NamedTuple):
  """Where a convolution looks: one entry for each axis of space."""

  strides: tuple[int, ...]
  padding: Pads
  input_dilation: tuple[int, ...]
  kernel_dilation: tuple[int, ...]
  precision: Any = None  # as `lax` has it


def convolution(
  x: Array,
  kernel: Array,
  strides: int | Sequence[int] = 1,
  padding: str | Sequence[tuple[int, int]] = "SAME",
  input_dilation: int | Sequence[int] = 1,
  kernel_dilation: int | Sequence[int] = 1,
  precision: Any = None,
) -> Array:
  """[B, *space', O]: the convolution of x [B, *space, C] with kernel [*window, C, O], any number of axes of space.

  On a CPU the derivatives are those of this file; they differ from `lax`'s by rounding at most, and may be taken again,
  but only in reverse. Elsewhere they are `lax`'s own. Which it is depends on JAX's default backend while it is traced.

  Args:
    x, kernel: of the same float dtype.
    padding: SAME, VALID, or (before, after) of each axis.
    precision: as in `jax.lax.conv_general_dilated`; None: JAX's default at this place, for the derivatives too.

  Raises:
    ValueError: SAME or VALID with a dilated input, of which `lax` knows none either.
  """
  chex.assert_equal_rank([x, kernel])
  chex.assert_axis_dimension(kernel, -2, x.shape[-1])
  chex.assert_type([x, kernel], float)
  chex.assert_trees_all_equal_dtypes(x, kernel)
  window, space = kernel.shape[:-2], x.shape[1:-1]
  strides, lhs, rhs = (each(steps, len(window)) for steps in (strides, input_dilation, kernel_dilation))
  if isinstance(padding, str):
    if max(lhs) > 1:
      raise ValueError(f"padding={padding!r} of a dilated input: give (before, after) of each axis")
    padding = jax.lax.padtype_to_pads(space, extents(window, rhs), strides, padding)
  if precision is None:
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  pads = tuple((int(before), int(after)) for before, after in padding)
  geometry = Geometry(strides, pads, lhs, rhs, precision)
  return (canonical if jax.default_backend() == "cpu" else plain)(geometry, x, kernel)


def each(steps: int | Sequence[int], axes: int) -> tuple[int, ...]:
  """One number for each axis."""
  return (steps,) * axes if isinstance(steps, int) else tuple(steps)


def extents(counts: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
  """What so many places take that are so far apart."""
  return tuple((n - 1) * d + 1 for n, d in zip(counts, dilations, strict=True))


def plain(geometry: Geometry, x: Array, kernel: Array) -> Array:
  """`lax`'s convolution, channels last."""
  chex.assert_rank([x, kernel], len(geometry.strides) + 2)
  space = "HWDXYZ"[: x.ndim - 2]
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    geometry.strides,
    geometry.padding,
    geometry.input_dilation,
    geometry.kernel_dilation,
    dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    precision=geometry.precision,
  )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def canonical(geometry: Geometry, x: Array, kernel: Array) -> Array:
  """`plain`, whose derivatives are convolutions of this kind."""
  return plain(geometry, x, kernel)


def forward(geometry: Geometry, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
  """What the convolution gives, and what its derivatives need."""
  chex.assert_equal_rank([x, kernel])
  return canonical(geometry, x, kernel), (x, kernel)


def backward(geometry: Geometry, kept: tuple[Array, Array], slopes: Array) -> tuple[Array, Array]:
  """The derivatives by x and by the kernel."""
  x, kernel = kept
  chex.assert_equal_rank([x, kernel, slopes])
  s, padding, a, b, precision = geometry
  places = tuple(range(x.ndim - 2))
  covered, given = extents(kernel.shape[:-2], b), extents(x.shape[1:-1], a)
  asked = extents(slopes.shape[1:-1], s)

  by_x, by_kernel = [], []
  for k, n, m, (before, _) in zip(covered, given, asked, padding, strict=True):
    turned = k - 1 - before
    by_x.append((turned, n + k - 1 - turned - m))
    by_kernel.append((before, k - 1 + m - n - before))

  turned_kernel = jnp.swapaxes(jnp.flip(kernel, places), -1, -2)
  dx = canonical(Geometry(a, tuple(by_x), s, b, precision), slopes, turned_kernel)
  channels_first = jnp.swapaxes(x, 0, -1)  # [C, *space, B]
  rows_as_channels = jnp.moveaxis(slopes, 0, -2)  # [*space', B, O]
  dw = canonical(Geometry(b, tuple(by_kernel), a, s, precision), channels_first, rows_as_channels)
  return dx, jnp.moveaxis(dw, 0, -2)


canonical.defvjp(forward, backward)


def max_pool(x: Array, size: int) -> Array:
  """[B, ceil(H / size), ceil(W / size), C]: the largest of each square of x [B, H, W, C]; squares do not overlap.

  Where they do not divide x they reach beyond its borders as with SAME, one more place after than before where it is
  odd. Places that share the largest number share its derivative.
  """
  chex.assert_rank(x, 4)
  chex.assert_type(x, float)
  B, H, W, C = x.shape
  rows, columns = -(-H // size), -(-W // size)
  missing = [count * size - n for count, n in ((rows, H), (columns, W))]
  if any(missing):
    around = [(each // 2, each - each // 2) for each in missing]
    x = jnp.pad(x, ((0, 0), *around, (0, 0)), constant_values=-jnp.inf)
  return x.reshape(B, rows, size, columns, size, C).max(axis=(2, 4))
