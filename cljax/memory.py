"""Whether a state fits into the memory of the devices, asked before anything is made."""

import os
from typing import Any

import jax
import numpy as np

from cljax.errors import ConfigError
from cljax.types import Method, State

GIBIBYTE = 2**30


def bytes_of(state: State) -> int:
  """Bytes of a tree of arrays, or of their shapes."""
  return sum(int(np.prod(leaf.shape, dtype=object)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def device_bytes(device: Any) -> int | None:
  """Bytes of a device's memory, on a CPU the machine's; None where neither is told."""
  told = device.memory_stats() or {}
  if "bytes_limit" in told:
    return int(told["bytes_limit"])
  names = getattr(os, "sysconf_names", {})
  if device.platform == "cpu" and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return None


def check_memory(method: Method, rows: int, device: Any) -> None:
  """Refuses a method whose state, of `rows` rows of the seed axis, is larger than the memory of their device.

  Raises:
    ConfigError: says both sizes and what makes a state large.
  """
  wanted = rows * bytes_of(jax.eval_shape(method.init, jax.random.key(0)))
  there = device_bytes(device)
  if there is not None and wanted > there:
    raise ConfigError(
      f"the state of {rows} seed(s) takes {wanted / GIBIBYTE:,.1f} GiB, but {device.device_kind} has "
      f"{there / GIBIBYTE:,.1f} GiB: lower the widths of config.net, the experts, slots or rows that config.method "
      "keeps, or config.num_seeds"
    )
