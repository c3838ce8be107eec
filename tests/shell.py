"""`python -m launch.train ...` as the shell would run it, without importing the libraries each time.

One process a test worker imports them once (`python -m tests.shell`). Each command runs in a child of it, which has
nothing compiled or computed yet, can be killed, and ends as a process of its own.
"""

import atexit
import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300  # seconds


class Done(NamedTuple):
  """What a command left."""

  returncode: int
  stdout: str
  stderr: str


class Running:
  """A command that was begun; `finish` must be called."""

  def __init__(self, words: tuple[str, ...], environment: dict[str, str], largest: int | None):
    self.words = words
    self.files = [tempfile.NamedTemporaryFile(mode="r") for _ in range(2)]  # noqa: SIM115
    files = [file.name for file in self.files]
    given = {"words": list(map(str, words)), "files": files, "largest": largest}
    self.pid = ask(environment={**os.environ, **environment}, settings=settings_of(environment), **given)
    self.code: int | None = None

  def poll(self) -> int | None:
    """The exit code, or None while it runs."""
    if self.code is None:
      self.code = ask(pid=self.pid)
    return self.code

  def send_signal(self, number: int) -> None:
    """Unless it has ended."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def finish(self) -> Done:
    """Waits for its end."""
    deadline = time.monotonic() + PATIENCE
    while self.poll() is None:
      if time.monotonic() > deadline:
        os.kill(self.pid, 9)
        raise AssertionError(f"{self.words} did not end; it said {[file.read() for file in self.files]}")
      time.sleep(0.01)
    done = Done(self.code, *(file.read() for file in self.files))
    for file in self.files:
      file.close()
    return done


def begin(*words: Any, largest: int | None = None, **environment: str) -> Running:
  """A command that runs beside the test.

  Args:
    words: a module and its arguments.
    largest: bytes that a file may have, which stands in for a full disk.
    environment: variables; those of JAX are its settings, `JAX_NUM_CPU_DEVICES="8"`.
  """
  return Running(words, environment, largest)


def shell(*words: Any, largest: int | None = None, **environment: str) -> Done:
  """What a command left, see `begin`."""
  return begin(*words, largest=largest, **environment).finish()


def alone(*words: Any) -> Done:
  """What a command left, as a process that imports everything itself: slow, and just what a person starts."""
  done = subprocess.run(
    [sys.executable, "-m", *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
  )
  return Done(done.returncode, done.stdout, done.stderr)


def settings_of(environment: dict[str, str]) -> dict[str, Any]:
  """Variables of JAX as its settings, which were read when it was imported."""
  found = {name.lower(): value for name, value in environment.items() if name.startswith("JAX_")}
  return {name: int(value) if value.isdigit() else value for name, value in found.items()}


@functools.cache
def server() -> subprocess.Popen:
  """The process whose children run the commands."""
  found = subprocess.Popen(
    [sys.executable, "-m", "tests.shell"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )

  def close():
    found.stdin.close()
    found.wait()
    found.stdout.close()

  atexit.register(close)
  return found


def ask(**question: Any) -> Any:
  """An answer of the server."""
  stdin, stdout = server().stdin, server().stdout
  stdin.write(json.dumps(question) + "\n")
  stdin.flush()
  return json.loads(stdout.readline())


# In the server.


def become(
  words: list[str], environment: dict[str, str], settings: dict[str, Any], files: list[str], largest: int | None
) -> None:
  """Runs a module as `python -m` does."""
  import resource

  import jax

  for descriptor, path in zip((0, 1, 2), (os.devnull, *files), strict=True):
    os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND if descriptor else os.O_RDONLY), descriptor)
  if largest is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
  os.environ.clear()
  os.environ.update(environment)
  for name, value in settings.items():
    jax.config.update(name, value)
  sys.argv = words
  runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def serve() -> None:
  """Answers questions: begins a command and tells its number, or tells whether that one has ended and how."""
  import gc

  import matplotlib.backends.backend_agg  # noqa: F401
  import sklearn.datasets  # noqa: F401
  import tensorboardX  # noqa: F401

  import cljax.evaluation
  import cljax.predict
  import cljax.report.pages
  import cljax.run  # noqa: F401

  gc.freeze()  # what is here stays, and the children need not walk it
  for line in sys.stdin:
    question = json.loads(line)
    if "pid" in question:
      pid, status = os.waitpid(question["pid"], os.WNOHANG)
      answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
      answer = os.fork()
      if not answer:
        become(**question)
        return
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
  serve()
