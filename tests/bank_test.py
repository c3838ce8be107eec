"""Banks: what a name becomes, from small data sets written here, and what is said where that fails."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from cljax.data import bank
from cljax.types import ConfigError
from launch import prepare

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


@pytest.fixture
def root(tmp_path, monkeypatch):
  """An empty data folder; caches go beside it."""
  monkeypatch.setenv("CLJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  (tmp_path / "data").mkdir()
  return tmp_path / "data"


@pytest.fixture
def warnings_said(monkeypatch):
  said: list[str] = []
  monkeypatch.setattr(bank.logging, "warning", lambda text, *values: said.append(text % values))
  return said


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


# What comes with the library


def test_digits_are_all_there_once():
  source = bank.load("digits")
  assert source.train.x.shape == (1438, 8, 8, 1) and source.test.x.shape == (359, 8, 8, 1)
  assert source.train.x.dtype == np.uint8 and source.train.y.dtype == source.test.y.dtype == np.int32
  assert source.classes.tolist() == list(range(10)) and source.classes.dtype == np.int32
  from sklearn.datasets import load_digits

  found = load_digits()
  rows = np.arange(1797)
  x, y = np.empty((1797, 8, 8, 1), np.uint8), np.empty(1797, np.int32)
  x[rows % 5 != 4], x[rows % 5 == 4] = source.train.x, source.test.x
  y[rows % 5 != 4], y[rows % 5 == 4] = source.train.y, source.test.y
  assert np.array_equal(np.round(x[..., 0] * (16 / 255)), found.images) and np.array_equal(y, found.target)
  assert x.max() == 255 and bank.load("digits").hash == source.hash


def test_synthetic_reaches_its_optimum_and_no_more():
  source = bank.load("synthetic")
  assert source.train.x.shape == (10_000, 8, 8, 1) and source.test.x.shape == (2_000, 8, 8, 1)
  assert source.train.x.dtype == np.float32 and source.classes.tolist() == list(range(10))
  optimum = bank.synthetic_optimum()
  assert 0.94 < optimum < 0.96
  x, test = source.train.x.reshape(10_000, -1), source.test.x.reshape(2_000, -1)
  means = np.stack([x[source.train.y == c].mean(0) for c in range(10)])
  best = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
  assert abs((best == source.test.y).mean() - optimum) < 3 * np.sqrt(optimum * (1 - optimum) / 2_000)
  lengths = means @ means.T
  assert np.allclose(lengths, bank.SEPARATION**2 * np.eye(10), atol=0.5)


def test_the_optimum_of_two_classes_is_known(monkeypatch):
  """For C = 2 the integral is Phi(s / sqrt 2)."""
  from scipy.stats import norm

  monkeypatch.setattr(bank, "SYNTHETIC_CLASSES", 2)
  assert bank.synthetic_optimum() == pytest.approx(norm.cdf(bank.SEPARATION / np.sqrt(2)), abs=1e-6)


# What is prepared


@pytest.mark.parametrize(("shape", "channels"), [((4, 5), 1), ((4, 5, 3), 3)])
def test_a_prepared_data_set_becomes_arrays(root, monkeypatch, shape, channels):
  data = {split: pictures(split, shape) for split in ROWS}
  write(root, data=data, channels=channels)
  monkeypatch.setattr(bank, "READ_AT_ONCE", 4)  # several reads a file
  source = bank.load("tiny", str(root))
  for split, found in (("train", source.train), ("test", source.test)):
    assert found.x.shape == (ROWS[split], 4, 5, channels) and found.x.dtype == np.uint8 and found.y.dtype == np.int32
    assert np.array_equal(found.x.reshape(data[split][0].shape), data[split][0])
    assert np.array_equal(found.y, data[split][1])
  assert source.classes.tolist() == [0, 1, 2] and source.classes.dtype == np.int32 and len(source.hash) == 64


def test_pictures_without_a_channel_axis_get_one():
  x, y = bank.as_arrays("tiny", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 1), np.uint8)], [2, 0], set())
  assert x.shape == (2, 4, 5, 1) and y.tolist() == [2, 0]


def test_keys_are_the_supervised_ones_or_image_and_label(root):
  write(root, "named", keys=("picture", "kind"))
  write(root, "plain", supervised=False)
  write(root, "neither", keys=("picture", "kind"), supervised=False)
  assert np.array_equal(bank.load("named", str(root)).train.x, bank.load("plain", str(root)).train.x)
  refusal("neither", root, "neither", "picture", "kind")


def test_the_folder_comes_from_the_argument_the_environment_or_the_default(root, monkeypatch, tmp_path):
  write(root)
  write(tmp_path / "home" / "tensorflow_datasets", "other")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert len(bank.load("other").train.y) == 13
  monkeypatch.setenv("TFDS_DATA_DIR", str(root))
  assert len(bank.load("tiny").train.y) == 13
  refusal("tiny", tmp_path / "home" / "tensorflow_datasets", "which holds other")


def test_the_highest_version_counts(root):
  for version, seed in (("1.10.0", 1), ("1.9.0", 2)):
    write(root, version=version, data={split: pictures(split, seed=seed) for split in ROWS})
  shutil.copytree(root / "tiny" / "1.9.0", root / "tiny" / "2.0.0.incompleteXY")
  assert np.array_equal(bank.load("tiny", str(root)).train.x[..., 0], pictures("train", seed=1)[0])


def test_a_config_is_found_or_asked_for(root):
  write(root, "family/one")
  assert len(bank.load("family", str(root)).train.y) == 13
  assert files_of_cache(root)[0].name.startswith("family_one-")
  write(root, "family/two", data={split: pictures(split, seed=1) for split in ROWS})
  refusal("family", root, "several configs: name one of family/one, family/two")
  assert np.array_equal(bank.load("family/two", str(root)).train.x[..., 0], pictures("train", seed=1)[0])
  assert bank.prepared(root) == ["family/one", "family/two"]


def test_the_hash_is_of_the_files_wherever_they_lie(root, tmp_path):
  write(root)
  write(root, "other", data={split: pictures(split, seed=1) for split in ROWS})
  first = bank.load("tiny", str(root)).hash
  shutil.copytree(root, tmp_path / "copy")
  assert bank.load("tiny", str(tmp_path / "copy")).hash == first != bank.load("other", str(root)).hash
  (tmp_path / "copy/tiny/1.0.0/dataset_info.json").rename(tmp_path / "copy/tiny/1.0.0/dataset_infos.json")
  assert bank.hash_files(tmp_path / "copy/tiny/1.0.0") != first


def test_neither_network_nor_tensorflow_is_used(root):
  write(root)
  code = f"""
import socket, sys
def refuse(*_): raise AssertionError('the network was used')
socket.socket.connect = socket.getaddrinfo = refuse
from cljax.data import bank
bank.load('tiny', {str(root)!r}, {str(root / "first")!r})
assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules
"""
  again = f"""
import sys
from cljax.data import bank
bank.load('tiny', {str(root)!r}, {str(root / "first")!r})
assert 'tensorflow_datasets' not in sys.modules  # the cache needs none of it
"""
  for part in (code, again):
    done = subprocess.run([sys.executable, "-W", "error", "-c", part], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What is missing or unsuitable


def test_missing_data_says_where_it_looked_and_what_to_type(root):
  write(root)
  for name in ("kmnist", "emnist/letters"):
    command = f"python -m launch.prepare --dataset={name} --data_dir={root}"
    text = refusal(name, root, name, f"in {root}, which holds tiny", command, "--data_dir=", "source=digits")
    assert "Did you mean" not in text
  refusal("usps", root, "copy its prepared folder")
  refusal("mnist", root.parent / "nowhere", root.parent / "nowhere", "does not exist", "launch.prepare")
  (root / "file").write_text("")
  refusal("mnist", root / "file", "is no folder")
  (root / "empty").mkdir()
  refusal("tiny", root / "empty", "no prepared data set")


@pytest.mark.parametrize(
  ("typed", "meant"),
  [("fashion-mnist", "fashion_mnist"), ("CIFAR10", "cifar10"), ("tinny", "tiny"), ("digit", "digits")],
)
def test_did_you_mean(root, typed, meant):
  write(root)
  refusal(typed, root, f"Did you mean {meant}?")


@pytest.mark.parametrize("name", ["", "../data/tiny", "tiny/..", "/", "tiny:1.0.0"])
def test_a_name_is_no_path(root, name):
  write(root)
  refusal(name, root, repr(name), "was not found")


def test_tfrecord_is_refused(root):
  folder = write(root, fileFormat="tfrecord")
  refusal(
    "tiny",
    root,
    f"{folder} is prepared as tfrecord;",
    "array_record",
    f"launch.prepare --dataset=tiny --data_dir={root}",
  )


def test_both_splits_are_needed(root):
  write(root, data={"train": pictures("train"), "validation": pictures("test")})
  refusal("tiny", root, "'test'", "train, validation")


def test_pictures_of_several_shapes_are_refused(root):
  (x, y), test = pictures("train"), pictures("test")
  write(root, "ragged", data={"train": ([*x[:-1], x[-1][:3]], y), "test": test})
  write(root, "unlike", data={"train": (x, y), "test": (test[0][:, :3], test[1])})
  for name in ("ragged", "unlike"):
    refusal(name, root, name, "different shapes", "(3, 5, 1)", "(4, 5, 1)")


def test_other_types_and_missing_labels_are_refused():
  with pytest.raises(ConfigError, match="float32"):
    bank.as_arrays("tiny", [np.zeros((4, 5, 1), np.float32)], [0], set())
  with pytest.raises(ConfigError, match="without a label"):
    bank.as_arrays("tiny", [np.zeros((4, 5, 1), np.uint8)], [-1], set())


# What is damaged


def flip(path: Path) -> None:
  content = bytearray(path.read_bytes())
  content[200] ^= 0xFF
  path.write_bytes(content)


DAMAGES = {
  "flipped": flip,
  "short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
  "empty": lambda path: path.write_bytes(b""),
  "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["tiny-train.array_record-00001-of-00002", "tiny-test.array_record-00000-of-00002"])
def test_a_damaged_file_is_named(root, damage, file):
  folder = write(root)
  DAMAGES[damage](folder / file)
  text = refusal("tiny", root, f"{folder / file} is damaged", f"delete {folder}", "launch.prepare --dataset=tiny")
  assert text.count("array_record-0000") == text.count(file)
  assert not (root.parent / "cache").exists()


def test_a_picture_that_cannot_be_decoded_names_its_file(root):
  x, y = pictures("train")
  write(root, data={"train": ([*map(encoded, x[:-1]), b"no picture"], y), "test": pictures("test")})
  refusal("tiny", root, "tiny-train.array_record-00001-of-00002 is damaged")


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"fileFormat": "array_record"}', b"\xff\x00", '{"name": 3}'])
def test_a_damaged_description_is_named(root, file, content):
  folder = write(root)
  (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
  if content == '{"name": 3}' and file == "dataset_info.json":
    refusal("tiny", root, "tfrecord")  # a description without a format is one of tfrecord
  else:
    refusal("tiny", root, file, "is damaged", "launch.prepare")


# The cache


def test_the_second_start_reads_the_cache(root, monkeypatch):
  write(root)
  first = bank.load("tiny", str(root))
  assert [path.name for path in files_of_cache(root)] == [f"tiny-{first.hash[:16]}.npz"]

  def refuse(*_):
    raise AssertionError("decoded again")

  monkeypatch.setattr(bank, "decode", refuse)
  again = bank.load("tiny", str(root))
  arrays = ((*source.train, *source.test, source.classes) for source in (first, again))
  for one, other in zip(*arrays, strict=True):
    assert one.dtype == other.dtype and np.array_equal(one, other)
  assert again.hash == first.hash


def test_changed_files_are_decoded_anew(root):
  folder = write(root)
  bank.load("tiny", str(root))
  shutil.rmtree(folder)
  write(root, data={split: pictures(split, seed=1) for split in ROWS})
  assert np.array_equal(bank.load("tiny", str(root)).train.x[..., 0], pictures("train", seed=1)[0])
  assert len(files_of_cache(root)) == 2


@pytest.mark.parametrize("place", ["pixels", "start", "end", "half", "other"])
def test_a_damaged_cache_is_reported_and_rebuilt(root, warnings_said, place):
  write(root)
  first = bank.load("tiny", str(root))
  path = files_of_cache(root)[0]
  sound = path.read_bytes()
  assert warnings_said == []
  content = bytearray(sound)
  if place == "half":
    content = content[: len(content) // 2]
  elif place == "other":  # a sound file of other arrays
    with np.load(path) as file:
      np.savez(path, **{**file, "train_x": file["train_x"] + 1})
    content = bytearray(path.read_bytes())
  else:
    content[{"pixels": sound.find(first.train.x.tobytes()) + 5, "start": 0, "end": len(sound) - 22}[place]] ^= 0xFF
  path.write_bytes(content)
  again = bank.load("tiny", str(root))
  assert len(warnings_said) == 1 and str(path) in warnings_said[0] and "damaged" in warnings_said[0]
  assert np.array_equal(again.train.x, first.train.x)
  bank.load("tiny", str(root))
  assert len(warnings_said) == 1 and files_of_cache(root) == [path]


@pytest.mark.parametrize("obstacle", ["file", "full"])
def test_a_cache_that_cannot_be_written_is_reported(root, warnings_said, monkeypatch, obstacle):
  write(root)
  if obstacle == "file":
    (root.parent / "cache").write_text("in the way")
  else:

    def full(file, **_):
      file.write(b"half of it")
      raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
  source = bank.load("tiny", str(root))
  assert len(source.train.y) == 13
  assert len(warnings_said) == 1 and str(root.parent / "cache") in warnings_said[0]
  assert obstacle == "file" or ("No space left" in warnings_said[0] and files_of_cache(root) == [])


# Preparing


class WrittenHere(tfds.core.GeneratorBasedBuilder):
  """Its generator yields encoded pictures, so that no TensorFlow is needed to prepare it."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {"image": tfds.features.Image(shape=(4, 5, 1)), "label": tfds.features.ClassLabel(num_classes=3)}
    features = tfds.features.FeaturesDict(features)
    return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in ROWS}

  def _generate_examples(self, split):
    for i, (x, y) in enumerate(zip(*pictures(split), strict=True)):
      yield i, {"image": encoded(x), "label": int(y)}


def test_what_is_prepared_can_be_loaded(root, monkeypatch):
  monkeypatch.setattr(prepare, "unreachable", lambda: "")
  monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: name)
  text = prepare.prepare("written_here", root)
  assert f"written_here is prepared in {root}/written_here/1.0.0" in text
  source = bank.load("written_here", str(root))
  assert sorted(map(bytes, source.train.x)) == sorted(map(bytes, pictures("train")[0]))
  assert "already prepared" in prepare.prepare("written_here", root)


def test_a_failed_preparation_is_one_line(root, monkeypatch):
  def fail(*_, **__):
    raise RuntimeError("it broke\nin the middle")

  monkeypatch.setattr(prepare, "unreachable", lambda: "")
  monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: name)
  monkeypatch.setattr(WrittenHere, "download_and_prepare", fail)
  with pytest.raises(ConfigError, match="written_here could not be prepared: RuntimeError: it broke in the middle$"):
    prepare.prepare("written_here", root)


def test_every_obstacle_is_named(root, monkeypatch):
  monkeypatch.setattr(prepare, "unreachable", lambda: "no answer")
  monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
  (root / "file").write_text("in the way")
  with pytest.raises(ConfigError) as caught:
    prepare.prepare("mnist", root / "file")
  for part in (
    "tensorflow and importlib_resources",
    "pip install 'cljax[prepare]'",
    f"{root}/file cannot",
    "no network",
  ):
    assert part in str(caught.value)


@pytest.mark.parametrize(
  ("name", "hint"), [("mnst", " Did you mean mnist?"), ("emnist/leters", " Did you mean emnist/letters?"), ("usps", "")]
)
def test_names_that_are_not_in_the_catalogue(root, name, hint):
  prepare.check_name("emnist")
  prepare.check_name("emnist/letters")
  with pytest.raises(ConfigError) as caught:
    prepare.prepare(name, root)
  assert str(caught.value) == f"--dataset={name} is not in the catalogue of tensorflow_datasets.{hint}"


def test_tfrecord_is_not_prepared_over(root):
  folder = write(root, fileFormat="tfrecord")
  with pytest.raises(ConfigError, match=f"{folder} holds tiny, but not as array_record"):
    prepare.prepare("tiny", root)


def test_no_answer_is_no_network(monkeypatch):
  def refused(*_, **__):
    raise OSError("refused")

  monkeypatch.setattr(prepare.urllib.request, "urlopen", refused)
  assert "refused" in prepare.unreachable()
  answer = prepare.urllib.error.HTTPError("", 400, "bad request", None, io.BytesIO())
  monkeypatch.setattr(prepare.urllib.request, "urlopen", lambda *_, **__: (_ for _ in ()).throw(answer))
  assert prepare.unreachable() == ""


def test_the_command_without_a_network(root):
  """A proxy that nobody serves stands in for a missing network."""
  environment = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-m", "launch.prepare", "--dataset=mnist", f"--data_dir={root}"],
    cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2 and time.monotonic() - start < 20
  assert "Traceback" not in done.stderr and "no network" in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


# The real ones


def test_real_mnist(tmp_path):
  folder = os.environ.get("TFDS_DATA_DIR", "")
  if not folder or not bank.versions(Path(folder) / "mnist"):
    pytest.skip("needs the prepared data sets: set TFDS_DATA_DIR")
  source = bank.load("mnist", cache_dir=str(tmp_path))
  assert source.train.x.shape == (60_000, 28, 28, 1) and source.test.x.shape == (10_000, 28, 28, 1)
  assert source.train.x.mean() == pytest.approx(33.318, abs=1e-3) and source.classes.tolist() == list(range(10))
