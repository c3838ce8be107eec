"""What is said to the person who caused a mistake: what was wrong, what is allowed, what to type instead."""

import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_SHOWN = 60  # characters


class ConfigError(Exception):
  """A mistake of the person who typed the command: says what was wrong, what is allowed and what to type instead."""


class Missing(ConfigError):
  """A data set that is not there."""


class Busy(OSError):
  """Another process is at work in the folder: the same command can be given again once that has ended."""


def in_short(error: object, most: int = 300) -> str:
  """What an error or a text says, on one line of at most so many characters."""
  return " ".join(str(error).split())[:most]


def shown(value: Any) -> str:
  """A value as a message shows it: the first of its characters, where it has many."""
  if isinstance(value, int) and value.bit_length() > 2000:
    return f"a whole number of {value.bit_length()} bits"
  text = " ".join(repr(value).splitlines())
  return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def nearest(value: str, known: Iterable[str], count: int = 3) -> list[str]:
  """The names that are most like a value, the nearest first; of a dotted one its last word may be."""

  def likeness(name: str) -> float:
    matcher = difflib.SequenceMatcher(b=str(value).lower())  # which keeps what it knows of its second text
    ratios = []
    for text in {name.lower(), name.lower().rpartition(".")[2]}:
      matcher.set_seq1(text)
      ratios.append(matcher.ratio())
    return max(ratios)

  return sorted(dict.fromkeys(known), key=likeness, reverse=True)[:count]


def alike(value: str, name: str) -> bool:
  """Whether one may have been meant by the other."""
  return bool(difflib.get_close_matches(str(value).lower(), [name.lower(), name.lower().rpartition(".")[2]], n=1))


def meant(value: str, known: Iterable[str]) -> str:
  """The name that may have been meant; '' where none is like it."""
  first = nearest(value, known, 1)
  return first[0] if first and alike(value, first[0]) else ""


def near(value: str, known: Iterable[str]) -> str:
  """A sentence that names the three nearest, with a space before it; '' where nothing is known."""
  first, *others = nearest(value, known) or [""]
  if not first:
    return ""
  if not alike(value, first):
    return f" The nearest are {', '.join([first, *others])}."
  return f" Did you mean {first}?" + (f" Near it: {', '.join(others)}." if others else "")


def choose(name: str, value: str, allowed: Iterable[str], command: str = "") -> str:
  """`value` if it is allowed.

  Args:
    command: what lists all that is allowed, such as `cljax list nets`.

  Raises:
    ConfigError: naming the nearest of what is allowed and the command, or without one all that is allowed.
  """
  allowed = list(allowed)
  if value in allowed:
    return value
  if command:
    raise ConfigError(f"{name}={shown(value)} is not known.{near(value, allowed)} `{command}` shows all {len(allowed)}")
  first = meant(value, allowed)
  hint = f" Did you mean {first}?" if first else ""
  raise ConfigError(f"{name}={shown(value)} is not known.{hint} Choose one of: {', '.join(allowed)}")
