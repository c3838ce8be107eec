"""What is compiled, as functions of the method at the numbers of one row, and of that row's arguments."""

from collections.abc import Callable
from typing import Any

from cljax import loops
from cljax.types import Key, Method, State


def chunk_of(p: int, n: int, spread: Callable[..., Any], method: Method, *args: Any) -> Any:
  """`fit_chunk` of the p-th phase."""
  key, state, view, clock, stop = args
  return loops.fit_chunk(method.phases[p], n, key, state, view, clock, stop, spread)


def edge_of(p: int, name: str, method: Method, *args: Any) -> Any:
  """An edge of the p-th phase."""
  return loops.edge(method.phases[p], name, *args)


def begin_of(method: Method, key: Key, parts: Any) -> State:
  """The state before anything is trained, with what the method reads in its place."""
  return method.load(method.init(key), parts)


def part_of(name: str, method: Method, *args: Any) -> Any:
  """One of the method's own functions."""
  return getattr(method, name)(*args)
