"""Guards that turn a step's gradient where it would undo what earlier tasks have learnt.

`agem` and `gem` keep rows of each task, as places, and ask for the loss's gradient on them in the step; `ogd` keeps
directions. What is kept of a task is picked at its end, each row equally likely.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from cljax.data.sample import fetch
from cljax.declared import at_least, declared, one_of
from cljax.ops.qp import nonnegative
from cljax.ops.trees import inner, put, where
from cljax.pieces.guards.examples import AnswerFn
from cljax.pieces.rings import Rings, empty_rings, slots_in, some_places
from cljax.types import FREE, Array, At, Batch, Guard, Key, Place, Spec, View

AskFn = Callable[[Batch], Any]  # the gradient of the loss on other rows, a tree like the params
Kept = Annotated[int, at_least(0, "rows of each task that are kept at its end; 0 is no guard")]
times = partial(jnp.matmul, precision="highest")


def rows_at(view: View, place: Place, live: Array) -> Batch:
  """The pictures at `place` [B], of which some are live [B]."""
  chex.assert_equal_shape([place.row, live])
  return fetch(view, place)._replace(live=live)


def remembering(project: Callable[..., Any], per_task: int, spec: Spec) -> Guard:
  """The guard whose past is a ring of `per_task` rows for each task, filled as the task ends."""

  def leave(key: Key, past: Rings, params: Any, view: View) -> Rings:
    return past.with_rows(view.t, *some_places(key, view, per_task))

  capacity = per_task * spec.T
  return Guard(init=lambda params: empty_rings(capacity, spec.T), project=project, exit=leave, stored=capacity)


@declared("method.guard", given=2)
def agem(
  answer: AnswerFn,
  spec: Spec,
  *,
  per_task: Kept = 256,
  drawn_rows: Annotated[int, at_least(1, "of the kept rows, of all tasks together, that a step asks")] = 256,
) -> Guard:
  """Averaged gradient episodic memory (Chaudhry et al. 2019, https://arxiv.org/abs/1812.00420).

  g becomes g - (g r / r r) r where g r < 0; r is the mean gradient on rows that are drawn anew for each step from what
  is kept of earlier tasks, all of them where they are fewer.
  """
  if not per_task:
    return FREE
  most = min(drawn_rows, per_task * spec.T)  # there never are more

  def project(at: At, past: Rings, gradient: Any, ask: AskFn) -> Any:
    filled = jnp.minimum(past.seen, per_task)
    slot, live = slots_in(jax.random.fold_in(at.key, 0), filled, most, per_task)
    past_gradient = ask(rows_at(at.view, jax.tree.map(lambda leaf: leaf[slot], past.place), live))
    dot, size = inner(gradient, past_gradient), inner(past_gradient, past_gradient)
    share = dot / jnp.where(size > 0, size, 1)
    return where(dot < 0, jax.tree.map(lambda g, r: g - share * r, gradient, past_gradient), gradient)

  return remembering(project, per_task, spec)


@declared("method.guard", given=2)
def gem(
  answer: AnswerFn,
  spec: Spec,
  *,
  per_task: Kept = 256,
  margin: Annotated[Array | float, at_least(0, "the paper's gamma: how far steps lean to earlier tasks")] = 0.5,
  margin_as: Annotated[
    str,
    one_of(("added", "bound"), "to the dual solution, as the paper says; or its least value, as its program has it"),
  ] = "added",
) -> Guard:
  """Gradient episodic memory (Lopez-Paz and Ranzato 2017, https://arxiv.org/abs/1706.08840).

  Where the gradient g goes against that of any earlier task, G g < 0 in some row, it becomes g + G^T v (equation 10),
  the nearest that goes against none; v >= 0 minimises v G G^T v / 2 + (G g) v (equation 11), exactly. Row k of G is the
  mean gradient on what is kept of task k, so a step costs a gradient for each earlier task. The margin is added to v
  (section 3), for each earlier task. The paper keeps the last rows of a task, in one pass over it; here they are picked
  at its end, which in a random order is the same.
  """
  if not per_task:
    return FREE

  def project(at: At, past: Rings, gradient: Any, ask: AskFn) -> Any:
    t = at.view.t

    def turned(rows: int) -> Any:
      """With `rows` rows of G, of which those from t on are zeros. Leaves stay apart: a CPU takes ten times as long
      where the loop lays them end to end."""

      def add(k, G):
        return put(G, k, ask(rows_at(at.view, *past.rows_of(k))))

      G = jax.lax.fori_loop(0, t, add, jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype), gradient))
      found, hurt = nearest(gradient, G, jnp.arange(rows) < t, margin, margin_as == "bound")
      return where(hurt, found, gradient)

    sizes = steps_to(spec.T - 1)
    least = jnp.searchsorted(jnp.array(sizes), t)
    return jax.lax.switch(least, [lambda: gradient, *(partial(turned, size) for size in sizes[1:])])

  return remembering(project, per_task, spec)


def steps_to(most: int) -> list[int]:
  """0, 1, 2, 4 and so on, and `most`: shapes are fixed, and work is for at most twice the rows that there are."""
  return [0, *(1 << i for i in range(most.bit_length()) if 1 << i < most), *([most] if most else [])]


def nearest(own: Any, G: Any, live: Array, margin: Array | float, bound: bool) -> tuple[Any, Array]:
  """(own + G^T v, whether own goes against any row []), of `gem`.

  Args:
    own: the gradient, a tree.
    G: those of the tasks, the same tree with leaves [T, ...], of which some are live [T].
    bound: the margin is the least value of v; else it is added.
  """
  chex.assert_rank(live, 1)
  flat = jax.tree.map(lambda rows: rows.reshape(len(live), -1), G)
  slopes = sum(jax.tree.leaves(jax.tree.map(lambda rows, leaf: times(rows, leaf.ravel()), flat, own)))
  products = sum(times(rows, rows.T) for rows in jax.tree.leaves(flat))
  lean = margin * live
  v = lean + nonnegative(products, slopes + times(products, lean) if bound else slopes, live)
  turned = jax.tree.map(lambda leaf, rows: leaf + times(v, rows).reshape(leaf.shape), own, flat)
  return turned, (live & (slopes < 0)).any()


@declared("method.guard", given=2)
def ogd(
  answer: AnswerFn,
  spec: Spec,
  *,
  per_task: Annotated[int, at_least(0, "directions kept of each task, the paper has 200; 0 is no guard")] = 20,
  logits: Annotated[
    str,
    one_of(("label", "average", "all"), "whose gradients: of the row's label, the mean of its classes', or each"),
  ] = "label",
) -> Guard:
  """Orthogonal gradient descent (Farajtabar et al. 2020, https://arxiv.org/abs/1910.07104).

  g becomes g - B^T B g, where the rows of B are an orthonormal basis of gradients of what the net answered to rows of
  earlier tasks, at each task's end, made by Gram-Schmidt one row after the other (algorithm 1; `label` is OGD-GTL,
  `average` OGD-AVE, `all` takes the classes of a row in turn). What adds nothing new to B leaves a row of zeros. The
  paper takes steps of plain SGD: momentum and scaled steps leave the subspace.
  """
  if not per_task:
    return FREE
  each = spec.C if logits == "all" else 1

  def chosen(answers: Array, row: Batch, i: Array) -> Array:
    """[] of the logits [1, C] that the i-th direction is about."""
    if logits == "average":
      return answers.mean(where=row.classes)
    return answers[0, row.y[0] if logits == "label" else i % each]

  def leave(key: Key, past: Array, params: Any, view: View) -> Array:
    place, count = some_places(key, view, -(-per_task // each))

    def add(i, B):
      row = fetch(view, jax.tree.map(lambda leaf: leaf[i // each][None], place))
      found = ravel_pytree(jax.grad(lambda params: chosen(answer(params, row), row, i))(params))[0]
      new = without(B, without(B, found))
      known = (i // each < count) & (row.classes[0, i % each] | (logits != "all"))
      return B.at[view.t * per_task + i].set(jnp.where(known, unit(new, found), 0))

    return jax.lax.fori_loop(0, per_task, add, past)

  def init(params: Any) -> Array:
    return jnp.zeros((spec.T * per_task, ravel_pytree(params)[0].size))

  def project(at: At, past: Array, gradient: Any, ask: AskFn) -> Any:
    own, back = ravel_pytree(gradient)
    return back(without(past, own))

  return Guard(init=init, project=project, exit=leave)


def without(B: Array, vector: Array) -> Array:
  """A vector [D] without what lies along the rows of B [N, D], each of length 1 or 0 and orthogonal to the others."""
  chex.assert_rank([B, vector], [2, 1])
  return vector - times(times(B, vector), B)


def unit(new: Array, of: Array) -> Array:
  """`new` [D] at length 1; zeros where it is no more than the rounding of what it is left of."""
  chex.assert_equal_shape([new, of])
  length, whole = jnp.linalg.norm(new), jnp.linalg.norm(of)
  some = length > 100 * jnp.finfo(new.dtype).eps * whole
  return jnp.where(some, new / jnp.where(some, length, 1), 0)
