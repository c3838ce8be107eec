"""Banks from damaged files, and the cache of decoded ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cljax.data import bank, cache, tfds
from tests.banks import ROWS, data_folder, encoded, files_of_cache, pictures, refusal, write


@pytest.fixture
def root(tmp_path, monkeypatch):
  return data_folder(tmp_path, monkeypatch)


@pytest.fixture
def warnings_said(monkeypatch):
  said: list[str] = []
  monkeypatch.setattr(cache.logging, "warning", lambda text, *values: said.append(text % values))
  return said


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

  monkeypatch.setattr(tfds, "decode", refuse)
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


@pytest.mark.parametrize(
  "formats", [3, ["array_record"], {"fileFormat": 3}, {"alternativeFileFormats": "array_record"}]
)
def test_a_description_of_other_kinds_is_named(root, formats):
  folder = write(root)
  path = folder / ("dataset_info.json" if isinstance(formats, dict) else "features.json")
  path.write_text(json.dumps({**json.loads(path.read_text()), **formats} if isinstance(formats, dict) else formats))
  refusal("tiny", root, f"{path} is damaged", "launch.prepare")


@pytest.mark.parametrize(
  "lengths", [["7", "5"], ["7", "0"], ["6", "7"], ["7"], ["7", "6", "1"], [], ["7", "-6"], ["x", "6"], 3]
)
def test_lengths_that_disagree_with_the_files_are_noticed(root, lengths):
  """Of 7 and 6 rows: fewer would be lost, others come twice or from another file."""
  folder = write(root)
  path = folder / "dataset_info.json"
  info = json.loads(path.read_text())
  assert info["splits"][0]["shardLengths"] == ["7", "6"]
  info["splits"][0]["shardLengths"] = lengths
  path.write_text(json.dumps(info))
  refusal("tiny", root, folder)


@pytest.mark.parametrize("what", ["names", "types", "other files", "nothing"])
def test_a_sound_cache_of_something_else_is_decoded_again(root, warnings_said, what):
  """A file with a checksum that is right, under a name that is not its own."""
  write(root)
  first = bank.load("tiny", str(root))
  path = files_of_cache(root)[0]
  with np.load(path) as file:
    arrays = {name: file[name] for name in file.files if name not in ("hash", "key")}
    key = str(file["key"])
  if what == "names":
    arrays["more"] = arrays.pop("test_x")
  elif what == "types":
    arrays["train_y"] = arrays["train_y"].astype(np.int64)
  elif what == "other files":
    arrays["train_x"] = arrays["train_x"] + 1
  else:
    arrays = {}
  cache.write_cache(path, arrays, key if what != "other files" else "another")
  assert np.array_equal(bank.load("tiny", str(root)).train.x, first.train.x)
  assert len(warnings_said) == 1 and str(path) in warnings_said[0]


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
