"""Streams of named lists of classes: the lists, which rows a task has, and what standardising makes of them."""

import os
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from cljax.data import bank, tfds
from cljax.data.bank import Source
from cljax.data.class_lists import CIFAR100, LISTS, class_lists
from cljax.data.sample import split_batch
from cljax.data.streams import stack
from cljax.errors import ConfigError
from cljax.types import Bank

KEY, OTHER = jax.random.key(0), jax.random.key(1)
SMALL = {"train_per_class": 4, "valid_per_class": 2}


def source(classes=100, each=8, tests=3) -> Source:
  """Pictures of 3x3x3 of so many classes, shuffled; the channels have means and deviations of their own."""
  random = np.random.default_rng(0)
  banks = []
  for rows in (each, tests):
    y = random.permutation(np.repeat(np.arange(classes, dtype=np.int32), rows))
    x = random.integers(0, np.array([256, 180, 120]), (len(y), 3, 3, 3)).astype(np.uint8)
    banks.append(Bank(x, y))
  return Source(*banks, np.arange(classes, dtype=np.int32), "toy")


SOURCE = source()


def tables(rows):
  """The live part of each task's table."""
  return [idx[:count] for idx, count in zip(rows.idx, rows.count, strict=True)]


def seen(stream, split, t):
  """The pictures of one split of a task, as a method sees them."""
  rows, data = (stream.test, stream.test_bank) if split == "test" else (getattr(stream.tasks, split), stream.bank)
  i = np.arange(rows.count[t])
  return np.asarray(split_batch(data, stream.tasks, rows, np.int32(t), i, np.ones(len(i), bool)).x)


def test_ten_lists_deal_out_all_classes():
  np.testing.assert_array_equal(np.sort(np.ravel(CIFAR100)), np.arange(100))
  assert {len(labels) for labels in CIFAR100} == {10}


def test_forty_lists():
  """Ten distinct classes each; every second of the first twenty is one of the ten, in the order of neighbours."""
  lists = LISTS["cifar100_40"]
  assert len(lists) == 40 and all(len(labels) == len(set(labels)) == 10 for labels in lists)
  assert len({frozenset(labels) for labels in lists}) == 40
  assert set(lists[0:20:2]) == set(CIFAR100)
  assert lists[1] == (4, 23, 54, 34, 0, 2, 6, 36, 12, 41) and lists[19] == (95, 1, 92, 9, 83, 5, 24, 3, 76, 8)
  assert lists[20] == (4, 22, 54, 15, 0, 26, 6, 27, 12, 47) and lists[22] == (1, 23, 9, 34, 5, 2, 3, 36, 8, 41)
  assert lists[21] == lists[22][:5] + lists[20][5:] and lists[39] == lists[20][:5] + lists[38][5:]
  np.testing.assert_array_equal(np.bincount(np.ravel(lists)), np.full(100, 4))


@pytest.mark.parametrize("lists,T", [("cifar100_10", 10), ("cifar100_40", 40)])
def test_rows_of_named_lists(lists, T):
  """As many of each class, validation apart from training in all tasks, labels by place in the list."""
  spec, stream = class_lists(SOURCE, KEY, lists=lists, **SMALL)
  assert spec.x_shape == (3, 3, 3) and (spec.T, spec.C, spec.heads, spec.rows) == (T, 10, T, (40,) * T)
  train, valid, test = (tables(rows) for rows in (stream.tasks.train, stream.tasks.valid, stream.test))
  assert not set(np.concatenate(train)) & set(np.concatenate(valid))
  for t, labels in enumerate(LISTS[lists]):
    np.testing.assert_array_equal(stream.tasks.label_unmap[t], labels)
    for rows, y, each in ((train[t], SOURCE.train.y, 4), (valid[t], SOURCE.train.y, 2), (test[t], SOURCE.test.y, 3)):
      logits = stream.tasks.label_map[t, y[rows]]
      np.testing.assert_array_equal(np.bincount(logits), np.full(10, each))
      np.testing.assert_array_equal(y[rows], np.array(labels)[logits])
      assert len(set(rows)) == len(rows)


def test_a_class_has_the_same_rows_in_each_task():
  _, stream = class_lists(SOURCE, KEY, lists="cifar100_40", **SMALL)
  assert len(np.unique(np.concatenate(tables(stream.tasks.train)))) == 400
  _, few = class_lists(SOURCE, KEY, lists="cifar100_40", tasks=3, **SMALL)
  for short, long in zip(tables(few.tasks.train), tables(stream.tasks.train), strict=False):
    np.testing.assert_array_equal(short, long)


def test_consecutive_lists_and_tests():
  spec, stream = class_lists(source(6), KEY, classes_per_task=3, scenario="domain", test_per_class=2, **SMALL)
  assert (spec.T, spec.C, spec.heads) == (2, 3, 1)
  np.testing.assert_array_equal(stream.tasks.label_unmap, [[0, 1, 2], [3, 4, 5]])
  assert (stream.test.count == 6).all()
  _, all_left = class_lists(source(6), KEY, train_per_class=0, valid_per_class=0)
  assert (all_left.tasks.train.count == 16).all() and (all_left.tasks.valid.count == 0).all()
  assert (all_left.test.count == 6).all()


def test_seeds_draw_their_own_images_unless_told():
  own = [class_lists(SOURCE, key, lists="cifar100_10", **SMALL)[1] for key in (KEY, OTHER)]
  _, axes = stack(own)
  assert axes.tasks.train.idx == axes.tasks.train.warp.mean == 0 and axes.test.idx is axes.test.warp.mean is None
  same = [class_lists(SOURCE, key, lists="cifar100_10", same_images=True, **SMALL)[1] for key in (KEY, OTHER)]
  chex.assert_trees_all_equal(*same)


@pytest.mark.parametrize("by", ["split", "train", "none"])
def test_standardised_splits(by):
  """Each split by its own rows: mean 0 and deviation 1; by the training rows: only these."""
  for key in (KEY, OTHER):
    _, stream = class_lists(SOURCE, key, lists="cifar100_10", tasks=2, standardise=by, **SMALL)
    for split in ("train", "valid", "test"):
      x = seen(stream, split, 1).reshape(-1, 3).astype(np.float64)
      exact = by == "split" or (by == "train" and split == "train")
      assert np.allclose(x.mean(axis=0), 0, atol=1e-5) == exact
      assert np.allclose(x.std(axis=0), 1, atol=1e-5) == exact
      assert (x.min() >= 0 and 0.9 < x.max() <= 1) == (by == "none")


def test_a_constant_channel_becomes_zeros():
  flat = SOURCE.train.x.copy()
  flat[..., 1] = 200
  _, stream = class_lists(SOURCE._replace(train=Bank(flat, SOURCE.train.y)), KEY, classes_per_task=50, **SMALL)
  x = seen(stream, "train", 0)
  assert np.abs(x[..., 1]).max() < 1e-4 and np.isfinite(x).all()
  assert stream.tasks.train.warp.scale[0, 1] == np.float32(np.sqrt(200 * 9))


@pytest.mark.parametrize(
  "keywords,words",
  [
    ({"lists": "cifar100"}, "config.stream.lists='cifar100' is not known.*Did you mean cifar100_"),
    ({"classes_per_task": 3}, "classes_per_task=3 does not divide the 100 classes of the data; choose one of 1, 2, 4"),
    ({"tasks": 51}, "config.stream.tasks=51 is more than the 50 tasks of config.stream.lists='consecutive'"),
    ({"train_per_class": 7}, "7 training and 2 validation rows of each class, but class 0 has 8 rows; lower"),
    ({"test_per_class": 4}, "config.stream.test_per_class=4 is more than the 3 test rows of a class; 0 takes all"),
    ({"standardise": "both"}, "config.stream.standardise='both' is not known"),
  ],
)
def test_wrong_settings_are_refused(keywords, words):
  with pytest.raises(ConfigError, match=words):
    class_lists(SOURCE, KEY, **{**SMALL, **keywords})


def test_named_lists_need_their_data():
  with pytest.raises(
    ConfigError, match="needs the 100 classes of cifar100, but the data has 6 from 0 to 5: use config"
  ):
    class_lists(source(6), KEY, lists="cifar100_40", **SMALL)


def test_cifar100():
  """On the prepared data: 170, 30 and 1000 rows a task, 17, 3 and 100 of each class."""
  folder = os.environ.get("TFDS_DATA_DIR", "")
  if not folder or not tfds.versions(Path(folder) / "cifar100"):
    pytest.skip("needs the prepared data sets: set TFDS_DATA_DIR")
  found = bank.load("cifar100")
  spec, stream = class_lists(found, KEY, lists="cifar100_10")
  assert spec.rows == (170,) * 10 and spec.x_shape == (32, 32, 3)
  assert (stream.tasks.valid.count == 30).all() and (stream.test.count == 1000).all()
  for rows, y, each in ((stream.tasks.train, found.train.y, 17), (stream.tasks.valid, found.train.y, 3)):
    for t, table in enumerate(tables(rows)):
      np.testing.assert_array_equal(np.bincount(stream.tasks.label_map[t, y[table]]), np.full(10, each))
  for split in ("train", "valid", "test"):
    x = seen(stream, split, 9).astype(np.float64)
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, atol=1e-4)
