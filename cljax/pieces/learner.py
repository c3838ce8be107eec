"""A net and an optimizer as three functions: what every method that trains one classifier would write again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.errors import ConfigError
from cljax.nets.heads import own_head, with_head
from cljax.ops.losses import accuracy, cross_entropy, rows
from cljax.pieces.blocks import blocked, descend
from cljax.types import Array, Block, Info, Key, Outputs, Spec, StepFn


class PlainSGD(NamedTuple):
  """An optax transformation that says its rate, so that a learner may take the same steps block by block."""

  init: Callable[..., Any]
  update: Callable[..., Any]
  rate: Array | float


def sgd(learning_rate: Array | float, momentum: float = 0.0, nesterov: bool = False) -> Any:
  """optax.sgd, as `PlainSGD` where there is no momentum."""
  tx = optax.sgd(learning_rate, momentum or None, nesterov)
  return tx if momentum else PlainSGD(tx.init, tx.update, learning_rate)


class Learner(NamedTuple):
  init: Callable[[Key], tuple[Any, Any]]  # key -> (params, opt_state)
  apply: Callable[[Any, Array, Array], Outputs]  # (params, x [B, ...], slot [B])
  # (params, opt_state, batch, alike) -> one optimizer step; `alike` says that all rows ask for the head of the first
  learn: Callable[..., tuple[Any, Any, Info]]
  block: Callable[[StepFn, int, int], Block | None]  # (step, its rows, steps of a block): `first.blocked`


def supervised(net: nn.Module, tx: optax.GradientTransformation, spec: Spec, current: int | None = None) -> Learner:
  """Cross-entropy on the live rows, each with its own task's head.

  Where no row is live (an empty memory, padding) nothing moves, the optimizer's state included.

  Args:
    current: how many leading rows of a batch the reported accuracy is about; None is all.
  """

  if hasattr(net, "experts"):
    raise ConfigError("this method trains a net without gates: set config.net.name='mlp'")

  def init(key):
    params = net.init(key, jnp.zeros((1, *spec.x_shape)), jnp.zeros(1, jnp.int32))["params"]
    return params, tx.init(params)

  def apply(params, x, slot):
    return net.apply({"params": params}, x, slot)

  def score(out, batch):
    return cross_entropy(out.logits, batch), accuracy(out.logits[:current], rows(batch, 0, current))

  def learn_plain(params, opt_state, batch, alike=False):
    """By plain SGD; where no row is live the gradient is exactly zero."""
    net_now, slot = net.clone(heads=1) if alike else net, batch.task[0]

    def loss(params, z):
      value, right = score(net_now.apply({"params": params}, z, batch.task, method="after_first"), batch)
      return value, {"loss": value, "accuracy": right}

    moved = params | {"head": own_head(params["head"], slot, spec.C)} if alike else params
    moved, info = descend(loss, moved, batch.x, dict.fromkeys(params, tx.rate))
    if alike:
      moved["head"] = with_head(params["head"], moved["head"], slot, spec.C)
    return moved, opt_state, info

  def learn(params, opt_state, batch, alike=False):
    def loss(params):
      return score(apply(params, batch.x, batch.task), batch)

    def update(params, opt_state):
      (value, score), grads = jax.value_and_grad(loss, has_aux=True)(params)
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state, {"loss": value, "accuracy": score}

    def rest(params, opt_state):
      return params, opt_state, {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}

    return jax.lax.cond(batch.live.any(), update, rest, params, opt_state)

  plain = isinstance(tx, PlainSGD) and hasattr(net, "after_first")
  return Learner(init, apply, learn_plain if plain else learn, blocked if plain else lambda *_: None)
