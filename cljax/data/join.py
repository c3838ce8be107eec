"""Several data sets as one: pictures brought to one shape, labels side by side.

A name such as `mnist+usps+kmnist?` joins them in that order; one with a question mark is left out, and named, where it
is not prepared.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cljax.data import bank, local
from cljax.data.bank import Source
from cljax.data.folder import Shape
from cljax.errors import ConfigError, Missing, choose
from cljax.host import fit_into, host_bytes
from cljax.types import Bank

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
GROUP, PIXELS = 2000, 2**27  # pictures at once, and fewer of very large ones
WAYS = ("resize", "pad")


def load(name: str, data_dir: str | None, size: int = 0, channels: int = 0, fit: str = "resize") -> Source:
  """The data sets of a joined name as one source, whose labels count on from data set to data set.

  Args:
    size: height and width of all pictures; 0: of the first data set's.
    channels: 1 (grey) or 3; 0: those of the first data set.
    fit: `resize`, bilinear with antialiasing; or `pad`, smaller ones into a black frame: a control, since the frame
      tells the data set.

  Raises:
    ConfigError: unknown, missing or unsuitable data, or no data set at all.
  """
  choose("config.stream.fit", fit, WAYS)
  if channels not in (0, 1, 3):
    raise ConfigError(f"config.stream.channels={channels}: pictures have 1 channel (grey) or 3")
  found, missing = {}, []
  parts = local.parts(name, bank.KNOWN)
  names = [one.rstrip("?") for one in parts]
  if twice := [one for one in names if names.count(one) > 1]:
    raise ConfigError(f"config.stream.source={name!r} names {twice[0]} twice: each data set once")
  for one in parts:
    try:
      found[one.rstrip("?")] = bank.load(one.rstrip("?"), data_dir, shape=Shape(size, channels, fit))
    except Missing:
      if not one.endswith("?"):
        raise
      missing.append(one.rstrip("?"))
  if missing:
    logging.warning("not prepared and left out: %s", ", ".join(missing))
  if not found:
    raise ConfigError(f"none of config.stream.source={name!r} is prepared; join at least one that is")
  for one, source in found.items():
    if source.train.x.ndim != 4 or source.train.x.dtype != np.uint8:
      kind = f"{source.train.x.dtype} {list(source.train.x.shape[1:])}"
      raise ConfigError(f"{one} holds no pictures of uint8 but {kind}, which cannot be joined or brought to a size")
  first = next(iter(found.values())).train.x.shape
  rows = sum(len(split.y) for source in found.values() for split in (source.train, source.test))
  wanted = 2 * rows * (size or first[1]) ** 2 * (channels or first[3])  # as parts, then joined
  fit_into(host_bytes(), "this machine", f"{rows:,} pictures take", wanted, f"lower config.stream.size={size}")
  return joined(found, size or first[1], channels or first[3], fit)


def one_or_joined(name: str, data_dir: str | None, size: int = 0, channels: int = 0, fit: str = "resize") -> Source:
  """The data set of that name as it is; as `load` gives it where a shape is asked for, or several are joined.

  Raises:
    ConfigError: unknown, missing or unsuitable data.
  """
  if size or channels or len(local.parts(name, bank.KNOWN)) > 1:
    return load(name, data_dir, size, channels, fit)
  return bank.load(name, data_dir)


def joined(sources: dict[str, Source], size: int, channels: int, fit: str) -> Source:
  """One source of several; the c-th class of the k-th counts on from those before."""
  trains: list[Bank] = []
  valids: list[Bank] = []
  tests: list[Bank] = []
  groups, first = [], 0
  for name, source in sources.items():
    for split, into in ((source.train, trains), (own_valid(source), valids), (source.test, tests)):
      if not len(split.y):
        continue
      y = first + np.searchsorted(source.classes, split.y).astype(np.int32)
      into.append(Bank(shaped(split.x, size, channels, fit), y))
    groups.append((name, np.arange(first, first + len(source.classes), dtype=np.int32)))
    first += len(source.classes)
  digest = hashlib.sha256(
    "".join(source.hash for source in sources.values()).encode() + f"{size} {channels} {fit}".encode()
  )
  whole, test = (Bank(*map(np.concatenate, zip(*banks, strict=True))) for banks in (trains + valids, tests))
  count = sum(len(part.y) for part in trains)
  train = Bank(whole.x[:count], whole.y[:count])
  classes, named = np.arange(first, dtype=np.int32), tuple(groups)
  return Source(train, test, classes, digest.hexdigest(), named, whole if valids else None)


def own_valid(source: Source) -> Bank:
  """The data's own validation rows; none where it has none."""
  whole, count = source.whole or source.train, len(source.train.y)
  return Bank(whole.x[count:], whole.y[count:])


def shaped(x: np.ndarray, size: int, channels: int, fit: str) -> np.ndarray:
  """Pictures [N, h, w, c] as [N, size, size, channels] uint8."""
  if x.dtype != np.uint8:
    raise ConfigError(f"pictures of type {x.dtype} cannot be joined with others; uint8 is needed")
  if x.shape[1:] == (size, size, channels):
    return x
  group = max(min(GROUP, PIXELS // (size * size)), 1)
  return np.concatenate([shape_group(x[i : i + group], size, channels, fit) for i in range(0, len(x), group)])


def shape_group(x: np.ndarray, size: int, channels: int, fit: str) -> np.ndarray:
  """Pictures x [N, h, w, c] as [N, size, size, channels] uint8: grey where one channel is
  wanted, then brought to size by `fit`."""
  pixels = x.astype(np.float32)
  if channels == 1 and pixels.shape[-1] == 3:
    pixels = pixels @ np.array(GREY, np.float32)[:, None]
  pixels = np.broadcast_to(pixels, (*pixels.shape[:3], channels))
  height, width = pixels.shape[1:3]
  if fit == "pad" and max(height, width) <= size:
    top, left = (size - height) // 2, (size - width) // 2
    around = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(pixels, around).round().astype(np.uint8)
  resized = jax.image.resize(jnp.asarray(pixels), (len(x), size, size, channels), "bilinear")
  return np.asarray(resized).round().clip(0, 255).astype(np.uint8)
