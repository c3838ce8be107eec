"""Clusters of points, and what the points of a cluster have in common."""

import chex
import jax
import jax.numpy as jnp

from cljax.types import Array


def k_means(points: Array, live: Array, k: Array | int, most: int, iterations: int = 20) -> Array:
  """[N] int32 the cluster of each point by Lloyd's algorithm, `most` for points that are not live.

  Nothing is drawn: the first centre is the first live point, each further one the point that is farthest from those
  before it, the first of equals. A cluster that loses all its points keeps its centre.

  Args:
    points: [N, D] float; live: [N] bool, those that count.
    k: [] how many clusters, from 1 to `most`; it may be traced.
  """
  chex.assert_rank([points, live], [2, 1])
  chex.assert_type([points, live], [float, bool])
  chex.assert_equal_shape_prefix([points, live], 1)
  points = jnp.asarray(points)

  def squares(centres: Array, count: Array | int) -> Array:
    """[N, most] to each of the first `count` centres."""
    products = jnp.matmul(points, centres.T, precision="highest")
    found = (points**2).sum(axis=1)[:, None] - 2 * products + (centres**2).sum(axis=1)
    return jnp.where(jnp.arange(most) < count, found, jnp.inf)

  def farthest(j: Array, centres: Array) -> Array:
    return centres.at[j].set(points[jnp.where(live, squares(centres, j).min(axis=1), -jnp.inf).argmax()])

  def nearest(centres: Array) -> Array:
    return jnp.where(live, squares(centres, k).argmin(axis=1), most).astype(jnp.int32)

  def move(_: Array, centres: Array) -> Array:
    count, mean = means(points, nearest(centres), most)
    return jnp.where(count[:, None] > 0, mean, centres)

  first = jnp.zeros((most, points.shape[1]), points.dtype).at[0].set(points[live.argmax()])
  centres = jax.lax.fori_loop(1, most, farthest, first)
  return nearest(jax.lax.fori_loop(0, iterations, move, centres))


def means(points: Array, cluster: Array, most: int) -> tuple[Array, Array]:
  """([most] how many of the points [N, D] each cluster holds, [most, D] their mean); cluster [N], `most` for none."""
  chex.assert_rank([points, cluster], [2, 1])
  chex.assert_type([points, cluster], [float, int])
  count = jax.ops.segment_sum(jnp.ones(len(points)), cluster, most)
  return count, jax.ops.segment_sum(points, cluster, most) / jnp.maximum(count, 1)[:, None]


def in_common(points: Array, cluster: Array, most: int, width: Array | float) -> tuple[Array, Array]:
  """What the points [N, D] of a cluster have in common; a point that is alone has nothing.

  Args:
    cluster: [N] int, `most` for none.
    width: within which all points of the cluster lie in an entry that they have in common.

  Returns:
    [N, D] bool, the entries; [N, D] the mean of the point's cluster in each entry.
  """
  chex.assert_rank([points, cluster], [2, 1])
  chex.assert_type([points, cluster], [float, int])
  count, mean = means(points, cluster, most)
  high, low = (extreme(points, cluster, most) for extreme in (jax.ops.segment_max, jax.ops.segment_min))
  near = (high - low <= width) & (count > 1)[:, None]
  own = jnp.minimum(cluster, most - 1)
  return near[own] & (cluster < most)[:, None], mean[own]
