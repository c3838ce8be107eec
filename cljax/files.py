"""Files on a disk or in an object store: written whole or not at all, read with a word about damage."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cljax.disk import remedy
from cljax.errors import ConfigError, in_short

PROBED = 4096  # bytes that a disk must take before anything is computed for it


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


def checksum(arrays: Mapping[str, Any]) -> str:
  """sha256 of names, types, shapes and bytes; a number is an array of one."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    digest.update(f"{name} {array.dtype} {array.shape}".encode())
    digest.update(array.ravel().view(np.uint8).data)
  return digest.hexdigest()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """A nested config under dotted names."""
  told = ((f"{prefix}{key}", value) for key, value in config.items())
  parts = [flatten(value, f"{key}.") if isinstance(value, Mapping) else {key: value} for key, value in told]
  return {key: value for part in parts for key, value in part.items()}


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
  with saying(path, temporary):
    with open(temporary, "wb") as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)


def check_writable(path: epath.Path) -> None:
  """Finds out whether `write_atomically` could begin; leaves nothing.

  Raises:
    OSError: it could not, as that would say it.
  """
  if "://" not in os.fspath(path):
    probe = path.with_name(f".{path.name}.{os.getpid()}")
    with saying(path, probe):
      probe.write_bytes(bytes(PROBED))
      probe.unlink()


@contextlib.contextmanager
def saying(path: epath.Path, temporary: epath.Path) -> Iterator[None]:
  """Around the writing of a file under another name, which goes where that fails.

  Raises:
    OSError: it names the file.
  """
  try:
    yield
  except OSError as error:
    with contextlib.suppress(OSError):  # a folder that is gone holds no file to take away
      temporary.unlink(missing_ok=True)
    reason = f"{error.strerror}; {path} could not be written: {remedy(error)}"
    raise OSError(error.errno, reason, os.fspath(path)) from error


def format_json(value: Any, indent: int = 0) -> str:
  """`value` as JSON: a line for each entry of a mapping, lists on one line."""
  if not isinstance(value, dict) or not value:
    return json.dumps(value, allow_nan=False)
  inner = " " * (indent + 1)
  lines = [f"{inner}{json.dumps(key)}: {format_json(item, indent + 1)}" for key, item in value.items()]
  return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"


def read_json(path: epath.Path | str, way: str = "move it away, or use another --workdir") -> dict[str, Any]:
  """The JSON object of a file.

  Args:
    way: what to type where it is damaged.

  Raises:
    ConfigError: a damaged file, or JSON of another kind; names the file.
    OSError: it cannot be read.
  """
  path = epath.Path(path)
  try:
    found = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ConfigError(f"{path} is damaged ({error}); {way}") from error
  if not isinstance(found, dict):
    raise ConfigError(f"{path} is damaged (it holds {type(found).__name__}, no JSON object); {way}")
  return found


@contextlib.contextmanager
def telling(path: epath.Path | str, way: str = "move it away, or use another --workdir") -> Iterator[None]:
  """Around the use of what a file holds: of the right format, it may still be of another kind.

  Raises:
    ConfigError: whatever was raised inside; names the file.
  """
  try:
    yield
  except OSError:
    raise
  except ConfigError as error:
    raise ConfigError(f"{path}: {error}") from error
  except Exception as error:
    reason = in_short(f"{type(error).__name__}: {error}", 200)
    raise ConfigError(f"{path} is damaged (it holds something else: {reason}); {way}") from error


def as_json(value: Any) -> Any:
  """What `value` looks like after a round trip through a file."""
  return json.loads(json.dumps(value))


# Checksums. What carries none is of a version that wrote none.

SEAL = "checksum"  # the last key of a sealed JSON object
COMMENT = b"sha256 "  # what the comment of a sealed zip begins with, before 64 digits
ZIP_END = b"PK\5\6"  # of its last record, 22 bytes without a comment


def digest(value: Any) -> str:
  """sha256 of a JSON value, whatever the order of its keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_sealed(path: epath.Path | str, value: Mapping[str, Any]) -> None:
  """`write_json` of an object, with its checksum as a last key."""
  value = plain(value)
  write_json(path, {**value, SEAL: digest(as_json(value))})


def read_sealed(path: epath.Path | str, way: str) -> dict[str, Any]:
  """What `write_sealed` wrote, or an object of a version that wrote no checksum; for the rest see `read_json`."""
  return unsealed(path, read_json(path, way), way)


def unsealed(path: epath.Path | str, value: Mapping[str, Any], way: str) -> dict[str, Any]:
  """An object as it stands in a file, without the checksum; errors as `read_sealed`."""
  found = dict(value)
  last = next(reversed(found.values()), None)
  renamed = SEAL not in found and isinstance(last, str) and len(last) == 64  # the checksum under a damaged name
  if renamed or (SEAL in found and found.pop(SEAL) != digest(found)):
    raise ConfigError(f"{path} is damaged (its checksum does not match its contents); {way}")
  return found


def seal_zip(content: bytes) -> bytes:
  """A zip file with the sha256 of all its bytes as its comment, which every reader of zip files skips.

  Raises:
    ValueError: it has a comment of its own.
  """
  if content[-22:-18] != ZIP_END or content[-2:] != bytes(2):
    raise ValueError("no zip file, or one with a comment")
  length = len(COMMENT) + 64
  content = content[:-2] + length.to_bytes(2, "little")
  return content + COMMENT + hashlib.sha256(content).hexdigest().encode()


def check_zip(content: bytes) -> None:
  """
  Raises:
    ValueError: the content is neither what `seal_zip` gave nor a whole zip file without a comment.
  """
  if content[-22:-18] == ZIP_END and content[-2:] == bytes(2):
    return  # of a version that wrote no checksum
  length = len(COMMENT) + 64
  if content[-length:] != COMMENT + hashlib.sha256(content[:-length]).hexdigest().encode():
    raise ValueError("its checksum does not match its contents")


def pack(arrays: Mapping[str, Any], compressed: bool = False) -> bytes:
  """Arrays as a sealed .npz."""
  content = io.BytesIO()
  (np.savez_compressed if compressed else np.savez)(content, **arrays)  # type: ignore[arg-type]
  return seal_zip(content.getvalue())


def unpack(content: bytes) -> dict[str, np.ndarray]:
  """
  Raises:
    ValueError: the content is not what `pack` gave, nor a whole .npz without a checksum.
  """
  check_zip(content)
  try:
    with np.load(io.BytesIO(content)) as found:
      return {name: found[name] for name in found.files}
  except Exception as error:  # a damaged zip fails in as many ways as it has fields
    raise ValueError(in_short(error) or type(error).__name__) from error


# What dead processes left.


def unused(path: epath.Path) -> epath.Path:
  """The path, or the first of `path.2`, `path.3`, ... that nothing has yet."""
  names = itertools.chain([path.name], (f"{path.name}.{n}" for n in itertools.count(2)))
  return next(found for found in map(path.with_name, names) if not found.exists())


def tidy(folders: Iterable[epath.Path], age: float = 0) -> None:
  """Takes away what `write_atomically` and others were writing under `.NAME.PID` when they died.

  Args:
    age: seconds that it must have lain there, where processes of other hosts may be at work.
  """
  for folder in folders:
    if "://" in os.fspath(folder) or not folder.is_dir():
      continue
    for path in folder.iterdir():
      found = re.fullmatch(r"\..+\.(\d+)", path.name)
      if not found or alive(int(found[1])):
        continue
      with contextlib.suppress(OSError):
        if path.is_file() and time.time() - path.stat().mtime >= age:
          path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
  """Whether another process of this host has that number."""
  if pid == os.getpid():
    return False  # an earlier one of the same number: this one has not begun to write
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except (OSError, OverflowError):
    return True
  return True
