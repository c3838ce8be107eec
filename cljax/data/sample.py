"""Which rows a step sees, and how a row becomes a picture: views, keyed orders, places and batches.

Row indices live here and nowhere else. Every function is pure; every random number comes from a key by position.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from cljax.data.warp import is_drawn, through
from cljax.types import NONE, Array, Bank, Batch, Key, Place, Pool, Rows, Stream, Task, View


def view_at(stream: Stream, t: Array | None, heads: int = 0) -> View:
  """What training may see in task `t`: no test row, and zeros instead of all later tasks.

  With one head `classes[k]` becomes the union of the classes of the tasks 0..t. `t` None is the view of a stream
  whose boundaries are hidden: all tasks, unlabelled by time.
  """
  if t is None:
    return View(stream.bank, stream.tasks, None)
  seen = jnp.arange(stream.tasks.train.count.shape[0]) <= t

  def hide(leaf):
    return jnp.where(seen.reshape((-1,) + (1,) * (leaf.ndim - 1)), leaf, jnp.zeros_like(leaf))

  tasks = jax.tree.map(hide, stream.tasks)
  if heads == 1:
    tasks = tasks._replace(classes=seen[:, None] & tasks.classes.any(axis=0))
  return View(stream.bank, tasks, t)


FEW = 9  # things whose orders are drawn by rank


def shuffle(key: Key, i: Array, count: Array) -> Array:
  """Entry `i` of a keyed permutation of 0..count-1, without building it; `count` may be traced.

  Of at most FEW things it is the rank of the i-th of `count` random numbers, so that all orders are alike. Of more,
  eight rounds of multiply, add and xor-shift on the next power of two, with cycle walking (Mitchell et al. 2022,
  "Bandwidth-Optimal Random Shuffling for GPUs"). Entries with i >= count are the last one's value: walked from their
  own place, they could stay in a cycle above count for ever.

  Args:
    key: one typed key per permutation.
    i: integers of any shape.
    count: [] or broadcastable to `i`; at least 1, or the result means nothing.

  Returns:
    int32 of the shape of `i`.
  """
  count = jnp.maximum(jnp.asarray(count, jnp.uint32), 1)
  bits = 32 - jax.lax.clz(count - 1)
  mask = (jnp.uint32(1) << bits) - 1  # no count has 32 bits
  half = jnp.maximum((bits + 1) // 2, 1)
  words = jax.random.bits(key, (8, 2), jnp.uint32)
  i = jnp.minimum(jnp.asarray(i, jnp.uint32), count - 1)

  def one_round(x, word):
    x = (x * (word[0] | 1) + word[1]) & mask
    return x ^ (x >> half), None

  def walk(carry):
    x, goes_on = carry
    x = jnp.where(goes_on, jax.lax.scan(one_round, x, words, unroll=True)[0], x)
    return x, goes_on & (x >= count)

  # Few rounds of few bits do not reach all orders alike, and the walk of so many is done at once.
  few = count <= FEW
  many, _ = jax.lax.while_loop(lambda carry: carry[1].any(), walk, (i, jnp.broadcast_to(~few, i.shape)))
  return jnp.where(few, rank(words.ravel()[:FEW], jnp.minimum(i, FEW - 1), count), many).astype(jnp.int32)


def rank(drawn: Array, i: Array, count: Array) -> Array:
  """[...] uint32 how many of the first `count` numbers drawn [n] are smaller than the i-th, or equal and before it."""
  j = jnp.arange(len(drawn), dtype=jnp.uint32)
  own, i, count = drawn[i][..., None], i[..., None], jnp.asarray(count)[..., None]
  before = (drawn < own) | ((drawn == own) & (j < i))
  return (before & (j < count)).sum(axis=-1, dtype=jnp.uint32)


@jax.jit
def folded(key: Key, numbers: Array) -> Key:
  """A key for each of the numbers [N]."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


@functools.partial(jax.jit, static_argnums=2)
def orders(keys: Key, counts: Array, longest: int) -> Array:
  """[N, longest] int32: row n begins with an order of counts[n] things, at most `longest`, by keys[n]."""
  return jax.vmap(lambda key, count: shuffle(key, jnp.arange(longest), count))(keys, counts)


@functools.partial(jax.jit, static_argnums=1)
def permutations(keys: Key, count: int) -> Array:
  """[N, count] int32 a permutation of 0..count-1 by each of the keys [N], as `jax.random.permutation` draws it."""
  return jax.vmap(lambda key: jax.random.permutation(key, count))(keys)


def decode(x: Array) -> Array:
  """Bank rows as float32: uint8 becomes [0, 1], floats pass."""
  return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def take_task(tree: Any, task: Array) -> Any:
  """The entries of one task, or of one task per row, of a tree whose leaves stack on T."""
  return jax.tree.map(lambda leaf: leaf[task], tree)


def warped(x: Array, warp: Any, row: Array, visit: Key | None = None) -> Array:
  """x [B, ...], the pictures of the bank rows `row` [B], each by a warp of its own (leaves [B, ...]).

  Args:
    visit: [B] keys of what is drawn anew at each visit; None draws nothing.
  """
  if warp is None:
    return x
  if visit is None or not is_drawn(warp):
    return jax.vmap(lambda one, own, name: through(own, one[None], name[None])[0])(x, warp, row)

  def seen(one, own, name, key):
    return own.at_visit(one[None], name[None], key[None])[0]

  return jax.vmap(seen)(x, warp, row, visit)


def visits(view: View, place: Place) -> Key | None:
  """[W] keys of the visits of a step to the places [W], each named by its place: a picture is the same throughout a
  step, however often the step fetches it. None outside of a step."""
  if view.visit is None:
    return None

  def one(key, place):
    return jax.random.fold_in(jax.random.fold_in(key, place.task), place.row)

  return jax.vmap(one, (0 if view.visit.ndim else None, 0))(view.visit, place)


def current(view: View, joint: bool, key: Key, i: Array, count: Array, ordered: bool) -> Place:
  """The places at the positions `i` of an epoch's order.

  Args:
    joint: the rows of all tasks so far instead of those of task t.
    key: the epoch's key; `ordered` ignores it and takes the rows as the table has them (hidden boundaries).
    i: [W] positions in 0..count-1; others give some live row.
    count: [] rows of the epoch.
  """
  train = view.tasks.train
  order = i if ordered else shuffle(key, i, count)
  if not (joint or ordered):
    return Place(jnp.full_like(order, view.t), train.idx[view.t, order])
  ends = jnp.cumsum(train.count)
  task = jnp.minimum(jnp.searchsorted(ends, order, side="right"), len(ends) - 1).astype(jnp.int32)
  row = train.idx[task, order - (ends[task] - train.count[task])]
  return Place(order if view.t is None else task, row)


def task_of(view: View, place: Place) -> Array:
  """The task that a place was seen through; where boundaries are hidden, by its position in the stream."""
  if view.t is not None:
    return place.task
  ends = jnp.cumsum(view.tasks.train.count)
  return jnp.minimum(jnp.searchsorted(ends, place.task, side="right"), len(ends) - 1).astype(jnp.int32)


def warped_rows(bank: Bank, rows: Rows, task: Array, group: int = 500) -> Array:
  """[Nmax, ...] the pictures of one split of one task, in the table's order."""
  warp = take_task(rows.warp, task)
  index = rows.idx[task]
  groups = jnp.pad(index, (0, -len(index) % group)).reshape(-1, min(group, len(index) + -len(index) % group))
  x = jax.lax.map(lambda row: through(warp, decode(bank.x[row]), row), groups)
  return x.reshape(-1, *x.shape[2:])[: len(index)]


def pool_of(bank: Bank, tasks: Task, t: Array) -> Pool:
  """The pool of task `t`."""
  index = tasks.train.idx[t]
  live = jnp.arange(len(index)) < tasks.train.count[t]
  at = jnp.zeros(len(bank.y), jnp.int32)
  at = at.at[jnp.where(live, index, NONE)].set(jnp.arange(len(index), dtype=jnp.int32), mode="drop")
  return Pool(warped_rows(bank, tasks.train, t), at)


def held_pictures(view: View, held: Place | None) -> Array | None:
  """[M, ...] the pictures of a memory as a chunk found it, each through its own task's warp."""
  return None if held is None else pictures(view._replace(pool=None), held, None, None)


def pictures(view: View, place: Place, slot: Array | None, held: Array | None) -> Array:
  """[W, ...] the pictures at `place`, from the pools where there are any.

  A row of the task in training is in the pool, a row of an earlier task still lies in the slot of the memory where the
  chunk found it: only rows of the current task have been written since.
  """
  if view.pool is None:
    warp = take_task(view.tasks.train.warp, task_of(view, place))
    return warped(decode(view.bank.x[place.row]), warp, place.row, visits(view, place))
  new = view.pool.x[view.pool.at[place.row]]
  if held is None:
    return new
  old = held[jnp.clip(slot, 0, len(held) - 1)]
  return jnp.where((place.task == view.t).reshape((-1,) + (1,) * (new.ndim - 1)), new, old)


def fetch(view: View, place: Place, slot: Array | None = None, held: Array | None = None) -> Batch:
  """The batch at `place` [W]: decoded, warped and labelled as in training; all rows live, no slot. What is drawn at
  each visit is drawn by the step's `view.visit`; outside of a step pictures are as they are.

  Args:
    slot, held: of a plan, and the `held_pictures` of its memory: with them a pool is used where the view has one.
  """
  task = task_of(view, place)
  x = pictures(view if slot is not None else view._replace(pool=None), place, slot, held)
  y = view.tasks.label_map[task, view.bank.y[place.row]]
  classes = view.tasks.classes[task]
  if view.t is None:
    task, classes = jnp.zeros_like(task), jnp.ones_like(classes)
  W = place.row.shape[0]
  return Batch(x, y, task, classes, place, jnp.full(W, NONE, jnp.int32), jnp.ones(W, bool))


def split_batch(bank: Bank, tasks: Task, rows: Rows, task: Array, i: Array, live: Array) -> Batch:
  """The rows `i` [B] of one split of one task, all through that split's one warp.

  Args:
    rows: the split, leaves [T, ...], e.g. `view.tasks.valid`.
    task: [] int32.
    live: [B] bool, copied into the batch.
  """
  row = rows.idx[task, i]
  x = through(take_task(rows.warp, task), decode(bank.x[row]), row)
  of_task = jnp.full_like(row, task)
  y = tasks.label_map[task, bank.y[row]]
  classes = jnp.broadcast_to(tasks.classes[task], row.shape + tasks.classes.shape[-1:])
  return Batch(x, y, of_task, classes, Place(of_task, row), jnp.full_like(row, NONE), live)


def some_rows(view: View, rows: Rows, task: Array, i: Array, live: Array) -> Batch:
  """Rows of one split of a task by number, as training may see them: what a statistic over a split is made of.

  Args:
    rows: the split, leaves [T, ...]: `view.tasks.train` or `view.tasks.valid`.
    task: [] int32; of a task after `view.t` there is nothing to see.
    i: [B] int32 in 0..count-1, in the table's order; of a dead row any number.
    live: [B] bool, copied into the batch.
  """
  chex.assert_rank((task, i, live), (0, 1, 1))
  chex.assert_equal_shape((i, live))
  chex.assert_type((i, live), (int, bool))
  return split_batch(view.bank, view.tasks, rows, task, jnp.where(live, i, 0), live)
