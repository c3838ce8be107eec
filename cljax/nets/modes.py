"""A net in training and at rest: dropout by a key of its position, and collections such as BatchNorm's statistics.

A net that behaves otherwise in training takes `train: bool = False` in its `__call__`; a net without it is always at
rest. All collections but `params` are kept beside the params. In training they are updated, BatchNorm's from live rows
only; at a task's edge they stay as they are, so that what is learnt next starts from the statistics of the task before.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cljax.ops.trees import where
from cljax.types import Array, Key


def takes(net: nn.Module, name: str) -> bool:
  """Whether the call of a net has a parameter of that name."""
  return name in inspect.signature(type(net).__call__).parameters


def trains_apart(net: nn.Module) -> bool:
  """Whether the net takes `train`."""
  return takes(net, "train")


def begin(net: nn.Module, key: Key, x_shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
  """(params, the other collections) of a new net for pictures of `x_shape`."""
  variables: Any = net.init(key, jnp.zeros((1, *x_shape)), jnp.zeros(1, jnp.int32))
  return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def at_rest(net: nn.Module, params: Any, collections: Any, x: Array, slot: Array, **options: Any) -> Any:
  """What the net answers to x [B, ...] and slot [B]; nothing is drawn and no statistic moves."""
  return net.apply({"params": params, **collections}, x, slot, **options)


def in_training(
  net: nn.Module,
  params: Any,
  collections: Any,
  x: Array,
  slot: Array,
  key: Key | None,
  live: Array,
  apply: Callable[..., Any] | None = None,
  still: Array | None = None,
) -> tuple[Any, dict[str, Any]]:
  """(what the net answers, its collections after the batch).

  Args:
    key: of the step, for dropout.
    live: [B] bool, the rows that statistics are taken over; where none is they stay as they are.
    apply: in place of `net.apply`, of the same arguments.
    still: [] bool, whether the statistics stay as they are and normalise the batch; None is never.
  """
  apply = apply or net.apply
  if not trains_apart(net):
    return apply({"params": params, **collections}, x, slot), collections

  def taken(resting: bool) -> tuple[Any, dict[str, Any]]:
    def with_live_rows(call, args, kwargs, context):
      module = context.module
      if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__" or module.use_running_average:
        return call(*args, **kwargs)
      if resting:  # its own `use_running_average` may be a field or an argument
        return module.clone(use_running_average=True, parent=None).apply(module.variables, args[0])
      return call(*args, **{"mask": live.reshape(live.shape + (1,) * (args[0].ndim - 1)), **kwargs})

    with nn.intercept_methods(with_live_rows):
      out, moved = apply(
        {"params": params, **collections},
        x,
        slot,
        train=True,
        rngs=None if key is None else {"dropout": key},
        mutable=list(collections),
      )
    return out, collections if resting else where(live.any(), {**collections, **moved}, collections)

  if still is None or not collections:
    return taken(False)
  return jax.lax.cond(still, lambda: taken(True), lambda: taken(False))
