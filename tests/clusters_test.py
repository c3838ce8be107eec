"""Clusters of a few points, and what they have in common, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.ops.clusters import in_common, k_means, means

# Two near (0, 0), two near (5, 5), one at (9, 0), and one far away that does not count.
POINTS = np.array([[0, 0], [5, 5], [0, 1], [9, 0], [5, 6], [50, 50]], np.float32)
LIVE = np.array([True, True, True, True, True, False])
FOUND = jax.jit(k_means, static_argnames="most")


@pytest.mark.parametrize(
  ("k", "expected"),
  [
    (1, [0, 0, 0, 0, 0]),
    (2, [0, 1, 0, 1, 1]),  # the second centre is (9, 0), and the two near (5, 5) draw it to them
    (3, [0, 2, 0, 1, 2]),  # the third is (5, 6)
    (4, [0, 3, 0, 1, 2]),  # the fourth, (5, 5), ties with (0, 1), which comes later
  ],
)
def test_each_point_goes_to_the_nearest_centre(k, expected):
  """Of four centres with more room; points that are not live are in none."""
  np.testing.assert_array_equal(FOUND(POINTS, LIVE, k, most=4), [*expected, 4])


def test_the_first_centre_is_the_first_live_point():
  live = np.array([False, True, True, False, True, False])
  np.testing.assert_array_equal(FOUND(POINTS, live, 2, most=4), [4, 0, 1, 4, 0, 4])


def test_centres_move_to_the_mean_until_nothing_changes():
  """From 0 and 10 on: 4.5 is at first with 0, and then nearer to 22 / 3 than to the mean .9."""
  points = np.array([0, 0, 0, 0, 4.5, 6, 6, 10], np.float32)[:, None]
  np.testing.assert_array_equal(k_means(points, np.ones(8, bool), 2, 2, iterations=0), [0, 0, 0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(FOUND(points, np.ones(8, bool), 2, most=2), [0, 0, 0, 0, 1, 1, 1, 1])


def test_more_clusters_than_different_points_leave_some_empty():
  same = np.ones((3, 2), np.float32)
  np.testing.assert_array_equal(FOUND(same, np.ones(3, bool), 3, most=3), [0, 0, 0])


CLUSTER = np.array([0, 2, 0, 1, 2, 3])  # the last in none


def test_means_of_clusters():
  count, mean = jax.jit(means, static_argnums=2)(POINTS, CLUSTER, 3)
  np.testing.assert_array_equal(count, [2, 1, 2])
  np.testing.assert_allclose(mean, [[0, 0.5], [9, 0], [5, 5.5]])


def test_a_cluster_has_in_common_where_all_its_points_are_near():
  """An entry by itself, up to the width and not beyond; one that is alone has nothing."""
  common = jax.jit(in_common, static_argnums=2)
  near, mean = common(POINTS, CLUSTER, 3, 0.5)
  np.testing.assert_array_equal(near, [[1, 0], [1, 0], [1, 0], [0, 0], [1, 0], [0, 0]])
  np.testing.assert_allclose(mean[:5], [[0, 0.5], [5, 5.5], [0, 0.5], [9, 0], [5, 5.5]])
  np.testing.assert_array_equal(common(POINTS, CLUSTER, 3, 1.0)[0], [[1, 1], [1, 1], [1, 1], [0, 0], [1, 1], [0, 0]])


def test_three_points_must_all_be_near():
  points = jnp.array([[0.0], [1.0], [2.0]])
  assert not in_common(points, jnp.zeros(3, int), 1, 1.5)[0].any()
  assert in_common(points, jnp.zeros(3, int), 1, 2.0)[0].all()
