"""Pixels enter here, once: a name becomes two banks of arrays and a hash of what they hold.

`digits` and `synthetic` come with the library. Any other name is an image classification data set that
`tensorflow_datasets` has prepared as array_record; it is read without TensorFlow and without a network, and its decoded
arrays are cached, so that the second start takes no time.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cljax.types import Bank, ConfigError

EMBEDDED = ("digits", "synthetic")
KNOWN = (*EMBEDDED, "mnist", "fashion_mnist", "kmnist", "emnist/letters", "usps", "svhn_cropped", "cifar10", "cifar100")
READ_AT_ONCE = 10_000  # records


class Source(NamedTuple):
  """A data set as numpy arrays; the engine puts them on the device."""

  train: Bank
  test: Bank
  classes: np.ndarray  # sorted distinct labels of both splits, int32
  hash: str  # sha256 of the files (of the arrays, where they are embedded)


def load(name: str, data_dir: str | None = None, cache_dir: str | None = None) -> Source:
  """The data set of that name.

  Args:
    name: `digits`, `synthetic`, or a TFDS name such as `mnist` or `emnist/letters`.
    data_dir: folder of prepared data sets; else the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets.
    cache_dir: folder of decoded arrays; else the environment's CLJAX_CACHE, else ~/.cache/cljax.

  Raises:
    ConfigError: unknown, missing, damaged or unsuitable data, with what to type instead.
  """
  if name in EMBEDDED:
    arrays = digits() if name == "digits" else synthetic()
    return as_source(arrays, hash_arrays(arrays))
  folder = find(name, Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser())
  key = hash_files(folder)
  cache = Path(cache_dir or os.environ.get("CLJAX_CACHE") or "~/.cache/cljax").expanduser()
  path = cache / f"{name.replace('/', '_')}-{key[:16]}.npz"
  arrays = read_cache(path)
  if arrays is None:
    arrays = decode(name, folder)
    write_cache(path, arrays)
  return as_source(arrays, key)


def as_source(arrays: dict[str, np.ndarray], key: str) -> Source:
  classes = np.unique(np.concatenate([arrays["train_y"], arrays["test_y"]])).astype(np.int32)
  train, test = (Bank(arrays[f"{split}_x"], arrays[f"{split}_y"]) for split in ("train", "test"))
  return Source(train, test, classes, key)


def digits() -> dict[str, np.ndarray]:
  """scikit-learn's 1,797 digits, 8x8, their 17 grey levels spread over 0..255; every fifth is a test row."""
  from sklearn.datasets import load_digits

  found = load_digits()
  x = np.round(found.images * 255 / 16).astype(np.uint8)[..., None]
  y = found.target.astype(np.int32)
  test = np.arange(len(y)) % 5 == 4
  return {"train_x": x[~test], "train_y": y[~test], "test_x": x[test], "test_y": y[test]}


SYNTHETIC = {"classes": 10, "shape": (8, 8, 1), "separation": 3.2, "train": 10_000, "test": 2_000, "seed": 20_201}


def synthetic() -> dict[str, np.ndarray]:
  """Gaussian classes whose best possible accuracy is known (`synthetic_optimum`).

  x = s * mean_y + N(0, I) with orthonormal means; float32.
  """
  s = SYNTHETIC
  random = np.random.default_rng(s["seed"])
  D = int(np.prod(s["shape"]))
  means = s["separation"] * np.linalg.qr(random.normal(size=(D, D)))[0][: s["classes"]]
  arrays = {}
  for split in ("train", "test"):
    y = random.permutation(np.arange(s[split]) % s["classes"]).astype(np.int32)
    x = means[y] + random.normal(size=(s[split], D))
    arrays |= {f"{split}_x": x.reshape(-1, *s["shape"]).astype(np.float32), f"{split}_y": y}
  return arrays


def synthetic_optimum() -> float:
  """Bayes-optimal accuracy of `synthetic`: E[Phi(z + s)^(C - 1)] over z ~ N(0, 1).

  With equal priors the best answer is the class whose unit mean has the largest product with x. That product is
  s + z for the right class and independent standard noise for each of the C - 1 others.
  """
  from scipy.stats import norm

  z = np.linspace(-10, 10, 20_001)
  value = norm.pdf(z) * norm.cdf(z + SYNTHETIC["separation"]) ** (SYNTHETIC["classes"] - 1)
  return float(np.trapezoid(value, z))


def versions(folder: Path) -> list[Path]:
  """Prepared versions in `folder`, the newest last."""
  found = [
    path.parent for path in folder.glob("*/dataset_info.json") if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
  ]
  return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def prepared(data_dir: str | Path) -> list[str]:
  """Names of the data sets that are prepared in a folder."""
  root = Path(data_dir)
  names = {
    str(path.parent.parent.relative_to(root))
    for depth in ("*/*", "*/*/*")
    for path in root.glob(f"{depth}/dataset_info.json")
  }
  return sorted(names)


def find(name: str, root: Path) -> Path:
  """The newest prepared version of `name` under `root`.

  Raises:
    ConfigError: there is none, with what there is and what to type.
  """
  found = versions(root / name)
  if found:
    return found[-1]
  there = prepared(root) if root.is_dir() else []
  configs = [other for other in there if other.startswith(f"{name}/")]
  if len(configs) == 1:
    return versions(root / configs[0])[-1]
  if configs:
    raise ConfigError(f"data set {name!r} is prepared in several configs: name one of {', '.join(configs)}")
  near = difflib.get_close_matches(name, {*there, *KNOWN}, n=1)
  hint = f" Did you mean {near[0]}?" if near and near[0] != name else ""
  state = f"which holds {', '.join(there) or 'no prepared data set'}" if root.is_dir() else "which does not exist"
  raise ConfigError(
    f"data set {name!r} was not found in {root}, {state}.{hint} Prepare it where there is a network: "
    f"python -m launch.prepare --dataset={name} --data_dir={root}; or name another folder by --data_dir=DIR or "
    "TFDS_DATA_DIR; or take the embedded one: --config.stream.source=digits"
  )


def hash_files(folder: Path) -> str:
  """sha256 over the names and bytes of all files of a prepared version.

  Raises:
    ConfigError: a file that cannot be read.
  """
  digest = hashlib.sha256()
  for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    digest.update(str(path.relative_to(folder)).encode() + b"\0")
    try:
      with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
      raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
  return digest.hexdigest()


def hash_arrays(arrays: dict[str, np.ndarray]) -> str:
  """sha256 over names, types, shapes and bytes."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
    digest.update(np.ascontiguousarray(arrays[name]).data)
  return digest.hexdigest()


def decode(name: str, folder: Path) -> dict[str, np.ndarray]:
  """All rows of both splits, decoded.

  Raises:
    ConfigError: the files are no array_record, damaged, or no image classification.
  """
  if not list(folder.glob("*.array_record*")):
    raise ConfigError(
      f"data set {name!r} in {folder} is not prepared as array_record, which reading without TensorFlow needs; "
      f"prepare it again: python -m launch.prepare --dataset={name}"
    )
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
  except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
    raise ConfigError(damaged(folder / "dataset_info.json", error)) from error
  image, label = feature_names(name, builder)
  arrays = {}
  for split in ("train", "test"):
    if split not in builder.info.splits:
      raise ConfigError(f"data set {name!r} has no split {split!r}, only {', '.join(builder.info.splits)}")
    rows = read_split(builder, split, folder)
    pictures = [np.asarray(row[image]) for row in rows]
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1:
      raise ConfigError(f"data set {name!r} has pictures of different shapes, e.g. {sorted(shapes)[:3]}; one is needed")
    x = np.stack(pictures)
    arrays[f"{split}_x"] = x[..., None] if x.ndim == 3 else x
    arrays[f"{split}_y"] = np.array([row[label] for row in rows], np.int32)
  return arrays


def feature_names(name: str, builder: Any) -> tuple[str, str]:
  """The names of the picture and of its label.

  Raises:
    ConfigError: there is no such pair.
  """
  import tensorflow_datasets as tfds

  features = builder.info.features
  image, label = builder.info.supervised_keys or ("image", "label")
  kinds = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
  wanted = isinstance(kinds.get(image), tfds.features.Image) and isinstance(kinds.get(label), tfds.features.ClassLabel)
  if not wanted:
    raise ConfigError(f"data set {name!r} is no image classification: its features are {', '.join(kinds)}")
  return image, label


def read_split(builder: Any, split: str, folder: Path) -> list[dict[str, Any]]:
  """The records of a split.

  Raises:
    ConfigError: a damaged file, named.
  """
  files = [folder / Path(path).name for path in builder.info.splits[split].filepaths]
  for path in files:
    if not path.exists():
      raise ConfigError(f"{path} is missing; prepare the data set again")
  try:
    source = builder.as_data_source(split=split)
    rows: list[dict[str, Any]] = []
    for first in range(0, len(source), READ_AT_ONCE):
      rows += source.__getitems__(list(range(first, min(first + READ_AT_ONCE, len(source)))))
    return rows
  except Exception as error:  # readers and picture decoders raise many types; which file it was they do not say
    raise ConfigError(damaged(" or ".join(map(str, broken(files) or files)), error)) from error


def broken(files: Iterable[Path]) -> list[Path]:
  """Those of the files that an array_record reader refuses."""
  from array_record.python import array_record_module

  found = []
  for path in files:
    try:
      reader = array_record_module.ArrayRecordReader(str(path))
      reader.read_all()
      reader.close()
    except Exception:  # whatever it raises, this is the file
      found.append(path)
  return found


def damaged(path: Any, error: BaseException) -> str:
  reason = " ".join(str(error).split())[:200]
  return f"{path} is damaged ({reason}); delete its folder and prepare the data set again: python -m launch.prepare"


def read_cache(path: Path) -> dict[str, np.ndarray] | None:
  """The cached arrays; None where there are none, or (said in a warning) damaged ones."""
  if not path.exists():
    return None
  try:
    with np.load(path) as file:
      arrays = {name: file[name] for name in file.files}
    if str(arrays.pop("hash")) != hash_arrays(arrays):
      raise ValueError("its checksum does not match")
    return arrays
  except Exception as error:  # a damaged zip fails in many ways
    logging.warning("the cache %s is damaged (%s): decoding again", path, error)
    return None


def write_cache(path: Path, arrays: dict[str, np.ndarray]) -> None:
  """Keeps decoded arrays; a folder that cannot be written costs a warning and the next start's time."""
  temporary = path.with_name(f"{path.name}.{os.getpid()}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:
      np.savez(file, hash=np.array(hash_arrays(arrays)), **arrays)
    os.replace(temporary, path)
  except OSError as error:
    logging.warning("the decoded data could not be cached in %s (%s): the next start decodes again", path.parent, error)
    temporary.unlink(missing_ok=True)
