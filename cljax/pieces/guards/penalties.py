"""Guards that pull the params to where earlier tasks left them, each entry by how much those tasks need it."""

from typing import Annotated, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.declared import above, at_least, declared, free, one_of
from cljax.pieces.guards.examples import AnswerFn, fisher_of, reach_of
from cljax.types import Array, Batch, Guard, Key, Spec, View


class Fisher(NamedTuple):
  """What the Fisher information of a task is taken of."""

  labels: Annotated[str, one_of(("data", "model"), "of the Fisher: the data's, or drawn from the model's answers")] = (
    "data"
  )
  fisher_rows: Annotated[int, at_least(0, "first rows of the task that the Fisher is taken over; 0: all")] = 0

  def of(self, answer: AnswerFn, params: Any, view: View, key: Key) -> Any:
    """The diagonal for task t, a tree like the params."""
    return fisher_of(answer, params, view, key if self.labels == "model" else None, self.fisher_rows)


def pull(importance: Any, params: Any, anchor: Any) -> Array:
  """[] sum importance (w - anchor)^2 over all entries of three trees."""
  chex.assert_trees_all_equal_shapes(importance, params, anchor)
  far = jax.tree.map(lambda F, w, anchor: (F * (w - anchor) ** 2).sum(), importance, params, anchor)
  return sum(jax.tree.leaves(far))


class Penalty(NamedTuple):
  """The past of `ewc`: sum_t F_t (w - w_t)^2 = fisher (w - anchor)^2 + apart, a sum of quadratics in O(1) memory."""

  fisher: Any  # sum_t F_t
  anchor: Any  # the mean of w_t, weighted by F_t
  apart: Array  # []


@declared("method.guard", given=2)
def ewc(
  answer: AnswerFn,
  spec: Spec,
  *,
  strength: Annotated[Array | float, at_least(0, "of the penalty; 0 is no guard")] = 10.0,
  fisher: Fisher = Fisher(),
) -> Guard:
  """Elastic weight consolidation (Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796).

  loss = strength / 2 * sum over finished tasks t of F_t (w - w_t)^2, the exact sum; F_t is the mean over the task's
  rows of the squares of per-example gradients at w_t.
  """

  def init(params: Any) -> Penalty:
    return Penalty(jax.tree.map(jnp.zeros_like, params), params, jnp.float32(0))

  def loss(past: Penalty, params: Any, batch: Batch) -> Array:
    return strength / 2 * (pull(past.fisher, params, past.anchor) + past.apart)

  def leave(key: Key, past: Penalty, params: Any, view: View) -> Penalty:
    return joined(past, fisher.of(answer, params, view, key), params)

  return Guard(init=init, loss=loss, exit=leave)


def joined(past: Penalty, fisher: Any, params: Any) -> Penalty:
  """The past with one more quadratic, fisher (w - params)^2."""
  chex.assert_trees_all_equal_shapes(past.fisher, fisher, params)
  total = jax.tree.map(jnp.add, past.fisher, fisher)
  share = jax.tree.map(lambda F, all: F / jnp.where(all > 0, all, 1), fisher, total)
  apart = jax.tree.map(
    lambda before, share, w, anchor: (before * share * (w - anchor) ** 2).sum(), past.fisher, share, params, past.anchor
  )
  anchor = jax.tree.map(lambda anchor, share, w: anchor + share * (w - anchor), past.anchor, share, params)
  return Penalty(total, anchor, past.apart + sum(jax.tree.leaves(apart)))


class Needed(NamedTuple):
  """The past of `online_ewc` and of `mas`: one importance for all finished tasks, about the last one's end."""

  importance: Any
  anchor: Any  # the params at the end of the last task

  @classmethod
  def nothing(cls, params: Any) -> "Needed":
    """Before the first task has ended."""
    return cls(jax.tree.map(jnp.zeros_like, params), params)

  def grown(self, kept: Array | float, own: Any, params: Any) -> "Needed":
    """With what a task that ended at `params` needs, and `kept` of what was."""
    return Needed(jax.tree.map(lambda before, new: kept * before + new, self.importance, own), params)


@declared("method.guard", given=2)
def online_ewc(
  answer: AnswerFn,
  spec: Spec,
  *,
  strength: Annotated[Array | float, at_least(0, "of the penalty; 0 is no guard")] = 10.0,
  gamma: Annotated[Array | float, at_least(0, "how much of the earlier tasks' Fisher stays at each task", 1)] = 1.0,
  unit_fisher: Annotated[bool, free("the Fisher of each task is brought to norm 1 before it is added")] = False,
  fisher: Fisher = Fisher(),
) -> Guard:
  """Online elastic weight consolidation (Schwarz et al. 2018, "Progress & Compress", https://arxiv.org/abs/1805.06370).

  loss = strength / 2 * gamma F (w - anchor)^2 about the end of the last task; there F becomes gamma F + F_t. The paper
  brings each F_t to one scale where tasks differ in theirs, without saying by which norm: `unit_fisher` takes the
  Euclidean norm of all entries together.
  """

  def loss(past: Needed, params: Any, batch: Batch) -> Array:
    return strength / 2 * gamma * pull(past.importance, params, past.anchor)

  def leave(key: Key, past: Needed, params: Any, view: View) -> Needed:
    own = fisher.of(answer, params, view, key)
    if unit_fisher:
      norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(own)))
      own = jax.tree.map(lambda leaf: leaf / jnp.where(norm > 0, norm, 1), own)
    return past.grown(gamma, own, params)

  return Guard(init=Needed.nothing, loss=loss, exit=leave)


@declared("method.guard", given=2)
def mas(
  answer: AnswerFn,
  spec: Spec,
  *,
  strength: Annotated[Array | float, at_least(0, "the paper's lambda; 0 is no guard")] = 1.0,
) -> Guard:
  """Memory aware synapses (Aljundi et al. 2018, https://arxiv.org/abs/1711.09601), without labels.

  loss = strength * sum Omega (w - anchor)^2 about the end of the last task; there Omega grows by the mean over the
  task's rows of |d ||f(x)||^2 / dw|, per example. f(x) are the raw logits of the classes that the row chooses among.
  """

  def loss(past: Needed, params: Any, batch: Batch) -> Array:
    return strength * pull(past.importance, params, past.anchor)

  def leave(key: Key, past: Needed, params: Any, view: View) -> Needed:
    return past.grown(1.0, reach_of(answer, params, view), params)

  return Guard(init=Needed.nothing, loss=loss, exit=leave)


class Path(NamedTuple):
  """The past of `si`."""

  importance: Any  # Omega, summed over finished tasks
  anchor: Any  # the params at the end of the last task
  start: Any  # the params as the task in training began
  path: Any  # sum over its steps of -gradient * movement


@declared("method.guard", given=2)
def si(
  answer: AnswerFn,
  spec: Spec,
  *,
  strength: Annotated[Array | float, at_least(0, "the paper's c; 0 is no guard")] = 0.1,
  damping: Annotated[Array | float, above(0, "the paper's xi, added to squared movements")] = 0.1,
  clipped: Annotated[bool, free("importances below 0 count as 0; the paper keeps them")] = False,
) -> Guard:
  """Synaptic intelligence (Zenke, Poole and Ganguli 2017, https://arxiv.org/abs/1703.04200).

  loss = strength * sum Omega (w - anchor)^2; at a task's end Omega += path / ((w - start)^2 + damping), where the path
  integral is of the loss's own gradient, without the guard's.
  """

  def init(params: Any) -> Path:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Path(zeros, params, params, zeros)

  def enter(key: Key, past: Path, params: Any, view: View) -> Path:
    return past._replace(start=params, path=jax.tree.map(jnp.zeros_like, past.path))

  def loss(past: Path, params: Any, batch: Batch) -> Array:
    return strength * pull(past.importance, params, past.anchor)

  def moved(past: Path, before: Any, gradient: Any, after: Any) -> Path:
    path = jax.tree.map(lambda path, g, old, new: path - g * (new - old), past.path, gradient, before, after)
    return past._replace(path=path)

  def leave(key: Key, past: Path, params: Any, view: View) -> Path:
    def grown(omega, path, w, start):
      own = path / ((w - start) ** 2 + damping)
      return omega + (jnp.maximum(own, 0) if clipped else own)

    importance = jax.tree.map(grown, past.importance, past.path, params, past.start)
    return past._replace(importance=importance, anchor=params)

  return Guard(init=init, enter=enter, loss=loss, moved=moved, exit=leave)
