"""Data sets copied by hand, in small files of the original format: what is read, and what is said where it is wrong."""

import numpy as np
import pytest
from PIL import Image

from cljax.data import bank, join, manual
from cljax.data.class_lists import LISTS, class_lists
from cljax.data.transfers import transfer
from cljax.errors import ConfigError
from tests.banks import data_folder, files_of_cache, refusal
from tests.class_lists_test import KEY, tables

NAMES = """Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer
Couch Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer Helmet
Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil
Postit_Notes Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon Table
Telephone ToothBrush Toys Trash_Can TV Webcam"""
CLASSES = NAMES.split()


@pytest.fixture
def root(tmp_path, monkeypatch):
  return data_folder(tmp_path, monkeypatch)


def write_stl(folder, rows=20):
  """The four files; the first pixels of picture i say where they are."""
  folder.mkdir(parents=True)
  random = np.random.default_rng(0)
  x = random.integers(0, 256, (rows, 96, 96, 3), np.uint8)
  for split in ("train", "test"):
    x.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
    (np.arange(rows, dtype=np.uint8) % 10 + 1).tofile(folder / f"{split}_y.bin")
  return x


@pytest.mark.parametrize("place", ["", "stl10_binary"])
def test_stl10(root, place):
  """Channels last, rows before columns, labels from 0; the second start reads the cache."""
  x = write_stl(root / "manual/stl10" / place)
  (root / "manual/stl10" / place / "unlabeled_X.bin").write_bytes(b"large")
  for _ in range(2):
    source = bank.load("stl10", str(root))
    np.testing.assert_array_equal(source.train.x, x)
    np.testing.assert_array_equal(source.test.y, np.arange(20) % 10)
    assert source.train.y.dtype == np.int32 and source.classes.tolist() == list(range(10))
  assert len(files_of_cache(root)) == 1


def test_a_damaged_stl10_is_named(root):
  folder = root / "manual/stl10"
  write_stl(folder)
  (folder / "test_X.bin").write_bytes(b"123")
  refusal("stl10", root, folder / "test_X.bin", "is damaged", "its 3 bytes are no pictures")
  write_stl(folder / "stl10_binary")
  (folder / "test_X.bin").unlink()
  (folder / "stl10_binary/train_y.bin").write_bytes(bytes(20))
  refusal("stl10", root, "stl10_binary/train_y.bin is damaged", "20 labels of 1 to 10")


def test_a_missing_data_set_says_how_to_lay_it_out(root):
  where = root / "manual"
  refusal("stl10", root, f"{where}/stl10 holds train_X.bin, train_y.bin, test_X.bin, test_y.bin", "launch.prepare")
  (where / "office_home/Product/Bed").mkdir(parents=True)
  text = refusal("office_home", root, f"{where}/office_home/Product/Alarm_Clock/00001.jpg", "Real World", "65 classes")
  assert "launch.prepare" not in text and "--data_dir=DIR or TFDS_DATA_DIR" in text


def write_office(folder, second="Real World", rows=10):
  """`rows` pictures of each class in both domains, each of one grey that tells domain, class and number."""
  for d, domain in enumerate(("Product", second)):
    for c, name in enumerate(CLASSES):
      (folder / domain / name).mkdir(parents=True)
      for i in range(rows if c < 64 else 7):
        size = (9, 6) if c else (300, 140)
        Image.new("L", size, 130 * d + c + i * 5).save(folder / domain / name / f"{i + 1:05d}.jpg", quality=95)


def test_office_home(root, monkeypatch):
  """Labels count the classes without regard to case; 3 of 10 pictures are tests, the rest as the shares say."""
  monkeypatch.setattr(manual, "OFFICE_SIDE", 16)
  write_office(root / "manual/office_home/OfficeHomeDataset_10072016")
  (root / "manual/office_home/OfficeHomeDataset_10072016/Art").mkdir()
  source = bank.load("office_home", str(root))
  assert source.train.x.shape == (2 * (64 * 7 + 5), 16, 16, 3) and source.test.x.shape == (2 * (64 * 3 + 2), 16, 16, 3)
  assert source.classes.tolist() == list(range(130))
  for data in (source.train, source.test):
    shade = data.x.mean(axis=(1, 2, 3)) - 130 * (data.y // 65) - data.y % 65
    np.testing.assert_allclose(shade, np.round(shade / 5) * 5, atol=1.5)
  test = np.round((source.test.x[source.test.y == 3].mean(axis=(1, 2, 3)) - 3) / 5)
  np.testing.assert_array_equal(test, [3, 6, 9])  # spread over the names
  lists = {"lists": "office_home", "train_share": 0.6, "valid_share": 0.1, "standardise": "none"}
  spec, stream = class_lists(source, KEY, **lists)
  assert (spec.T, spec.C) == (10, 13) and stream.tasks.train.warp is None
  np.testing.assert_array_equal(stream.tasks.label_unmap, LISTS["office_home"])
  few = np.array([64 in labels for labels in LISTS["office_home"]]) | (stream.tasks.label_unmap == 129).any(axis=1)
  np.testing.assert_array_equal(stream.tasks.train.count, np.where(few, 76, 78))
  np.testing.assert_array_equal(stream.tasks.valid.count, np.where(few, 12, 13))
  np.testing.assert_array_equal(stream.test.count, np.where(few, 38, 39))
  assert not set(np.concatenate(tables(stream.tasks.train))) & set(np.concatenate(tables(stream.tasks.valid)))
  with pytest.raises(ConfigError, match="8 training and 1 validation rows.*lower config.stream.train_share or"):
    class_lists(source, KEY, **{**lists, "train_share": 0.8})


def write_tiny(folder, classes=200, rows=3):
  """`rows` training files a class and one of validation, of one grey that tells the class, every other file grey."""
  names = [f"n{n:08d}" for n in range(1000, 1000 + classes)]
  lines = []
  (folder / "val/images").mkdir(parents=True)
  for c, name in enumerate(names):
    (folder / "train" / name / "images").mkdir(parents=True)
    for i in range(rows):
      mode, grey = (("L", c), ("RGB", (c, c, c)))[i % 2]
      Image.new(mode, (64, 64), grey).save(folder / "train" / name / "images" / f"{name}_{i}.JPEG", quality=95)
    own = (c * 7) % classes  # validation files are in no order of classes
    Image.new("RGB", (64, 64), (own, own, own)).save(folder / "val/images" / f"val_{c}.JPEG", quality=95)
    lines.append(f"val_{c}.JPEG\t{names[own]}\t0\t0\t62\t62")
  (folder / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
  return names


def test_tiny_imagenet(root):
  """Validation files are the test rows, by the classes of the list beside them; joined with others they are 32 wide."""
  folder = root / "manual/tiny_imagenet/tiny-imagenet-200"
  write_tiny(folder)
  source = bank.load("tiny_imagenet", str(root))
  assert source.train.x.shape == (600, 64, 64, 3) and source.test.x.shape == (200, 64, 64, 3)
  for data in (source.train, source.test):
    np.testing.assert_allclose(data.x.mean(axis=(1, 2, 3)), data.y, atol=1.5)
    assert np.unique(data.y).tolist() == list(range(200)) and data.y.dtype == np.int32
  both = join.load("digits+tiny_imagenet", str(root), 32, 3)
  assert both.train.x.shape[1:] == (32, 32, 3) and both.classes.tolist() == list(range(210))
  spec, stream = transfer(both, KEY, old=(0, 1, 2, 3, 4), new=tuple(range(10, 210)), new_classes=5)
  assert (spec.T, spec.C) == (2, 5) and stream.tasks.train.count.tolist()[1] == 15


def test_a_damaged_tiny_imagenet_is_named(root):
  folder = root / "manual/tiny_imagenet"
  refusal(
    "tiny_imagenet", root, f"{folder}/train/n01443537/images/n01443537_0.JPEG", f"{folder}/val/val_annotations.txt"
  )
  names = write_tiny(folder, rows=1)
  (folder / "val/val_annotations.txt").write_text(f"val_0.JPEG\t{names[0]}\t0\n")
  refusal("tiny_imagenet", root, "val_annotations.txt is damaged (it names no class for val_1.JPEG, val_10.JPEG")
  (folder / "train" / names[3]).rename(folder / "elsewhere")
  refusal("tiny_imagenet", root, f"{folder}/train has pictures of 199 classes where there are 200")


def test_both_names_of_the_second_domain_and_what_is_damaged(root, monkeypatch):
  monkeypatch.setattr(manual, "OFFICE_SIDE", 4)
  folder = root / "manual/office_home"
  write_office(folder, "RealWorld", 2)
  assert manual.find("office_home", root) == (folder, manual.office_files(folder))
  (folder / "RealWorld/TV/00001.jpg").write_bytes(b"no picture")
  refusal("office_home", root, "RealWorld/TV/00001.jpg is damaged", "copy")
  (folder / "RealWorld/TV").rename(folder / "RealWorld/Television")
  refusal("office_home", root, f"only one of {folder}/Product and {folder}/RealWorld has pictures of TV, Telev")
  (folder / "RealWorld/Toys").rename(folder / "Toys")
  refusal("office_home", root, "RealWorld has pictures of 64 classes where there are 65")
