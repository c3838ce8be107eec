"""Values as a person gives them: those of a Python config made plain, words as they are typed parsed."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cljax.declared import PLAIN, expected, shown
from cljax.errors import ConfigError


def plain(name: str, value: Any) -> Any:
  """What a config may hold: None, true or false, numbers, words, and tuples and dicts of these.

  Numbers, words and arrays of numpy and JAX, and what Python derives from them, become their plain kin.

  Args:
    name: of the value, for the message.

  Raises:
    ConfigError: anything else, or a key of a mapping that is no word.
  """
  if isinstance(value, Mapping):
    for key in value:
      if not isinstance(key, str):
        raise ConfigError(f"{name} has the key {shown(key)}, but keys are words")
    return {str(key): plain(f"{name}.{key}", each) for key, each in value.items()}
  if isinstance(value, jax.Array | np.ndarray | np.generic) and not isinstance(value, jax.core.Tracer):
    with contextlib.suppress(TypeError):  # of keys of random numbers
      value = np.asarray(value).tolist()
  if isinstance(value, list | tuple):
    return tuple(plain(name, each) for each in value)
  if value is None or type(value) in PLAIN:
    return value
  for kind in PLAIN:
    if isinstance(value, kind):
      return kind(value)
  raise ConfigError(
    f"{name}={shown(value)} is of type {type(value).__name__}, but a config holds numbers, words, true, false, none "
    "and tuples of these; objects and functions are given from Python, to cljax.run.fit"
  )


def typed(name: str, value: Any, like: Any) -> Any:
  """A value of the type of `like`, which a field holds now; words as they are typed are parsed.

  Args:
    name: of the field, for the message.
    like: None stands for an optional number, whose words are a number or `none`.

  Raises:
    ConfigError: a value of another type, or a field that holds several values.
  """
  kind = float if like is None else type(like)
  if kind not in PLAIN:
    raise ConfigError(f"{name} holds {like!r}: only fields of one number, word, true or false can be changed here")
  if like is None and value in (None, "none"):
    return None
  if isinstance(value, str) and kind is bool:
    value = {"true": True, "false": False}.get(value.lower(), value)
  elif isinstance(value, str) and kind is not str:
    with contextlib.suppress(ValueError):
      value = kind(value)
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind:
    raise ConfigError(f"{name}={value!r} must be {expected(kind)}, as {like!r} is, which the run has")
  return value
