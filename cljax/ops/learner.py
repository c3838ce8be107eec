"""A net and an optimizer as three functions: what every method that trains one classifier would write again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.ops.losses import accuracy, cross_entropy, rows
from cljax.types import Array, Batch, ConfigError, Info, Key, Outputs, Spec


class Learner(NamedTuple):
  init: Callable[[Key], tuple[Any, Any]]  # key -> (params, opt_state)
  apply: Callable[[Any, Array, Array], Outputs]  # (params, x [B, ...], slot [B])
  learn: Callable[[Any, Any, Batch], tuple[Any, Any, Info]]  # (params, opt_state, batch) -> one optimizer step


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

  def learn(params, opt_state, batch):
    def loss(params):
      logits = apply(params, batch.x, batch.task).logits
      return cross_entropy(logits, batch), accuracy(logits[:current], rows(batch, 0, current))

    def update(params, opt_state):
      (value, score), grads = jax.value_and_grad(loss, has_aux=True)(params)
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state, {"loss": value, "accuracy": score}

    def rest(params, opt_state):
      return params, opt_state, {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}

    return jax.lax.cond(batch.live.any(), update, rest, params, opt_state)

  return Learner(init, apply, learn)
