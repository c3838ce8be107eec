"""What holds a network to its past: penalties and projections that any method takes which trains by gradients.

A guard is made of `answer`, (params, batch) -> raw logits [B, C], and of the spec; `GUARDS` has them by name. A method
takes one by its keyword `guard`, a mapping {"name": ..., keywords}; a strength of 0 is no guard.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.declared import above, at_least, chosen, declared, free, one_of, shown
from cljax.errors import ConfigError
from cljax.loops import mean_over
from cljax.named import pick
from cljax.ops.losses import cross_entropy
from cljax.types import FREE, Array, Batch, Guard, Key, Spec, View

AnswerFn = Callable[[Any, Batch], Array]
FISHER_GROUP = 20  # rows whose gradients are made at once, each of the size of the params


class Penalty(NamedTuple):
  """The past of `ewc`: sum_t F_t (w - w_t)^2 = fisher (w - anchor)^2 + apart, a sum of quadratics in O(1) memory."""

  fisher: Any  # sum_t F_t
  anchor: Any  # the mean of w_t, weighted by F_t
  apart: Array  # []


def label_of(logits: Array, batch: Batch, key: Key) -> Array:
  """[B] labels drawn from the model's own answers among the classes of each row."""
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch.place.row)
  return jax.vmap(jax.random.categorical)(keys, jnp.where(batch.classes, logits, -jnp.inf)).astype(batch.y.dtype)


def squared_gradients(answer: AnswerFn, params: Any, batch: Batch) -> Any:
  """[B, ...] the squared gradient of each row's own cross-entropy, a tree like the params."""

  def one(row):
    alone = jax.tree.map(lambda leaf: leaf[None], row)._replace(live=jnp.ones(1, bool))
    found = jax.grad(lambda params: cross_entropy(answer(params, alone), alone))(params)
    return jax.tree.map(jnp.square, found)

  return jax.vmap(one)(batch)


@declared("method.guard", given=2)
def ewc(
  answer: AnswerFn,
  spec: Spec,
  *,
  strength: Annotated[Array | float, at_least(0, "of the penalty; 0 is no guard")] = 10.0,
  labels: Annotated[str, one_of(("data", "model"), "of the Fisher: the data's, or drawn from the model's answers")] = (
    "data"
  ),
  fisher_rows: Annotated[int, at_least(0, "rows of the task that the Fisher is taken over; 0: all")] = 0,
) -> Guard:
  """Elastic weight consolidation (Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796).

  loss = strength / 2 * sum over finished tasks t of F_t (w - w_t)^2, the exact sum; F_t is the mean over the task's
  rows of the squares of per-example gradients at w_t.
  """

  def init(params: Any) -> Penalty:
    return Penalty(jax.tree.map(jnp.zeros_like, params), params, jnp.float32(0))

  def loss(past: Penalty, params: Any, batch: Batch) -> Array:
    far = jax.tree.map(lambda F, w, anchor: (F * (w - anchor) ** 2).sum(), past.fisher, params, past.anchor)
    return strength / 2 * (sum(jax.tree.leaves(far)) + past.apart)

  def leave(key: Key, past: Penalty, params: Any, view: View) -> Penalty:
    def squares(batch):
      batch = batch._replace(y=label_of(answer(params, batch), batch, key)) if labels == "model" else batch
      return squared_gradients(answer, params, batch)

    rows = view.tasks.train
    rows = rows._replace(count=jnp.minimum(rows.count, fisher_rows or rows.idx.shape[-1]))
    return joined(past, mean_over(squares, view, rows, group=FISHER_GROUP), params)

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
    far = jax.tree.map(lambda omega, w, anchor: (omega * (w - anchor) ** 2).sum(), past.importance, params, past.anchor)
    return strength * sum(jax.tree.leaves(far))

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


GUARDS: dict[str, Callable[..., Guard]] = {"ewc": ewc, "si": si}
NO_GUARD: Mapping[str, Any] = {"name": "none"}
Guarded = Annotated[Mapping[str, Any], chosen(lambda: GUARDS, "what holds the network to its past")]


def guarding(guard: Mapping[str, Any] | Guard, spec: Spec) -> Callable[[AnswerFn], Guard] | None:
  """What makes the guard that a method was given; None where it is none, or its strength is the number 0.

  Args:
    guard: a mapping of a name of GUARDS (or `none`) and its keywords, or a guard that is made.

  Raises:
    ConfigError: an unknown name or keyword, or a wrong value.
  """
  if isinstance(guard, Guard):
    return None if guard == FREE else lambda answer: guard
  if not isinstance(guard, Mapping):
    raise ConfigError(f"config.method.guard={shown(guard)} must be a name and keywords, as {{'name': 'ewc'}}")
  keywords = dict(guard)
  name = keywords.pop("name", "none")
  keywords = {key: value for key, value in keywords.items() if value is not None}
  if (factory := pick("method.guard", name, {"none": None, **GUARDS}, 2)) is None:
    return None
  factory(lambda params, batch: batch.y, spec, **keywords)  # a wrong keyword is refused here and not in a trace
  strength = keywords.get("strength")
  if isinstance(strength, int | float) and strength == 0:
    return None
  return lambda answer: factory(answer, spec, **keywords)
