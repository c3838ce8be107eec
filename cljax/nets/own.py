"""A net of one's own under the library's heads: any linen module that maps pictures to features."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.errors import ConfigError, in_short
from cljax.nets.heads import Heads
from cljax.nets.modes import begin, takes
from cljax.passed import check_module, check_spec
from cljax.types import Array, Outputs, Spec


class Headed(nn.Module):
  """x [B, ...] -> features [B, D] of `body` -> one head for each slot. Params are `body` and `head`."""

  body: nn.Module
  heads: int
  classes: int

  def setup(self):
    self.head = Heads(self.heads, self.classes)

  def __call__(self, x: Array, slot: Array) -> Outputs:
    return self.answer(self.body(x, slot) if takes(self.body, "slot") else self.body(x), slot)

  def answer(self, features: Array, slot: Array) -> Outputs:
    """Under the heads."""
    features = features.reshape(len(features), -1)
    return Outputs(self.head(features, slot), features, slot)


class HeadedInTraining(Headed):
  """The same for a body that behaves otherwise in training, such as one with dropout or BatchNorm."""

  def __call__(self, x: Array, slot: Array, train: bool = False) -> Outputs:
    given = (x, slot) if takes(self.body, "slot") else (x,)
    return self.answer(self.body(*given, train=train), slot)


def headed(net: nn.Module, spec: Spec) -> nn.Module:
  """The net with the heads that a spec asks for, so that every method takes it.

  Args:
    net: a linen module whose call is `(x)` or `(x, slot)`, and may have `train: bool = False`; it gives features
      [B, ...], which a head of its own for each slot reads. One that has the fields `heads` and `classes` already, or
      gives `Outputs`, stays as it is.

  Raises:
    ConfigError: no net or no spec, or a net that gives something else, or cannot take the spec's pictures.
  """
  check_module("headed(net, spec)", net)
  check_spec("headed(net, spec)", spec)
  fields = getattr(type(net), "__dataclass_fields__", {})
  if {"heads", "classes"} <= set(fields):
    return net
  x, slot = jnp.zeros((2, *spec.x_shape)), jnp.zeros(2, jnp.int32)
  given = (x, slot) if takes(net, "slot") else (x,)
  try:
    out: Any = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), *given)[0])
  except (TypeError, ValueError) as error:  # flax and JAX say so where shapes do not fit
    raise ConfigError(f"{type(net).__name__} cannot take pictures of {spec.x_shape}: {in_short(error)}") from error
  if isinstance(out, Outputs) and takes(net, "slot"):
    return net
  if not hasattr(out, "shape") or out.ndim < 2 or out.shape[0] != 2:
    shown = f"{list(out.shape)}" if hasattr(out, "shape") else type(out).__name__
    raise ConfigError(
      f"{type(net).__name__} gives {shown} of two pictures; features [B, ...], or `Outputs` of (x, slot), are needed"
    )
  return (HeadedInTraining if takes(net, "train") else Headed)(net, spec.heads, spec.C)


def check_heads(net: nn.Module, spec: Spec) -> None:
  """
  Raises:
    ConfigError: a net whose params have no layer `head` as `Heads` makes it, for the spec's heads and classes.
  """
  head: Any = {}
  if hasattr(net, "heads"):
    head = jax.eval_shape(lambda: begin(net, jax.random.key(0), spec.x_shape)[0]).get("head", {})
  if getattr(head.get("kernel"), "shape", (0,))[-1] != spec.heads * spec.C or "bias" not in head:
    raise ConfigError(
      "this method asks the net's old heads, and this net has none that it knows: put the part below its Outputs under "
      "those of the library, cljax.headed(net, spec)"
    )
