"""Checkpoints: whole or not there, what is damaged is never taken for whole, and going on gives the same bits."""

import functools
import gc
import json
import logging
import os
import resource
import shutil
from pathlib import Path

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from cljax.checkpoint import Checkpoints, by_path
from cljax.drive import Stopped
from cljax.files import checksum
from tests import subjects, toys
from tests.subjects import Subject
from tests.tiers import at_release

LARGE = 300_000  # numbers; far above the limit of a file in `test_a_full_disk`

# What orbax and tensorstore leave behind when they fail.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@flax.struct.dataclass
class State:
  weights: jax.Array
  layers: dict
  nothing: jax.Array


def tree_of(seed, size=500):
  random = np.random.default_rng(seed)
  state = State(
    jnp.asarray(random.normal(size=(2, size)), jnp.float32),
    {
      "bits": jnp.asarray(random.integers(0, 2**32, 5000), jnp.uint32),
      "mask": jnp.asarray(random.integers(0, 2, (2, 3)), bool),
      "count": jnp.array([seed, 7], jnp.int32),
    },
    jnp.zeros((2, 0, 5)),
  )
  return {"state": state, "reports": {"seen": np.full((2, 3), seed, np.int32)}}


def cursor_of(seed):
  return {"task": seed, "step": [seed, 3], "right": {"task": [[-1, seed]]}, "seconds": {"train": 0.1 + seed}}


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / "checkpoints"


@pytest.fixture
def opened(folder):
  """Opens the folder anew, as the next process would; all are closed at the end."""
  managers = []

  def open_again():
    managers.append(Checkpoints(folder))
    return managers[-1]

  yield open_again
  for checkpoints in managers:
    checkpoints.close()
  gc.collect()  # what failed inside is found here, not in some later test


def files_of(folder, step):
  return sorted(path for path in Path(folder, str(step)).rglob("*") if path.is_file())


def steps_in(folder):
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def truncate(folder, step):
  """Half of the largest file is gone."""
  path = max(files_of(folder, step), key=lambda path: path.stat().st_size)
  os.truncate(path, path.stat().st_size // 2)


def flip(folder, step, array):
  """Other bits in the middle of an array, in place: random bits cannot be packed, so the file holds them raw."""
  needle = np.asarray(array).tobytes()[400:432]
  for path in files_of(folder, step):
    data = path.read_bytes()
    if needle in data:
      where = data.index(needle)
      path.write_bytes(data[:where] + bytes(255 - byte for byte in needle[:8]) + data[where + 8 :])
      return
  raise AssertionError("the array was not found in any file")


def expect(found, seed, size=500):
  tree, cursor = found
  chex.assert_trees_all_equal(tree, tree_of(seed, size))
  chex.assert_trees_all_equal_shapes_and_dtypes(tree, tree_of(seed, size))
  assert cursor == cursor_of(seed)


def test_round_trip(opened):
  """Every leaf with its bits, types and structure, leaves without a number too; the cursor as it was."""
  opened().save(tree_of(3), cursor_of(3))
  expect(opened().restore(tree_of(0)), 3)


def test_an_empty_folder_has_nothing(opened):
  assert opened().restore(tree_of(0)) is None


def test_the_two_newest_are_kept(opened, folder):
  checkpoints = opened()
  for seed in range(4):
    checkpoints.save(tree_of(seed), cursor_of(seed))
  assert steps_in(folder) == [2, 3]
  expect(opened().restore(tree_of(0)), 3)


@pytest.mark.parametrize("how", ["truncated", "flipped", "no cursor", "half removed"])
def test_a_damaged_checkpoint_falls_back(opened, folder, caplog, how):
  """The one before is taken, with a warning that names the folder; the next save goes on from there."""
  checkpoints = opened()
  for seed in (1, 2):
    checkpoints.save(tree_of(seed), cursor_of(seed))
  if how == "truncated":
    truncate(folder, 1)
  elif how == "flipped":
    flip(folder, 1, tree_of(2)["state"].layers["bits"])
  elif how == "no cursor":
    (folder / "1" / "cursor").rmtree()
  else:
    for path in files_of(folder, 1)[::2]:
      path.unlink()
  again = opened()
  with caplog.at_level(logging.WARNING):
    expect(again.restore(tree_of(0)), 1)
  assert "is damaged" in caplog.text and str(folder / "1") in caplog.text
  assert steps_in(folder) == [0]
  assert (folder.parent / "damaged_checkpoint_1").is_dir()  # put aside: only the owner throws it away
  again.save(tree_of(5), cursor_of(5))
  expect(opened().restore(tree_of(0)), 5)


def test_orbax_itself_takes_flipped_bits(opened, folder):
  """Why there is a checksum; where this fails, orbax has learnt to notice."""
  checkpoints = opened()
  checkpoints.save(tree_of(1), cursor_of(1))
  flip(folder, 0, tree_of(1)["state"].layers["bits"])
  args = ocp.args.Composite(arrays=ocp.args.StandardRestore(by_path(tree_of(0))))
  arrays = opened().manager.restore(0, args=args)["arrays"]
  assert checksum(arrays) != checksum(by_path(tree_of(1)))


def test_all_damaged_is_none(opened, folder, caplog):
  checkpoints = opened()
  for seed in (1, 2):
    checkpoints.save(tree_of(seed), cursor_of(seed))
  for step in (0, 1):
    truncate(folder, step)
  again = opened()
  assert again.restore(tree_of(0)) is None
  assert caplog.text.count("is damaged") == 2
  again.save(tree_of(4), cursor_of(4))
  expect(opened().restore(tree_of(0)), 4)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED\n write")])
def test_a_save_that_fails(opened, folder, monkeypatch, error):
  """One readable OSError whatever was raised inside; what was saved before stays readable."""
  checkpoints = opened()
  checkpoints.save(tree_of(1), cursor_of(1))

  def full(*args, **kwargs):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.manager, "save", full)
    with pytest.raises(OSError, match="could not be written.*stays readable.*same command") as raised:
      checkpoints.save(tree_of(2), cursor_of(2))
  assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
  assert str(error).split()[0] in str(raised.value)
  expect(opened().restore(tree_of(0)), 1)
  checkpoints.save(tree_of(3), cursor_of(3))
  expect(opened().restore(tree_of(0)), 3)


def test_a_full_disk(opened, folder):
  """A file that cannot grow in the middle of a save: nothing half-written is ever restored."""
  checkpoints = opened()
  checkpoints.save(tree_of(1, LARGE), cursor_of(1))
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
  try:
    with pytest.raises(OSError, match="could not be written"):
      checkpoints.save(tree_of(2, LARGE), cursor_of(2))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  expect(opened().restore(tree_of(0, LARGE)), 1, LARGE)
  again = opened()
  again.save(tree_of(3, LARGE), cursor_of(3))
  expect(opened().restore(tree_of(0, LARGE)), 3, LARGE)


def test_saving_leaves_the_state_as_it_is(opened):
  """The saved arrays go on, and giving them away afterwards does not reach what was saved."""
  checkpoints, tree = opened(), tree_of(1)
  checkpoints.save(tree, cursor_of(1))
  chex.assert_trees_all_equal(tree, tree_of(1))
  grow = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state.replace(layers={})), donate_argnums=0)
  jax.block_until_ready(grow(tree["state"].replace(layers={})))
  expect(opened().restore(tree_of(0)), 1)


def test_a_restored_tree_lies_where_the_given_one_does(opened):
  opened().save(tree_of(1), cursor_of(1))
  like = tree_of(0)
  tree, _ = opened().restore(like)
  for found, wanted in zip(jax.tree.leaves(tree["state"]), jax.tree.leaves(like["state"]), strict=True):
    assert isinstance(found, jax.Array) and found.sharding == wanted.sharding
    assert found.weak_type == wanted.weak_type


def test_checksum_sees_everything():
  """A bit, a type, a shape and a name each change it; the order of a dict does not."""
  base = {"a": np.zeros(4, np.float32), "b": np.arange(3)}
  same = {"b": np.arange(3), "a": jnp.zeros(4)}
  others = [
    {**base, "a": np.array([0, 0, -0.0, 0], np.float32)},
    {**base, "a": np.zeros(4, np.int32)},
    {**base, "a": np.zeros((2, 2), np.float32)},
    {"c": base["a"], "b": base["b"]},
  ]
  assert checksum(base) == checksum(same)
  assert len({checksum(arrays) for arrays in [base, *others]}) == 5


def test_leaves_without_a_number_are_left_out():
  assert list(by_path({"a": np.zeros((2, 0)), "b": np.float32(1), "c": [np.ones(1)]})) == ["['b']", "['c'][0]"]


# Going on from a checkpoint.


@functools.cache
def resumed(name):
  """The subjects of these tests: ticks, two phases, hidden boundaries, leaves without a number."""
  if name == "hidden":
    return subjects.compiled_hidden()
  if name == "columns":
    return subjects.compiled_columns()
  spec, data = toys.stream()
  if name == "routing":  # programs do not know how many epochs there are
    method = subjects.method_of("routing", spec, epochs=3)
    return Subject(toys.experiment(method, spec, data, chunk=7), subjects.compiled("routing", 7), ())
  it = toys.experiment(toys.early_stop(spec), spec, data, chunk=5, checkpoint_every_chunks=2)
  return Subject(it, subjects.compiled_stopping(5), ())


def metrics(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  """name -> (carry, metrics) of a run in one go."""

  @functools.cache
  def run(name):
    folder = epath.Path(tmp_path_factory.mktemp(name))
    return resumed(name).session(folder), metrics(folder)

  return run


def assert_whole(folder, carry, expected):
  """State, matrix, confusion, slots, reports and metrics as in a run in one go; only times may differ."""
  other, rows = expected
  subjects.assert_same(carry, other)
  assert carry.row == other.row
  np.testing.assert_array_equal(carry.slot_of, other.slot_of)
  for name, confusion in other.confusion.items():
    np.testing.assert_array_equal(carry.confusion[name], confusion)
  assert metrics(folder) == rows


@pytest.mark.parametrize("name", ["stopping", *at_release("hidden", "routing", "columns")])
def test_stopping_at_every_chance(name, tmp_path, uninterrupted):
  """Each session goes on from the last one's checkpoint and is stopped at the first chance, until the run is done."""
  folder, at, carry = epath.Path(tmp_path), [], None
  chances = sum(unit.kind == "save" for unit in resumed(name).units())
  for _ in range(chances + 1):
    try:
      carry = resumed(name).session(folder, stop_asked=lambda: True)
    except Stopped:
      newest = max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
      cursor = json.loads((folder / "checkpoints" / str(newest) / "cursor" / "metadata").read_text())
      at.append((cursor["task"], cursor["phase"], tuple(cursor["step"]), cursor["row"]))
  assert len(set(at)) == len(at) == chances and carry is not None
  assert_whole(folder, carry, uninterrupted(name))


@pytest.mark.parametrize("chance", [4, *at_release(1, 9)])
def test_stopping_once(chance, tmp_path, uninterrupted):
  folder, asked = epath.Path(tmp_path), iter(range(1, 1000))
  with pytest.raises(Stopped):
    resumed("stopping").session(folder, stop_asked=lambda: next(asked) == chance)
  assert len(metrics(folder)) < len(uninterrupted("stopping")[1])
  assert_whole(folder, resumed("stopping").session(folder), uninterrupted("stopping"))


def interrupted(folder, chance=9):
  """A run that dies at a chance to save, without saving: what it wrote after its last due save is not counted."""
  asked = iter(range(1, 1000))

  def die():
    if next(asked) == chance:
      raise KeyboardInterrupt
    return False

  with pytest.raises(KeyboardInterrupt):
    resumed("stopping").session(folder, stop_asked=die)
  return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def test_dying_between_two_saves(tmp_path, uninterrupted):
  folder = epath.Path(tmp_path)
  assert interrupted(folder) == [2, 3]
  lines = json.loads((folder / "checkpoints" / "3" / "cursor" / "metadata").read_text())["lines"]
  assert lines < len(metrics(folder))
  assert_whole(folder, resumed("stopping").session(folder), uninterrupted("stopping"))


@pytest.mark.parametrize("how", ["truncated", "other bits", "all truncated"])
def test_damaged_checkpoints_end_with_the_same_result(how, tmp_path, uninterrupted, caplog):
  """Falls back to the one before, or begins anew; arrays of another moment, which orbax takes, are damage too."""
  folder = epath.Path(tmp_path)
  older, newer = interrupted(folder)
  where = Path(folder, "checkpoints")
  if how == "other bits":
    shutil.rmtree(where / str(newer) / "arrays")
    shutil.copytree(where / str(older) / "arrays", where / str(newer) / "arrays")
  else:
    for step in (older, newer) if how == "all truncated" else (newer,):
      for path in (where / str(step) / "arrays").rglob("*"):
        if path.is_file():
          os.truncate(path, path.stat().st_size // 2)
  carry = resumed("stopping").session(folder)
  gc.collect()  # what orbax leaves behind when it fails
  assert caplog.text.count("is damaged") == (2 if how == "all truncated" else 1)
  assert_whole(folder, carry, uninterrupted("stopping"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED")])
def test_a_disk_that_fills_up(error, tmp_path, uninterrupted):
  """The run ends with an OSError; made room, the same call goes on from what was saved before."""
  folder = epath.Path(tmp_path)

  def fill(checkpoints):
    save, calls = checkpoints.manager.save, iter(range(1, 1000))

    def fail(*args, **kwargs):
      if next(calls) == 3:
        raise error
      return save(*args, **kwargs)

    checkpoints.manager.save = fail

  with pytest.raises(OSError, match="could not be written.*stays readable"):
    resumed("stopping").session(folder, on_open=fill)
  assert [path.name for path in sorted((folder / "checkpoints").iterdir()) if path.name.isdigit()] == ["0", "1"]
  assert_whole(folder, resumed("stopping").session(folder), uninterrupted("stopping"))
