"""One's own data by its path: an .npz file of arrays, or a folder of pictures by class (`data.folder`).

`FILE.npz` holds `x_train, y_train, x_test, y_test` and, if there are validation rows, `x_valid, y_valid`: uint8
pictures [N, height, width, channels] or [N, height, width], or floats [N, ...]; labels [N] are 0, 1, ..., C - 1.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from absl import logging

from cljax.data.arrays import pair_of
from cljax.data.cache import Arrays
from cljax.data.folder import Shape, classes_of, files_of, hash_folder, read_folder, split_folders, unreadable
from cljax.data.tfds import versions
from cljax.errors import ConfigError, Missing
from cljax.files import checksum

SPLITS = ("train", "test", "valid")
Cached = Callable[[str, str, Callable[[], Arrays]], Arrays]  # (name, hash, what decodes) -> arrays


def at(name: str) -> Path:
  """The path that a name tells."""
  return Path(os.path.expanduser(name))


def is_path(name: str, known: Iterable[str] = ()) -> bool:
  """Whether a source is meant as a path: an .npz, a word that begins as paths do, or a folder of pictures.

  Args:
    known: data sets, whose names are never paths.
  """
  if name in known or not name:
    return False
  if name.lower().endswith(".npz") or name.startswith(("/", "./", "../", "~")) or name.endswith("/"):
    return True
  folder = at(name)
  try:
    return os.path.isdir(folder) and not versions(folder) and bool(split_folders(folder) or classes_of(folder))
  except OSError:
    return False
  except ConfigError:  # a folder, and loading it says what is wrong
    return True


def parts(source: str, known: Iterable[str] = ()) -> list[str]:
  """The data sets of a source that are joined by `+`, which a path that is there may have in its own name."""
  return [source] if is_path(source, known) and os.path.exists(at(source)) else source.split("+")


def rooted(source: str, known: Iterable[str] = ()) -> str:
  """The source with paths that are there made whole, so that they are found again from another folder."""

  def whole(name: str) -> str:
    bare = name.removesuffix("?")
    there = is_path(bare, known) and os.path.exists(at(bare))
    return os.path.abspath(at(bare)) + name[len(bare) :] if there else name

  return "+".join(map(whole, parts(source, known)))


def short(source: str, known: Iterable[str] = ()) -> str:
  """The source as results are labelled: of a path its last name."""
  names = [at(name).name.removesuffix(".npz") if is_path(name, known) else name for name in parts(source, known)]
  return "+".join(names)


def find(name: str, root: Path) -> Path:
  """The path of that name; where it is not there, the same relative path or its last name in the data folder `root`.

  Raises:
    ConfigError: it is nowhere.
  """
  path = at(name)
  for place in (path, root / path, root / (path.name or ".")):
    if os.path.exists(place):
      return place
  raise Missing(
    f"config.stream.source={name} was not found: there is no {os.path.abspath(path)}, and no {path.name} in {root}; "
    "give the path of an .npz file or of a folder of pictures by class, or name its folder by --data_dir=DIR"
  )


# An .npz


def read_npz(path: Path) -> Arrays:
  """The arrays of an .npz: `train_x` [N, ...] uint8 or float32, `train_y` [N] int32, the same of test, and of valid
  where there is any.

  Raises:
    ConfigError: no such file, or arrays that are missing, wrong, or do not fit each other.
  """
  found = raw_arrays(path)
  splits = [split for split in SPLITS if split != "valid" or {"x_valid", "y_valid"} & set(found)]
  wanted = [f"{part}_{split}" for split in splits for part in "xy"]
  if missing := [name for name in wanted if name not in found]:
    raise ConfigError(
      f"{path} lacks {', '.join(missing)}: it holds {', '.join(found) or 'nothing'}; write it by "
      "np.savez(file, x_train=..., y_train=..., x_test=..., y_test=...), and x_valid, y_valid if you have them"
    )
  if unread := [name for name in found if name not in wanted]:
    logging.warning("%s holds %s, which nothing reads", path, ", ".join(unread))
  arrays: Arrays = {}
  for split in splits:
    x, y = pair_of(f"{path}, {split}", (found[f"x_{split}"], found[f"y_{split}"]))
    arrays |= {f"{split}_x": x, f"{split}_y": y}
  check_alike(path, arrays, splits)
  check_labels(path, arrays, splits)
  return arrays


def raw_arrays(path: Path) -> dict[str, np.ndarray]:
  """{name: array} as the file has them; ConfigError: no .npz, damaged, or objects in it."""
  name = ""
  try:
    with path.open("rb") as file:
      content = np.load(file, allow_pickle=False)
      if not isinstance(content, np.lib.npyio.NpzFile):
        raise ConfigError(f"{path} is a single array and no .npz: write it by np.savez(file, x_train=..., ...)")
      found = {}
      for name in content.files:
        found[name] = content[name]
      return found
  except (ConfigError, MemoryError):
    raise
  except Exception as error:  # a damaged zip fails in many ways
    if "allow_pickle" in str(error) and name:
      raise ConfigError(
        f"{path} holds Python objects in {name}, which are not read: make it numbers of one shape, np.stack(...)"
      ) from error
    way = f"is damaged at {name}" if name else "is no .npz file of np.savez, or damaged"
    raise unreadable(path, error, way) from error


def check_alike(path: Path, arrays: Arrays, splits: list[str]) -> None:
  """ConfigError: a split without rows, or of another shape or type than the training rows."""
  train = arrays["train_x"]
  for split in splits:
    x = arrays[f"{split}_x"]
    if not x.size:
      raise ConfigError(f"{path}: x_{split} {list(x.shape)} is empty; each split needs rows")
    if x.shape[1:] != train.shape[1:] or x.dtype != train.dtype:
      raise ConfigError(
        f"{path}: examples of x_{split} are {x.dtype} {list(x.shape[1:])}, but those of x_train are {train.dtype} "
        f"{list(train.shape[1:])}"
      )


def check_labels(path: Path, arrays: Arrays, splits: list[str]) -> None:
  """ConfigError: labels of the training rows that are not 0, 1, ..., C - 1, or others in another split."""
  there = np.unique(arrays["train_y"])
  if gaps := np.setdiff1d(np.arange(there[-1]), there).tolist():
    raise ConfigError(
      f"{path}: y_train has labels up to {there[-1]}, but no row of {', '.join(map(str, gaps[:5]))}"
      f"{' and others' if len(gaps) > 5 else ''}; labels count from 0 on without gaps: "
      "np.unique(y_train, return_inverse=True)[1]"
    )
  for split in splits[1:]:
    if odd := np.setdiff1d(arrays[f"{split}_y"], there).tolist():
      raise ConfigError(f"{path}: y_{split} has the labels {odd[:5]}, which no row of y_train has")


def load(name: str, root: Path, shape: Shape, cached: Cached) -> tuple[Arrays, str]:
  """(arrays as `read_npz` gives them, their hash) of a path.

  Args:
    root: the data folder, where a path that is not there is looked for.
    shape: what pictures of a folder are brought to.
    cached: decodes, or knows already what was decoded.

  Raises:
    ConfigError: see `find`, `read_npz`, `files_of` and `read_folder`.
  """
  path = find(name, root)
  try:
    if not path.is_dir():
      arrays = read_npz(path)
      return arrays, checksum(arrays)
    files = files_of(path)
  except OSError as error:
    raise unreadable(path, error, "cannot be read") from error
  key = hash_folder(path, files, shape)
  return cached(path.name, key, lambda: read_folder(path, files, shape)), key
