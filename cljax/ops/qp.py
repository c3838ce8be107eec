"""Quadratic programs over weights that are not negative, exact but for rounding."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve

from cljax.types import Array

FLAT = 16  # times the precision of a number, and the weights' sum: a slope that is as good as none
ALIKE = 8  # times the precision: what is new in a row, in square, that is as good as nothing
times = partial(jnp.matmul, precision="highest")


class Search(NamedTuple):
  """Where `nonnegative` stands."""

  v: Array  # [T] weights, none below 0
  free: Array  # [T] bool, those that may be above 0
  k: Array  # [] int32, the one that was released last; T before any
  barred: Array  # [T] bool, not to be released until the value falls: rounding must not lead in circles
  lowest: Array  # [] the least value of a set whose solution had no weight below 0
  ends: Array  # [] bool


def nonnegative(P: Array, q: Array, live: Array) -> Array:
  """[T] v that minimises v P v / 2 + q v where no entry of v is below 0, and v = 0 where not live.

  The active-set method of Lawson and Hanson (1974, "Solving least squares problems", chapter 23) on the normal
  equations, with fixed shapes. A round solves the linear system of the free weights. Where its solution has a weight
  at or below 0, the weights go towards it until one reaches 0, which is free no longer; else they take it, and the
  weight with the steepest slope P v + q below 0 is released. Each solution taken has a lower value, so no set comes
  twice: at the end no slope is below 0.

  P may have any rank if q lies in its range, as for P = G G^T and q = G g: then g + G^T v is the same for all
  solutions. A row that is a combination of free ones has their slope, which is 0, and is never released but by
  rounding; that is seen by its pivot and undone.

  Rounding: where P has ones on its diagonal and the largest of q is 1, no slope of a weight at 0 ends below
  -FLAT precision (1 + sum v), but for rows that are nearly combinations of free ones, whose slope ends above
  -sqrt(ALIKE precision) times the length that is left of g. The rows may have any lengths.

  Args:
    P: [T, T] symmetric, no eigenvalue below 0.
    q: [T].
    live: [T] bool.

  Returns:
    no numbers where P or q is none, or P is not as it must be.
  """
  chex.assert_rank([P, q, live], [2, 1, 1])
  chex.assert_shape(P, (len(q), len(q)))
  chex.assert_type([P, q, live], [float, float, bool])
  size = jnp.sqrt(jnp.diagonal(P))
  live = live & (size != 0)
  unit = jnp.where(live, 1 / jnp.where(live, size, 1), 0)
  q = unit * q
  scale = jnp.maximum(jnp.abs(q).max(), jnp.finfo(q.dtype).tiny)
  step = partial(onwards, unit[:, None] * P * unit, q / scale, live)
  none = jnp.zeros(len(q), bool)
  lowest = jnp.full((), jnp.inf, q.dtype)
  start = Search(jnp.zeros_like(q), none, jnp.int32(len(q)), none, lowest, jnp.bool_(False))
  return scale * unit * jax.lax.while_loop(lambda at: ~at.ends, step, start).v


def onwards(P: Array, q: Array, live: Array, at: Search) -> Search:
  """A round of `nonnegative`, for P with ones on its diagonal."""
  chex.assert_equal_shape([q, live, at.v])
  each, precision = jnp.arange(len(q)), jnp.finfo(q.dtype)
  own, both = each == at.k, at.free[:, None] & at.free
  system = cho_factor(jnp.where(both, P, 0) + jnp.diag(jnp.where(at.free, 0.0, 1.0).astype(q.dtype)))
  best, pivot = cho_solve(system, jnp.stack([jnp.where(at.free, -q, 0), own.astype(q.dtype)], axis=1)).T
  alike = ~(jnp.where(own, pivot, 0).sum() < 1 / (ALIKE * precision.eps)) | jnp.isnan(best).any()
  back = at.free & (best <= 0)
  share = jnp.where(back, at.v / jnp.maximum(at.v - best, precision.tiny), 2)
  taken = ~alike & ~back.any()
  gone = ~taken & jnp.where(alike, own, each == share.argmin())
  nearer = jnp.where(gone, 0, jnp.maximum(at.v + share.min() * (best - at.v), 0))

  value, slope = q @ best, times(P, best) + q
  barred = (at.barred & ~(taken & (value < at.lowest))) | gone
  may = live & ~at.free & ~barred & (slope < -FLAT * precision.eps * (1 + best.sum()))
  k = jnp.where(taken & may.any(), jnp.where(may, slope, 0).argmin(), at.k).astype(jnp.int32)
  stuck = alike & ~(own & at.free).any()
  v = jnp.where(taken, best, jnp.where(alike, at.v, nearer))
  return Search(
    v=jnp.where(stuck, jnp.nan, v),
    free=(at.free & ~gone) | (taken & may.any() & (each == k)),
    k=k,
    barred=barred,
    lowest=jnp.where(taken, jnp.minimum(at.lowest, value), at.lowest),
    ends=(taken & ~may.any()) | stuck,
  )
