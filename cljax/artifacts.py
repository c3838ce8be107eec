"""Parts of a finished run that can be loaded alone: one .npz each, whose entries are the paths of a tree's leaves."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from cljax.errors import ConfigError
from cljax.files import pack, unpack, write_atomically
from cljax.types import PyTree

MEAN, STD = "pictures.mean", "pictures.std"  # [T, channels] beside the weights of a run that normalised its pictures
KEY = re.compile(r"\['([^']*)'\]")  # of a dict, in a leaf's path
TRAINED_AT = re.compile(r"\['config\.method\.(\w+)'\]")  # beside the numbers of a part


def folder_of(workdir: epath.Path | str, seed: int) -> epath.Path:
  """Where the parts of one seed lie."""
  return epath.Path(workdir) / "parts" / f"seed_{seed}"


def write(folder: epath.Path, parts: Mapping[str, PyTree]) -> None:
  """One file for each part."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, tree in parts.items():
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    write_atomically(folder / f"{name}.npz", pack({jax.tree_util.keystr(path): leaf for path, leaf in leaves}))


def read(path: epath.Path | str) -> dict[str, np.ndarray]:
  """The leaves of one part by their paths.

  Raises:
    ConfigError: no such file, or a damaged one.
  """
  path = epath.Path(path).expanduser()
  if os.path.exists(path) and not os.path.isfile(path):  # a pipe, whose reading would never end
    raise ConfigError(f"{path} is no file")
  try:
    return numbers(unpack(path.read_bytes()))
  except FileNotFoundError as error:
    there = sorted(each.name for each in path.parent.glob("*.npz")) if path.parent.is_dir() else []
    raise ConfigError(
      f"{path} does not exist; {path.parent} holds {', '.join(there) or 'no part of a finished run'}"
    ) from error
  except OSError as error:
    raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
  except ValueError as error:
    raise ConfigError(f"{path} is damaged ({error})") from error


def numbers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays.

  Raises:
    ValueError: words or dates among them, which no part has.
  """
  for name, array in arrays.items():
    if array.dtype.kind in "USMm":
      raise ValueError(f"{name} holds {array.dtype}, no numbers")
  return arrays


def trained_at(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """{keyword of config.method: its number in the training that left these leaves}, of those that a part tells."""
  return {found[1]: leaf for name, leaf in leaves.items() if (found := TRAINED_AT.fullmatch(name))}


def check_finite(leaves: Mapping[str, np.ndarray], source: Any) -> None:
  """
  Raises:
    ConfigError: a leaf that no training can go on from; names the first.
  """
  if bad := [name for name, array in leaves.items() if not np.isfinite(array).all()]:
    raise ConfigError(f"{source}: {bad[0]} holds NaN or infinity: its run had diverged")


def tree(path: epath.Path | str) -> dict[str, Any]:
  """What `launch.export` wrote: {"params": ..., and the net's other collections}, as `net.apply` takes them.

  Raises:
    ConfigError: no such file, a damaged one, or one that holds something else.
  """
  found: dict[str, Any] = {"params": {}}
  for name, leaf in read(path).items():
    if name in (MEAN, STD):
      continue
    keys = KEY.findall(name)
    if "".join(f"['{key}']" for key in keys) != name.removeprefix("collections"):
      raise ConfigError(f"{path} holds {name}, which is no weight of a net; launch.export writes what is read here")
    place = found if name.startswith("collections") else found["params"]
    for key in keys[:-1]:
      place = place.setdefault(key, {})
    place[keys[-1]] = leaf
  return found


def normalisation(path: epath.Path | str) -> tuple[np.ndarray, np.ndarray]:
  """(mean, deviation) [T, channels] float32 by which a run normalised each task's pictures, as `launch.export` wrote.

  Raises:
    ConfigError: no such file, a damaged one, or one that holds none.
  """
  found = read(path)
  if not {MEAN, STD} <= set(found):
    raise ConfigError(f"{path} holds no normalisation: its run showed pictures as they are, or did not tell")
  return found[MEAN], found[STD]


def fill(template: PyTree, leaves: Mapping[str, np.ndarray], source: Any) -> PyTree:
  """The tree of `template`'s structure, shapes and types with the leaves of a file, which may hold more.

  Raises:
    ConfigError: a leaf is missing, or has another shape or another kind of numbers; both are named.
  """

  def take(path, leaf):
    name = jax.tree_util.keystr(path)
    if name not in leaves:
      raise ConfigError(f"{source} has no {name}; it holds {', '.join(sorted(leaves))}")
    if leaves[name].shape != leaf.shape:
      raise ConfigError(f"{source}: {name} has the shape {leaves[name].shape}, but {leaf.shape} is needed here")
    if leaves[name].dtype.kind != np.dtype(leaf.dtype).kind:
      raise ConfigError(f"{source}: {name} holds {leaves[name].dtype}, but {leaf.dtype} is needed here")
    return leaves[name].astype(leaf.dtype, copy=False)

  return jax.tree_util.tree_map_with_path(take, template)
