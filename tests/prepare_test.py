"""Preparing a data set: what it leaves, and every obstacle named."""

import io
import os
import subprocess
import sys
import time

import pytest
import tensorflow_datasets as tfds

from cljax.data import bank
from cljax.errors import ConfigError
from launch import prepare
from tests.banks import ROOT, ROWS, data_folder, encoded, pictures, write


@pytest.fixture
def root(tmp_path, monkeypatch):
  return data_folder(tmp_path, monkeypatch)


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
