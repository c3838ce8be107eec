"""Episodes: which classes are old and which are new, which rows a step sees, and where both networks start.

Tasks of an episode are its slots: 0 is old, 1, 2, ... are new. All random choices are named by the number of the
episode or of the segment.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax.data.sample import decode
from cljax.data.streams import pad
from cljax.data.transfers import rows_of_class
from cljax.errors import ConfigError
from cljax.nets.heads import own_head, with_head
from cljax.types import NONE, Array, Bank, Batch, Key, Place, PyTree

CLASSES, HEADS, START = range(3)  # purposes of an episode's key


class Episodes(NamedTuple):
  """What episodes are drawn from; all leaves are arrays."""

  bank: Bank
  rows: Array  # [classes, most] int32 bank rows of each class
  count: Array  # [classes] int32
  old: Array  # [C] int32 classes of the old task, in the order of its logits
  pool: Array  # [P] int32 classes that new tasks are drawn from
  starts: PyTree  # [n, ...] networks that know the old task

  def classes(self, key: Key, shape: tuple[int, int]) -> Array:
    """[K, C] int32 the classes of an episode's tasks by its key, -1 where the old task has fewer.

    Args:
      shape: (K, C); the new tasks take K - 1 times C classes of the pool without replacement, or the whole pool in its
        own order.
    """
    tasks, width = shape
    wanted = (tasks - 1) * width
    pool = self.pool
    if len(pool) > wanted:
      pool = jax.random.permutation(jax.random.fold_in(key, CLASSES), pool)[:wanted]
    old = jnp.pad(self.old, (0, width - len(self.old)), constant_values=-1)
    return jnp.concatenate([old[None], pool.reshape(tasks - 1, width)])

  def start(self, key: Key, head: str, width: int) -> PyTree:
    """One of the starts by an episode's key, with new heads but for the old task.

    Args:
      head: the path of the net's heads.
      width: C.
    """
    which = jax.random.randint(jax.random.fold_in(key, START), (), 0, len(jax.tree.leaves(self.starts)[0]))
    params = jax.tree.map(lambda leaf: leaf[which], self.starts)
    return fresh_heads(jax.random.fold_in(key, HEADS), params, head, width)

  def batch(self, key: Key, classes: Array, task: Array, rows: tuple[int, int]) -> Batch:
    """Rows of the tasks before `task`, then of `task`, each uniform with replacement.

    Args:
      classes: [K, C] of the episode.
      task: [] int32, 1 or more.
      rows: how many of both.
    """
    K, C = classes.shape
    slot = jnp.repeat(jnp.arange(K), C)
    flat = classes.ravel()
    count = jnp.where(flat >= 0, self.count[flat], 0)
    keys = jax.random.split(key)
    places = [drawn(keys[n], jnp.where(of, count, 0), rows[n]) for n, of in enumerate((slot < task, slot == task))]
    column, number = (jnp.concatenate(each) for each in zip(*places, strict=True))
    row = self.rows[flat[column], number]
    live = (classes >= 0)[slot[column]]
    of_task, size = slot[column].astype(jnp.int32), sum(rows)
    x = decode(self.bank.x[row])
    blank = jnp.full(size, NONE, jnp.int32)
    y = (column % C).astype(jnp.int32)
    return Batch(x, y, of_task, live, Place(of_task, row), blank, jnp.ones(size, bool))


def drawn(key: Key, count: Array, size: int) -> tuple[Array, Array]:
  """(column [size], number [size]): rows drawn uniformly out of all columns' `count` [columns] together."""
  ends = jnp.cumsum(count)
  at = jax.random.randint(key, (size,), 0, jnp.maximum(ends[-1], 1))
  column = jnp.minimum(jnp.searchsorted(ends, at, side="right"), len(ends) - 1)
  return column, at - (ends[column] - count[column])


def fresh_heads(key: Key, params: PyTree, head: str, width: int) -> PyTree:
  """The params with the head of slot 0, and new ones of the other slots; kernels Glorot, biases zero."""
  name, *below = head.split("/")
  if below:
    return {**params, name: fresh_heads(key, params[name], "/".join(below), width)}
  own = params[name]
  features, columns = own["kernel"].shape
  glorot = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=0, out_axis=2, batch_axis=1)
  kernel = glorot(key, (features, columns // width, width), own["kernel"].dtype).reshape(features, columns)
  new = {"kernel": kernel, "bias": jnp.zeros_like(own["bias"])}
  return {**params, name: with_head(new, own_head(own, jnp.int32(0), width), jnp.int32(0), width)}


def table_of(y: np.ndarray, half: str) -> tuple[np.ndarray, np.ndarray]:
  """(rows [classes, most], count [classes]) of the bank rows of each label 0, 1, ..., in the bank's order.

  Args:
    half: `all` of them, or those at even (`first`) or odd (`second`) places of each class.
  """
  return pad([rows_of_class(y, label, half) for label in range(int(y.max()) + 1)])


def check_classes(old: tuple[int, ...], pool: tuple[int, ...], tasks: int, width: int, count: np.ndarray) -> None:
  """Refuses classes that do not make episodes.

  Args:
    tasks: K, 2 or more, the old one among them.
    width: C.
    count: [classes] rows of each.

  Raises:
    ConfigError: says which.
  """
  missing = sorted({one for one in (*old, *pool) if one >= len(count) or not count[one]})
  if missing:
    raise ConfigError(f"config.data.source has no rows of the classes {missing} that config.data.old or new asks for")
  if len(set(old)) < len(old) or len(set(pool)) < len(pool):
    raise ConfigError(f"config.data.old={old} and config.data.new={pool} must not name a class twice")
  if set(old) & set(pool):
    raise ConfigError(f"config.data.new={pool} has classes of config.data.old: {sorted(set(old) & set(pool))}")
  if len(pool) < (tasks - 1) * width:
    raise ConfigError(
      f"config.data.new has {len(pool)} classes, too few for {tasks - 1} new tasks of {width} (config.data.classes)"
    )
  if len(old) > width:
    raise ConfigError(f"config.data.old has {len(old)} classes, but heads have config.data.classes={width}")
