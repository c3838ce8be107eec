"""Data sets in the files of those who published them, copied by hand to `manual/<name>` in the data folder.

`stl10`: the four binary files of stl10_binary.tar.gz (https://cs.stanford.edu/~acoates/stl10/): bytes of pictures
[N, 3, 96, 96] whose rows and columns are swapped, and labels 1..10.

`office_home`: the domains Product and Real World of OfficeHomeDataset_10072016.zip (https://hemanthdv.github.io/
officehome-dataset/), a folder of JPEG files for each of 65 classes. Labels count the classes in alphabetical order
without regard to case, 0..64 in Product and 65..129 in Real World. Pictures become 128x128x3 by Pillow's bilinear
filter, whose support grows with the reduction (antialiasing). The data has no test rows of its own: int(.3 n) of the n
pictures of each class and domain, evenly spread over their names, are test rows, the same for everybody.

`tiny_imagenet`: tiny-imagenet-200.zip (http://cs231n.stanford.edu/tiny-imagenet-200.zip): 200 classes of 64x64 JPEG
files, grey ones among them, in train/CLASS/images, and the validation files, which are the test rows here, in
val/images with their classes in val/val_annotations.txt. Labels 0..199 count the names of the classes in order; the
archive's own test files have no labels.
"""

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cljax.data.cache import Arrays
from cljax.data.tfds import command
from cljax.disk import unread
from cljax.errors import ConfigError, Missing, in_short

STL_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
STL_SHAPE = (3, 96, 96)  # as stored: channel, column, row
DOMAINS = (("Product",), ("Real World", "RealWorld"))  # and how their folders may be called
OFFICE_CLASSES, OFFICE_SIDE = 65, 128
OFFICE_TEST = 3  # of ten pictures
ANNOTATIONS = "val/val_annotations.txt"
TINY_CLASSES, TINY_SIDE = 200, 64


class Manual(NamedTuple):
  """How a data set copied by hand is found, read and asked for."""

  archive: str  # the folder that its archive unpacks to, which may be left out
  files: Callable[[Path], list[Path]]  # folder -> its files; empty where they are not there
  read: Callable[[Path, list[Path]], Arrays]
  layout: str  # what to copy, with {folder} for the place


def find(name: str, root: Path) -> tuple[Path, list[Path]] | None:
  """(folder, files) of a data set copied by hand; None where there is none of that name."""
  if name not in MANUAL:
    return None
  place = root / "manual" / name
  for folder in (place, place / MANUAL[name].archive):
    if found := MANUAL[name].files(folder):
      return folder, found
  return None


def missing(name: str, root: Path) -> Missing:
  """What to say where such a data set is not there: how to lay its folder out."""
  layout = MANUAL[name].layout.format(folder=root / "manual" / name, command=command(name, root))
  return Missing(
    f"data set {name!r} was not found in {root}: {layout}; or name another folder by --data_dir=DIR or TFDS_DATA_DIR; "
    "or take the embedded one: --config.stream.source=digits"
  )


def damaged(path: Path, reason: str) -> ConfigError:
  """The error that names a file which is not what it should be."""
  return ConfigError(f"{path} is damaged ({reason}): copy {shlex.quote(str(path))} again")


def stl_files(folder: Path) -> list[Path]:
  """The four files, if all are there."""
  found = [folder / name for name in STL_FILES]
  return found if all(path.is_file() for path in found) else []


def read_stl(folder: Path, files: list[Path]) -> Arrays:
  """Both splits: x [N, 96, 96, 3] uint8, y [N] int32 in 0..9; ConfigError: another size, or other labels."""
  arrays: Arrays = {}
  for split in ("train", "test"):
    pictures, labels = (np.fromfile(folder / f"{split}_{part}.bin", np.uint8) for part in ("X", "y"))
    if not len(pictures) or len(pictures) % np.prod(STL_SHAPE):
      raise damaged(folder / f"{split}_X.bin", f"its {len(pictures)} bytes are no pictures of {STL_SHAPE}")
    x = pictures.reshape(-1, *STL_SHAPE).transpose(0, 3, 2, 1)
    if len(labels) != len(x) or labels.min() < 1 or labels.max() > 10:
      raise damaged(folder / f"{split}_y.bin", f"it should hold {len(x)} labels of 1 to 10")
    arrays |= {f"{split}_x": np.ascontiguousarray(x), f"{split}_y": labels.astype(np.int32) - 1}
  return arrays


def domain_folders(folder: Path) -> list[Path]:
  """The folder of each domain that is there."""
  found = [[folder / name for name in names if (folder / name).is_dir()] for names in DOMAINS]
  return [first for first, *_ in filter(None, found)]


def office_files(folder: Path) -> list[Path]:
  """All pictures of both domains, if both are there: by domain, class and name."""
  domains = domain_folders(folder)
  found = [
    sorted(domain.glob("*/*.jpg"), key=lambda path: (path.parent.name.casefold(), path.name)) for domain in domains
  ]
  return sum(found, []) if len(found) == len(DOMAINS) and all(found) else []


def read_office(folder: Path, files: list[Path]) -> Arrays:
  """Both splits: x [N, 128, 128, 3] uint8, y [N] int32; ConfigError: classes that are missing, or a file that is no
  picture."""
  by_class: dict[Path, list[Path]] = {}
  for path in files:
    by_class.setdefault(path.parent, []).append(path)
  parts: dict[str, list[np.ndarray]] = {"train_x": [], "train_y": [], "test_x": [], "test_y": []}
  first, second = domain_folders(folder)
  check_classes(first, second, by_class)
  for label, own in enumerate(by_class.values()):
    x, place = np.stack([picture(path, OFFICE_SIDE) for path in own]), np.arange(len(own))
    test = OFFICE_TEST * (place + 1) // 10 > OFFICE_TEST * place // 10
    for split, rows in (("train", ~test), ("test", test)):
      parts[f"{split}_x"].append(x[rows])
      parts[f"{split}_y"].append(np.full(rows.sum(), label, np.int32))
  return {name: np.concatenate(part) for name, part in parts.items()}


def check_classes(first: Path, second: Path, by_class: Iterable[Path]) -> None:
  """ConfigError unless both domains have pictures of the same 65 classes."""
  names = [{path.name for path in by_class if path.parent == domain} for domain in (first, second)]
  for domain, own in zip((first, second), names, strict=True):
    if len(own) != OFFICE_CLASSES:
      raise ConfigError(f"{domain} has pictures of {len(own)} classes where there are {OFFICE_CLASSES}: copy it again")
  if odd := sorted(names[0] ^ names[1]):
    raise ConfigError(f"only one of {first} and {second} has pictures of {', '.join(odd[:3])}: copy both again")


def tiny_files(folder: Path) -> list[Path]:
  """All training files by class and name, then the test files by name; none where a part is missing."""
  train = sorted(folder.glob("train/*/images/*.JPEG"))
  test = sorted(folder.glob("val/images/*.JPEG"))
  return train + test if train and test and (folder / ANNOTATIONS).is_file() else []


def read_tiny(folder: Path, files: list[Path]) -> Arrays:
  """Both splits: x [N, 64, 64, 3] uint8, y [N] int32; ConfigError: classes or labels that are missing, or a file that
  is no picture."""
  train = [path for path in files if path.parent.parent.parent.name == "train"]
  names = sorted({path.parent.parent.name for path in train})
  if len(names) != TINY_CLASSES:
    where = f"{folder / 'train'} has pictures of {len(names)} classes"
    raise ConfigError(f"{where} where there are {TINY_CLASSES}: copy it again")
  lines = (folder / ANNOTATIONS).read_text(errors="replace").splitlines()
  told = dict(line.split("\t")[:2] for line in lines if "\t" in line)
  test = files[len(train) :]
  if odd := [path.name for path in test if told.get(path.name) not in names]:
    raise damaged(folder / ANNOTATIONS, f"it names no class for {', '.join(odd[:3])}")
  classes = {"train": [path.parent.parent.name for path in train], "test": [told[path.name] for path in test]}
  arrays: Arrays = {}
  for split, own in (("train", train), ("test", test)):
    arrays[f"{split}_x"] = np.stack([picture(path, TINY_SIDE) for path in own])
    arrays[f"{split}_y"] = np.searchsorted(names, classes[split]).astype(np.int32)
  return arrays


def picture(path: Path, side: int) -> np.ndarray:
  """A file as [side, side, 3] uint8; ConfigError: it cannot be decoded."""
  try:
    with Image.open(path) as image:
      return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
  except MemoryError:
    raise
  except Exception as error:  # Pillow's decoders raise many types
    raise unread(path, error) or damaged(path, in_short(error)) from error


MANUAL = {
  "stl10": Manual(
    "stl10_binary",
    stl_files,
    read_stl,
    f"unpack stl10_binary.tar.gz so that {{folder}} holds {', '.join(STL_FILES)}; or prepare it where there is a "
    "network: {command}",
  ),
  "office_home": Manual(
    "OfficeHomeDataset_10072016",
    office_files,
    read_office,
    "unpack OfficeHomeDataset_10072016.zip so that {folder} holds the folders Product and Real World, with a folder of "
    "pictures for each of 65 classes, such as {folder}/Product/Alarm_Clock/00001.jpg",
  ),
  "tiny_imagenet": Manual(
    "tiny-imagenet-200",
    tiny_files,
    read_tiny,
    "unpack tiny-imagenet-200.zip so that {folder} holds the folders train and val, such as "
    f"{{folder}}/train/n01443537/images/n01443537_0.JPEG and {{folder}}/{ANNOTATIONS}",
  ),
}
