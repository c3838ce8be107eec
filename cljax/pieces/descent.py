"""The one step of an optimizer: the gradient of a loss, a guard's pull and projection, the update, what keeps its bits.

`pieces.blocks.descend` is the same for plain SGD whose first layer moves block by block; it takes no guard.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from cljax.ops.masks import step_free
from cljax.types import FREE, Array, At, Batch, Guard, as_asked, no_pull

LossFn = Callable[[Any, Batch], tuple[Array, Any]]  # (params, batch) -> (loss [], what is told of it)
GradientFn = Callable[[Any, Batch], tuple[Any, Any]]  # (params, batch) -> (gradient, what is told of it)


def gradient_of(loss: LossFn) -> GradientFn:
  """The gradient of a loss by its params."""
  return jax.grad(loss, has_aux=True)


def descend(
  tx: optax.GradientTransformation,
  loss: LossFn,
  params: Any,
  opt_state: Any,
  batch: Batch,
  at: At | None = None,
  *,
  gradient: GradientFn | None = None,
  of_others: GradientFn | None = None,
  guard: Guard = FREE,
  past: Any = None,
  frozen: Any = None,
  rests: Array | bool = False,
  **extra: Any,
) -> tuple[Any, Any, Any, Any]:
  """One step; where no row of the batch is live, or it rests, nothing moves, the optimizer's state included.

  Args:
    loss: averages over live rows; its info tells 0 where none is.
    at: where the step is; a guard that projects needs it.
    gradient: in place of the loss's own.
    of_others: the gradient of other rows that a guard asks for, where the loss is about the batch of a step only.
    guard, past: what holds the params, and its state.
    frozen: a tree of bools, as deep as `params` or cut off above; entries where it is True keep their bits, whatever
      the optimizer's momentum.
    rests: [] bool.
    extra: handed on to `tx.update`.

  Returns:
    params, opt_state, past and info.
  """
  chex.assert_rank(batch.live, 1)
  given = gradient or gradient_of(loss)

  def ask(other: Batch) -> Any:
    return (of_others or given)(params, other)[0]

  def move(params, opt_state, past):
    own, info = given(params, batch)
    whole = own
    if guard.loss is not no_pull:
      whole = jax.tree.map(jnp.add, own, jax.grad(guard.loss, argnums=1)(past, params, batch))
    if guard.project is not as_asked:
      whole = guard.project(at, past, whole, ask)
    rule = optax.with_extra_args_support(tx) if extra else tx
    updates, new_state = rule.update(whole, opt_state, params, **extra)
    after = optax.apply_updates(params, updates) if frozen is None else stepped(params, updates, frozen)
    return after, new_state, guard.moved(past, params, own, after), info

  def stay(params, opt_state, past):
    return params, opt_state, past, loss(params, batch)[1]

  return jax.lax.cond(batch.live.any() & ~jnp.asarray(rests), move, stay, params, opt_state, past)


def stepped(params: Any, updates: Any, frozen: Any) -> Any:
  """The params after the updates, but for what is frozen."""
  return step_free(params, updates, jax.tree.broadcast(frozen, params))
