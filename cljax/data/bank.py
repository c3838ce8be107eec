"""Pixels enter here, once: a name becomes two banks of arrays and a hash of what they hold.

`digits` and `synthetic` come with the library. Any other name is an image classification data set that
`tensorflow_datasets` has prepared as array_record; it is read without TensorFlow and without a network, and its decoded
arrays are cached, so that the second start takes no time. `stl10`, `office_home` and `tiny_imagenet` are also, or only,
read from files that were copied by hand (`data.manual`). A path is an .npz file or a folder of pictures (`data.local`).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cljax.data import local, manual, tfds
from cljax.data.cache import Arrays, read_cache, write_cache
from cljax.data.folder import Shape
from cljax.data.manual import MANUAL
from cljax.errors import ConfigError
from cljax.files import checksum
from cljax.paths import as_text
from cljax.types import Bank

EMBEDDED = ("digits", "synthetic")
PREPARED = ("mnist", "fashion_mnist", "kmnist", "emnist", "emnist/letters", "usps", "cifar10", "cifar100")
KNOWN = (*EMBEDDED, *PREPARED, *MANUAL)
SYNTHETIC_CLASSES, SYNTHETIC_SIDE, SEPARATION = 10, 8, 3.42  # a Bayes accuracy of .95
DATA_DIR = "~/tensorflow_datasets"  # where tfds itself looks


class Source(NamedTuple):
  """A data set as numpy arrays; the engine puts them on the device."""

  train: Bank  # x uint8 (float32 where synthetic), y int32
  test: Bank
  classes: np.ndarray  # [C_all] int32, sorted distinct labels of both splits
  hash: str  # sha256 of the prepared files (of the arrays, where they are embedded)
  groups: tuple[tuple[str, np.ndarray], ...] = ()  # name and labels of each data set, where several are joined
  whole: Bank | None = None  # the training rows and then the data's own validation rows, where it has any


def load(name: str, data_dir: str | None = None, cache_dir: str | None = None, shape: Shape = Shape()) -> Source:
  """The data set of that name.

  Args:
    name: `digits`, `synthetic`, a TFDS name such as `mnist` or `emnist/letters`, or a path.
    data_dir: folder of prepared data sets; else the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets.
    cache_dir: folder of decoded arrays; else the environment's CLJAX_CACHE, else ~/.cache/cljax.
    shape: what the pictures of a folder are brought to; `data.join` does it for all others.

  Raises:
    ConfigError: unknown, missing, damaged or unsuitable data, with what to type instead.
  """
  if not name.strip():
    raise ConfigError("a source without a name: type a data set, such as digits, or several joined by +, such as a+b")
  if name in EMBEDDED:
    arrays = digits() if name == "digits" else synthetic()
    return as_source(arrays, checksum(arrays))
  root = folder_of("data_dir", data_dir, "TFDS_DATA_DIR", DATA_DIR)
  decoded = folder_of("cache_dir", cache_dir, "CLJAX_CACHE", "~/.cache/cljax")

  def cached(full: str, key: str, decode: Callable[[], Arrays]) -> Arrays:
    cache = decoded / f"{full.replace('/', '_')}-{key[:16]}.npz"
    arrays = read_cache(cache, key)
    if not arrays:
      arrays = decode()
      write_cache(cache, arrays, key)
    return arrays

  if local.is_path(name, KNOWN):
    return as_source(*local.load(name, root, shape, cached))
  by_hand = manual.find(name, root)
  if not by_hand and name in MANUAL and not tfds.versions(root / name):
    raise manual.missing(name, root)
  folder, files = by_hand or (tfds.find(name, root, KNOWN, EMBEDDED), None)
  full = name if by_hand else str(folder.parent.relative_to(root))  # with its config
  key = tfds.hash_files(folder, files)
  decode = (lambda: MANUAL[name].read(folder, files)) if files else (lambda: tfds.decode(full, folder, root))
  return as_source(cached(full, key, decode), key)


def folder_of(name: str, given: str | None, variable: str, default: str) -> Path:
  """The folder given under a name, else the environment's, else the default.

  Raises:
    ConfigError: what is given is no path.
  """
  if given:
    as_text(name, given)
  return Path(given or os.environ.get(variable) or default).expanduser()


def as_source(arrays: Arrays, key: str) -> Source:
  """Both splits as banks, and the labels that occur in them; `key` is the hash."""
  classes = np.unique(np.concatenate([arrays["train_y"], arrays["test_y"]])).astype(np.int32)
  train, test = (Bank(arrays[f"{split}_x"], arrays[f"{split}_y"]) for split in ("train", "test"))
  if "valid_x" not in arrays:
    return Source(train, test, classes, key)
  whole = Bank(*(np.concatenate([arrays[f"{split}_{part}"] for split in ("train", "valid")]) for part in "xy"))
  n = len(train.y)
  return Source(Bank(whole.x[:n], whole.y[:n]), test, classes, key, whole=whole)


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
