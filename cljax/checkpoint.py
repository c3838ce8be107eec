"""Checkpoints of a run by orbax: the arrays, a cursor in JSON, and checksums of both that orbax does not keep.

What is damaged is put aside, and the one before is taken. What is whole never is: where it holds another run's state,
or cannot be read just now, that is an error and nothing is moved.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from cljax.disk import PASSING, code_of, remedy
from cljax.errors import ConfigError, in_short
from cljax.files import checksum, unused
from cljax.seals import METADATA, Later, misleads, opened, sealed, unlike

METADATA_BYTES = 100_000  # what orbax writes beside the arrays, at most


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves under their paths; leaves without a single number are left out, which the format cannot hold."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if np.prod(np.shape(leaf), dtype=int)}


class Unread(OSError):
  """A checkpoint that could not be read just now, which says nothing about it."""


@contextlib.contextmanager
def reading(path: epath.Path) -> Iterator[None]:
  """Tells what is wrong with a file from what is wrong with this process or its rights.

  Raises:
    Unread: the latter.
  """
  try:
    yield
  except Exception as error:
    if code_of(error) in PASSING:
      raise Unread(
        f"{path} could not be read ({in_short(error)}), which says nothing about it, and nothing was changed: "
        f"{remedy(error)}, and the same command goes on"
      ) from error
    raise


def placed(array: np.ndarray | None, like: Any) -> Any:
  """An array where `like` lies; None stands for one without a single number."""
  if array is None:
    return like
  return jax.device_put(array, like.sharding) if isinstance(like, jax.Array) else array


def reserve(folder: epath.Path, size: int) -> None:
  """Makes sure that `size` bytes can be written, which orbax would find out late and noisily.

  Raises:
    OSError: they cannot.
  """
  if "://" in os.fspath(folder) or not hasattr(os, "posix_fallocate"):
    return
  probe = folder / f".space.{os.getpid()}"
  try:
    with open(probe, "wb") as file:
      os.posix_fallocate(file.fileno(), 0, size)
  finally:
    probe.unlink(missing_ok=True)


@contextlib.contextmanager
def silence() -> Iterator[None]:
  """orbax logs tracebacks of errors that it also raises; the raised one is told in our words. It also warns of
  reading where nothing is written, which is what was asked for."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(before)


def broadcast(found: tuple[Any, dict[str, Any]] | None, like: Any) -> tuple[Any, dict[str, Any]] | None:
  """What process 0 found, in every process; `like` has the arrays' shapes."""
  if jax.process_count() == 1:
    return found
  text = json.dumps(found[1] if found else None).encode()
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  padded = np.zeros(length, np.uint8)
  padded[: len(text[:length])] = np.frombuffer(text[:length], np.uint8)
  cursor = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))
  if cursor is None:
    return None
  return jax.device_get(multihost_utils.broadcast_one_to_all(found[0] if found else like)), cursor


class Checkpoints:
  """The checkpoints in one folder; the two newest are kept. Process 0 reads and writes them, all others are told.

  With `writes` False nothing in the folder is changed: no damaged checkpoint is put aside, no run disturbed that is
  still writing there.
  """

  def __init__(self, folder: epath.Path, writes: bool = True):
    self.folder, self.writes = folder, writes
    self.manager: Any = None
    if jax.process_index() == 0:
      alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="cljax")
      options = ocp.CheckpointManagerOptions(
        max_to_keep=2 if writes else None,
        save_interval_steps=int(writes),
        read_only=not writes,
        enable_async_checkpointing=False,
        create=writes and jax.process_count() == 1,
        cleanup_tmp_directories=writes,
        multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions(),
      )
      if writes:
        folder.mkdir(parents=True, exist_ok=True)
      with reading(folder), silence() if not writes else contextlib.nullcontext():
        for path in folder.glob(f"*/{METADATA}"):
          if path.parent.name.isdigit() and misleads(path):
            self.mislead(path)
        self.manager = ocp.CheckpointManager(folder, options=options)

  def save(self, tree: Any, cursor: Mapping[str, Any]) -> None:
    """Writes the next checkpoint, all or nothing.

    Raises:
      OSError: it cannot be written; earlier ones stay readable.
    """
    if self.manager is None:
      return
    arrays = by_path(tree)
    step = max(self.manager.all_steps(), default=-1) + 1
    cursor = sealed({**cursor, "checksum": checksum(arrays)})
    args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), cursor=ocp.args.JsonSave(cursor))
    size = sum(leaf.nbytes for leaf in arrays.values()) + len(json.dumps(cursor)) + METADATA_BYTES
    try:
      reserve(self.folder, size)
      with silence():
        self.manager.save(step, args=args)
        self.manager.wait_until_finished()
    except Exception as error:  # orbax and tensorstore raise many types here; all mean that nothing was saved
      raise OSError(
        f"the checkpoint in {self.folder} could not be written ({in_short(error)}); what was saved before stays "
        f"readable: {remedy(error)}, and the same command goes on from there"
      ) from error

  def restore(
    self, tree: Any, check: Callable[[dict[str, Any]], object] = lambda cursor: None
  ) -> tuple[Any, dict[str, Any]] | None:
    """(tree, cursor) of the newest checkpoint that is whole, as host arrays of the shapes of `tree`; None without one.

    A damaged checkpoint is reported and put aside, and the one before is taken.

    Args:
      check: raises ConfigError for a cursor of another run; for one that carries no checksum that is damage.

    Raises:
      ConfigError: it is whole, but of another run, or its state has other types, shapes or parts than `tree`.
      OSError: it cannot be read now, which says nothing about it.
    """
    return broadcast(self.read(tree, check) if self.manager is not None else None, tree)

  def read(self, tree: Any, check: Callable[[dict[str, Any]], object]) -> tuple[Any, dict[str, Any]] | None:
    """What `restore` says, in process 0."""
    with reading(self.folder):
      self.manager.reload()
      steps = sorted(self.manager.all_steps(), reverse=True)
    for step in steps:
      try:
        with reading(self.folder / str(step)):
          arrays, cursor, whole = self.load(step)
        if not whole and not unlike(arrays, by_path(tree)):
          check(cursor)
      except (Later, Unread):
        raise
      except Exception as error:  # a damaged file fails in as many ways as there are formats inside
        self.put_aside(step, in_short(error))
        continue
      if whole:
        check(cursor)
      self.compare(step, arrays, by_path(tree))
      leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
      restored = [placed(arrays.get(jax.tree_util.keystr(path)), leaf) for path, leaf in leaves]
      return jax.tree.unflatten(structure, restored), cursor
    if steps and self.writes:
      logging.warning("none of the %d checkpoints in %s was whole: the run begins anew", len(steps), self.folder)
    return None

  def newest(self) -> dict[str, np.ndarray] | None:
    """The arrays of the newest whole checkpoint by their paths, whatever state they are of; None without one."""
    for step in sorted(self.manager.all_steps(), reverse=True):
      try:
        with reading(self.folder / str(step)):
          return self.load(step)[0]
      except (Later, Unread):
        raise
      except Exception as error:  # as in `read`
        self.put_aside(step, in_short(error))
    return None

  def load(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any], bool]:
    """(arrays, cursor, whether that carries a checksum) of one checkpoint as it was written, whatever it holds.

    Raises:
      Exception: of any type where it is damaged.
    """
    with silence():
      there = ocp.StandardCheckpointHandler().metadata(self.folder / str(step) / "arrays").tree
      like = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in there.items()}
      args = ocp.args.Composite(arrays=ocp.args.StandardRestore(like), cursor=ocp.args.JsonRestore())
      found = self.manager.restore(step, args=args)
    cursor, whole = opened(found["cursor"])
    if checksum(found["arrays"]) != cursor.pop("checksum"):
      raise ValueError("its checksum does not match its contents")
    return found["arrays"], cursor, whole

  def compare(self, step: int, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """
    Raises:
      ConfigError: the arrays of a whole checkpoint are not of the types, shapes and names that are needed.
    """
    found = unlike(there, here)
    if found:
      more = f" and {len(found) - 5} more" if len(found) > 5 else ""
      raise ConfigError(
        f"the checkpoint {self.folder / str(step)} is whole, but holds another state than this command makes "
        f"({'; '.join(found[:5])}{more}); nothing was changed: give the run the command, the version of cljax and the "
        "settings of JAX that it began with, as environment.json tells them, or use another --workdir"
      )

  def mislead(self, path: epath.Path) -> None:
    """Puts aside a checkpoint that keeps orbax from listing any.

    Raises:
      ConfigError: in a folder that is only read.
    """
    if not self.writes:
      raise ConfigError(
        f"{path} is damaged (it holds something else): give the run's own command again, which puts that checkpoint "
        "aside and goes on from the one before"
      )
    self.put_aside(int(path.parent.name), f"its {METADATA} holds something else")

  def put_aside(self, step: int, reason: str) -> None:
    """Reports a damaged checkpoint, and moves it out of the way where the folder is written to."""
    damaged, remote = self.folder / str(step), "://" in os.fspath(self.folder)
    aside = unused(self.folder.parent / f"damaged_checkpoint_{step}")
    moved = "; it was deleted, as an object store moves no folders" if remote else f"; it now lies in {aside}"
    moved = moved if self.writes else ""
    logging.warning("checkpoint %s is damaged (%s): falling back to the one before%s", damaged, reason, moved)
    if not self.writes:
      return
    if remote:
      damaged.rmtree()
    else:
      damaged.rename(aside)
    if self.manager is not None:
      self.manager.reload()

  def close(self) -> None:
    if self.manager is not None:
      self.manager.close()
