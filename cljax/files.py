"""Files on a disk or in an object store: written whole or not at all, read with a word about damage."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cljax.errors import ConfigError


def located(workdir: str | epath.Path) -> epath.Path:
  """A folder by its whole path: orbax takes no other, and finds out late."""
  folder = epath.Path(workdir)
  return folder if "://" in str(workdir) else folder.expanduser().absolute()


def plain(value: Any) -> Any:
  """Numpy, tuples and NaN as JSON has them."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return plain(value.tolist())
  if isinstance(value, Sequence) and not isinstance(value, str):
    return [plain(item) for item in value]
  if isinstance(value, np.generic):
    return plain(value.item())
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """A nested config under dotted names."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
  return flat


def write_json(path: epath.Path | str, value: Any) -> None:
  """Writes all or nothing: a reader never sees half a file. Mappings go line by line, lists stay on one line.

  Raises:
    OSError: it cannot be written; an older file stays as it was.
  """
  path = epath.Path(path)
  write_atomically(path, (format_json(plain(value)) + "\n").encode())


def write_atomically(path: epath.Path, content: bytes) -> None:
  """The whole content under its name, or the old file."""
  if "://" in os.fspath(path):  # object stores replace whole files by themselves
    path.write_bytes(content)
    return
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with open(temporary, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise OSError(error.errno, f"{error.strerror}; {path} could not be written", os.fspath(path)) from error


def format_json(value: Any, indent: int = 0) -> str:
  """`value` as JSON: a line for each entry of a mapping, lists on one line."""
  if not isinstance(value, dict) or not value:
    return json.dumps(value, allow_nan=False)
  inner = " " * (indent + 1)
  lines = [f"{inner}{json.dumps(key)}: {format_json(item, indent + 1)}" for key, item in value.items()]
  return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"


def read_json(path: epath.Path) -> Any:
  """
  Raises:
    ConfigError: a damaged file.
  """
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(f"{path} is damaged ({error}); move it away, or use another --workdir") from error


def as_json(value: Any) -> Any:
  """What `value` looks like after a round trip through a file."""
  return json.loads(json.dumps(value))
