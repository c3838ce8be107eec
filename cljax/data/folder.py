"""A folder of pictures by class, laid out as torchvision's ImageFolder is.

`FOLDER/train/CLASS/**/*.png` and `FOLDER/test/CLASS/...`, with validation rows in `valid` or `val`, which are the test
rows where there is no `test`. Labels count the names of the classes in order. Of a folder that has its classes at once,
`FOLDER/CLASS/*.png`, every fifth picture of a class by name is a test row. What begins with a dot is not there.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from cljax.data.cache import Arrays
from cljax.data.tfds import hash_files
from cljax.declared import at_least, one_of
from cljax.disk import unread
from cljax.errors import ConfigError, in_short
from cljax.host import fit_into, host_bytes

FOLDERS = {"train": ("train",), "test": ("test",), "valid": ("valid", "val", "validation")}
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
KINDS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}  # channels of a mode
WORDS = {1: "L", 3: "RGB"}
MOST_OTHERS = 10_000  # files and folders without a picture, after which a folder is something else, such as a disk
EVERY = 5  # of a class's pictures one is a test row, where no folder says which

HOW = "a source is a folder of nothing but FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png"

ByClass = dict[str, list[Path]]


class Shape(NamedTuple):
  """What pictures are brought to before a stream is laid over them."""

  size: Annotated[int, at_least(0, "of a side that pictures come to; 0: as they are, or as the first set", 1024)] = 0
  channels: Annotated[int, at_least(0, "1 or 3; 0: as they are, or as the first set", 3)] = 0
  fit: Annotated[str, one_of(("resize", "pad"), "how pictures of another size come to it")] = "resize"


def unreadable(path: Path, error: Exception, what: str) -> ConfigError:
  """The error that names a file which cannot be read; `what` it is where that does not pass."""
  return unread(path, error) or ConfigError(f"{path} {what} ({in_short(error)})")


def below(folder: Path) -> list[Path]:
  """What lies in a folder, by name, but for what is hidden."""
  return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))


def split_folders(folder: Path) -> dict[str, Path]:
  """The folder of each split that is there; {} where there is no `train`."""
  named = {split: [folder / name for name in names if (folder / name).is_dir()] for split, names in FOLDERS.items()}
  found = {split: own[0] for split, own in named.items() if own}
  return found if "train" in found else {}


def place_of(folder: Path) -> tuple[int, int]:
  """Device and number of a folder, however it is called."""
  told = folder.stat()
  return told.st_dev, told.st_ino


def pictures_in(folder: Path, others: Iterator[int], above: Sequence[tuple[int, int]]) -> list[Path]:
  """The files of pictures in a folder and below it, by name.

  Args:
    others: counts what is none.
    above: places of the folders that it lies in.

  Raises:
    ConfigError: there is much else, or a link leads back, by which every picture would be there many times.
  """
  found: list[Path] = []
  here = place_of(folder)
  if here in above:
    raise ConfigError(f"{folder} is a link back to a folder that it lies in: {HOW}")
  for path in below(folder):
    if path.suffix.lower() in PICTURES and path.is_file():
      found.append(path)
    elif next(others) > MOST_OTHERS:
      raise ConfigError(f"{folder} and what lies beside it hold over {MOST_OTHERS} files that are no pictures: {HOW}")
    elif path.is_dir():
      found += pictures_in(path, others, [*above, here])
  return found


def classes_of(folder: Path) -> ByClass:
  """{class: its pictures} of the folders in a folder; those without a picture are there, too, if any has one."""
  others, above = itertools.count(1), [place_of(folder.parent), place_of(folder)]
  found = {path.name: pictures_in(path, others, above) for path in below(folder) if path.is_dir()}
  return found if any(found.values()) else {}


def files_of(folder: Path) -> dict[str, ByClass]:
  """{split: {class: files}} of a folder; ConfigError: no such layout."""
  layout = f"{folder}/train/CLASS/*.png and {folder}/test/CLASS/*.png"
  there = split_folders(folder)
  if there and "test" not in there:
    if "valid" not in there:
      raise ConfigError(f"{folder} has a folder train and no test: pictures lie in {layout}")
    logging.warning("%s has no folder test: the pictures in %s are the test rows", folder, there["valid"].name)
    there["test"] = there.pop("valid")
  found = {split: classes_of(own) for split, own in there.items()} or {"train": classes_of(folder)}
  for split, classes in found.items():
    own = there.get(split, folder)
    if loose := [path.name for path in below(own) if path.suffix.lower() in PICTURES and path.is_file()]:
      raise ConfigError(f"{own} has pictures outside of a class's folder, {loose[0]}: they lie in {layout}")
    if not classes:
      raise ConfigError(f"{own} has no folders with pictures ({', '.join(PICTURES)}): they lie in {layout}")
    if empty := [name for name, files in classes.items() if not files]:
      raise ConfigError(f"{own / empty[0]} has no picture ({', '.join(PICTURES)}); take the folder away, or fill it")
    if odd := sorted(set(classes) - set(found["train"])):
      raise ConfigError(f"{own} has the classes {', '.join(odd[:3])}, of which {there['train']} has no pictures")
  return found if there else parted(folder, found["train"])


def parted(folder: Path, classes: ByClass) -> dict[str, ByClass]:
  """The pictures of classes as training and test rows; ConfigError: a class that has too few."""
  for name, files in classes.items():
    if len(files) < EVERY:
      raise ConfigError(
        f"{folder} has no folders train and test, so every {EVERY}th picture of a class is a test row, but {name} has "
        f"only {len(files)}: sort them into {folder}/train/CLASS and {folder}/test/CLASS, or add some"
      )
  logging.warning("%s has no folders train and test: every %dth picture of a class is a test row", folder, EVERY)
  train = {name: [path for i, path in enumerate(files) if i % EVERY != EVERY - 1] for name, files in classes.items()}
  return {"train": train, "test": {name: files[EVERY - 1 :: EVERY] for name, files in classes.items()}}


def hash_folder(folder: Path, files: dict[str, ByClass], shape: Shape) -> str:
  """sha256 over the files' names and bytes, and over what they are brought to."""
  every = [path for classes in files.values() for own in classes.values() for path in own]
  own = hash_files(folder, every)
  return own if shape == Shape() else hashlib.sha256(f"{own} {tuple(shape)}".encode()).hexdigest()


def read_folder(folder: Path, files: dict[str, ByClass], shape: Shape) -> Arrays:
  """What `read_npz` gives, of pictures [N, height, width, channels] uint8.

  Raises:
    ConfigError: a file that is no picture, or pictures that are not alike.
  """
  labels = {name: label for label, name in enumerate(files["train"])}
  count = sum(len(own) for classes in files.values() for own in classes.values())
  arrays: Arrays = {}
  first: tuple[Path, tuple[int, ...]] | None = None
  for split, classes in files.items():
    rows = [(path, labels[name]) for name, own in classes.items() for path in own]
    x = np.empty(0, np.uint8)
    for i, (path, _) in enumerate(rows):
      one = picture(path, shape)
      first = first or (path, one.shape)
      if one.shape != first[1]:
        raise ConfigError(unlike(*first, path, one.shape))
      if not i:
        wanted = 2 * count * one.size
        fit_into(host_bytes(), "this machine", f"{count:,} pictures take", wanted, "set config.stream.size lower")
        x = np.empty((len(rows), *one.shape), np.uint8)
      x[i] = one
    arrays |= {f"{split}_x": x, f"{split}_y": np.array([label for _, label in rows], np.int32)}
  return arrays


def unlike(path: Path, shape: tuple[int, ...], other: Path, its: tuple[int, ...]) -> str:
  """What to say of two pictures of different shapes."""
  alike = shape[:2] == its[:2]
  way = "config.stream.channels=3 (or 1, grey)" if alike else "config.stream.size=PIXELS"
  return f"{path} is a picture {list(shape)} and {other} one of {list(its)}; one shape is needed: set {way}"


def picture(path: Path, shape: Shape) -> np.ndarray:
  """A file as [height, width, channels] uint8; ConfigError: it cannot be decoded, or is of more than 8 bits."""
  try:
    with Image.open(path) as image:
      if image.mode not in KINDS:
        raise ConfigError(f"{path} is a picture of the mode {image.mode}, with more than 8 bits: save it with 8")
      plain = image.convert(WORDS[shape.channels or KINDS[image.mode]])
      pixels = np.asarray(sized(plain, shape.size, shape.fit) if shape.size else plain)
  except (ConfigError, MemoryError):
    raise
  except Exception as error:  # Pillow's decoders raise many types
    raise unreadable(path, error, "is no picture, or damaged") from error
  return pixels[..., None] if pixels.ndim == 2 else pixels


def sized(image: Image.Image, size: int, fit: str) -> Image.Image:
  """The picture as a square, as `data.join` fits pictures."""
  if fit == "pad" and max(image.size) <= size:
    frame = Image.new(image.mode, (size, size))
    frame.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return frame
  return image.resize((size, size), Image.Resampling.BILINEAR)
