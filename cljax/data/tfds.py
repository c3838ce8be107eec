"""Data sets that `tensorflow_datasets` has prepared as array_record, read without TensorFlow and without a network.

Pictures are decoded by Pillow, whatever else is installed, so that a data set is the same numbers on every machine.
"""

import hashlib
import io
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cljax.data.cache import Arrays
from cljax.disk import unread
from cljax.errors import ConfigError, Missing, in_short, meant

BY_HAND = ("usps",)  # read like the others, but tensorflow_datasets has no code that prepares it
READ_AT_ONCE = 10_000  # records


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


def find(name: str, root: Path, known: Sequence[str] = (), embedded: Sequence[str] = ()) -> Path:
  """The newest prepared version of `name` under `root`.

  Args:
    known: names that the message may suggest beside the prepared ones.
    embedded: those of them that need no preparation.

  Raises:
    ConfigError: there is none, with what there is and what to type.
  """
  usual = re.fullmatch(r"\w{1,255}(/[\w.+-]{1,255})?", name)  # others might lead out of the folder, or name no file
  found = versions(root / name) if usual else []
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
  near = "" if name in known else meant(name, sorted({*there, *known}))
  hint, wanted = f" Did you mean {near}?" if near else "", near or name
  ready = wanted in there or wanted in embedded
  by_hand = "tensorflow_datasets does not prepare this one: copy its prepared folder there"
  way = by_hand if wanted in BY_HAND else f"Prepare it where there is a network: {command(wanted, root)}"
  way = f"Type --config.stream.source={wanted}" if ready else way
  raise Missing(
    f"data set {name!r} was not found in {root}, {state}.{hint} {way}; or name another folder by --data_dir=DIR or "
    "TFDS_DATA_DIR; or take the embedded one: --config.stream.source=digits"
  )


def hash_files(folder: Path, files: Sequence[Path] | None = None) -> str:
  """sha256 over the names and bytes of a folder's files (of those given, or all), wherever it lies; ConfigError: an
  unreadable one."""
  digest = hashlib.sha256()
  for path in files or sorted(path for path in folder.rglob("*") if path.is_file()):
    digest.update(str(path.relative_to(folder)).encode() + b"\0")
    try:
      with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
      raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
  return digest.hexdigest()


def broken(path: Path, name: str, root: Path, reason: Any) -> ConfigError:
  """The error that names a damaged file of a prepared data set."""
  if isinstance(reason, Exception) and (passing := unread(path, reason)):
    return passing
  way = "copy the folder again" if name in BY_HAND else f"prepare the data set again: {command(name, root)}"
  return ConfigError(f"{path} is damaged ({in_short(reason, 200)}); delete {shlex.quote(str(path.parent))} and {way}")


def formats(name: str, folder: Path, root: Path) -> set[str]:
  """The file formats of a prepared version; ConfigError: one of its two descriptions is missing or damaged."""
  found: Any = {}
  for part in ("features.json", "dataset_info.json"):
    try:
      found = json.loads((folder / part).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
      raise broken(folder / part, name, root, error) from error
    if not isinstance(found, dict):
      raise broken(folder / part, name, root, "no JSON object")
  names = [found.get("fileFormat", "tfrecord"), found.get("alternativeFileFormats", [])]
  if not isinstance(names[0], str) or not isinstance(names[1], list) or not all(isinstance(n, str) for n in names[1]):
    raise broken(folder / "dataset_info.json", name, root, f"its file formats are {names}")
  return {names[0], *names[1]}


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
      where = f"data set {name!r} in {folder} has no rows in a split {split!r}"
      raise ConfigError(f"{where}; its splits are {', '.join(splits)}")
    parts = [
      as_arrays(name, [row[image] for row in rows], [row[label] for row in rows], shapes)
      for rows in read(builder, split, image, name, root)
    ]
    arrays[f"{split}_x"], arrays[f"{split}_y"] = (np.concatenate(part) for part in zip(*parts, strict=True))
  return arrays


def picture(content: bytes) -> np.ndarray:
  """An encoded picture [h, w] or [h, w, c], a palette's as its colours."""
  with Image.open(io.BytesIO(content)) as image:
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def read(builder: Any, split: str, image: str, name: str, root: Path) -> Iterator[list[dict[str, Any]]]:
  """The decoded records of a split in order, never those of two files at once; ConfigError: the damaged file.

  Args:
    image: the feature that is a picture.
  """
  import tensorflow_datasets as tfds

  info, first = builder.info.splits[split], 0
  source = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
  for path, length in zip(map(Path, info.filepaths), info.shard_lengths, strict=True):
    check_length(path, length, name, root)
    for start in range(first, first + length, READ_AT_ONCE):
      try:
        rows = source.__getitems__(list(range(start, min(start + READ_AT_ONCE, first + length))))
        rows = [{**row, image: picture(row[image])} for row in rows]
      except MemoryError:
        raise
      except Exception as error:  # readers and picture decoders raise many types, none of which names the file
        raise broken(path, name, root, error) from error
      yield rows
    first += length


def check_length(path: Path, length: int, name: str, root: Path) -> None:
  """ConfigError: a file that holds another number of records than the data set's description says."""
  from array_record.python.array_record_module import ArrayRecordReader

  try:
    reader = ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
  except Exception as error:
    raise broken(path, name, root, error) from error
  if found != length:
    raise broken(path, name, root, f"it holds {found} records, and {length} by shardLengths in dataset_info.json")


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
