"""What is said to the person who caused a mistake: what was wrong, what is allowed, what to type instead."""

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
  """A mistake of the person who typed the command: says what was wrong, what is allowed and what to type instead."""


class Busy(OSError):
  """Another process is at work in the folder: the same command can be given again once that has ended."""


def in_short(error: BaseException, most: int = 300) -> str:
  """What an error says, on one line of at most so many characters."""
  return " ".join(str(error).split())[:most]


def choose(name: str, value: str, allowed: Iterable[str]) -> str:
  """`value` if it is allowed.

  Raises:
    ConfigError: naming what is allowed and the nearest of it.
  """
  allowed = list(allowed)
  if value in allowed:
    return value
  near = difflib.get_close_matches(str(value), allowed, n=1)
  hint = f" Did you mean {near[0]}?" if near else ""
  raise ConfigError(f"{name}={value!r} is not known.{hint} Choose one of: {', '.join(allowed)}")
