"""`metrics.jsonl` and TensorBoard's events: rows that a checkpoint counts, and that go on where it stands.

A checkpoint knows how many bytes were written before it and their checksum, so what came after is dropped, and what is
missing or damaged before is told.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from absl import logging
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from cljax.disk import naming
from cljax.files import plain, unused, write_atomically

FILE, EVENTS = "metrics.jsonl", "events.out.tfevents.*"
SECONDS_BETWEEN_FLUSHES = 60


class Noted(NamedTuple):
  """What a checkpoint knows of the rows before it."""

  lines: int = 0
  size: int | None = 0  # bytes of metrics.jsonl; None: a version that counted lines only
  sha256: str = hashlib.sha256().hexdigest()  # of these bytes
  events: Mapping[str, int] | None = {}  # noqa: RUF012 - bytes of each file of events; None: not counted

  @classmethod
  def of(cls, lines: int, proof: Any) -> "Noted":
    """What a cursor says; `proof` as below, or None in one of an older version."""
    known = isinstance(proof, Mapping) and set(proof) == {"size", "sha256", "events"}
    return cls(lines, **proof) if known else cls(lines, None, "", None)

  def proof(self) -> dict[str, Any]:
    """What stands in a cursor beside the number of lines."""
    return {name: value for name, value in self._asdict().items() if name != "lines"}


class Journal:
  """metrics.jsonl in a folder, from where a checkpoint stands.

  On an object store, which cannot append, the rows stay here and are written whole by `flush`.
  """

  def __init__(self, folder: epath.Path, noted: Noted):
    self.path = folder / FILE
    self.remote = "://" in os.fspath(folder)
    content = self.path.read_bytes() if self.path.exists() else b""
    kept = kept_of(content, noted, self.path)
    self.lines, self.size, self.sum = kept.count(b"\n"), len(kept), hashlib.sha256(kept)
    self.file: BinaryIO
    if self.remote:
      self.file = io.BytesIO()
      self.file.write(kept)
      return
    if kept != content[: len(kept)]:
      write_atomically(self.path, kept)
    with naming(self.path):
      self.file = open(os.fspath(self.path), "ab")  # noqa: SIM115 - closed by `close`
      self.file.truncate(len(kept))

  def write(self, row: Mapping[str, Any]) -> None:
    """One line."""
    line = (json.dumps(plain(row), allow_nan=False) + "\n").encode()
    with naming(self.path):
      self.file.write(line)
    self.lines, self.size = self.lines + 1, self.size + len(line)
    self.sum.update(line)

  def flush(self) -> None:
    """Brings all rows to the disk."""
    if isinstance(self.file, io.BytesIO):
      self.path.write_bytes(self.file.getvalue())
      return
    with naming(self.path):
      self.file.flush()
      os.fsync(self.file.fileno())

  def close(self) -> None:
    with naming(self.path):
      self.file.close()

  def noted(self) -> Noted:
    """What a checkpoint that is saved now should know."""
    return Noted(self.lines, self.size, self.sum.hexdigest(), None)


def kept_of(content: bytes, noted: Noted, path: epath.Path) -> bytes:
  """The rows before a checkpoint; where they are not as they were written, those that can be read, with a warning."""
  head = content[: noted.size] if noted.size is not None else b"".join(content.splitlines(True)[: noted.lines])
  rows = [line for line in head.splitlines(True) if is_row(line)]
  right = noted.sha256 in ("", hashlib.sha256(head).hexdigest())
  if right and len(rows) == noted.lines and b"".join(rows) == head:
    return head
  where = ""
  if content:
    aside = unused(path.with_name(f"damaged_{path.name}"))
    write_atomically(aside, content)
    where = f", as it was it lies in {aside}"
  lost = max(noted.lines - len(rows), 0)
  told = f"{lost} of the {noted.lines} rows before the checkpoint are lost" if lost else "some rows are not as written"
  logging.warning("%s is damaged or cut: %s%s; the run goes on, and its result does not need them", path, told, where)
  return b"".join(rows)


def is_row(line: bytes) -> bool:
  """Whether a line is whole: a JSON object and its end."""
  try:
    return line.endswith(b"\n") and isinstance(json.loads(line), dict)
  except ValueError:
    return False


def divide(folder: epath.Path, folders: Sequence[epath.Path]) -> None:
  """Writes the steps of a run's metrics.jsonl into the folders of its sweep's values, to each those of its own seeds.

  In each row all seeds of the first value come first, see `Experiment.seeds`.
  """
  content = (folder / FILE).read_bytes() if (folder / FILE).exists() else b""
  rows = [json.loads(line) for line in content.splitlines(True) if is_row(line)]
  steps = [row for row in rows if row.get("event") == "step"]
  for v, own in enumerate(folders):
    lines = [json.dumps({name: share(value, v, len(folders)) for name, value in row.items()}) for row in steps]
    own.mkdir(parents=True, exist_ok=True)
    write_atomically(own / FILE, "".join(f"{line}\n" for line in lines).encode())


def share(value: Any, v: int, of: int) -> Any:
  """The v-th of equal parts of a list; what is no list as it is."""
  return value[v * len(value) // of : (v + 1) * len(value) // of] if isinstance(value, list) else value


class Board:
  """TensorBoard's events in a folder on a disk, each at once in its file.

  Events after the checkpoint are cut off; a TensorBoard that has read them is told to forget them.

  Args:
    done: steps before the checkpoint, whose events stand: the first step to forget is the next.
    events: bytes of each file then; None leaves the files as they are.
  """

  def __init__(self, folder: epath.Path, done: int, events: Mapping[str, int] | None):
    self.folder = folder
    for path in sorted(folder.glob(EVENTS)) if events is not None else ():
      size = (events or {}).get(path.name)
      if size is None:
        path.unlink()
      elif path.stat().length > size:
        os.truncate(os.fspath(path), size)
    with naming(folder):
      self.writer = EventsWriter(os.fspath(folder / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
      self.add(done + 1 if done else 0, file_version="brain.Event:2")
      self.add(done + 1 if done else 0, session_log=SessionLog(status=SessionLog.START))
    self.flushed = time.monotonic()

  def add(self, step: int, **what: Any) -> None:
    self.writer.write_event(Event(wall_time=time.time(), step=step, **what))

  def scalar(self, name: str, value: float, step: int) -> None:
    with naming(self.folder):
      self.add(step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))
    if time.monotonic() - self.flushed > SECONDS_BETWEEN_FLUSHES:  # somebody watches
      self.flush()

  def flush(self) -> None:
    with naming(self.folder):
      self.writer.flush()
    self.flushed = time.monotonic()

  def events(self) -> dict[str, int]:
    """Bytes of each file, after a `flush`."""
    return {path.name: path.stat().length for path in sorted(self.folder.glob(EVENTS))}

  def close(self) -> None:
    with naming(self.folder):
      self.writer.close()
