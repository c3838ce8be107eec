"""Banks: what a name becomes, from small data sets written here, and what is said where that fails."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from cljax.data import bank, tfds
from cljax.errors import ConfigError
from tests.banks import ROOT, ROWS, data_folder, files_of_cache, pictures, refusal, write


@pytest.fixture
def root(tmp_path, monkeypatch):
  return data_folder(tmp_path, monkeypatch)


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
  monkeypatch.setattr(tfds, "READ_AT_ONCE", 4)  # several reads a file
  source = bank.load("tiny", str(root))
  for split, found in (("train", source.train), ("test", source.test)):
    assert found.x.shape == (ROWS[split], 4, 5, channels) and found.x.dtype == np.uint8 and found.y.dtype == np.int32
    assert np.array_equal(found.x.reshape(data[split][0].shape), data[split][0])
    assert np.array_equal(found.y, data[split][1])
  assert source.classes.tolist() == [0, 1, 2] and source.classes.dtype == np.int32 and len(source.hash) == 64


def test_pictures_are_decoded_by_pillow_alone(root, monkeypatch):
  """Whatever else is installed, and a palette's numbers as their colours."""
  own = tensorflow_datasets.features.Image
  for name in ("decode_example_np", "decode_example_np_with_opencv"):
    monkeypatch.setattr(own, name, lambda *args: pytest.fail("decoded by tensorflow_datasets"))
  x = np.random.default_rng(0).integers(0, 2, (13, 4, 5, 1)).astype(np.uint8) * np.array([255, 90, 7], np.uint8)
  y, kept = np.arange(13) % 3, io.BytesIO()
  Image.fromarray(x[0]).quantize(2).save(kept, "PNG")
  content = [kept.getvalue(), *x[1:]]
  write(root, data={split: (content[:n], y[:n]) for split, n in ROWS.items()}, channels=3)
  source = bank.load("tiny", str(root))
  assert np.array_equal(source.train.x, x) and np.array_equal(source.test.x, x[:6])


def test_pictures_without_a_channel_axis_get_one():
  x, y = tfds.as_arrays("tiny", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 1), np.uint8)], [2, 0], set())
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
  assert tfds.prepared(root) == ["family/one", "family/two"]


def test_the_hash_is_of_the_files_wherever_they_lie(root, tmp_path):
  write(root)
  write(root, "other", data={split: pictures(split, seed=1) for split in ROWS})
  first = bank.load("tiny", str(root)).hash
  shutil.copytree(root, tmp_path / "copy")
  assert bank.load("tiny", str(tmp_path / "copy")).hash == first != bank.load("other", str(root)).hash
  (tmp_path / "copy/tiny/1.0.0/dataset_info.json").rename(tmp_path / "copy/tiny/1.0.0/dataset_infos.json")
  assert tfds.hash_files(tmp_path / "copy/tiny/1.0.0") != first


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
  text = refusal(typed, root, f"Did you mean {meant}?")
  ready = meant in ("tiny", "digits")
  assert (f"Type --config.stream.source={meant};" if ready else f"launch.prepare --dataset={meant} --data_dir=") in text
  assert f"--dataset={typed}" not in text


@pytest.mark.parametrize("name", ["", " "])
def test_a_source_has_a_name(root, name):
  with pytest.raises(ConfigError, match="a source without a name: type a data set, such as digits"):
    bank.load(name, root)


@pytest.mark.parametrize("name", ["tiny/..", "tiny:1.0.0", "7" * 400])
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
    tfds.as_arrays("tiny", [np.zeros((4, 5, 1), np.float32)], [0], set())
  with pytest.raises(ConfigError, match="without a label"):
    tfds.as_arrays("tiny", [np.zeros((4, 5, 1), np.uint8)], [-1], set())


# The real ones


def test_real_mnist(tmp_path):
  folder = os.environ.get("TFDS_DATA_DIR", "")
  if not folder or not tfds.versions(Path(folder) / "mnist"):
    pytest.skip("needs the prepared data sets: set TFDS_DATA_DIR")
  source = bank.load("mnist", cache_dir=str(tmp_path))
  assert source.train.x.shape == (60_000, 28, 28, 1) and source.test.x.shape == (10_000, 28, 28, 1)
  assert source.train.x.mean() == pytest.approx(33.318, abs=1e-3) and source.classes.tolist() == list(range(10))
