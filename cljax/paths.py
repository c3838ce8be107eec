"""Paths as a person types them, on a disk or in an object store."""

import errno
import glob
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

from cljax.errors import ConfigError, in_short

STORES = {"gs": "'cljax[gcs]'", "s3": "s3fs", "az": "adlfs"}  # and what pip installs for each
ON_DISK: Any = type(epath.Path("."))
by_pattern = ON_DISK.glob


def glob_below(folder: Any, pattern: str) -> Iterator[Any]:
  """What matches a pattern below a folder whose own name may hold anything, such as `[1]`.

  The library takes the folder's name for a part of the pattern, and so orbax loses checkpoints in silence.
  """
  if "://" in os.fspath(folder):
    return by_pattern(folder, pattern)
  return map(type(folder), glob.glob(os.path.join(glob.escape(os.fspath(folder)), pattern)))


ON_DISK.glob = glob_below


def as_text(name: str, path: Any) -> str:
  """A path as a word; ConfigError: it is none."""
  text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
  if not isinstance(text, str) or not text or "\0" in text:
    raise ConfigError(f"{name}={path!r:.60} must be a path, as a word")
  return text


def located(workdir: str | epath.Path, name: str = "workdir") -> epath.Path:
  """A folder by its whole path: orbax takes no other, and finds out late.

  Raises:
    ConfigError: no path, one that the disk takes no name of, or an address of a store that is not known, or whose
      package is not installed.
  """
  scheme, is_address, _ = as_text(name, workdir).partition("://")
  if is_address and scheme not in STORES:
    raise ConfigError(f"{workdir} is no folder, and no address of {', '.join(f'{name}://' for name in STORES)}")
  if is_address and importlib.util.find_spec("tensorflow") is None:  # which brings readers of its own
    try:
      fsspec.get_filesystem_class(scheme)
    except ImportError as error:
      raise ConfigError(f"{workdir}: {in_short(error)}: pip install {STORES[scheme]}") from error
  return epath.Path(workdir) if is_address else nameable(name, epath.Path(workdir).expanduser().absolute())


def nameable(name: str, path: epath.Path) -> epath.Path:
  """The path, if files may be called so, whether or not there is one.

  Raises:
    ConfigError: a part of it is too long, or is no text that the disk can write.
  """
  try:
    os.lstat(path)
  except UnicodeEncodeError as error:
    raise ConfigError(
      f"{name}={os.fspath(path)!r:.60} cannot be written as the name of a file: {error.reason}"
    ) from error
  except OSError as error:
    if error.errno == errno.ENAMETOOLONG:
      longest = max(map(len, path.parts))
      told = f"{name}={os.fspath(path)!r:.60}... has {len(os.fspath(path))} characters, {longest} of them in one part"
      raise ConfigError(f"{told}, which is too long for this disk: give a shorter one") from error
  return path
