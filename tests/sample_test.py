"""Rows by position and key: the keyed permutation, what a view shows, and how a place becomes a labelled picture."""

import hashlib
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cljax.data.sample import current, decode, fetch, shuffle, split_batch, view_at
from cljax.data.warp import Permutation
from cljax.types import NONE, Bank, Place, Rows, Stream, Task

KEYS = jax.random.split(jax.random.key(0), 6000)
KEYS_OF_BITS, BITS = jax.random.split(jax.random.key(0), 50), "8a984cdf7328ded623bea1f1a28a4684"
COUNTS = (5, 3, 6)  # rows of the three tasks below


def test_shuffle_is_a_bijection():
  """Every count from 1 to 70, with the count traced; positions past it give some value below it."""
  counts = np.arange(1, 71)
  orders = jax.jit(jax.vmap(lambda key, count: shuffle(key, jnp.arange(80), count)))(KEYS[:70], counts)
  for count, order in zip(counts, np.asarray(orders), strict=True):
    np.testing.assert_array_equal(np.sort(order[:count]), np.arange(count))
    assert (order >= 0).all() and (order < count).all()


@pytest.mark.parametrize("count", [1000, 60_000])
def test_shuffle_of_many(count):
  order = np.asarray(jax.jit(shuffle)(KEYS[0], np.arange(count), count))
  np.testing.assert_array_equal(np.sort(order), np.arange(count))
  assert order.dtype == np.int32
  assert abs(scipy.stats.spearmanr(order, np.arange(count)).statistic) < 5 / np.sqrt(count)
  assert abs(scipy.stats.spearmanr(order[1:], order[:-1]).statistic) < 5 / np.sqrt(count)


def test_shuffle_takes_any_shape_and_one_position_at_a_time():
  whole = np.asarray(jax.jit(shuffle)(KEYS[0], np.arange(12), 12))
  square = jax.jit(shuffle)(KEYS[0], np.arange(12).reshape(3, 4), 12)
  np.testing.assert_array_equal(square, whole.reshape(3, 4))
  alone = jax.jit(jax.vmap(shuffle, (None, 0, None)))(KEYS[0], np.arange(12), 12)
  np.testing.assert_array_equal(alone, whole)


def test_padding_past_the_count_ends():
  """A ragged batch asks for positions past the count, for which a cycle walk of their own may have no end."""
  padded = jax.jit(jax.vmap(lambda key: shuffle(key, jnp.arange(20, 30), 23)))(KEYS)
  assert np.asarray(padded).max() < 23


@pytest.fixture(scope="module")
def orders():
  """[keys, 10] by count."""
  compiled = jax.jit(jax.vmap(lambda key, count: shuffle(key, jnp.arange(10), count), (0, None)))
  return {count: np.asarray(compiled(KEYS, count))[:, :count] for count in (2, 3, 4, 5, 7, 10)}


def assert_uniform(table):
  """Chi-square of a table of counts whose rows and columns have fixed sums, as position against value has."""
  table = np.asarray(table, float)
  expected = table.sum() / table.size
  statistic = ((table - expected) ** 2).sum() / expected
  # One row of the table has (n - 1) cells free; over all rows of a permutation matrix (n - 1)^2, scaled n / (n - 1).
  n = len(table)
  assert scipy.stats.chi2.sf(statistic * (n - 1) / n, (n - 1) ** 2) > 1e-4, table


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 10])
def test_shuffle_is_uniform_on_positions(orders, count):
  table = np.zeros((count, count))
  np.add.at(table, (np.broadcast_to(np.arange(count), orders[count].shape), orders[count]), 1)
  assert_uniform(table)


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10])
def test_shuffle_is_uniform_on_pairs(orders, count):
  """The values at two positions are each ordered pair equally often."""
  for i, j in itertools.combinations(range(min(count, 4)), 2):
    pair = orders[count][:, i] * count + orders[count][:, j]
    table = np.bincount(pair, minlength=count**2)[[a * count + b for a, b in itertools.permutations(range(count), 2)]]
    assert scipy.stats.chisquare(table).pvalue > 1e-5, (i, j, table)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_shuffle_reaches_every_order_alike(count):
  """Of 200,000 orders: 278 of each of the 720 of six things."""
  keys = jax.random.split(jax.random.key(1), 200_000)
  found = np.asarray(jax.jit(jax.vmap(lambda key: shuffle(key, jnp.arange(count), count)))(keys))
  table = np.bincount(found @ count ** np.arange(count))
  table = table[table > 0]
  assert len(table) == math.factorial(count)
  assert scipy.stats.chisquare(table).pvalue > 1e-4


def test_orders_of_ten_things_and_more_keep_their_bits():
  """Committed results hang on them; from ten on the order is that of the rounds."""
  found = jax.vmap(lambda key, count: shuffle(key, jnp.arange(64), count))(KEYS_OF_BITS, jnp.arange(10, 60))
  assert hashlib.sha256(np.asarray(found).astype("<i4").tobytes()).hexdigest().startswith(BITS)


def test_counts_may_differ_by_position():
  counts = jnp.array([3, 30, 6, 10])
  found = shuffle(KEYS[0], jnp.array([2, 7, 4, 1]), counts)
  alone = [int(shuffle(KEYS[0], jnp.int32(i), count)) for i, count in zip((2, 7, 4, 1), counts, strict=True)]
  assert found.tolist() == alone


def test_other_keys_give_other_orders(orders):
  assert len(np.unique(orders[10], axis=0)) > 0.99 * len(KEYS)


view_of = jax.jit(view_at, static_argnums=2)
epoch = jax.jit(current, static_argnums=(1, 5))


def stream() -> Stream:
  """Three tasks with labels, warps and live classes of their own over a bank of 20 rows of 2x2."""
  random = np.random.default_rng(0)
  bank = Bank(random.integers(0, 256, (20, 2, 2, 1), np.uint8), np.arange(20, dtype=np.int32) % 4)
  warp = Permutation(np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]], np.int32))
  idx = np.zeros((3, 6), np.int32)
  for t, rows in enumerate(([1, 2, 3, 4, 5], [10, 11, 12], [0, 5, 7, 9, 13, 19])):
    idx[t, : len(rows)] = rows
  label_map = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0]], np.int32)
  classes = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], bool)
  train = Rows(idx, np.array(COUNTS, np.int32), warp)
  valid = Rows(idx[:, ::-1].copy(), np.array([1, 0, 2], np.int32), warp)
  tasks = Task(train, valid, label_map, np.argsort(label_map, axis=1).astype(np.int32), classes)
  return jax.device_put(Stream(bank, tasks, bank, train))


def seen_through(data, task, row):
  """The picture of a bank row in a task, in numpy."""
  flat = np.asarray(data.bank.x[row], np.float32).ravel() / 255
  return flat[np.asarray(data.tasks.train.warp.index[task])].reshape(2, 2, 1)


def test_a_view_hides_later_tasks():
  data = stream()
  for t in range(3):
    view = view_of(data, t)
    for shown, leaf in zip(jax.tree.leaves(view.tasks), jax.tree.leaves(data.tasks), strict=True):
      np.testing.assert_array_equal(shown[: t + 1], leaf[: t + 1])
      assert not np.asarray(shown)[t + 1 :].any()
    assert view.t == t and view._fields == ("bank", "tasks", "t", "pool", "visit") and view.visit is None


def test_one_head_sees_the_union_of_classes_so_far():
  """In the view of task t every task seen so far has the classes of all of them, the later ones have none."""
  union = {0: [1, 1, 0, 0], 1: [1, 1, 1, 0], 2: [1, 1, 1, 1]}
  for t, expected in union.items():
    classes = np.asarray(view_of(stream(), t, 1).tasks.classes)
    np.testing.assert_array_equal(classes[: t + 1], np.tile(expected, (t + 1, 1)))
    assert not classes[t + 1 :].any()


def test_a_view_without_boundaries_shows_all():
  data = stream()
  view = view_at(data, None)
  assert view.t is None and view.tasks is data.tasks


def test_fetch_gives_each_row_its_own_task():
  """Warp, label and classes of a mixed batch follow the task through which a row is seen."""
  data = stream()
  place = Place(np.array([0, 1, 2, 2, 0], np.int32), np.array([5, 5, 5, 13, 2], np.int32))
  batch = jax.jit(fetch)(view_of(data, 2), place)
  for w, (task, row) in enumerate(zip(*place, strict=True)):
    np.testing.assert_allclose(batch.x[w], seen_through(data, task, row), atol=1e-6)
    assert batch.y[w] == data.tasks.label_map[task, data.bank.y[row]]
    np.testing.assert_array_equal(batch.classes[w], data.tasks.classes[task])
  np.testing.assert_array_equal(batch.task, place.task)
  np.testing.assert_array_equal(batch.slot, np.full(5, NONE))
  assert batch.live.all() and batch.x.dtype == jnp.float32


def test_hidden_boundaries_resolve_positions():
  """A place names its position in the stream: `fetch` finds warp and label, and tells neither task nor classes."""
  data = stream()
  view = view_at(data, None)
  i = np.array([0, 4, 5, 7, 8, 13], np.int32)
  place = epoch(view, False, KEYS[0], i, sum(COUNTS), True)
  np.testing.assert_array_equal(place.task, i)
  np.testing.assert_array_equal(place.row, [1, 5, 10, 12, 0, 19])
  batch = jax.jit(fetch)(view, place)
  for w, (task, row) in enumerate(zip([0, 0, 1, 1, 2, 2], [1, 5, 10, 12, 0, 19], strict=True)):
    np.testing.assert_allclose(batch.x[w], seen_through(data, task, row), atol=1e-6)
    assert batch.y[w] == data.tasks.label_map[task, data.bank.y[row]]
  assert not np.asarray(batch.task).any() and batch.classes.all()
  np.testing.assert_array_equal(batch.place.task, i)


def test_an_epoch_covers_each_row_of_its_task_once():
  data = stream()
  for t, count in enumerate(COUNTS):
    view = view_of(data, t)
    place = epoch(view, False, KEYS[t], np.arange(count), count, False)
    assert (np.asarray(place.task) == t).all()
    np.testing.assert_array_equal(np.sort(place.row), data.tasks.train.idx[t, :count])


@pytest.mark.parametrize("t", [0, 1, 2])
def test_a_joint_epoch_covers_each_row_of_all_tasks_so_far_once(t):
  data = stream()
  view, count = view_of(data, t), sum(COUNTS[: t + 1])
  place = epoch(view, True, KEYS[0], np.arange(count), count, False)
  found = sorted(zip(np.asarray(place.task).tolist(), np.asarray(place.row).tolist(), strict=True))
  idx = np.asarray(data.tasks.train.idx)
  assert found == sorted((s, int(row)) for s in range(t + 1) for row in idx[s, : COUNTS[s]])


def test_split_batch_goes_through_the_warp_of_its_split():
  data = stream()
  live = np.array([True, True, False])
  batch = jax.jit(split_batch)(data.bank, data.tasks, data.tasks.valid, jnp.int32(2), np.array([0, 1, 0]), live)
  rows = np.asarray(data.tasks.valid.idx)[2, [0, 1, 0]]
  np.testing.assert_array_equal(batch.place.row, rows)
  np.testing.assert_allclose(batch.x, np.stack([seen_through(data, 2, row) for row in rows]), atol=1e-6)
  np.testing.assert_array_equal(batch.y, np.asarray(data.tasks.label_map)[2, np.asarray(data.bank.y)[rows]])
  np.testing.assert_array_equal(batch.live, live)


def test_decode():
  """Bytes become [0, 1]; floats are what they are."""
  np.testing.assert_allclose(decode(jnp.array([0, 51, 255], jnp.uint8)), [0, 0.2, 1], atol=1e-7)
  np.testing.assert_array_equal(decode(jnp.array([-3.0, 300.0])), np.array([-3, 300], np.float32))
