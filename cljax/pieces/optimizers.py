"""The table of optimizers, optax's own with a range and a line for each keyword: `config.optimizer.name` picks one."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import optax

from cljax.declared import above, at_least, declared, free
from cljax.types import Array

Rate = Annotated[Array | float, at_least(0, "the learning rate")]
Share = Annotated[Array | float, at_least(0, "of the running mean that is kept at each step", 1)]
Corrected = Annotated[  # a mean of which the share that is still missing is divided out
  Array | float, at_least(0, "of the running mean that is kept at each step, below 1", 1 - 1e-6)
]
Small = Annotated[Array | float, above(0, "what keeps a division from 0")]


class PlainSGD(NamedTuple):
  """An optax transformation that says its rate, so that a learner may take the same steps block by block."""

  init: Callable[..., Any]
  update: Callable[..., Any]
  rate: Array | float


Clip = Annotated[float, at_least(0, "global norm that gradients are cut to; 0: none")]
Decay = Annotated[float, at_least(0, "of all weights, times the rate, past the moments")]


class Tamed(NamedTuple):
  """What is done to gradients before an optimizer sees them."""

  clip_norm: Clip = 0.0
  weight_decay: Annotated[float, at_least(0, "of all weights: this times the weight is added to its gradient")] = 0.0


def tamed(own: Tamed, tx: Any) -> Any:
  """The optimizer behind clipping, and then the decay; as it is where there is neither."""
  before = [optax.clip_by_global_norm(own.clip_norm)] if own.clip_norm else []
  before += [optax.add_decayed_weights(own.weight_decay)] if own.weight_decay else []
  return optax.chain(*before, tx) if before else tx


@declared("optimizer")
def sgd(
  learning_rate: Rate,
  momentum: Annotated[Array | float, at_least(0, "share of the last update that goes on", 1)] = 0.0,
  nesterov: Annotated[bool, free("look ahead along the momentum")] = False,
  before: Tamed = Tamed(),
) -> Any:
  """optax.sgd, as `PlainSGD` where there is no momentum, clipping or decay."""
  tx = optax.sgd(learning_rate, momentum or None, nesterov)
  return tamed(before, tx) if momentum or any(before) else PlainSGD(tx.init, tx.update, learning_rate)


@declared("optimizer")
def adam(
  learning_rate: Rate,
  b1: Corrected = 0.9,
  b2: Corrected = 0.999,
  eps: Small = 1e-8,
  eps_root: Annotated[Array | float, at_least(0, "added to the mean square inside the root")] = 0.0,
  nesterov: Annotated[bool, free("Nesterov's momentum")] = False,
  before: Tamed = Tamed(),
) -> optax.GradientTransformation:
  """optax.adam; its `weight_decay` goes through the moments, that of `adamw` does not."""
  return tamed(before, optax.adam(learning_rate, b1, b2, eps, eps_root, nesterov=nesterov))


@declared("optimizer")
def adamw(
  learning_rate: Rate,
  b1: Corrected = 0.9,
  b2: Corrected = 0.999,
  eps: Small = 1e-8,
  weight_decay: Decay = 1e-4,
  clip_norm: Clip = 0.0,
) -> optax.GradientTransformation:
  """optax.adamw (Loshchilov and Hutter 2019): weights decay by the rate times `weight_decay`, past the moments."""
  return tamed(Tamed(clip_norm), optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay))


@declared("optimizer")
def lamb(
  learning_rate: Rate,
  b1: Corrected = 0.9,
  b2: Corrected = 0.999,
  eps: Small = 1e-6,
  weight_decay: Decay = 0.0,
  clip_norm: Clip = 0.0,
) -> optax.GradientTransformation:
  """optax.lamb (You et al. 2020): Adam's steps, each layer's scaled to the norm of its weights."""
  return tamed(Tamed(clip_norm), optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay))


@declared("optimizer")
def lion(
  learning_rate: Rate,
  b1: Share = 0.9,
  b2: Share = 0.99,
  weight_decay: Decay = 1e-3,
  clip_norm: Clip = 0.0,
) -> optax.GradientTransformation:
  """optax.lion (Chen et al. 2023): the sign of a mean of gradients."""
  return tamed(Tamed(clip_norm), optax.lion(learning_rate, b1, b2, weight_decay=weight_decay))


@declared("optimizer")
def adagrad(
  learning_rate: Rate,
  initial_accumulator_value: Annotated[Array | float, at_least(0, "of the sums of squares")] = 0.1,
  eps: Small = 1e-7,
  before: Tamed = Tamed(),
) -> optax.GradientTransformation:
  """optax.adagrad."""
  return tamed(before, optax.adagrad(learning_rate, initial_accumulator_value, eps))


@declared("optimizer")
def rmsprop(
  learning_rate: Rate,
  decay: Share = 0.9,
  eps: Small = 1e-8,
  initial_scale: Annotated[Array | float, at_least(0, "of the mean squares")] = 0.0,
  eps_in_sqrt: Annotated[bool, free("eps stands inside the root")] = True,
  centered: Annotated[bool, free("by the variance and not the mean square")] = False,
  momentum: Annotated[float | None, at_least(0, "share of the last update that goes on", 1)] = None,
  nesterov: Annotated[bool, free("look ahead along the momentum")] = False,
  before: Tamed = Tamed(),
) -> optax.GradientTransformation:
  """optax.rmsprop."""
  tx = optax.rmsprop(learning_rate, decay, eps, initial_scale, eps_in_sqrt, centered, momentum, nesterov)
  return tamed(before, tx)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
  "sgd": sgd,
  "adam": adam,
  "adamw": adamw,
  "adagrad": adagrad,
  "lamb": lamb,
  "lion": lion,
  "rmsprop": rmsprop,
}
