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
import shlex
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cljax.errors import ConfigError
from cljax.types import Bank

EMBEDDED = ("digits", "synthetic")
KNOWN = (*EMBEDDED, "mnist", "fashion_mnist", "kmnist", "emnist", "emnist/letters", "usps", "cifar10", "cifar100")
BY_HAND = ("usps",)  # read like the others, but tensorflow_datasets has no code that prepares it
SYNTHETIC_CLASSES, SYNTHETIC_SIDE, SEPARATION = 10, 8, 3.42  # a Bayes accuracy of .95
DATA_DIR = "~/tensorflow_datasets"  # where tfds itself looks
READ_AT_ONCE = 10_000  # records

Arrays = dict[str, Any]  # train_x and test_x [N, h, w, c], train_y and test_y [N], numpy


class Source(NamedTuple):
  """A data set as numpy arrays; the engine puts them on the device."""

  train: Bank  # x uint8 (float32 where synthetic), y int32
  test: Bank
  classes: np.ndarray  # [C_all] int32, sorted distinct labels of both splits
  hash: str  # sha256 of the prepared files (of the arrays, where they are embedded)
  groups: tuple[tuple[str, np.ndarray], ...] = ()  # name and labels of each data set, where several are joined


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
  root = folder_of(data_dir, "TFDS_DATA_DIR", DATA_DIR)
  folder = find(name, root)
  name = str(folder.parent.relative_to(root))  # with its config
  key = hash_files(folder)
  cache = folder_of(cache_dir, "CLJAX_CACHE", "~/.cache/cljax") / f"{name.replace('/', '_')}-{key[:16]}.npz"
  arrays = read_cache(cache) or {}
  if not arrays:
    arrays = decode(name, folder, root)
    write_cache(cache, arrays)
  return as_source(arrays, key)


def folder_of(given: str | None, variable: str, default: str) -> Path:
  """The folder given, else the environment's, else the default."""
  return Path(given or os.environ.get(variable) or default).expanduser()


def as_source(arrays: Arrays, key: str) -> Source:
  classes = np.unique(np.concatenate([arrays["train_y"], arrays["test_y"]])).astype(np.int32)
  train, test = (Bank(arrays[f"{split}_x"], arrays[f"{split}_y"]) for split in ("train", "test"))
  return Source(train, test, classes, key)


def digits() -> Arrays:
  """scikit-learn's 1,797 digits, 8x8, their 17 grey levels spread over 0..255; every fifth is a test row."""
  from sklearn.datasets import load_digits

  found = load_digits()
  x = np.round(found.images * 255 / 16).astype(np.uint8)[..., None]
  y = found.target.astype(np.int32)
  test = np.arange(len(y)) % 5 == 4
  return {"train_x": x[~test], "train_y": y[~test], "test_x": x[test], "test_y": y[test]}


def synthetic() -> Arrays:
  """Gaussian classes whose best possible accuracy is known (`synthetic_optimum`): x = s e_y + N(0, I), float32.

  The directions e_1 .. e_C are rows of a Hadamard matrix: orthonormal and, unlike a random basis, the same to the last
  bit on every machine.
  """
  from scipy.linalg import hadamard

  random = np.random.default_rng(20_201)
  D = SYNTHETIC_SIDE**2
  means = SEPARATION * hadamard(D)[1 : SYNTHETIC_CLASSES + 1] / np.sqrt(D)
  arrays: Arrays = {}
  for split, count in (("train", 10_000), ("test", 2_000)):
    y = random.permutation(np.arange(count) % SYNTHETIC_CLASSES).astype(np.int32)
    x = means[y] + random.normal(size=(count, D))
    arrays |= {f"{split}_x": x.reshape(-1, SYNTHETIC_SIDE, SYNTHETIC_SIDE, 1).astype(np.float32), f"{split}_y": y}
  return arrays


def synthetic_optimum() -> float:
  """Bayes-optimal accuracy of `synthetic`: E_z[Phi(z + s)^(C - 1)], z ~ N(0, 1), s the separation.

  All means have norm s and all classes are equally frequent, so the best answer is the class with the largest e_c . x.
  As the e_c are orthonormal these are independent with unit variance: s + z for the right class, and each of the C - 1
  others stays below that with probability Phi(s + z).
  """
  from scipy.stats import norm

  z = np.linspace(-10, 10, 20_001)
  return float(np.trapezoid(norm.pdf(z) * norm.cdf(z + SEPARATION) ** (SYNTHETIC_CLASSES - 1), z))


def versions(folder: Path) -> list[Path]:
  """Prepared versions in `folder`, the newest last."""
  found = [path.parent for path in folder.glob("*/dataset_info.json")]
  found = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
  return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def prepared(data_dir: str | Path) -> list[str]:
  """Names of the data sets that are prepared in a folder, sorted; with their config where they have one."""
  root = Path(data_dir)
  folders = {path.parent.parent for depth in ("*/*", "*/*/*") for path in root.glob(f"{depth}/dataset_info.json")}
  return sorted(str(folder.relative_to(root)) for folder in folders if folder != root and versions(folder))


def command(name: str, root: Path) -> str:
  """What to type to prepare a data set."""
  return f"python -m launch.prepare --dataset={shlex.quote(name)} --data_dir={shlex.quote(str(root))}"


def find(name: str, root: Path) -> Path:
  """The newest prepared version of `name` under `root`.

  Raises:
    ConfigError: there is none, with what there is and what to type.
  """
  found = versions(root / name) if re.fullmatch(r"\w+(/[\w.+-]+)?", name) else []  # others might lead out of the folder
  there = prepared(root)
  configs = [other for other in there if other.startswith(f"{name}/")]
  if not found and len(configs) == 1:
    found = versions(root / configs[0])
  if found:
    return found[-1]
  if configs:
    raise ConfigError(f"data set {name!r} is prepared in several configs: name one of {', '.join(configs)}")
  state = f"which holds {', '.join(there) or 'no prepared data set'}"
  if not root.is_dir():
    state = "which is no folder" if root.exists() else "which does not exist"
  near = difflib.get_close_matches(name.lower(), sorted({*there, *KNOWN}), n=1)
  hint = f" Did you mean {near[0]}?" if near and name not in KNOWN else ""
  by_hand = "tensorflow_datasets does not prepare this one: copy its prepared folder there"
  way = by_hand if name in BY_HAND else f"Prepare it where there is a network: {command(name, root)}"
  raise ConfigError(
    f"data set {name!r} was not found in {root}, {state}.{hint} {way}; or name another folder by --data_dir=DIR or "
    "TFDS_DATA_DIR; or take the embedded one: --config.stream.source=digits"
  )


def hash_files(folder: Path) -> str:
  """sha256 over the names and bytes of a prepared version's files, wherever it lies; ConfigError: an unreadable one."""
  digest = hashlib.sha256()
  for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    digest.update(str(path.relative_to(folder)).encode() + b"\0")
    try:
      with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
      raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
  return digest.hexdigest()


def hash_arrays(arrays: Arrays) -> str:
  """sha256 over names, types, shapes and bytes."""
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
    digest.update(np.ascontiguousarray(arrays[name]).data)
  return digest.hexdigest()


def broken(path: Path, name: str, root: Path, reason: Any) -> ConfigError:
  """The error that names a damaged file of a prepared data set."""
  reason = " ".join(str(reason).split())[:200]
  way = "copy the folder again" if name in BY_HAND else f"prepare the data set again: {command(name, root)}"
  return ConfigError(f"{path} is damaged ({reason}); delete {shlex.quote(str(path.parent))} and {way}")


def formats(name: str, folder: Path, root: Path) -> set[str]:
  """The file formats of a prepared version; ConfigError: one of its two descriptions is missing or damaged."""
  found: Any = {}
  for part in ("features.json", "dataset_info.json"):
    try:
      found = json.loads((folder / part).read_bytes())
    except (OSError, ValueError) as error:
      raise broken(folder / part, name, root, error) from error
  if not isinstance(found, dict):
    raise broken(folder / "dataset_info.json", name, root, "no JSON object")
  return {found.get("fileFormat", "tfrecord"), *found.get("alternativeFileFormats", [])}


def decode(name: str, folder: Path, root: Path) -> Arrays:
  """All rows of both splits, x uint8 and y int32.

  Raises:
    ConfigError: the files are no array_record, damaged, or no image classification.
  """
  there = formats(name, folder, root)
  if "array_record" not in there:
    raise ConfigError(
      f"data set {name!r} in {folder} is prepared as {', '.join(sorted(there))}; reading it without TensorFlow needs "
      f"array_record. Delete that folder, or name another by --data_dir, and type: {command(name, root)}"
    )
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder, file_format="array_record")
    splits, features, pair = builder.info.splits, builder.info.features, builder.info.supervised_keys
  except Exception as error:  # a description that is JSON but no description raises many types
    raise broken(folder / "dataset_info.json", name, root, f"or features.json: {error}") from error
  image, label = pair if pair and len(pair) == 2 and all(isinstance(key, str) for key in pair) else ("image", "label")
  kinds = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
  if not (isinstance(kinds.get(image), tfds.features.Image) and isinstance(kinds.get(label), tfds.features.ClassLabel)):
    raise ConfigError(f"data set {name!r} is no image classification: its features are {', '.join(kinds) or kinds}")
  arrays: Arrays = {}
  shapes: set[tuple[int, ...]] = set()
  for split in ("train", "test"):
    if split not in splits or not splits[split].num_examples:
      raise ConfigError(f"data set {name!r} has no rows in a split {split!r}; its splits are {', '.join(splits)}")
    parts = [
      as_arrays(name, [row[image] for row in rows], [row[label] for row in rows], shapes)
      for rows in read(builder, split, name, root)
    ]
    arrays[f"{split}_x"], arrays[f"{split}_y"] = (np.concatenate(part) for part in zip(*parts, strict=True))
  return arrays


def read(builder: Any, split: str, name: str, root: Path) -> Iterator[list[dict[str, Any]]]:
  """The decoded records of a split in order, never those of two files at once; ConfigError: the damaged file."""
  info, source, first = builder.info.splits[split], builder.as_data_source(split=split), 0
  for path, length in zip(map(Path, info.filepaths), info.shard_lengths, strict=True):
    for start in range(first, first + length, READ_AT_ONCE):
      try:
        rows = source.__getitems__(list(range(start, min(start + READ_AT_ONCE, first + length))))
      except MemoryError:
        raise
      except Exception as error:  # readers and picture decoders raise many types, none of which names the file
        raise broken(path, name, root, error) from error
      yield rows
    first += length


def as_arrays(name: str, pictures: list, labels: list, shapes: set[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
  """Pictures [h, w] or [h, w, c] as x [N, h, w, c] uint8, labels as y [N] int32; `shapes` collects those seen so far.

  ConfigError: pictures of several shapes or of another type, rows without a label.
  """
  pictures = [picture[..., None] if picture.ndim == 2 else picture for picture in pictures]
  shapes |= {picture.shape for picture in pictures}
  if len(shapes) != 1:
    raise ConfigError(f"data set {name!r} has pictures of different shapes, {sorted(shapes)[:3]}; one shape is needed")
  x, y = np.stack(pictures), np.array(labels, np.int32)
  if x.dtype != np.uint8:
    raise ConfigError(f"data set {name!r} has pictures of type {x.dtype}; uint8 is needed")
  if y.min() < 0:
    raise ConfigError(f"data set {name!r} has rows without a label")
  return x, y


def read_cache(path: Path) -> Arrays | None:
  """The cached arrays; None where there are none, or (said in a warning) damaged ones."""
  try:
    if not path.exists():
      return None
    with path.open("rb") as file, np.load(file) as content:  # given a path, np.load leaves a damaged file open
      arrays = {name: content[name] for name in content.files}
    if str(arrays.pop("hash")) != hash_arrays(arrays):
      raise ValueError("its checksum does not match")
    return arrays
  except Exception as error:  # a damaged zip fails in many ways
    logging.warning("the cache %s is damaged (%s): decoding again", path, error)
    return None


def write_cache(path: Path, arrays: Arrays) -> None:
  """Keeps decoded arrays; a folder that cannot be written costs a warning and the next start's time."""
  temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # a reader never sees half a file
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with temporary.open("wb") as file:
        np.savez(file, **arrays, hash=np.array(hash_arrays(arrays)))
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    logging.warning("the decoded data could not be cached in %s (%s): the next start decodes again", path.parent, error)
