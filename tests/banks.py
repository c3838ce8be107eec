"""Small data sets written as TFDS prepares them, and how loading refuses."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from cljax.data import bank
from cljax.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
ROWS = {"train": 13, "test": 6}  # in two files a split


def encoded(picture: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  return buffer.getvalue()


def pictures(split: str, shape=(4, 5), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  random = np.random.default_rng([seed, len(split)])
  return random.integers(0, 256, (ROWS[split], *shape), np.uint8), np.arange(ROWS[split], dtype=np.int32) % 3


def write(root, name="tiny", version="1.0.0", data=None, keys=("image", "label"), channels=1, supervised=True, **edits):
  """A prepared data set: two array_record files a split, and its two descriptions. Returns its folder."""
  folder = Path(root) / name / version
  folder.mkdir(parents=True)
  image = tfds.features.Image(shape=(None, None, channels))
  features = tfds.features.FeaturesDict({keys[0]: image, keys[1]: tfds.features.ClassLabel(num_classes=3)})
  base, splits = name.split("/")[0], []
  for split, (x, y) in (data or {split: pictures(split) for split in ROWS}).items():
    halves = np.array_split(np.arange(len(y)), 2)
    for i, rows in enumerate(halves):
      path = folder / f"{base}-{split}.array_record-{i:05d}-of-00002"
      writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
      for row in rows:
        content = x[row] if isinstance(x[row], bytes) else encoded(x[row])
        writer.write(features.serialize_example({keys[0]: content, keys[1]: int(y[row])}))
      writer.close()
    lengths = [str(len(rows)) for rows in halves]
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits.append({"name": split, "shardLengths": lengths, "numBytes": "1", "filepathTemplate": template})
  info = {"name": base, "version": version, "fileFormat": "array_record", "splits": splits, "moduleName": "nowhere"}
  if supervised:
    info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in keys]}}
  if "/" in name:
    info["configName"] = name.split("/")[1]
  (folder / "dataset_info.json").write_text(json.dumps(info | edits))
  features.save_config(str(folder))
  return folder


def data_folder(tmp_path, monkeypatch):
  """An empty data folder; caches go beside it."""
  monkeypatch.setenv("CLJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  (tmp_path / "data").mkdir()
  return tmp_path / "data"


def refusal(name: str, root, *parts: str) -> str:
  """The message of the ConfigError that loading raises, within seconds; it holds the parts."""
  start = time.monotonic()
  with pytest.raises(ConfigError) as caught:
    bank.load(name, str(root))
  assert time.monotonic() - start < 10
  text = str(caught.value)
  assert "\n" not in text
  for part in parts:
    assert str(part) in text, text
  return text


def files_of_cache(root) -> list[Path]:
  return sorted((root.parent / "cache").iterdir())
