"""What a factory is passed before its keywords: a net, an optimizer or a rate, and a spec, each of its own kind."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from cljax.errors import ConfigError, shown
from cljax.types import Method, Spec

PASSED = {"method": 3, "gate": 1}  # section -> how many things its factories are passed; the others pass what they like


def call_of(factory: Any, names: Sequence[str]) -> str:
  """How a factory is called."""
  return f"{getattr(factory, '__name__', 'factory')}({', '.join(names)})"


def check_passed(section: str, factory: Callable[..., Any], names: Sequence[str], args: Sequence[Any]) -> None:
  """
  Args:
    names: of the parameters that come before the keywords.
    args: what is passed for them.

  Raises:
    ConfigError: one is missing, or is of another kind than the section's factories take.
  """
  if len(names) != PASSED.get(section):
    return
  where = call_of(factory, names)
  if len(args) < len(names):
    raise ConfigError(f"{where} was called without {names[len(args)]}: it comes before all keywords")
  if section == "method":
    net, tx, spec = args
    check_spec(where, spec)
    check_net(where, net, spec)
    (check_rate if names[1] == "lr" else check_optimizer)(where, tx)
  else:
    check_spec(where, args[0])


def check_spec(where: str, spec: Any) -> None:
  """
  Raises:
    ConfigError: no spec.
  """
  if not isinstance(spec, Spec):
    raise ConfigError(
      f"{where}: spec={shown(spec)} is no cljax.types.Spec: give the one that stands beside the stream, as of "
      "cljax.from_arrays"
    )


def check_net(where: str, net: Any, spec: Spec) -> None:
  """
  Raises:
    ConfigError: no flax module that was made, one that takes no slot, or one with heads for another spec.
  """
  check_module(where, net)
  try:
    inspect.signature(net.__call__).bind_partial(None, None)
  except TypeError as error:
    raise ConfigError(
      f"{where}: net={type(net).__name__} takes no slot: cljax.headed(net, spec) puts heads on it"
    ) from error
  for field, wanted in (("heads", spec.heads), ("classes", spec.C)):
    own = getattr(net, field, wanted)
    if own != wanted:
      name = "C" if field == "classes" else field
      raise ConfigError(
        f"{where}: net={type(net).__name__} has {field}={shown(own)} and the spec {name}={wanted}: make the net with "
        f"{field}=spec.{name}"
      )


def check_module(where: str, net: Any) -> None:
  """
  Raises:
    ConfigError: no flax.linen module, or a class of them.
  """
  if isinstance(net, type) and issubclass(net, nn.Module):
    raise ConfigError(f"{where}: net={net.__name__} is a class: call it, {net.__name__}(...), and give what it makes")
  if not isinstance(net, nn.Module):
    raise ConfigError(f"{where}: net={shown(net)} is no flax.linen module: give one, such as cljax.nets.MLP(...)")


def check_optimizer(where: str, tx: Any) -> None:
  """
  Raises:
    ConfigError: no optax transformation.
  """
  if callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None)):
    return
  way = "give what it makes, tx(rate)" if callable(tx) else "give one, such as optax.sgd(0.1)"
  raise ConfigError(f"{where}: tx={shown(tx)} is no optax optimizer: {way}")


def check_rate(where: str, lr: Any) -> None:
  """
  Raises:
    ConfigError: no number, which may be traced.
  """
  if isinstance(lr, jax.core.Tracer):
    return
  numbers = isinstance(lr, int | float | np.number | np.ndarray | jax.Array) and not isinstance(lr, bool)
  if numbers and jax.dtypes.issubdtype(getattr(lr, "dtype", np.float32), np.number):  # keys of random numbers are none
    found: Any = np.asarray(lr)
    if not found.shape and np.isrealobj(found):
      return  # whose range its factory knows
  raise ConfigError(f"{where}: lr={shown(lr)} is no rate of plain SGD steps: give a number of at least 0, such as 0.1")


def made_for(made: Any, args: Sequence[Any]) -> Any:
  """What a factory made; a method remembers the spec that it was made for."""
  return made._replace(made_for=args[-1]) if isinstance(made, Method) and len(args) == PASSED["method"] else made
