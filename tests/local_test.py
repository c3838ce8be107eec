"""One's own data by its path: what a file or a folder becomes, what is said of damaged ones, and runs that find it."""

import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

import cljax
from cljax.config import complete, completed, default
from cljax.data import STREAMS, bank, join, local
from cljax.data import folder as folders
from cljax.data.folder import Shape
from cljax.errors import ConfigError
from cljax.evaluation import evaluate_again, told_by
from cljax.recipe import build_stream

DRAW = np.random.default_rng(0)
X = DRAW.integers(0, 256, (60, 6, 5, 3)).astype(np.uint8)
Y = np.arange(60) % 4
GOOD = {"x_train": X[:40], "y_train": Y[:40], "x_test": X[40:], "y_test": Y[40:]}


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("CLJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
  return tmp_path


def saved(path, **changes):
  np.savez(path, **{name: array for name, array in {**GOOD, **changes}.items() if array is not None})
  return str(path)


def test_an_npz_is_a_data_set_whose_hash_is_of_its_arrays(here):
  source = bank.load(saved("own.npz"))
  for part, name in ((source.train, "train"), (source.test, "test")):
    assert np.array_equal(part.x, GOOD[f"x_{name}"]) and np.array_equal(part.y, GOOD[f"y_{name}"])
    assert part.x.dtype == np.uint8 and part.y.dtype == np.int32
  assert source.classes.tolist() == [0, 1, 2, 3] and source.whole is None
  np.savez_compressed("again.npz", **GOOD)
  assert bank.load("./again.npz").hash == source.hash != bank.load(saved("other.npz", y_test=Y[39:59])).hash
  grey = bank.load(saved("grey.npz", x_train=X[:40, ..., 0], x_test=X[40:, ..., 0]))
  assert grey.train.x.shape == (40, 6, 5, 1)
  floats = bank.load(saved("vectors.npz", x_train=X[:40, 0, 0] / 2, x_test=X[40:, 0, 0] / 2))
  assert floats.train.x.dtype == np.float32 and floats.train.x.shape == (40, 3)


class Odd:
  """No number."""


WRONG = {
  "lacks y_test: it holds x_train": {"y_test": None},
  "lacks x_valid": {"y_valid": Y[:3]},
  "x [40,6,5,3] and y [40,1] must be [N, ...] and [N]": {"y_train": Y[:40, None]},
  "x [40] and y [40] must be": {"x_train": Y[:40].astype(float)},
  "x [] and y [40] must be": {"x_train": np.float32(1)},
  "x [39,6,5,3] and y [40] must be": {"x_train": X[:39]},
  "x is int64; pictures are uint8": {"x_train": X[:40].astype(int)},
  "x is <U1; pictures": {"x_train": np.full((40, 2), "a")},
  "x is complex128": {"x_test": X[40:] * 1j},
  "x holds numbers that are not finite": {"x_train": np.full((40, 3), np.nan), "x_test": np.ones((20, 3))},
  "y is float64": {"y_train": Y[:40] / 1},
  "y is bool": {"y_test": Y[40:] > 1},
  "y is <U21; labels": {"y_train": Y[:40].astype(str)},
  "not finite (or too large": {"x_train": np.full((40, 3), 1e300), "x_test": np.ones((20, 3))},
  "from -1 to 2; labels are whole numbers": {"y_train": Y[:40] - 1},
  "labels up to 4, but no row of 0;": {"y_train": Y[:40] + 1},
  "labels up to 6, but no row of 1, 3, 5;": {"y_train": Y[:40] * 2, "y_test": Y[40:] * 2},
  "y_test has the labels [4], which": {"y_test": Y[40:] + 1},
  "y_valid has the labels [9]": {"x_valid": X[:2], "y_valid": np.array([0, 9])},
  "examples of x_test are uint8 [6,6,3], but": {"x_test": DRAW.integers(0, 9, (20, 6, 6, 3)).astype(np.uint8)},
  "examples of x_test are float32 [6,5,3], but those of x_train are uint8": {"x_test": X[40:] / 255},
  "x_train [0,6,5,3] is empty": {"x_train": X[:0], "y_train": Y[:0]},
  "x_test [0,6,5,3] is empty": {"x_test": X[:0], "y_test": Y[:0]},
  "holds Python objects in x_train": {"x_train": np.array([Odd()] * 40, object)},
}


def refusal(source, *words, **keywords):
  with pytest.raises(ConfigError) as caught:
    bank.load(source, **keywords)
  text = str(caught.value)
  assert "\n" not in text and all(word in text.replace(", ", ",") for word in (w.replace(", ", ",") for w in words)), (
    text
  )


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_array_is_refused_in_a_line_that_names_the_file(here, words):
  refusal(saved("own.npz", **WRONG[words]), "own.npz", words)


def test_a_file_that_is_no_npz_is_refused(here):
  refusal("nowhere.npz", "config.stream.source=nowhere.npz was not found", str(here / "prepared"))
  (here / "text.npz").write_text("x_train")
  refusal("text.npz", "text.npz is no .npz file of np.savez, or damaged")
  (here / "empty.npz").write_bytes(b"")
  refusal("empty.npz", "empty.npz is no .npz")
  np.save("single.npy", X)
  (here / "single.npy").rename("single.npz")
  refusal("single.npz", "single.npz is a single array and no .npz")
  content = (here / saved("cut.npz")).read_bytes()
  (here / "cut.npz").write_bytes(content[:2000])
  refusal("cut.npz", "cut.npz is no .npz file of np.savez, or damaged")
  at = content.index(X[7].tobytes()[:20])
  (here / "bits.npz").write_bytes(content[:at] + b"\0" * 8 + content[at + 8 :])
  refusal("bits.npz", "bits.npz is damaged at x_train", "CRC")
  with zipfile.ZipFile("words.npz", "w") as file:
    file.writestr("x_train.txt", "words")
  refusal("words.npz", "lacks", "it holds x_train.txt")
  (here / "folder.npz").mkdir()
  refusal("folder.npz", "no folders with pictures")


def draw(path, mode="RGB", size=(5, 6), seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (size[1], size[0], 3)
  x = np.random.default_rng([seed, len(str(path.name)), *path.name.encode()]).integers(0, 256, shape).astype(np.uint8)
  Image.fromarray(x).convert(mode).save(path)
  return np.asarray(Image.fromarray(x).convert(mode))


def folder(root, splits=("train", "test"), classes=("cat", "dog"), count=3, **keywords):
  """{split/class/name: pixels} of pictures drawn there."""
  names = [f"{split}/{name}/{i}.png" for split in splits for name in classes for i in range(count)]
  return {name: draw(root / name, **keywords) for name in names}


def test_a_folder_of_pictures_by_class(here):
  pixels = folder(here / "pets", splits=("train", "test", "val"))
  pixels["train/cat/below/deep.PNG"] = draw(here / "pets/train/cat/below/deep.PNG")
  for odd in (".hidden/a.png", "train/.thumbs/a.png", "train/cat/notes.txt", "train/list.csv"):
    (here / "pets" / odd).parent.mkdir(exist_ok=True)
    (here / "pets" / odd).write_text("no picture")
  source = bank.load("pets")
  order = ["cat/0.png", "cat/1.png", "cat/2.png", "cat/below/deep.PNG", "dog/0.png", "dog/1.png", "dog/2.png"]
  assert np.array_equal(source.train.x, [pixels[f"train/{name}"] for name in order])
  assert source.train.y.tolist() == [0] * 4 + [1] * 3 and source.test.y.tolist() == [0] * 3 + [1] * 3
  own = [pixels[f"val/{name}"] for name in order if "deep" not in name]
  assert np.array_equal(source.whole.x[7:], own) and np.array_equal(source.whole.x[:7], source.train.x)
  again = bank.load(str(here / "pets"))  # from the cache
  assert np.array_equal(again.whole.x, source.whole.x) and again.hash == source.hash
  (here / "pets").rename(here / "moved")
  assert bank.load("./moved").hash == source.hash
  draw(here / "moved/train/dog/1.png", seed=1)
  assert bank.load("moved").hash != source.hash


def test_folders_without_test_rows_take_them_from_elsewhere(here):
  pixels = folder(here / "old", splits=("train", "val"))
  source = bank.load("old")
  assert np.array_equal(source.test.x[:3], [pixels[f"val/cat/{i}.png"] for i in range(3)]) and source.whole is None
  pixels = folder(here / "plain", splits=(".",), count=6)
  source = bank.load("plain")
  assert np.array_equal(source.test.x, [pixels["./cat/4.png"], pixels["./dog/4.png"]]) and len(source.train.y) == 10


def test_pictures_come_to_one_size_and_one_number_of_channels(here):
  folder(here / "mixed", classes=("cat",))
  folder(here / "mixed", classes=("dog",), mode="L", size=(9, 7))
  refusal("mixed", "0.png", "[6, 5, 3]", "[7, 9, 1]", "set config.stream.size=PIXELS")
  refusal("mixed", "[8, 8, 3]", "[8, 8, 1]", "set config.stream.channels=3", shape=Shape(8))
  for channels in (1, 3):
    found = bank.load("mixed", shape=Shape(8, channels))
    assert found.train.x.shape == (6, 8, 8, channels) and found.train.x.std() > 20
  padded = bank.load("mixed", shape=Shape(11, 1, "pad")).train.x[..., 0]
  assert (
    np.array_equal(padded[3, 2:9, 1:10], Image.open("mixed/train/dog/0.png"))
    and padded[3].sum() == padded[3, 2:9, 1:10].sum()
  )
  config = default()
  config.stream = {"name": "split", "source": "mixed", "tasks": 1, "size": 8, "channels": 1}
  spec, stream, *_ = build_stream(complete(config), (0,))
  assert spec.x_shape == (8, 8, 1) and stream.bank.x.shape == (6, 8, 8, 1)
  config.stream.source = "digits"
  config.stream.size = 4
  assert build_stream(complete(config), (0,))[0].x_shape == (4, 4, 1)
  with pytest.raises(ConfigError, match=r"size=4 .* examples of \[8, 8, 1\]: bring its pictures to that by data.join"):
    STREAMS["split"](bank.load("digits"), jax.random.key(0), size=4)
  joined = join.load("mixed+digits", None, 8, 1)
  assert joined.train.x.shape == (6 + 1438, 8, 8, 1) and joined.groups[1][1].tolist() == list(range(2, 12))
  folder(here / "clear", mode="RGBA")
  assert bank.load("clear").train.x.shape == (6, 6, 5, 3)


def test_a_link_that_leads_back_brings_no_picture_twice(here):
  """By it test rows would be training rows, too."""
  folder(here / "pets")
  (here / "pets/train/cat/all").symlink_to(here / "pets")
  for name in ("pets", "./pets"):
    refusal(name, "pets/train/cat/all is a link back to a folder that it lies in")
  (here / "pets/train/cat/all").unlink()
  assert len(bank.load("pets").train.y)


def test_a_folder_that_is_laid_out_otherwise_is_refused(here):
  folder(here / "a", splits=("train",))
  refusal("a", "has a folder train and no test", "a/test/CLASS")
  draw(here / "b/train/1.png"), draw(here / "b/test/1.png")
  refusal("./b", "b/train has pictures outside of a class's folder, 1.png")
  folder(here / "c")
  (here / "c/train/emu").mkdir()
  refusal("c", "c/train/emu has no picture (.png")
  folder(here / "d")
  draw(here / "d/test/emu/1.png")
  refusal("d", "d/test has the classes emu, of which", "d/train has no pictures")
  folder(here / "e")
  content = (here / "e/train/cat/1.png").read_bytes()
  (here / "e/train/cat/1.png").write_bytes(content[:60])
  refusal("e", "e/train/cat/1.png is no picture, or damaged")
  folder(here / "f")
  Image.fromarray(np.full((6, 5), 7000, np.uint16)).save(here / "f/train/cat/1.png")
  refusal("f", "f/train/cat/1.png is a picture of the mode I", "8 bits")
  folder(here / "g", splits=(".",))
  refusal("g", "cat has only 3", "g/train/CLASS")
  (here / "h").mkdir()
  refusal("./h", "h has no folders with pictures")
  refusal("~nobody/pictures", "config.stream.source=~nobody/pictures was not found")
  refusal("i" * 5000 + "/", "was not found")
  with pytest.raises(ConfigError, match="data set 'h' was not found"):
    bank.load("h")


def test_names_of_data_sets_are_no_paths(here):
  folder(here / "digits")
  assert bank.load("digits").train.x.shape == (1438, 8, 8, 1) and local.rooted("digits", bank.KNOWN) == "digits"
  saved("a+b.npz")
  assert local.parts("a+b.npz") == ["a+b.npz"] and local.parts("c.npz+digits") == ["c.npz", "digits"]
  assert local.rooted("a+b.npz") == f"{here}/a+b.npz" and local.rooted("c.npz+mnist") == "c.npz+mnist"
  saved("c.npz")
  assert local.rooted("c.npz?+mnist") == f"{here}/c.npz?+mnist" and local.short(f"{here}/c.npz+mnist") == "c+mnist"


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_every_stream_takes_it_and_its_own_validation_rows(here, name):
  """Beside those that are held out of training: of each task the rows of its classes."""
  labels = np.arange(120) % 10
  x = DRAW.integers(0, 256, (120, 8, 8, 1)).astype(np.uint8)
  saved("own.npz", x_train=x, y_train=labels, x_test=x, y_test=labels, x_valid=x[:40], y_valid=labels[:40])
  config = default()
  config.stream = {"name": name, "source": "own.npz+digits" if name == "datasets" else "own.npz"}
  small = {"examples_per_task": 10, "train_per_class": 3, "valid_per_class": 0, "valid_share": 0.0, "tasks": 2}
  config.stream.update({key: small[key] for key in small if key in cljax.declared.fields(STREAMS[name], 2)})
  spec, stream, *_ = build_stream(complete(config), (0,))
  own = np.arange(len(stream.bank.y) - 40, len(stream.bank.y))
  np.testing.assert_array_equal(stream.bank.y[own], labels[:40])
  for t in range(spec.T):
    held, trained = (rows.idx[t, : rows.count[t]] for rows in (stream.tasks.valid, stream.tasks.train))
    asked = stream.test_bank.y[stream.test.idx[t, : stream.test.count[t]]]
    assert held.tolist() == own[np.isin(labels[:40], asked)].tolist() and trained.max() < own[0]


def test_a_run_finds_its_file_again_and_takes_no_other(here, monkeypatch):
  saved("own.npz", x_valid=X[:8], y_valid=Y[:8])

  def config(source):
    it = default()
    it.update_from_flattened_dict({"num_seeds": 1, "method.epochs": 1})
    it.stream = {"name": "split", "source": source, "tasks": 2}
    it.net.hidden = (4,)
    return it

  result = cljax.train(config("own.npz"), here / "run", quiet=True).result
  assert result["data_hash"] == bank.load("own.npz").hash and result["stream"] == "own_split"
  assert result["config"]["stream"]["source"] == f"{here}/own.npz"
  (here / "elsewhere").mkdir()
  monkeypatch.chdir(here / "elsewhere")
  (here / "own.npz").rename("own.npz")
  with pytest.raises(ConfigError, match="own.npz was not found"):
    evaluate_again(here / "run", {}, data_dir=str(here / "nowhere"))
  told = completed(told_by(here / "run"))
  assert build_stream(told, (0,), data_dir=".")[3] == result["data_hash"]
  saved(here / "own.npz", y_train=Y[1:41])
  with pytest.raises(ConfigError, match="the data is not what the run was trained on"):
    evaluate_again(here / "run", {})


def test_processes_that_read_other_data_are_told(monkeypatch):
  from cljax import mesh

  mesh.check_same("alone")
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  same = [True]
  monkeypatch.setattr(
    mesh.multihost_utils, "process_allgather", lambda own: np.stack([own, own if same[0] else own[::-1]])
  )
  mesh.check_same("a")
  same[0] = False
  with pytest.raises(ConfigError, match=r"the processes \[1\] of 2 read other data"):
    mesh.check_same("a")


def test_a_disk_is_no_folder_of_pictures(tmp_path, monkeypatch):
  """It is not walked to its end, nor is a folder that holds itself."""
  monkeypatch.setattr(folders, "MOST_OTHERS", 20)
  (tmp_path / "a" / "b").mkdir(parents=True)
  (tmp_path / "a" / "b" / "again").symlink_to(tmp_path / "a")
  with pytest.raises(ConfigError, match="again is a link back to a folder that it lies in"):
    folders.files_of(tmp_path)
  (tmp_path / "a" / "b" / "again").unlink()
  for i in range(20):
    (tmp_path / "a" / "b" / f"{i}.txt").write_text("")
  with pytest.raises(ConfigError, match="hold over 20 files that are no pictures: a source is a folder of nothing but"):
    folders.files_of(tmp_path)
