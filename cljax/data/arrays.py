"""A stream of anybody's arrays: which leaves differ by seed, whether tables, banks and spec fit each other, and what a
pair of examples and labels is."""

from typing import Any

import jax
import numpy as np

from cljax.data.warp import RANKS, Dressed
from cljax.declared import shown
from cljax.errors import ConfigError, in_short
from cljax.types import Bank, Rows, Spec, Stream, Task

LARGEST_LABEL = 1_000_000
AS = "give a list of pairs (x, y), one for each task, or (x, y, rows) with a list of row numbers for each task"
ANY = -1  # the rank of a leaf of a warp, which only the warp knows


def ranks(spec: Spec, stream: Stream) -> Stream:
  """How many axes each leaf has for one seed, or ANY."""

  def rows(table: Rows) -> Rows:
    return Rows(2, 1, warp_ranks(table.warp))

  bank = Bank(len(spec.x_shape) + 1, 1)
  tasks = Task(rows(stream.tasks.train), rows(stream.tasks.valid), 2, 2, 2)
  return Stream(bank, tasks, bank, rows(stream.test))


def warp_ranks(warp: Any) -> Any:
  """The same of a warp that stacks on the tasks."""
  if isinstance(warp, Dressed):
    return Dressed(*map(warp_ranks, warp))
  if type(warp) in RANKS:
    return jax.tree.map(lambda rank: rank + 1, RANKS[type(warp)])
  return jax.tree.map(lambda leaf: ANY, warp)


def check_pair(spec: Any, stream: Any) -> None:
  """
  Raises:
    ConfigError: no spec, or no stream with banks and tables.
  """
  parts = {"bank": Bank, "tasks": Task, "test_bank": Bank, "test": Rows}
  whole = isinstance(spec, Spec) and isinstance(stream, Stream)
  if not whole or not all(isinstance(getattr(stream, name), kind) for name, kind in parts.items()):
    raise ConfigError(
      f"spec and stream are {type(spec).__name__} and {type(stream).__name__}, or parts of them are missing: give both "
      "as cljax.from_arrays(train, test) does, or a builder of cljax.STREAMS"
    )
  shape = spec.x_shape if isinstance(spec.x_shape, tuple) else (spec.x_shape,)
  sizes = {name: getattr(spec, name) for name in ("T", "C", "heads", "x_bytes")}
  for name, size in (sizes | {f"x_shape[{i}]": size for i, size in enumerate(shape)}).items():
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
      raise ConfigError(f"spec.{name} must be a whole number of at least 1, in {spec}")


def laid_out(spec: Spec, stream: Stream, axes: Stream | None, seeds: int) -> Stream:
  """The axes of a stream, found where they are not given, after everything about its arrays was checked.

  Raises:
    ConfigError: an array that does not fit.
  """
  T = np.shape(stream.tasks.classes)[-2:-1]
  if T != (spec.T,):
    raise ConfigError(f"the stream has {T[0] if T else 0} tasks, but spec.T={spec.T} slots for them")
  axes = axes_of(spec, stream, seeds) if axes is None else axes
  if not isinstance(axes, Stream):
    raise ConfigError(f"axes={shown(axes)} must be a stream of 0 or None for each array, or None")
  check_shapes(spec, stream, axes)
  check_values(spec, stream)
  return axes


def axes_of(spec: Spec, stream: Stream, seeds: int) -> Stream:
  """0 for each leaf that carries a leading axis of the seeds, None for those that all seeds share.

  Raises:
    ConfigError: a leaf of a shape that fits neither, or, in a warp, both.
  """

  def axis(path: Any, leaf: Any, rank: int) -> int | None:
    name, shape = f"stream{jax.tree_util.keystr(path)}", np.shape(leaf)
    shared, apart = len(shape) == rank, len(shape) == rank + 1 and shape[0] == seeds
    if ".warp" in name:  # which stacks on the tasks
      by_task, by_seed = shape[:1] == (spec.T,), shape[:2] == (seeds, spec.T)
      shared, apart = (by_task, by_seed) if rank == ANY else (shared and by_task, apart and by_seed)
    if shared and apart:
      raise ConfigError(f"{name} of shape {shape} may be that of all {seeds} seeds or of each: tell it by `axes`")
    if not (shared or apart):
      raise ConfigError(f"{name} has the shape {shape}, which fits neither one seed nor {seeds} of them: {spec}")
    return None if shared else 0

  return jax.tree_util.tree_map_with_path(axis, stream, ranks(spec, stream))


def one_seed(stream: Stream, axes: Stream) -> Stream:
  """The arrays of the first seed."""
  return jax.tree.map(lambda axis, leaf: leaf if axis is None else leaf[0], axes, stream, is_leaf=lambda n: n is None)


def check_shapes(spec: Spec, stream: Stream, axes: Stream) -> None:
  """Refuses arrays of shapes that do not fit each other or the spec.

  Raises:
    ConfigError: names the first leaf that is wrong.
  """
  try:
    one = one_seed(stream, axes)
  except ValueError as error:
    raise ConfigError(f"axes must hold 0 or None for each array of the stream: {error}") from error
  tasks, T, C = one.tasks, spec.T, spec.C
  shapes = {"bank.x": (one.bank.x.shape[1:], spec.x_shape), "test_bank.x": (one.test_bank.x.shape[1:], spec.x_shape)}
  shapes |= {f"tasks.{name}": (getattr(tasks, name).shape, (T, C)) for name in ("classes", "label_unmap")}
  tables = {"tasks.train": tasks.train, "tasks.valid": tasks.valid, "test": one.test}
  shapes |= {f"{name}.count": (table.count.shape, (T,)) for name, table in tables.items()}
  shapes |= {f"{name}.idx": (table.idx.shape, (T, *table.idx.shape[1:])) for name, table in tables.items()}
  shapes["tasks.label_map"] = (tasks.label_map.shape, (T, *tasks.label_map.shape[1:]))
  for name, (there, wanted) in shapes.items():
    if there != wanted:
      raise ConfigError(f"stream.{name} has the shape {there}, but {wanted} is what spec={spec} asks for")


def check_values(spec: Spec, stream: Stream) -> None:
  """Refuses wrong types, and indices that point outside of what they index.

  Raises:
    ConfigError: names the first array that is wrong.
  """
  train, valid, test = stream.tasks.train, stream.tasks.valid, stream.test
  labels = stream.tasks.label_map.shape[-1]
  for name, x in (("bank", stream.bank.x), ("test_bank", stream.test_bank.x)):
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
      raise ConfigError(f"stream.{name}.x is {x.dtype}: pictures are uint8, which becomes [0, 1], or float32")
  for name, table in (("training", train), ("test", test)):
    if empty := [str(t + 1) for t in np.flatnonzero((np.asarray(table.count) < 1).reshape(-1, spec.T).any(axis=0))]:
      raise ConfigError(
        f"task {', '.join(empty[:5])} has no {name} rows, and every task needs some: give its classes rows in the "
        "data, or leave it out of the stream"
      )
  for name, leaf, least, most in (
    ("bank.y", stream.bank.y, 0, labels - 1),
    ("test_bank.y", stream.test_bank.y, 0, labels - 1),
    ("tasks.label_map", stream.tasks.label_map, 0, spec.C - 1),
    ("tasks.train.idx", train.idx, 0, stream.bank.y.shape[-1] - 1),
    ("tasks.valid.idx", valid.idx, 0, stream.bank.y.shape[-1] - 1),
    ("test.idx", test.idx, 0, stream.test_bank.y.shape[-1] - 1),
    ("tasks.train.count", train.count, 1, train.idx.shape[-1]),
    ("tasks.valid.count", valid.count, 0, valid.idx.shape[-1]),
    ("test.count", test.count, 1, test.idx.shape[-1]),
  ):
    if not np.issubdtype(leaf.dtype, np.integer):
      raise ConfigError(f"stream.{name} is {leaf.dtype}, not whole numbers")
    if leaf.size and (leaf.min() < least or leaf.max() > most):
      raise ConfigError(f"stream.{name} holds {leaf.min()} to {leaf.max()}, but may hold {least} to {most}")


def array_of(name: str, given: Any) -> np.ndarray:
  """What numpy makes of it; ConfigError: nothing."""
  try:
    return np.asarray(given)
  except (ValueError, TypeError) as error:
    raise ConfigError(f"{name} is no array: {in_short(error)}") from error


def pair_of(name: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
  """(x [N, ...] uint8 or float32, y [N] int32).

  Raises:
    ConfigError: no such pair.
  """
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    raise ConfigError(f"{name} is no pair (x, y): {AS}")
  x, y = (array_of(f"{name}: {part}", one) for part, one in zip("xy", pair, strict=True))
  if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
    raise ConfigError(f"{name}: x is {x.dtype}; pictures are uint8, from 0 to 255, and all else float32: x.astype(...)")
  if x.ndim < 2 or y.shape != x.shape[:1]:
    raise ConfigError(f"{name}: x {list(x.shape)} and y {list(y.shape)} must be [N, ...] and [N], of the same N")
  if not np.issubdtype(y.dtype, np.integer) or (y.size and (y.min() < 0 or y.max() > LARGEST_LABEL)):
    held = f", from {y.min()} to {y.max()}" if y.size and np.issubdtype(y.dtype, np.number) else ""
    raise ConfigError(f"{name}: y is {y.dtype}{held}; labels are whole numbers from 0 to {LARGEST_LABEL}")
  if np.issubdtype(x.dtype, np.floating):
    with np.errstate(over="ignore"):
      x = x.astype(np.float32)
    if not np.isfinite(x).all():
      raise ConfigError(f"{name}: x holds numbers that are not finite (or too large for float32)")
  elif x.ndim == 3:
    x = x[..., None]  # one channel
  return x, y.astype(np.int32)
