"""Decoded arrays of a data set on disk, so that the second start takes no time."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from cljax.files import checksum, tidy

Arrays = dict[str, Any]  # train_x and test_x [N, h, w, c], train_y and test_y [N], perhaps valid_x and valid_y, numpy


def check_kind(arrays: Arrays) -> None:
  """
  Raises:
    ValueError: these are no decoded data set.
  """
  splits = ("train", "test", "valid") if {"valid_x", "valid_y"} & set(arrays) else ("train", "test")
  if set(arrays) != {f"{split}_{part}" for split in splits for part in "xy"}:
    raise ValueError(f"it holds {', '.join(sorted(arrays)) or 'nothing'}")
  for split in splits:
    x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
    if x.ndim != 4 or x.dtype != np.uint8 or y.shape != x.shape[:1] or y.dtype != np.int32:
      raise ValueError(f"its {split} rows are {x.dtype} {x.shape} and {y.dtype} {y.shape}")


def read_cache(path: Path, key: str) -> Arrays | None:
  """The cached arrays; None where there are none, or (said in a warning) damaged ones or those of other files.

  Args:
    key: the hash of the files that they were decoded from; caches of older versions do not tell it.
  """
  try:
    if not path.exists():
      return None
    with path.open("rb") as file, np.load(file) as content:  # given a path, np.load leaves a damaged file open
      arrays = {name: content[name] for name in content.files}
    found, of = str(arrays.pop("hash")), str(arrays.pop("key", key))
    if found != checksum(arrays):
      raise ValueError("its checksum does not match")
    if of != key:
      raise ValueError("it was decoded from other files")
    check_kind(arrays)
    return arrays
  except Exception as error:  # a damaged zip fails in many ways
    logging.warning("the cache %s is damaged (%s): decoding again", path, error)
    return None


def write_cache(path: Path, arrays: Arrays, key: str) -> None:
  """Keeps decoded arrays; a folder that cannot be written costs a warning and the next start's time."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")  # a reader never sees half a file
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    tidy([epath.Path(path.parent)], age=3600)
    try:
      with temporary.open("wb") as file:
        np.savez(file, **arrays, hash=np.array(checksum(arrays)), key=np.array(key))
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    logging.warning("the decoded data could not be cached in %s (%s): the next start decodes again", path.parent, error)
