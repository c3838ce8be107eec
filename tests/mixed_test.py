"""Streams of several data sets: shapes, labels, splits, missing sets; copies and how they are relabelled."""

import jax
import numpy as np
import pytest

from cljax.config import complete, default
from cljax.data import bank, join
from cljax.data.bank import Source
from cljax.data.mixed import copies, datasets
from cljax.data.streams import stratified
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.types import Bank

KEY = jax.random.key(0)


def source(rows=100, classes=4, shape=(10, 10, 3), seed=0, first=3) -> Source:
  """Labels that do not begin at 0."""
  random = np.random.default_rng(seed)

  def split(count):
    x = random.integers(0, 256, (count, *shape)).astype(np.uint8)
    return Bank(x, (first + np.arange(count) % classes).astype(np.int32))

  return Source(split(rows), split(rows // 2), np.arange(first, first + classes, dtype=np.int32), f"hash{seed}")


def two(size=8, channels=1, fit="resize") -> Source:
  return join.joined({"a": source(), "b": source(60, 2, (6, 6, 1), 1, 0)}, size, channels, fit)


def test_joined_banks_count_their_labels_on():
  found = two()
  assert found.train.x.shape == (160, 8, 8, 1) and found.train.x.dtype == np.uint8
  np.testing.assert_array_equal(np.unique(found.train.y[:100]), [0, 1, 2, 3])
  np.testing.assert_array_equal(np.unique(found.train.y[100:]), [4, 5])
  assert [(name, list(labels)) for name, labels in found.groups] == [("a", [0, 1, 2, 3]), ("b", [4, 5])]
  assert found.hash != two(size=9).hash != two(fit="pad").hash


def test_pictures_that_fit_are_not_touched():
  x = source(shape=(8, 8, 1)).train.x
  np.testing.assert_array_equal(join.shaped(x, 8, 1, "resize"), x)


def test_grey_is_a_weighted_mean_and_three_channels_repeat():
  x = np.zeros((1, 4, 4, 3), np.uint8)
  x[..., 1] = 200
  np.testing.assert_array_equal(join.shaped(x, 4, 1, "resize"), np.full((1, 4, 4, 1), 117))  # .587 * 200
  grey = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(join.shaped(grey, 4, 3, "resize"), np.repeat(grey, 3, axis=-1))


def test_resizing_keeps_a_flat_picture_flat_and_padding_frames_it():
  x = np.full((3, 6, 6, 1), 77, np.uint8)
  np.testing.assert_array_equal(join.shaped(x, 9, 1, "resize"), np.full((3, 9, 9, 1), 77))
  np.testing.assert_array_equal(join.shaped(x, 3, 1, "resize"), np.full((3, 3, 3, 1), 77))
  padded = join.shaped(x, 9, 1, "pad")
  assert padded[:, 1:7, 1:7].min() == 77 and padded.sum() == 3 * 36 * 77


def test_halving_averages():
  x = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1) * 10
  small = join.shaped(x, 2, 1, "resize")[0, :, :, 0].astype(float)
  assert small[0, 0] < small[0, 1] < small[1, 0] < small[1, 1]
  assert abs(small.mean() - x.mean()) < 1.5


def test_missing_data_sets_are_left_out_where_marked(tmp_path, caplog):
  found = join.load("digits+kmnist?", str(tmp_path), 8, 1, "resize")
  assert [name for name, _ in found.groups] == ["digits"]
  assert join.load("digits+kmnist?", str(tmp_path)).train.x.shape[1:] == (8, 8, 1)  # the shape of the first
  with pytest.raises(ConfigError, match="kmnist"):
    join.load("digits+kmnist", str(tmp_path), 8, 1, "resize")
  with pytest.raises(ConfigError, match="none of config.stream.source"):
    join.load("kmnist?", str(tmp_path), 8, 1, "resize")
  damaged = tmp_path / "mine.npz"
  damaged.write_bytes(b"PK no zip")
  with pytest.raises(ConfigError, match="mine.npz is no .npz file"):  # it is there, and to be mended
    join.load(f"digits+{damaged}?", str(tmp_path), 8, 1, "resize")
  assert join.load(f"digits+{tmp_path}/yours.npz?", str(tmp_path)).groups[0][0] == "digits"


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (("digits", None, 8, 2, "resize"), "config.stream.channels=2"),
    (("digits", None, 8, 1, "crop"), "config.stream.fit='crop'"),
    (("digits+synthetic", None, 8, 1, "resize"), "float32"),
    (("digits+", None, 8, 1, "resize"), "a source without a name"),
    (("digits+mnist+digits?", None, 8, 1, "resize"), "config.stream.source='digits.mnist.digits.' names digits twice"),
  ],
)
def test_refusals_of_shapes(arguments, words):
  with pytest.raises(ConfigError, match=words):
    join.load(*arguments)


def test_a_task_is_a_data_set_with_its_own_labels():
  spec, stream = datasets(two(), KEY, size=8)
  assert (spec.T, spec.C, spec.heads, spec.x_shape) == (2, 4, 2, (8, 8, 1))
  np.testing.assert_array_equal(stream.tasks.classes, [[1, 1, 1, 1], [1, 1, 0, 0]])
  np.testing.assert_array_equal(stream.tasks.label_unmap[:, :2], [[0, 1], [4, 5]])
  for t, (count, held) in enumerate(((92, 8), (54, 6))):
    train, valid = (rows.idx[t, : rows.count[t]] for rows in (stream.tasks.train, stream.tasks.valid))
    assert (len(train), len(valid)) == (count, held)
    assert not set(train) & set(valid)
    labels = stream.bank.y[np.concatenate([train, valid])]
    assert set(labels) == ({0, 1, 2, 3}, {4, 5})[t]
    shares = np.bincount(stream.bank.y[valid], minlength=6)[labels.min() : labels.max() + 1]
    assert np.ptp(shares) == 0  # stratified: each class gives as many
  assert list(stream.test.count) == [50, 30]


def test_fewer_rows_and_fewer_sets():
  spec, stream = datasets(two(), KEY, tasks=1, examples_per_task=20)
  assert spec.T == 1 and list(stream.tasks.train.count) == [20]
  _, other = datasets(two(), jax.random.key(1), tasks=1, examples_per_task=20)
  assert not np.array_equal(stream.tasks.train.idx, other.tasks.train.idx)
  with pytest.raises(ConfigError, match="config.stream.tasks=3 is more than the 2 data sets: a, b"):
    datasets(two(), KEY, tasks=3)
  with pytest.raises(ConfigError, match="valid_share=1"):
    datasets(two(), KEY, valid_share=1)


def test_stratified_holds_out_each_class_s_share():
  labels = np.repeat([0, 1, 2], [10, 40, 1])
  train, valid = stratified(KEY, np.arange(51) + 100, labels, 0.2)
  np.testing.assert_array_equal(np.bincount(labels[valid - 100]), [2, 8, 1])
  assert sorted([*train, *valid]) == list(range(100, 151))
  assert len(stratified(KEY, np.arange(51), labels, 0.0)[1]) == 0


def test_copies_share_labels_but_neither_rows_nor_logits():
  spec, stream = copies(two(), KEY, angles=(0.0, 0.0, 30.0), examples_per_task=30, size=8)
  assert spec.T == 4  # three copies and the other data set
  rows = [set(stream.tasks.train.idx[t, : stream.tasks.train.count[t]]) for t in range(3)]
  rows += [set(stream.tasks.valid.idx[t, : stream.tasks.valid.count[t]]) for t in range(3)]
  assert sum(map(len, rows)) == len(set.union(*rows)) == 90
  unmap = stream.tasks.label_unmap
  for t in range(3):
    assert sorted(unmap[t]) == [0, 1, 2, 3]
    np.testing.assert_array_equal(stream.tasks.label_map[t, unmap[t]], np.arange(4))
  assert not np.array_equal(unmap[0], unmap[1]) or not np.array_equal(unmap[0], unmap[2])
  np.testing.assert_array_equal(stream.tasks.train.warp.degrees, [0, 0, 30, 0])
  with pytest.raises(ConfigError, match="the most is 33"):
    copies(two(), KEY, angles=(0.0, 0.0, 30.0), examples_per_task=50)
  with pytest.raises(ConfigError, match="'task'"):
    copies(two(), KEY, angles=(0.0,), examples_per_task=50, scenario="class")


def test_a_source_that_was_not_joined_is_one_task():
  spec, stream = datasets(bank.load("digits"), KEY)
  assert spec.T == 1 and stream.tasks.valid.count[0] > 100


def test_more_tasks_than_slots_are_refused_before_anything_is_built():
  spec, stream = datasets(two(), KEY)
  axes = jax.tree.map(lambda leaf: None, stream)
  with pytest.raises(ConfigError, match=r"the stream has 2 tasks, but spec\.T=1"):
    build(complete(default()), data=(spec._replace(T=1, heads=1), stream, axes, ""))


def test_every_stream_takes_joined_data_sets(tmp_path):
  config = default()
  config.stream = {"name": "subsets", "source": "digits+kmnist?", "classes": ((1, 5), (2, 6))}
  config.method = {"name": "finetune"}
  experiment = build(complete(config), str(tmp_path))
  assert experiment.spec.x_shape == (8, 8, 1) and experiment.spec.C == 10
