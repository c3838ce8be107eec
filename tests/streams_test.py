"""Streams: what a seed names, what a scenario means, which rows are drawn, and warps against scipy and numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from cljax.data.bank import Source
from cljax.data.streams import permuted, rotated, split, stack
from cljax.data.subsets import subsets
from cljax.data.warp import Permutation, Rotation
from cljax.declared import fields
from cljax.errors import ConfigError
from cljax.experiment import OF_SCENARIO
from cljax.types import Bank, Spec

LABELS = np.array([1, 3, 4, 7, 8, 9], np.int32)  # neither from zero nor without gaps


def source(sizes=(20,) * 6, tests=5) -> Source:
  """Pictures of 4x4 with `sizes` training rows and `tests` test rows of each label, shuffled."""
  random = np.random.default_rng(0)
  banks = []
  for each in (sizes, (tests,) * len(sizes)):
    y = random.permutation(np.repeat(LABELS[: len(sizes)], each)).astype(np.int32)
    banks.append(Bank(random.integers(0, 256, (len(y), 4, 4, 1), np.uint8), y))
  return Source(*banks, LABELS[: len(sizes)], "toy")


STREAMS = {"permuted": permuted, "rotated": rotated, "split": split}  # of one data set; the others: mixed_test
SOURCE = source()
KEY, OTHER = jax.random.key(0), jax.random.key(1)


def tables(rows):
  """The live part of each task's table."""
  return [idx[:count] for idx, count in zip(rows.idx, rows.count, strict=True)]


@pytest.mark.parametrize("name", STREAMS)
def test_a_seed_names_its_stream(name):
  """All that is drawn comes back with the key, and moves with it."""
  keywords = {"tasks": 3, "examples_per_task": 12, "valid_per_task": 4, "shuffle_order": True}
  spec, one = STREAMS[name](SOURCE, KEY, **keywords)
  again, same = STREAMS[name](SOURCE, jax.random.key(0), **keywords)
  chex.assert_trees_all_equal(one, same)
  assert spec == again
  _, other = STREAMS[name](SOURCE, OTHER, **keywords)
  assert (one.tasks.train.idx != other.tasks.train.idx).any()
  assert one.bank is other.bank is SOURCE.train and one.test_bank is SOURCE.test


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_numpy_of_the_documented_types(name):
  spec, data = STREAMS[name](SOURCE, KEY, tasks=3)
  chex.assert_tree_shape_prefix((data.tasks, data.test), (3,))
  for rows in (data.tasks.train, data.tasks.valid, data.test):
    assert rows.idx.dtype == rows.count.dtype == np.int32
  assert data.tasks.label_map.shape == (3, LABELS.max() + 1) and data.tasks.label_map.dtype == np.int32
  assert data.tasks.label_unmap.shape == data.tasks.classes.shape == (3, spec.C)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(data))
  assert spec.x_shape == (4, 4, 1) and spec.T == 3 and spec.boundaries


def test_permutations():
  """Each is a bijection, one for all splits of a task, other tasks and other seeds have others."""
  _, data = permuted(SOURCE, KEY, tasks=5)
  index = data.tasks.train.warp.index
  np.testing.assert_array_equal(np.sort(index, axis=1), np.tile(np.arange(16), (5, 1)))
  chex.assert_trees_all_equal(data.tasks.train.warp, data.tasks.valid.warp, data.test.warp)
  _, other = permuted(SOURCE, OTHER, tasks=5)
  assert len(np.unique(np.concatenate([index, other.tasks.train.warp.index]), axis=0)) == 10
  assert not (index == np.arange(16)).all(axis=1).any()


def test_more_tasks_keep_the_first_permutations():
  """A task's permutation is named by its place, not by their number."""
  few, many = (permuted(SOURCE, KEY, tasks=tasks)[1].tasks.train.warp.index for tasks in (2, 5))
  np.testing.assert_array_equal(few, many[:2])


def test_identity_first():
  _, plain = permuted(SOURCE, KEY, tasks=4)
  _, data = permuted(SOURCE, KEY, tasks=4, identity_first=True)
  index = data.tasks.train.warp.index
  np.testing.assert_array_equal(index[0], np.arange(16))
  np.testing.assert_array_equal(index[1:], plain.tasks.train.warp.index[1:])
  _, shuffled = permuted(SOURCE, OTHER, tasks=4, identity_first=True, shuffle_order=True)
  assert (shuffled.tasks.train.warp.index == np.arange(16)).all(axis=1).sum() == 1


def test_a_permutation_moves_whole_pixels():
  """Output pixel i is input pixel index[i]; channels stay together."""
  x = np.random.default_rng(0).random((2, 2, 3, 2)).astype(np.float32)
  index = np.array([5, 0, 3, 1, 4, 2], np.int32)
  turned = np.asarray(Permutation(index)(jnp.asarray(x)))
  np.testing.assert_array_equal(turned.reshape(2, 6, 2), x.reshape(2, 6, 2)[:, index])


def test_turns_are_nine_degrees_apart_for_all_seeds():
  for key in (KEY, OTHER):
    _, data = rotated(SOURCE, key, tasks=20)
    np.testing.assert_array_equal(data.tasks.train.warp.degrees, np.arange(20, dtype=np.float32) * 9)
    chex.assert_trees_all_equal(data.tasks.train.warp, data.tasks.valid.warp, data.test.warp)
  _, back = rotated(SOURCE, KEY, tasks=3, degrees=-30.0)
  np.testing.assert_array_equal(back.test.warp.degrees, np.array([0, -30, -60], np.float32))


rotate = jax.jit(jax.vmap(lambda degrees, x: Rotation(degrees)(x), (0, None)))


@pytest.mark.parametrize("size", [12, 9])
def test_rotation_agrees_with_scipy(size):
  """Counter-clockwise, bilinear: on every pixel whose corners stay in the picture, at any angle."""
  angles = np.array([9, 30, 45, 90, 171, 180, -20, 270], np.float32)
  x = np.random.default_rng(size).random((2, size, size, 3)).astype(np.float32)
  turned = np.asarray(rotate(angles, x))
  offset = np.arange(size) - (size - 1) / 2
  interior = offset[:, None] ** 2 + offset[None, :] ** 2 < ((size - 3) / 2) ** 2
  for degrees, mine in zip(angles, turned, strict=True):
    scipy_s = scipy.ndimage.rotate(x, float(degrees), axes=(2, 1), reshape=False, order=1)
    np.testing.assert_allclose(mine[:, interior], scipy_s[:, interior], atol=1e-4)


def test_a_quarter_turn_is_rot90():
  x = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float32)
  for quarter, mine in enumerate(np.asarray(rotate(np.array([0, 90, 180, 270], np.float32), x))):
    np.testing.assert_allclose(mine, np.rot90(x, quarter, axes=(1, 2)), atol=1e-5)


def test_rotation_by_zero_is_the_identity():
  """Bit for bit, for odd and even and oblong pictures."""
  for shape in ((2, 28, 28, 1), (2, 7, 7, 2), (1, 5, 8, 1)):
    x = np.random.default_rng(1).random(shape).astype(np.float32)
    np.testing.assert_array_equal(rotate(np.zeros(1, np.float32), x)[0], x)


def test_rotation_brings_zeros_from_outside():
  ones = np.ones((1, 9, 9, 1), np.float32)
  turned = np.asarray(rotate(np.array([45], np.float32), ones))[0, 0, :, :, 0]
  assert turned[0, 0] == turned[0, -1] == turned[-1, 0] == turned[-1, -1] == 0
  np.testing.assert_allclose(turned[4, :], 1, atol=1e-5)
  assert (turned >= 0).all() and (turned <= 1 + 1e-5).all()


@pytest.mark.parametrize("name", STREAMS)
def test_all_rows_in_the_bank_s_order_by_default(name):
  _, data = STREAMS[name](SOURCE, KEY, tasks=2)
  for t in range(2):
    live = np.flatnonzero(np.isin(np.arange(10), data.tasks.label_unmap[t]))
    np.testing.assert_array_equal(tables(data.tasks.train)[t], np.flatnonzero(np.isin(SOURCE.train.y, live)))
    np.testing.assert_array_equal(tables(data.test)[t], np.flatnonzero(np.isin(SOURCE.test.y, live)))
  assert (data.tasks.valid.count == 0).all()


@pytest.mark.parametrize("take,held", [(12, 0), (12, 5), (0, 5), (35, 5)])
@pytest.mark.parametrize("name", STREAMS)
def test_drawn_rows(name, take, held):
  """As many as asked, each once, training and validation apart, all of the task's classes and of the training bank."""
  _, data = STREAMS[name](SOURCE, KEY, tasks=3, examples_per_task=take, valid_per_task=held)
  train, valid = tables(data.tasks.train), tables(data.tasks.valid)
  available = 40 if name == "split" else 120
  for t in range(3):
    assert len(train[t]) == (take or available - held) and len(valid[t]) == held
    both = np.concatenate([train[t], valid[t]])
    assert len(set(both)) == len(both) and both.min() >= 0 and both.max() < len(SOURCE.train.y)
    assert np.isin(SOURCE.train.y[both], data.tasks.label_unmap[t]).all()
    assert data.test.count[t] == (10 if name == "split" else 30)
  if name != "split":
    assert len({tuple(rows) for rows in train}) == 3  # drawn anew for each task


def test_drawn_rows_differ_by_seed_and_cover_the_bank():
  drawn = [
    tables(permuted(SOURCE, jax.random.key(seed), tasks=6, examples_per_task=30)[1].tasks.train) for seed in range(3)
  ]
  sets = [tuple(rows) for stream in drawn for rows in stream]
  assert len(set(sets)) == 18
  counts = np.bincount(np.concatenate(sets), minlength=120)
  assert counts.max() <= 13  # 18 draws of a quarter of the rows


def test_validation_rows_do_not_depend_on_how_many_are_trained():
  few, many = (permuted(SOURCE, KEY, tasks=2, examples_per_task=n, valid_per_task=5)[1] for n in (10, 50))
  chex.assert_trees_all_equal(few.tasks.valid, many.tasks.valid)
  for short, long in zip(tables(few.tasks.train), tables(many.tasks.train), strict=True):
    np.testing.assert_array_equal(short, long[:10])


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_scenarios(name, scenario):
  """Heads, logits and label maps; each map is undone by its unmap on the live classes."""
  spec, data = STREAMS[name](SOURCE, KEY, tasks=3, scenario=scenario)
  per_task = 2 if name == "split" else 6
  C = 6 if scenario == "class" else per_task
  rows = tuple(data.tasks.train.count.tolist())
  assert spec == Spec((4, 4, 1), 3, C, 3 if scenario == "task" else 1, rows=rows)
  for t in range(3):
    live = np.flatnonzero(data.tasks.classes[t])
    labels = LABELS[2 * t : 2 * t + 2] if name == "split" else LABELS
    np.testing.assert_array_equal(data.tasks.label_unmap[t, live], labels)
    np.testing.assert_array_equal(data.tasks.label_map[t, labels], live)
    assert len(live) == per_task
    if scenario == "class":
      np.testing.assert_array_equal(data.tasks.label_unmap[t], LABELS)
      np.testing.assert_array_equal(data.tasks.label_map[t, LABELS], np.arange(6))
    else:
      np.testing.assert_array_equal(live, np.arange(per_task))


def test_split_deals_the_classes_out():
  """In label order; shuffled, every class still goes to one task, and other seeds deal otherwise."""
  _, plain = split(SOURCE, KEY, tasks=3)
  np.testing.assert_array_equal(plain.tasks.label_unmap, LABELS.reshape(3, 2))
  dealt = []
  for seed in range(8):
    _, data = split(SOURCE, jax.random.key(seed), tasks=3, shuffle_order=True)
    labels = data.tasks.label_unmap
    np.testing.assert_array_equal(np.sort(labels.ravel()), LABELS)
    assert (labels[:, 0] < labels[:, 1]).all()
    for t in range(3):
      assert set(SOURCE.train.y[tables(data.tasks.train)[t]]) == set(labels[t])
      assert set(SOURCE.test.y[tables(data.test)[t]]) == set(labels[t])
    dealt.append(tuple(labels.ravel()))
  assert len(set(dealt)) > 4


def test_a_shuffled_order_has_the_same_tasks():
  for name in ("permuted", "rotated"):
    _, plain = STREAMS[name](SOURCE, OTHER, tasks=5)
    _, data = STREAMS[name](SOURCE, OTHER, tasks=5, shuffle_order=True)
    before, after = (np.asarray(jax.tree.leaves(part.tasks.train.warp)[0]).reshape(5, -1) for part in (plain, data))
    assert (before != after).any()
    np.testing.assert_array_equal(np.unique(before, axis=0), np.unique(after, axis=0))


def test_ragged_classes_keep_their_counts():
  uneven = source(sizes=(20, 7, 11, 20, 9, 16))
  _, data = split(uneven, KEY, tasks=3)
  np.testing.assert_array_equal(data.tasks.train.count, [27, 31, 25])
  assert data.tasks.train.idx.shape == (3, 31)
  _, drawn = split(uneven, KEY, tasks=3, valid_per_task=5)
  np.testing.assert_array_equal(drawn.tasks.train.count, [22, 26, 20])
  for t in range(3):
    both = np.concatenate([tables(drawn.tasks.train)[t], tables(drawn.tasks.valid)[t]])
    np.testing.assert_array_equal(np.sort(both), tables(data.tasks.train)[t])
  with pytest.raises(ConfigError, match="the smallest task has 25 rows"):
    split(uneven, KEY, tasks=3, examples_per_task=26)


def unstacked(stream, axes, s):
  """The stream of one seed."""
  return jax.tree.map(
    lambda leaf, axis: leaf if axis is None else leaf[s], stream, axes, is_leaf=lambda leaf: leaf is None
  )


def test_stack_keeps_one_copy_of_what_seeds_share():
  streams = [permuted(SOURCE, jax.random.key(seed), tasks=2)[1] for seed in range(3)]
  stacked, axes = stack(streams)
  assert stacked.bank.x is SOURCE.train.x and stacked.test_bank.y is SOURCE.test.y
  assert axes.bank == axes.test_bank == Bank(None, None)
  assert axes.tasks.train.idx is None and axes.tasks.label_map is None
  assert axes.tasks.train.warp.index == axes.test.warp.index == 0
  assert stacked.tasks.train.warp.index.shape == (3, 2, 16) and stacked.tasks.train.idx.shape == (2, 120)
  for s, data in enumerate(streams):
    chex.assert_trees_all_equal(unstacked(stacked, axes, s), data)


def test_stack_of_equal_streams_and_of_one_adds_nothing():
  one = rotated(SOURCE, KEY, tasks=2)[1]
  for streams in ([one], [one, one], [one, rotated(SOURCE, OTHER, tasks=2)[1]]):
    stacked, axes = stack(streams)
    chex.assert_trees_all_equal(stacked, one)
    assert not jax.tree.leaves(axes)


def test_stack_keeps_drawn_rows_by_seed():
  streams = [rotated(SOURCE, key, tasks=2, examples_per_task=9, valid_per_task=3)[1] for key in (KEY, OTHER)]
  stacked, axes = stack(streams)
  assert axes.tasks.train.idx == axes.tasks.valid.idx == 0
  assert axes.tasks.train.count is None and axes.test.idx is None
  for s, data in enumerate(streams):
    chex.assert_trees_all_equal(unstacked(stacked, axes, s), data)


def test_stack_pads_ragged_seeds():
  """Classes of unequal size in other tasks: longer tables, the same live rows."""
  uneven = source(sizes=(20, 7, 11, 20, 9, 16))
  streams = [split(uneven, jax.random.key(seed), tasks=3, shuffle_order=True)[1] for seed in range(4)]
  longest = {data.tasks.train.idx.shape[1] for data in streams}
  assert len(longest) > 1
  stacked, axes = stack(streams)
  assert stacked.tasks.train.idx.shape == (4, 3, max(longest)) and axes.tasks.train.count == 0
  for s, data in enumerate(streams):
    mine = unstacked(stacked, axes, s)
    np.testing.assert_array_equal(mine.tasks.train.count, data.tasks.train.count)
    for ours, theirs in zip(tables(mine.tasks.train), tables(data.tasks.train), strict=True):
      np.testing.assert_array_equal(ours, theirs)
    chex.assert_trees_all_equal(mine.tasks.label_unmap, data.tasks.label_unmap)


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(
  "keywords,words",
  [
    ({"tasks": 0}, "config.stream.tasks=0"),
    ({"scenario": "clas"}, "config.stream.scenario='clas'.*Did you mean class"),
    ({"examples_per_task": -1}, "config.stream.examples_per_task=-1"),
    ({"valid_per_task": -2}, "config.stream.valid_per_task=-2"),
    ({"examples_per_task": 121}, "121 training and 0 validation.*(120|40) rows.*examples_per_task"),
    ({"valid_per_task": 120}, "1 training and 120 validation.*(120|40) rows.*valid_per_task"),
    ({"examples_per_task": 30, "valid_per_task": 91}, "30 training and 91 validation"),
  ],
)
def test_what_no_stream_can_do_is_refused(name, keywords, words):
  with pytest.raises(ConfigError, match=words):
    STREAMS[name](SOURCE, KEY, **{"tasks": 3, **keywords})


@pytest.mark.parametrize(
  "tasks,words", [(7, "tasks=7 is more than the 6 classes"), (4, "tasks=4.*one of 1, 2, 3, 6, or")]
)
def test_split_refuses_tasks_that_do_not_divide(tasks, words):
  with pytest.raises(ConfigError, match=words):
    split(SOURCE, KEY, tasks=tasks)


@pytest.mark.parametrize("tasks,degrees", [(41, 9.0), (3, -180.0), (2, 360.0)])
def test_turns_past_the_whole_circle_are_refused(tasks, degrees):
  most = int(360 // abs(degrees))
  with pytest.raises(ConfigError, match=f"tasks={tasks} .*degrees={degrees:g} pass 360.*the most is {most} tasks"):
    rotated(SOURCE, KEY, tasks=tasks, degrees=degrees)
  rotated(SOURCE, KEY, tasks=most, degrees=degrees)


def test_the_most_rows_that_fit_are_allowed():
  _, data = split(SOURCE, KEY, tasks=3, examples_per_task=35, valid_per_task=5)
  assert (data.tasks.train.count == 35).all() and (data.tasks.valid.count == 5).all()


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_split_into_tasks_of_unequal_size(scenario):
  spec, data = split(SOURCE, KEY, tasks=5, sizes=(3, 1, 2), scenario=scenario)
  heads, logits = {"task": (3, 3), "class": (1, 6), "domain": (1, 3)}[scenario]
  assert (spec.T, spec.heads, spec.C, spec.rows) == (3, heads, logits, (60, 20, 40))
  dealt = [LABELS[:3], LABELS[3:4], LABELS[4:]]
  for t, labels in enumerate(dealt):
    assert data.tasks.label_unmap[t][data.tasks.classes[t]].tolist() == labels.tolist()
    for bank, rows in ((data.bank, data.tasks.train), (data.test_bank, data.test)):
      assert set(bank.y[rows.idx[t, : rows.count[t]]]) == set(labels)
  _, shuffled = split(SOURCE, KEY, sizes=(3, 1, 2), scenario=scenario, shuffle_order=True)
  own = [set(SOURCE.train.y[rows]) for rows in tables(shuffled.tasks.train)]
  assert [len(labels) for labels in own] == [3, 1, 2] and set.union(*own) == set(LABELS)
  _, even = split(SOURCE, KEY, sizes=(2, 2, 2), scenario=scenario)
  chex.assert_trees_all_equal(even, split(SOURCE, KEY, tasks=3, scenario=scenario)[1])


@pytest.mark.parametrize(
  ("sizes", "words"),
  [
    ((3, 2), r"config.stream.sizes=\(3, 2\) deals out 5 classes, but the data has 6: make the sum 6"),
    ((3, 2, 2), "deals out 7 classes, but the data has 6"),
    ((6, 0), "config.stream.sizes=.* is too small; the least is 1"),
  ],
)
def test_sizes_deal_out_every_class_once(sizes, words):
  with pytest.raises(ConfigError, match=words):
    split(SOURCE, KEY, sizes=sizes)


def test_subsets_may_have_a_head_each_one_that_grows_or_one_meaning():
  classes = ((3, 1), (4, 7, 8), (1, 9))
  own = [sorted(labels) for labels in classes]
  spec, data = subsets(SOURCE, KEY, classes=classes, scenario="task")
  assert (spec.heads, spec.C) == (3, 3)
  assert [data.tasks.label_unmap[t][data.tasks.classes[t]].tolist() for t in range(3)] == own
  spec, data = subsets(SOURCE, KEY, classes=classes, scenario="class")
  assert (spec.heads, spec.C) == (1, 6) and [LABELS[live].tolist() for live in data.tasks.classes] == own
  spec, data = subsets(SOURCE, KEY, classes=classes, scenario="domain")
  assert (spec.heads, spec.C) == (1, 3) and data.tasks.label_map[:, [1, 9]].tolist() == [[0, 0], [0, 0], [0, 1]]
  spec, data = subsets(SOURCE, KEY, classes=classes)
  assert (spec.heads, spec.C) == (1, 6) and data.tasks.classes.all()
  with pytest.raises(ConfigError, match="config.stream.scenario='task' tells .* config.stream.boundaries=False hides"):
    subsets(SOURCE, KEY, classes=classes, scenario="task", boundaries=False)


def test_what_a_subset_s_scenario_asks():
  """Without one the answer competes with all classes, as it always did."""
  for scenario, readouts in (("all", ("task",)), ("task", ("task",)), ("class", ("class", "task"))):
    assert OF_SCENARIO[scenario] == readouts
  assert set(OF_SCENARIO) == set(fields(subsets, 2)["scenario"].bound.words)
