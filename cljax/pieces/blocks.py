"""The first dense layer under plain SGD, moved at every step or only at the end of a block of steps.

The rows of a block are known before it starts, and the first layer's inputs are data. So with z0 = X W + b for all R
rows of the block and G = X X^T + 1 (the 1 is the bias), the pre-activations after some steps are

  z = z0 - G delta,  delta[r] = sum over those steps of rate * dL/dz[r],

and the weights move once, at the end: W - X^T delta, b - sum_r delta[r]. This is SGD itself, not an approximation: only
the rounding differs. It saves passes over W, which is nearly all of a small step's work.

A step that is written with `pre_activation` and `descend` runs unchanged on either: outside a block `params["first"]`
is the layer's {"kernel", "bias"} and the batch holds pictures; inside it is a `Delayed` layer, and the batch holds the
numbers of its rows. It must be plain SGD, and its plan must not read weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from absl import logging

from cljax.types import Array, Batch, Block, Clock, Info, Key, State, StepFn, View

Draw = Callable[[Key, Batch], Any]
DrawnStep = Callable[[Any, State, Batch, Clock, View], tuple[State, Info]]

ROWS = 40  # of a block: with more the products with G cost more than the passes over W that they save


class Delayed(NamedTuple):
  """The first layer inside a block of R rows."""

  z: Array  # [R, H] pre-activations by the weights at the block's start
  gram: Array  # [R, R] G
  delta: Array  # [R, H]


def pre_activation(first: Any, x: Array) -> Array:
  """[B, H] for the rows of a batch: x is [B, ...] pictures, or [B] consecutive row numbers of a block."""
  if not isinstance(first, Delayed):
    return x.reshape(x.shape[0], -1) @ first["kernel"] + first["bias"]
  chex.assert_rank([first.z, first.gram, x], [2, 2, 1])
  z, gram = (jax.lax.dynamic_slice_in_dim(all, x[0], x.shape[0]) for all in (first.z, first.gram))
  return z - gram @ first.delta


def moved(first: Any, x: Array, gradient: Array, rate: Array | float) -> Any:
  """The layer after one SGD step; `gradient` [B, H] is that of the pre-activations of `x`."""
  chex.assert_rank(gradient, 2)
  chex.assert_equal_shape_prefix([x, gradient], 1)
  if not isinstance(first, Delayed):
    kernel = first["kernel"] - rate * (x.reshape(x.shape[0], -1).T @ gradient)
    return {"kernel": kernel, "bias": first["bias"] - rate * gradient.sum(axis=0)}
  before = jax.lax.dynamic_slice_in_dim(first.delta, x[0], x.shape[0])
  return first._replace(delta=jax.lax.dynamic_update_slice_in_dim(first.delta, before + rate * gradient, x[0], axis=0))


def descend(
  loss: Callable[[dict[str, Any], Array], Any], params: Mapping[str, Any], x: Array, rates: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
  """One step of plain SGD.

  Args:
    loss: (the other layers' params, pre-activations [B, H] of the first) -> (loss, anything).
    params: by layer, with `first` among them.
    x: the batch's.
    rates: of each layer; a rate of 0 or a gradient of 0 keeps the bits.

  Returns:
    the params, and what the loss gave besides.
  """
  others = {name: layer for name, layer in params.items() if name != "first"}
  (gradients, gradient), extra = jax.grad(loss, argnums=(0, 1), has_aux=True)(
    others, pre_activation(params["first"], x)
  )
  new = {
    name: jax.tree.map(lambda w, g, rate=rates[name]: w - rate * g, layer, gradients[name])
    for name, layer in others.items()
  }
  return {**new, "first": moved(params["first"], x, gradient, rates["first"])}, extra


def alone(step: DrawnStep, draw: Draw) -> StepFn:
  """The step by itself: draws, then takes it."""
  return lambda key, state, batch, clock, view: step(draw(key, batch), state, batch, clock, view)


def blocked(step: DrawnStep, width: int, size: int = 0, draw: Draw = lambda key, batch: key) -> Block | None:
  """A block of `size` steps, for a step that moves `state.params` by `descend`; None where it does not pay.

  Args:
    step: as a `StepFn`, with what was drawn in the place of the key.
    width: rows of a step.
    size: steps of a block; 0 takes as many as hold `ROWS` rows, at most 8; 1 is no block.
    draw: the random numbers of a step, at once for all steps of a block: one by one they cost a dozen small loops. May
      read all of the batch but its pictures.
  """
  size = size or min(8, ROWS // width)
  if size < 2:
    return None

  def run(keys: Key, state: State, batch: Batch, clocks: Clock, view: View) -> tuple[State, Info]:
    first = state.params["first"]
    x = batch.x.reshape(size * width, -1)
    z, gram = x @ first["kernel"] + first["bias"], x @ x.T + 1
    delayed = {**state.params, "first": Delayed(z, gram, jnp.zeros_like(z))}
    numbered = batch._replace(x=jnp.arange(size * width, dtype=jnp.int32).reshape(size, width))

    def one(state, at):
      drawn, batch, clock = at
      return step(drawn, state, batch, clock, view)

    drawn = jax.vmap(draw)(keys, numbered)
    state, info = jax.lax.scan(one, state.replace(params=delayed), (drawn, numbered, clocks))
    delta = state.params["first"].delta
    first = {"kernel": first["kernel"] - x.T @ delta, "bias": first["bias"] - delta.sum(axis=0)}
    return state.replace(params={**state.params, "first": first}), info

  return Block(size, run)


def off_under_a_guard(size: int) -> None:
  """Says once that a guarded phase has no blocks, unless blocks of 1, which are none, were asked for."""
  if size != 1:
    logging.log_first_n(logging.WARNING, "under a guard steps are taken one by one: blocks of steps are off", 1)
