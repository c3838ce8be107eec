"""The memory of this machine, and refusing what is larger than that."""

import os
from pathlib import Path

from cljax.errors import ConfigError

GIBIBYTE = 2**30
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def host_bytes() -> int | None:
  """Bytes of the machine's memory, or of what its container may use; None where neither is told."""
  names, found = getattr(os, "sysconf_names", {}), []
  if {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
    found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
  for path in map(Path, LIMITS):
    text = path.read_text().strip() if path.is_file() else ""
    if text.isdigit():
      found.append(int(text))
  return min(found, default=None)


def fit_into(there: int | None, where: str, what: str, wanted: int, remedy: str) -> None:
  """Refuses what is larger than a memory.

  Args:
    there: bytes of the memory that is called `where`; None if unknown, and nothing is refused.
    what: needs `wanted` bytes, with its verb.
    remedy: what to do.

  Raises:
    ConfigError: says both sizes.
  """
  if there is not None and wanted > there:
    raise ConfigError(f"{what} {wanted / GIBIBYTE:,.1f} GiB, but {where} has {there / GIBIBYTE:,.1f} GiB: {remedy}")
