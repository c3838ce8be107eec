"""Which layers may be shared and how: the keywords of every method that shares layers, and the networks they make."""

from itertools import accumulate
from typing import Annotated, Any, NamedTuple

import jax
import optax
from flax import linen as nn

from cljax.declared import at_least, free, one_of
from cljax.errors import ConfigError
from cljax.nets.stack import Stack
from cljax.pieces.layered import Layered, shapes_of
from cljax.pieces.sharing import Shape, Sharing, bases, df_cnn, hps, tf
from cljax.types import Array, Spec

SHARINGS = ("hps", "tf", "df_cnn")


class Transfer(NamedTuple):
  """What can be shared, and how."""

  sharing: Annotated[
    str, one_of(SHARINGS, "how a layer comes from the shared tensors: hard sharing, tensor factors, deconvolution")
  ] = "hps"
  groups: Annotated[
    tuple[int, ...], at_least(1, "layers of each group that is shared as one; () is each layer by itself", 64, least=0)
  ] = ()
  base_depths: Annotated[tuple[int, ...], at_least(1, "DF-CNN: channels of each layer's base", 100_000)] = (
    16,
    24,
    32,
    36,
  )
  base_middles: Annotated[tuple[int, ...], at_least(1, "DF-CNN: between its two steps", 100_000)] = (
    24,
    48,
    64,
    72,
  )
  roll_back: Annotated[bool, free("shared tensors that a task did not choose become what they were before it")] = True


def grouped(sizes: tuple[int, ...], depth: int) -> tuple[tuple[int, ...], ...]:
  """The layers of each group.

  Raises:
    ConfigError: sizes that do not add up to the net's depth.
  """
  sizes = sizes or (1,) * depth
  if sum(sizes) != depth:
    raise ConfigError(f"config.method.groups={sizes} are {sum(sizes)} layers, and the net has {depth} convolutions")
  return tuple(tuple(range(end - size, end)) for size, end in zip(sizes, accumulate(sizes), strict=True))


def sharing_of(transfer: Transfer, net: Stack, shapes: list[Shape]) -> Sharing:
  """The sharing by its name.

  Raises:
    ConfigError: sizes of a DF-CNN that do not fit the net.
  """
  if transfer.sharing == "df_cnn":
    for name in ("base_depths", "base_middles"):
      given = getattr(transfer, name)
      if len(given) != len(shapes):
        raise ConfigError(f"config.method.{name}={given} must have {len(shapes)} entries, one a convolution")
    return df_cnn(net, bases(shapes, transfer.base_depths, transfer.base_middles))
  return {"hps": hps, "tf": tf}[transfer.sharing](net)


def stack_of(net: nn.Module, spec: Spec) -> Stack:
  """The net of one task, with one head, of a method that runs it layer by layer.

  Raises:
    ConfigError: a net that is no stack of convolutions, or a stream with one head.
  """
  if not isinstance(net, Stack):
    raise ConfigError("this method needs a net that can be run layer by layer: set config.net.name='stack'")
  if spec.heads != spec.T:
    raise ConfigError("this method has to know each row's task: set config.stream.scenario='task'")
  return net.clone(heads=1, parent=None)


def layered(net: nn.Module, spec: Spec, transfer: Transfer) -> Layered:
  """Networks that share or own each group of layers.

  Raises:
    ConfigError: a net that is no stack of convolutions, a stream with one head, or keywords that do not fit the net.
  """
  net = stack_of(net, spec)
  groups = grouped(transfer.groups, net.depth)
  return Layered(net, sharing_of(transfer, net, shapes_of(net, spec)), spec, groups, transfer.roll_back)


class Decay(NamedTuple):
  """How the rate falls with the epochs of the whole lifetime."""

  decay: Annotated[Array | float, at_least(0, "of the rate, by the epochs since the first task began")] = 0.0

  def faded(self, epoch: Array) -> Array:
    """[] what updates are multiplied by after so many epochs: 1 / (1 + decay * epoch)."""
    return 1 / (1 + self.decay * epoch)


def scaled(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """The optimizer with its updates times `scale`, which is told at each step."""

  def update(updates: Any, state: Any, params: Any = None, *, scale: Array, **extra: Any) -> Any:
    updates, state = tx.update(updates, state, params)
    return jax.tree.map(lambda each: scale * each, updates), state

  return optax.GradientTransformationExtraArgs(tx.init, update)
