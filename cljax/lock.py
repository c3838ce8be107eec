"""One process a run: a lock on its folder that the kernel takes back when the process ends, however it ends.

On a disk the lock is `flock`'s, so no kill leaves one behind, and NFS tells other hosts. Object stores and disks that
know no `flock` are told apart by what the lock file says: a process of this host that still lives is refused as well;
of one on another host nobody can know whether it lives, so there the next process goes on, with a warning.
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from cljax.errors import Busy

try:
  import fcntl
except ImportError:  # no flock on this system
  fcntl = None  # type: ignore[assignment]

FILE = ".lock"
HELD = (errno.EAGAIN, errno.EACCES)  # what flock says of a lock that another process has


def me() -> dict[str, Any]:
  """This process, as the lock file tells it."""
  return {"host": socket.gethostname(), "pid": os.getpid(), "born": born(os.getpid())}


def born(pid: int) -> str:
  """What tells a process from an earlier one of the same number: its start, in the kernel's ticks; '' where unknown."""
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rpartition(")")[2].split()[19]
  except (OSError, IndexError):
    return ""


def told(text: str) -> dict[str, Any]:
  """What a lock file says; {} where it says nothing that can be read."""
  try:
    found = json.loads(text)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def busy(folder: epath.Path, owner: Mapping[str, Any]) -> Busy:
  """What is said to the second process."""
  who = f"process {owner.get('pid', 'unknown')} on host {owner.get('host', 'unknown')}"
  return Busy(
    f"--workdir={folder} is in use by {who}, and a run is one process: wait until that has ended, then the same "
    "command goes on, or use another --workdir"
  )


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[None]:
  """Makes the folder, and keeps it for this process.

  Raises:
    Busy: another process has it.
    OSError: the folder cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / FILE
  if "://" in os.fspath(folder) or fcntl is None:
    note(folder, path)
    yield
    return
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    if flock(folder, descriptor):
      os.ftruncate(descriptor, 0)
      os.pwrite(descriptor, json.dumps(me()).encode(), 0)
    else:
      note(folder, path)
    yield
  finally:
    os.close(descriptor)


def flock(folder: epath.Path, descriptor: int) -> bool:
  """Whether the disk knows locks; this process then has this one.

  Raises:
    Busy: another process has it.
  """
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in HELD:
      raise busy(folder, told(os.pread(descriptor, 1000, 0).decode(errors="replace"))) from error
    return False
  return True


def note(folder: epath.Path, path: epath.Path) -> None:
  """Without `flock`: says in the lock file whose folder this is.

  Raises:
    Busy: a process of this host has it, which lives.
  """
  owner = told(path.read_bytes().decode(errors="replace")) if path.exists() else {}
  here = me()
  if owner.get("host") == here["host"] and owner != here and owner.get("born") == born(owner.get("pid", 0)) != "":
    raise busy(folder, owner)
  if owner and owner.get("host") != here["host"]:
    logging.warning(
      "%s knows no locks, and process %s on host %s was the last to use it: see that it has ended",
      folder,
      owner.get("pid"),
      owner.get("host"),
    )
  path.write_text(json.dumps(here))
