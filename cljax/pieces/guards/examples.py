"""What a guard asks a net about: what it answers, and gradients of single rows of a task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp

from cljax.loops import mean_over
from cljax.ops.losses import cross_entropy
from cljax.types import Array, Batch, Key, Rows, View

AnswerFn = Callable[[Any, Batch], Array]
ValueFn = Callable[[Array, Batch], Array]  # (logits [1, C], a batch of one row) -> []


@dataclass(frozen=True)
class Answer:
  """What a net answers at rest, (params, batch) -> raw logits [B, C], each row by the head of its task."""

  given: Callable[[Any, Any, Batch], Array]  # (params, collections, batch) -> [B, C]
  collections: Any  # the net's others, as they are in this step
  by_task: bool = False  # whether it answers by what belongs to the row's task, however many heads there are

  def __call__(self, params: Any, batch: Batch) -> Array:
    return self.given(params, self.collections, batch)


def label_of(logits: Array, batch: Batch, key: Key) -> Array:
  """[B] labels drawn from the model's own answers among the classes of each row."""
  chex.assert_equal_shape([logits, batch.classes])
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.place.row)
  return jax.vmap(jax.random.categorical)(keys, jnp.where(batch.classes, logits, -jnp.inf)).astype(batch.y.dtype)


def row_gradients(answer: AnswerFn, value: ValueFn, params: Any, batch: Batch) -> Any:
  """[B, ...] the gradient of each row's own value, a tree like the params."""

  def one(row):
    alone = jax.tree.map(lambda leaf: leaf[None], row)._replace(live=jnp.ones(1, bool))
    return jax.grad(lambda params: value(answer(params, alone), alone))(params)

  return jax.vmap(one)(batch)


def mean_of_rows(fn: Callable[[Batch], Any], view: View, rows: Rows) -> Any:
  """`mean_over` of what has the size of the params for each row: one row after the other on a CPU, where twenty at
  once take nine times as long for a dense layer of 784 x 256; on an accelerator so many."""
  return mean_over(fn, view, rows, group=1 if jax.default_backend() == "cpu" else 20)


def fisher_of(answer: AnswerFn, params: Any, view: View, labels: Key | None = None, most: int = 0) -> Any:
  """The diagonal of the Fisher matrix of task t, a tree like the params: the mean over its rows of the squares of
  per-example gradients of the cross-entropy.

  Args:
    labels: a key, where they are drawn from the model's answers; None takes the data's.
    most: rows of the task that it is taken over, the first of its table: in the order of the data where a stream
      takes all rows of a task, so that sorted data shows few classes; 0 is all.
  """

  def squares(batch):
    batch = batch if labels is None else batch._replace(y=label_of(answer(params, batch), batch, labels))
    return jax.tree.map(jnp.square, row_gradients(answer, cross_entropy, params, batch))

  rows = view.tasks.train
  rows = rows._replace(count=jnp.minimum(rows.count, most or rows.idx.shape[-1]))
  return mean_of_rows(squares, view, rows)


def reach_of(answer: AnswerFn, params: Any, view: View) -> Any:
  """How much each weight moves what the net answers to task t, a tree like the params: the mean over its rows of
  |d ||f(x)||^2 / dw|, where f(x) are the logits of the row's classes."""

  def length(logits, row):
    return jnp.where(row.classes, logits**2, 0).sum()

  def sizes(batch):
    return jax.tree.map(jnp.abs, row_gradients(answer, length, params, batch))

  return mean_of_rows(sizes, view, view.tasks.train)
