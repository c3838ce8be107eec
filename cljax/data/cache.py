"""Decoded arrays of a data set on disk, so that the second start takes no time."""

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

Arrays = dict[str, Any]  # train_x and test_x [N, h, w, c], train_y and test_y [N], numpy


def hash_arrays(arrays: Arrays) -> str:
  """sha256 over names, types, shapes and bytes."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
    digest.update(np.ascontiguousarray(arrays[name]).data)
  return digest.hexdigest()


def read_cache(path: Path) -> Arrays | None:
  """The cached arrays; None where there are none, or (said in a warning) damaged ones."""
  try:
    if not path.exists():
      return None
    with path.open("rb") as file, np.load(file) as content:  # given a path, np.load leaves a damaged file open
      arrays = {name: content[name] for name in content.files}
    if str(arrays.pop("hash")) != hash_arrays(arrays):
      raise ValueError("its checksum does not match")
    return arrays
  except Exception as error:  # a damaged zip fails in many ways
    logging.warning("the cache %s is damaged (%s): decoding again", path, error)
    return None


def write_cache(path: Path, arrays: Arrays) -> None:
  """Keeps decoded arrays; a folder that cannot be written costs a warning and the next start's time."""
  temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # a reader never sees half a file
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with temporary.open("wb") as file:
        np.savez(file, **arrays, hash=np.array(hash_arrays(arrays)))
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    logging.warning("the decoded data could not be cached in %s (%s): the next start decodes again", path.parent, error)
