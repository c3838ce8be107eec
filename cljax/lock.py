"""One process a run: a lock on its folder, which goes with the process, however that ends.

On one host it is `flock`'s: the kernel takes it back, so no kill leaves one behind. Disks that know no `flock` are told
of by the lock file: a process of this host that still lives is refused as well.

Between hosts `flock` may not be trusted: object stores have none, and some shared disks keep it to the host. So the
owner's name in the lock file has a beat, a number that grows every 20 seconds, and who finds the name of another host
watches it. A beat that grows is of a process that lives. One that has stood still for two minutes, by the watcher's own
clock, is of a process that has died with its host, or is cut off, and its folder is taken over; clocks of two hosts are
never compared, but for a beat that is an hour old, which nobody need watch. An owner that was cut off and comes back
finds the other's name and ends before it saves again. A folder that was given back names nobody. In an object store two
may write their names at once: each looks again after a few seconds, and the last one has it.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
BEAT, SILENT = 20.0, 120.0  # seconds between beats, and without one until a process counts as dead
OLD = 3600.0  # seconds by two clocks, after which nobody watches
SETTLE, LOOK = 3.0, 1.0  # seconds until two writers see each other's name, and between looks at a beat
WIDTH = 300  # bytes of a lock file, so that each beat overwrites all of the one before
SEEN: dict[str, tuple[str, float]] = {}  # lock file -> what it said of another host's process, and since when


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


def owner_of(path: epath.Path) -> dict[str, Any]:
  """The process that a lock file names; {} without one."""
  try:
    return told(path.read_bytes().decode(errors="replace"))
  except FileNotFoundError:
    return {}


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  """Whether two records are of one process."""
  return all(one.get(name) == other.get(name) for name in ("host", "pid", "born"))


def busy(folder: epath.Path, owner: Mapping[str, Any]) -> Busy:
  """What is said to the second process."""
  who = f"process {owner.get('pid', 'unknown')} on host {owner.get('host', 'unknown')}"
  return Busy(
    f"--workdir={folder} is in use by {who}, and a run is one process: wait until that has ended, then the same "
    "command goes on, or use another --workdir"
  )


def lives_here(owner: Mapping[str, Any]) -> bool:
  """Whether a record is of another process of this host, which lives."""
  here = me()
  return (
    owner.get("host") == here["host"] and not same(owner, here) and owner.get("born") == born(owner.get("pid", 0)) != ""
  )


def holder(folder: epath.Path) -> dict[str, Any]:
  """The other process that has a folder, as far as a look at the lock file can tell; {} without one."""
  owner = owner_of(folder / FILE)
  return owner if lives_here(owner) else elsewhere(folder)


def elsewhere(folder: epath.Path) -> dict[str, Any]:
  """The process of another host that has a folder and may live; {} without one. Looks once, and remembers the beat."""
  path = folder / FILE
  owner = owner_of(path)
  if not owner or owner.get("host") == me()["host"] or "beat" not in owner:  # of older versions nobody can know
    return {}
  at = owner.get("at")
  if isinstance(at, int | float) and time.time() - at > OLD:
    return {}
  said, now = json.dumps(owner), time.monotonic()
  known, since = SEEN.get(os.fspath(path), ("", now))
  if known != said:
    since = now
  SEEN[os.fspath(path)] = said, since
  return owner if now - since < SILENT else {}


def await_other_host(folder: epath.Path) -> None:
  """Returns once no process of another host can have the folder.

  Raises:
    Busy: one has it, and its beat grows.
  """
  first = owner = elsewhere(folder)
  if first:
    logging.warning(
      "%s names process %s on host %s: waiting up to %d seconds for a sign of it",
      folder / FILE,
      first.get("pid"),
      first.get("host"),
      SILENT,
    )
  while owner:
    if owner != first:
      raise busy(folder, owner)
    time.sleep(LOOK)
    owner = elsewhere(folder)
  last = owner_of(folder / FILE)
  if last and last.get("host") != me()["host"]:
    logging.warning(
      "process %s on host %s was the last to use it and gives no sign of life; %s is taken over",
      last.get("pid"),
      last.get("host"),
      folder,
    )


class Hold:
  """A folder that this process has, and the beat that says so.

  Args:
    descriptor: of the lock file, open for writing; None where it is written whole.
  """

  def __init__(self, folder: epath.Path, descriptor: int | None):
    self.folder, self.path, self.descriptor = folder, folder / FILE, descriptor
    self.mine, self.count, self.other = me(), 0, {}  # type: tuple[dict[str, Any], int, dict[str, Any]]
    self.ended = threading.Event()
    self.thread = threading.Thread(target=self.keep, daemon=True)

  def write(self, text: str) -> None:
    """What the lock file says from now on."""
    if self.descriptor is None:
      self.path.write_text(text)
      return
    os.pwrite(self.descriptor, text.encode(), 0)  # never shorter in between, so that nobody reads a part
    os.ftruncate(self.descriptor, len(text.encode()))

  def beat(self) -> None:
    """One beat."""
    self.write(json.dumps({**self.mine, "beat": self.count, "at": round(time.time())}).ljust(WIDTH))
    self.count += 1

  def settle(self) -> None:
    """Where nothing else decides between two that begin at once: the last one to write has it.

    Raises:
      Busy: another has it.
    """
    time.sleep(SETTLE)
    owner = owner_of(self.path)
    if owner and not same(owner, self.mine):
      raise busy(self.folder, owner)

  def keep(self) -> None:
    """Beats until the end, or until the folder has another owner."""
    while not self.ended.wait(BEAT):
      with contextlib.suppress(OSError):  # a disk that is away for a while
        owner = owner_of(self.path)
        if owner and not same(owner, self.mine):
          self.other = owner
          return
        self.beat()

  def check(self) -> None:
    """
    Raises:
      Busy: this process gave no sign for so long that another one has the folder.
    """
    if self.other:
      raise busy(self.folder, self.other)

  def end(self) -> None:
    """Gives the folder back, unless another has it."""
    self.ended.set()
    if self.thread.is_alive():
      self.thread.join(BEAT)
    with contextlib.suppress(OSError):
      if same(owner_of(self.path), self.mine):
        self.write("")


@contextlib.contextmanager
def locked(folder: epath.Path, stop_asked: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], bool]]:
  """Makes the folder, and keeps it for this process.

  Args:
    stop_asked: asked now and then by who works in the folder.

  Yields:
    `stop_asked` that also asks whether the folder is still this process's, and raises `Busy` where it is not.

  Raises:
    Busy: another process has it.
    OSError: the folder cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / FILE
  remote = "://" in os.fspath(folder) or fcntl is None
  descriptor = None if remote else os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    known = descriptor is not None and flock(folder, descriptor)
    if not known and lives_here(owner := owner_of(path)):
      raise busy(folder, owner)
    await_other_host(folder)
    hold = Hold(folder, descriptor)

    def asked() -> bool:
      hold.check()
      return stop_asked()

    hold.beat()
    try:
      if not known:
        hold.settle()
      hold.thread.start()
      yield asked
    finally:
      hold.end()
  finally:
    if descriptor is not None:
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
