"""A table's cells over several machines that share a work dir, `--shard=2/8` on the second of eight.

Each begins with its own cells, every eighth. Then it takes cells that nobody has, and at last it waits for those that
others have in training, to take over the cell of a machine that dies: whoever is left does the whole table. The lock of
a cell's folder says whose it is, and `cljax.lock` how a dead owner is told from a living one; a cell that is taken over
goes on at its last checkpoint. The first that sees all cells finished writes the report, the others print its table.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import flags
from etils import epath

from cljax.drive import Stopped
from cljax.errors import Busy, ConfigError
from cljax.lock import holder, locked
from cljax.report.store import find_results
from launch import hosts

SHARD = flags.DEFINE_string("shard", "", "K/N: the share of this machine, of N that do one table in one --workdir.")
LOOK, EVERY = 1.0, 10  # seconds until a stop is asked for, and such times until the others' cells are looked at


class Shard(NamedTuple):
  """One of several shares."""

  place: int  # from 0
  of: int

  def order(self, count: int) -> list[int]:
    """Its own cells of so many, then those of the next machine, and so on."""
    return [i for turn in range(self.of) for i in range((self.place + turn) % self.of, count, self.of)]


def shard() -> Shard | None:
  """What --shard says; None without it.

  Raises:
    ConfigError: no K/N, or processes that are joined to one run.
  """
  text = SHARD.value
  if not text:
    return None
  first, _, last = text.partition("/")
  if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
    raise ConfigError(f"--shard={text} must be K/N, for example 1/8 to 8/8 on eight machines")
  if hosts.DISTRIBUTED.value == "on" or hosts.COORDINATOR.value:
    raise ConfigError("--shard is of machines that train cells of their own, --distributed=on joins them to one run")
  return Shard(int(first) - 1, int(last))


def share(
  root: epath.Path,
  folders: Sequence[str],
  shard: Shard,
  run: Callable[[int, str], None],
  stop_asked: Callable[[], bool],
) -> None:
  """Returns once all cells are finished, here or elsewhere.

  Args:
    folders: of the cells, below the root.
    run: trains a cell of a number and a folder or, where it is finished, reads it; raises `Busy` where another process
      has its folder.

  Raises:
    Stopped: that was asked for.
  """
  left, waited = shard.order(len(folders)), False
  while left:
    before = len(left)
    for i in list(left):
      if holder(root / folders[i]) and not (root / folders[i] / "result.json").exists():
        continue
      with contextlib.suppress(Busy):
        run(i, folders[i])
        left.remove(i)
    if len(left) == before:
      if not waited:
        print(f"{len(left)} cells are in training elsewhere: waiting, to take over those of who dies", file=sys.stderr)
      waited = True
      wait(stop_asked)


def wait(stop_asked: Callable[[], bool]) -> None:
  """
  Raises:
    Stopped: that was asked for.
  """
  for _ in range(EVERY):
    if stop_asked():
      raise Stopped
    time.sleep(LOOK)


def alone(folder: epath.Path, work: Callable[[], None], stop_asked: Callable[[], bool]) -> None:
  """Does some work while no other process has the folder, after a wait for those that do.

  Raises:
    Stopped: that was asked for.
  """
  while True:
    try:
      with locked(folder):
        work()
      return
    except Busy:
      wait(stop_asked)


def reported(workdir: epath.Path) -> bool:
  """Whether the report was written after all results, by the clock of the disk."""
  report, folders = workdir / "report.html", [folder for _, _, folder in find_results(workdir)]
  return report.exists() and all((each / "result.json").stat().mtime <= report.stat().mtime for each in folders)
