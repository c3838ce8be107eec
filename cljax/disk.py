"""Errors of the disk: which file, what it is about, and what a person can do about it."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from cljax.errors import ConfigError, in_short

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PASSING = {
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
  errno.ESTALE,
  errno.ETIMEDOUT,
}
REMEDIES = {
  **dict.fromkeys(FULL, "make room"),
  **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
  **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "see that you may read and write there"),
  errno.ENOENT: "see that the folder is still there",
  **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file stands where a folder should: name another folder"),
  errno.EISDIR: "a folder stands where a file should: name another file",
  errno.ENAMETOOLONG: "take a shorter name",
  errno.ENOMEM: "free memory",
}


@contextlib.contextmanager
def naming(path: epath.Path) -> Iterator[None]:
  """Gives an error of the disk the file's name, where it has none.

  Raises:
    OSError: whatever was raised inside.
  """
  try:
    yield
  except OSError as error:
    if error.filename is not None:
      raise
    reason = error.strerror or in_short(error)
    raise OSError(error.errno, f"{reason}; {remedy(error)}, and the same command goes on", os.fspath(path)) from error


def unread(path: Any, error: BaseException) -> ConfigError | None:
  """The error that names a file which cannot be read just now; None where it is the content that is wrong."""
  passes = code_of(error) in PASSING
  return ConfigError(f"{path} cannot be read ({in_short(error)}): {remedy(error)}") if passes else None


def code_of(error: BaseException) -> int:
  """The errno of an error or of what caused it, also where libraries tell it in words; 0 where none is told."""
  found, text = error, ""
  while found is not None:
    if isinstance(found, MemoryError):
      return errno.ENOMEM
    if isinstance(found, OSError) and found.errno:
      return found.errno
    text += f" {found}"
    found = found.__cause__ or found.__context__  # type: ignore[assignment]
  told = re.search(r"OS error (\d+)|\[Errno (\d+)\]", text)
  if told:
    return int(told[1] or told[2])
  words = {os.strerror(code): code for code in (*REMEDIES, *PASSING)} | {"RESOURCE_EXHAUSTED": errno.ENOSPC}
  return next((code for word, code in words.items() if word in text), 0)


def remedy(error: BaseException) -> str:
  """What a person can do about an error of the disk."""
  return REMEDIES.get(code_of(error), "mend that")
