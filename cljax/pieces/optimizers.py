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


@declared("optimizer")
def sgd(
  learning_rate: Rate,
  momentum: Annotated[Array | float, at_least(0, "share of the last update that goes on", 1)] = 0.0,
  nesterov: Annotated[bool, free("look ahead along the momentum")] = False,
) -> Any:
  """optax.sgd, as `PlainSGD` where there is no momentum."""
  tx = optax.sgd(learning_rate, momentum or None, nesterov)
  return tx if momentum else PlainSGD(tx.init, tx.update, learning_rate)


@declared("optimizer")
def adam(
  learning_rate: Rate,
  b1: Corrected = 0.9,
  b2: Corrected = 0.999,
  eps: Small = 1e-8,
  eps_root: Annotated[Array | float, at_least(0, "added to the mean square inside the root")] = 0.0,
  nesterov: Annotated[bool, free("Nesterov's momentum")] = False,
) -> optax.GradientTransformation:
  """optax.adam."""
  return optax.adam(learning_rate, b1, b2, eps, eps_root, nesterov=nesterov)


@declared("optimizer")
def adagrad(
  learning_rate: Rate,
  initial_accumulator_value: Annotated[Array | float, at_least(0, "of the sums of squares")] = 0.1,
  eps: Small = 1e-7,
) -> optax.GradientTransformation:
  """optax.adagrad."""
  return optax.adagrad(learning_rate, initial_accumulator_value, eps)


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
) -> optax.GradientTransformation:
  """optax.rmsprop."""
  return optax.rmsprop(learning_rate, decay, eps, initial_scale, eps_in_sqrt, centered, momentum, nesterov)


OPTIMIZERS: dict[str, Callable[..., Any]] = {"sgd": sgd, "adam": adam, "adagrad": adagrad, "rmsprop": rmsprop}
