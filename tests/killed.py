"""`python -m tests.killed FOLDER K MODULE ...` runs a module and dies, as by kill -9, at its K-th operation on FOLDER.

What counts is what Python tells its audit hooks of files below the folder: opening one to write, renaming, removing,
making and cutting. At the end it says how many there were. In place of a module, `toy NAME` is the toy of that method
of the conformance tests.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}


def hook(folder: str, last: int, count: list[int]) -> Callable[[str, tuple[Any, ...]], None]:
  """An audit hook that kills this process at operation `last`, the first is 1."""

  def audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
      if not (isinstance(args[2], int) and args[2] & WRITING):
        return
      paths = args[:1]
    elif event in CHANGES:
      paths = args[:2]
    else:
      return
    if any(isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(folder) for path in paths):
      count[0] += 1
      if count[0] == last:
        os.kill(os.getpid(), signal.SIGKILL)

  return audit


def toy(name: str, folder: str) -> None:
  """A few steps of a method's toy, saved after each chunk."""
  from cljax.run import fit
  from tests import methods_test, toys

  spec, data = toys.stream((30, 23), **methods_test.STREAMS.get(name, {}))
  method = methods_test.build(name, spec, epochs=2)
  settings = {"chunk": 4, "checkpoint_every_chunks": 1, "log_every_steps": 1, "every_task": True}
  fit(method, spec, data, seeds=(0, 1), workdir=folder, quiet=True, **settings)


def main() -> None:
  folder, last, module, *words = sys.argv[1:]
  count = [0]
  sys.addaudithook(hook(folder, int(last), count))
  if module == "toy":
    toy(words[0], folder)
  else:
    sys.argv = [module, *words]
    try:
      runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
      if end.code:
        raise
  print("operations", count[0])


if __name__ == "__main__":
  main()
