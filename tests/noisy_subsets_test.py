"""Random sets of classes with noise and an order of the channels: what is the same for whom, and what is drawn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.data.noisy_subsets import distinct_sets, noisy_channels, noisy_subsets
from cljax.data.sample import split_batch
from cljax.data.streams import stack
from cljax.errors import ConfigError
from cljax.types import Place
from tests.class_lists_test import KEY, OTHER, source, tables
from tests.rows import fetch, pool_of, view_at

SOURCE = source(10, 12, 3)
SMALL = {"tasks": 6, "train_per_class": 6, "valid_per_class": 3}
SPEC, STREAM = noisy_subsets(SOURCE, KEY, **SMALL)
WARP = STREAM.tasks.train.warp


def visits(t, i, rows=STREAM.tasks.train, data=STREAM.bank):
  """The rows `i` of one split of a task."""
  return np.asarray(split_batch(data, STREAM.tasks, rows, jnp.int32(t), jnp.asarray(i), np.ones(len(i), bool)).x)


def test_tasks_are_distinct_sets():
  sets = distinct_sets(KEY, 45, 10, 2)  # all there are
  assert len({frozenset(labels) for labels in sets.tolist()}) == 45 and (sets[:, 0] != sets[:, 1]).all()
  np.testing.assert_array_equal(distinct_sets(KEY, 7, 10, 2), sets[:7])
  assert (np.diff(sets) < 0).any()  # in random order


def test_tasks_are_shared_and_rows_are_drawn():
  """Another seed has the same tasks and noise, and rows of its own; another task seed has other tasks."""
  _, other = noisy_subsets(SOURCE, OTHER, **SMALL)
  chex.assert_trees_all_equal(other.tasks.train.warp, WARP)
  chex.assert_trees_all_equal(other.test, STREAM.test)
  chex.assert_trees_all_equal(other.tasks.label_unmap, STREAM.tasks.label_unmap)
  _, axes = stack([STREAM, other])
  assert axes.tasks.train.idx == 0 and jax.tree.leaves(axes.tasks.train.warp) == jax.tree.leaves(axes.test) == []
  _, third = noisy_subsets(SOURCE, KEY, task_seed=1, **SMALL)
  assert (third.tasks.label_unmap != STREAM.tasks.label_unmap).any() and (third.test.warp.seed != WARP.seed).all()


def test_rows_of_each_class():
  train, valid = tables(STREAM.tasks.train), tables(STREAM.tasks.valid)
  assert SPEC.rows == (18,) * 6 and (SPEC.C, SPEC.heads) == (3, 6) and (STREAM.test.count == 9).all()
  for t, labels in enumerate(STREAM.tasks.label_unmap):
    assert not set(train[t]) & set(valid[t])
    for rows, each in ((train[t], 6), (valid[t], 3)):
      y = SOURCE.train.y[rows]
      np.testing.assert_array_equal(np.bincount(STREAM.tasks.label_map[t, y]), np.full(3, each))
      assert set(y) == set(labels)


def test_the_splits_of_a_task_share_noise_and_channels():
  for name in ("mean", "deviation", "order"):
    np.testing.assert_array_equal(getattr(STREAM.test.warp, name), getattr(WARP, name))
  assert STREAM.tasks.valid.warp is WARP and (STREAM.test.warp.seed != WARP.seed).all()
  warp = noisy_channels(KEY, 100, 3, 0.025, True, 0)
  np.testing.assert_array_equal(np.unique(warp.mean), np.array([-0.05, -0.025, 0, 0.025], np.float32))
  np.testing.assert_array_equal(np.unique(warp.deviation), np.array([0, 0.025], np.float32))
  assert len(np.unique(warp.order, axis=0)) == 6  # the identity too


def test_a_picture_is_the_same_at_every_visit():
  """In any batch, through a place, and from a pool; two pictures have other noise."""
  t = int(np.flatnonzero(WARP.deviation)[0])
  all_rows = visits(t, np.arange(18))
  np.testing.assert_array_equal(visits(t, [5, 2]), all_rows[[5, 2]])
  data = jax.tree.map(jnp.asarray, STREAM)
  view = view_at(data, jnp.int32(t))
  place = Place(jnp.full(18, t), jnp.asarray(STREAM.tasks.train.idx[t]))
  np.testing.assert_allclose(fetch(view, place).x, all_rows, atol=1e-6)
  np.testing.assert_allclose(pool_of(data.bank, data.tasks, jnp.int32(t)).x, all_rows, atol=1e-6)
  plain = SOURCE.train.x[STREAM.tasks.train.idx[t]] / np.float32(255) - np.float32(0.5)
  noise = all_rows - plain[..., WARP.order[t]]
  inside = np.abs(all_rows) < 0.5
  assert noise[inside].std() == pytest.approx(0.025, rel=0.1)
  assert noise[inside].mean() == pytest.approx(WARP.mean[t], abs=0.006)
  assert np.abs(noise[0] - noise[1]).max() > 0.02 and np.abs(all_rows).max() <= 0.5


def test_a_shift_and_its_channels_by_hand():
  """Where no noise is drawn: minus a half, plus the mean, cut off, channels in order."""
  for t in np.flatnonzero(WARP.deviation == 0):
    x = SOURCE.test.x[STREAM.test.idx[t]] / np.float32(255) - np.float32(0.5)
    expected = np.clip(x + WARP.mean[t], -0.5, 0.5)[..., WARP.order[t]]
    np.testing.assert_allclose(visits(t, np.arange(9), STREAM.test, STREAM.test_bank), expected, atol=1e-6)
  _, plain = noisy_subsets(SOURCE, KEY, noise_unit=0.0, permute_channels=False, **SMALL)
  warp = plain.test.warp
  assert not warp.mean.any() and not warp.deviation.any() and (warp.order == np.arange(3)).all()


@pytest.mark.parametrize(
  "keywords,words",
  [
    (
      {"tasks": 121},
      "config.stream.tasks=121 .*classes_per_task=3: the 10 classes of the data make 120 different sets",
    ),
    ({"classes_per_task": 11}, "classes_per_task=11: the 10 classes of the data make 0 different sets"),
    ({"noise_unit": 2.0}, "config.stream.noise_unit=2"),
    ({"train_per_class": 10}, "10 training and 3 validation rows of each class, but class . has 12 rows"),
  ],
)
def test_wrong_settings_are_refused(keywords, words):
  with pytest.raises(ConfigError, match=words):
    noisy_subsets(SOURCE, KEY, **{**SMALL, **keywords})
