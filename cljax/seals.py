"""The cursor of a checkpoint as it lies on the disk: sealed by a checksum, and read where no arrays are asked for."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from cljax.errors import ConfigError
from cljax.files import as_json, digest

SCHEMA = 1  # of what a cursor says and means; cursors without one are older
METADATA = "_CHECKPOINT_METADATA"  # of orbax, in the folder of each checkpoint
MAPPINGS = ("metrics", "performance_metrics", "custom_metadata")  # in it, as is the whole
TIMES = ("init_timestamp_nsecs", "commit_timestamp_nsecs")
SEAL = "seal"  # checksum of the rest of the cursor, that of the arrays among it


class Later(ConfigError):
  """A checkpoint that this version cannot read and a later one can."""


def kinds(arrays: Mapping[str, Any]) -> dict[str, str]:
  """Type and shape of each array."""
  return {name: f"{array.dtype} {list(np.shape(array))}" for name, array in arrays.items()}


def unlike(there: Mapping[str, Any], here: Mapping[str, Any], words: tuple[str, str] = ("there", "here")) -> list[str]:
  """A line for each array that another state has in another way."""
  old, new, absent = kinds(there), kinds(here), "absent"
  names = list(dict.fromkeys([*old, *new]))
  return [
    f"{name}: {old.get(name, absent)} {words[0]}, {new.get(name, absent)} {words[1]}"
    for name in names
    if old.get(name) != new.get(name)
  ]


def sealed(cursor: Mapping[str, Any]) -> dict[str, Any]:
  """The cursor, that holds the checksum of the arrays, with its schema and a checksum over all of it."""
  found = as_json({"schema": SCHEMA, **cursor})
  return {**found, SEAL: digest(found)}


def opened(cursor: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
  """(what `sealed` was given, whether it was sealed); older ones were not.

  Raises:
    ValueError: it is damaged.
    KeyError: so it is.
  """
  found = dict(cursor)
  if not {"schema", SEAL} & set(found):
    return found, False
  if found.pop(SEAL) != digest(found):
    raise ValueError("the checksum of its cursor does not match")
  if found.pop("schema") > SCHEMA:
    raise Later(
      f"a later version of cljax wrote the checkpoint (its schema is {cursor['schema']}, {SCHEMA} is the last "
      "that this one reads): go on with that version, or use another --workdir"
    )
  return found, True


def misleads(path: epath.Path) -> bool:
  """Whether orbax's own file of a checkpoint is JSON of another kind, for which it would list none of them.

  One that is missing or no JSON at all it does without.
  """
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  if not isinstance(found, dict):
    return True
  times = [found[name] for name in TIMES if found.get(name) is not None]
  return not (
    all(isinstance(found.get(name) or {}, dict) for name in MAPPINGS)
    and all(type(time) is int and 0 <= time < 2**63 for time in times)
  )


def told(folder: epath.Path, only_sealed: bool) -> dict[str, Any]:
  """The cursor of the newest checkpoint in a folder, or in those below it, whose cursor is whole; {} without one.

  Args:
    only_sealed: passes over those of versions that kept no checksum, in which damage may look like another run.
  """
  found: list[epath.Path] = []
  with contextlib.suppress(OSError):  # where another process takes one away
    found = [path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/cursor/metadata")]
  found = [path for path in found if path.parent.parent.name.isdigit()]
  for path in sorted(found, key=lambda path: int(path.parent.parent.name), reverse=True):
    with contextlib.suppress(Exception):  # what is damaged is told when it is restored
      cursor, whole = opened(json.loads(path.read_bytes()))
      if whole or not only_sealed:
        return cursor
  return {}
