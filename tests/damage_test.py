"""Damage is noticed wherever it is, and what is whole is never taken for damaged: checkpoints and cursors."""

import gc
import json
import logging
import os
import random
import resource
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cljax import files
from cljax.checkpoint import Checkpoints
from cljax.cursor import check, resume, to_cursor
from cljax.errors import ConfigError
from cljax.journal import Noted
from cljax.seals import told
from cljax.timeline import Position
from cljax.workdir import identity
from tests import subjects
from tests.results import flipped

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax, when it fails


@pytest.fixture(autouse=True, scope="module")
def found_here():
  """What orbax leaves behind when it fails is found here, and not in some later test."""
  yield
  gc.collect()


def tree_of(seed):
  return {"state": {"w": jnp.full((2, 30), seed, jnp.float32), "n": jnp.arange(3) + seed}, "reports": np.ones(2)}


def cursor_of(seed):
  return {"task": seed, "step": [seed, 3], "right": {"task": [[-1, seed]]}, "seconds": {"train": 0.1 + seed}}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A folder with two checkpoints."""
  folder = epath.Path(tmp_path_factory.mktemp("two")) / "checkpoints"
  checkpoints = Checkpoints(folder)
  for seed in (1, 2):
    checkpoints.save(tree_of(seed), cursor_of(seed))
  checkpoints.close()
  return folder


def restored(folder):
  """The seed of what is restored."""
  checkpoints = Checkpoints(folder, writes=False)
  try:
    found = checkpoints.restore(tree_of(0))
  finally:
    checkpoints.close()
  if found is None:
    return None
  seed = int(np.asarray(found[0]["state"]["w"])[0, 0])
  chex.assert_trees_all_equal(found[0], tree_of(seed))
  assert found[1] == cursor_of(seed)
  return seed


def test_no_bit_of_the_cursor_is_taken_for_another(two):
  """Every bit of its JSON, read as the next process reads it; some of them through all of orbax below."""
  path = two / "1" / "cursor" / "metadata"
  content = path.read_bytes()
  whole, taken = told(two, only_sealed=True), []
  assert {key: whole[key] for key in cursor_of(2)} == cursor_of(2)
  for bit in range(8 * len(content)):
    path.write_bytes(flipped(content, bit))
    found = told(two, only_sealed=False)
    if found["task"] != 1 and found != whole:
      taken.append(bit)
  path.write_bytes(content)
  assert not taken


@pytest.mark.parametrize("file", ["cursor/metadata", "arrays/_METADATA", "arrays/manifest.ocdbt", "largest"])
def test_flipped_bits_fall_back_or_do_not_matter(two, tmp_path, file, caplog):
  """The newest comes back as it was saved, or the one before, never anything else."""
  folder = epath.Path(shutil.copytree(two, tmp_path / "checkpoints"))
  newest = Path(folder / "1")
  path = newest / file
  if file == "largest":
    path = max((newest / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
  content, found = path.read_bytes(), random.Random(0)
  seen = set()
  for _ in range(12):
    path.write_bytes(flipped(content, found.randrange(8 * len(content))))
    seen.add(restored(folder))
  assert seen <= {1, 2} and (file != "cursor/metadata" or seen == {1})


@pytest.mark.parametrize("content", ["[]", "3", '{"metrics": [1]}', '{"commit_timestamp_nsecs": 1e9}'])
def test_what_orbax_notes_of_a_checkpoint_may_be_of_another_kind(two, tmp_path, content, caplog):
  """It would list no checkpoint at all, at every start."""
  folder = epath.Path(shutil.copytree(two, tmp_path / "checkpoints"))
  path = folder / "1" / "_CHECKPOINT_METADATA"
  path.write_text(content)
  with pytest.raises(ConfigError, match=f"{path} is damaged"):
    Checkpoints(folder, writes=False)
  Checkpoints(folder).close()
  assert "_CHECKPOINT_METADATA holds something else" in caplog.text
  assert restored(folder) == 1


def test_a_cursor_without_a_checksum_is_an_older_one(two, tmp_path):
  folder = epath.Path(shutil.copytree(two, tmp_path / "checkpoints"))
  path = folder / "1" / "cursor" / "metadata"
  cursor = json.loads(path.read_text())
  del cursor["schema"], cursor["seal"]
  path.write_text(json.dumps(cursor))
  assert restored(folder) == 2


@pytest.mark.parametrize("how", ["type", "shape", "name", "later version", "x64"])
def test_a_whole_checkpoint_of_another_state_is_refused_and_stays(two, tmp_path, how):
  folder = epath.Path(shutil.copytree(two, tmp_path / "checkpoints"))
  tree, says = tree_of(0), "is whole, but holds another state.*nothing was changed"
  if how == "type":
    tree["state"]["w"], says = (
      tree["state"]["w"].astype(jnp.bfloat16),
      says.replace(".*", r".*\['w'\]: float32 \[2, 30\] there, bfloat16.*"),
    )
  elif how == "shape":
    tree["reports"], says = (
      np.ones(3),
      says.replace(".*", r".*\['reports'\]: float64 \[2\] there, float64 \[3\] here.*"),
    )
  elif how == "name":
    tree["state"]["more"], says = jnp.ones(1), says.replace(".*", r".*\['more'\]: absent there, float32 \[1\] here.*")
  elif how == "later version":
    path = folder / "1" / "cursor" / "metadata"
    cursor = {**json.loads(path.read_text()), "schema": 99}
    del cursor["seal"]
    path.write_text(json.dumps({**cursor, "seal": files.digest(cursor)}))
    says = "a later version of cljax wrote the checkpoint"
  checkpoints = Checkpoints(folder)
  with jax.enable_x64(how == "x64"):
    tree = tree_of(0) if how == "x64" else tree
    with pytest.raises(ConfigError, match=says) as caught:
      checkpoints.restore(tree)
  checkpoints.close()
  assert "\n" not in str(caught.value)
  assert sorted(path.name for path in folder.iterdir()) == ["0", "1"] and restored(two) == 2
  assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_what_cannot_be_read_now_is_not_put_aside(two, tmp_path):
  """Too many open files say nothing about a checkpoint: one line that names it and a way out, and nothing is moved."""
  folder = epath.Path(shutil.copytree(two, tmp_path / "checkpoints"))
  checkpoints = Checkpoints(folder)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  free = os.dup(0)  # the lowest number that no open file has, whatever earlier tests left open above it
  os.close(free)
  resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
  try:
    with pytest.raises(
      OSError, match="could not be read.*Too many open files.*raise the limit of open files"
    ) as caught:
      checkpoints.restore(tree_of(0))
    with pytest.raises(OSError, match="could not be written.*raise the limit of open files") as saving:
      checkpoints.save(tree_of(0), cursor_of(0))
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  for each in (caught, saving):
    assert str(folder) in str(each.value) and "make room" not in str(each.value)
  assert {"0", "1"} <= {path.name for path in folder.iterdir()}
  checkpoints.close()
  assert restored(folder) == 2


def test_a_second_damaged_checkpoint_of_the_same_number_keeps_the_first(two, tmp_path, caplog):
  """And that none is left is said plainly before the run begins anew."""
  folder = epath.Path(shutil.copytree(two, tmp_path / "checkpoints"))
  for _ in range(2):
    for step in ("0", "1"):
      if (folder / step).exists():
        (folder / step / "cursor" / "metadata").write_text("{")
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore(tree_of(0)) is None
    for seed in (1, 2):
      checkpoints.save(tree_of(seed), cursor_of(seed))
    checkpoints.close()
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ["checkpoints", *(f"damaged_checkpoint_{n}{again}" for n in (0, 1) for again in ("", ".2"))]
  assert "none of the 2 checkpoints" in caplog.text and "begins anew" in caplog.text


# Whose cursor it is, and whether it can be one of the run.


def cursor_at(it, at=Position(1, 0, (0, 0))):
  return files.as_json(to_cursor(at, it.start(), Noted()) | identity({}, it.experiment.data_hash))


WRONG = {
  "task": 7,
  "phase": 3,
  "step": [1000, 0],
  "row": 9,
  "lines": -1,
  "right": {"task": [[0]]},
  "confusion": {},
  "slot_of": [[0, 1]],
  "seconds": {"train": 1},
  "looked": {"valid": {}},
}


@pytest.mark.parametrize("key", WRONG)
def test_a_cursor_that_no_run_can_have_is_refused(key):
  it = subjects.compiled("plain")
  check(cursor_at(it), it.start(), it.experiment)
  for change in (
    lambda cursor: cursor.update({key: WRONG[key]}),
    lambda cursor: cursor.update({key + "x": cursor.pop(key)}),
  ):
    cursor = cursor_at(it)
    change(cursor)
    with pytest.raises(ConfigError, match=key):
      check(cursor, it.start(), it.experiment)


def test_an_older_cursor_that_is_wrong_falls_back(tmp_path, caplog):
  """One without a checksum over it: what it says is checked inside the read."""
  it = subjects.compiled("plain")
  folder = epath.Path(tmp_path) / "checkpoints"
  checkpoints, carry = Checkpoints(folder), it.start()
  tree = {"state": carry.state, "reports": carry.reports}
  for at in (Position(1, 0, (0, 0)), Position(2, 0, (0, 0))):
    checkpoints.save(tree, cursor_at(it, at))
  path = folder / "1" / "cursor" / "metadata"
  cursor = json.loads(path.read_text())
  for name in ("schema", "seal", "metrics", "data_hash", "switches", "row"):
    del cursor[name]
  path.write_text(json.dumps(cursor))
  with pytest.raises(
    ConfigError, match="holds another state"
  ):  # arrays that are whole tell another state by themselves
    checkpoints.restore({**tree, "more": np.ones(1)}, lambda cursor: check(cursor, it.start(), it.experiment))
  assert (folder / "1").exists()
  with caplog.at_level(logging.WARNING):
    assert resume(it.start(), checkpoints, it.experiment)[1] == Position(1, 0, (0, 0))
  assert "is damaged" in caplog.text and "row" in caplog.text
  checkpoints.close()


def test_other_data_and_other_switches_are_refused(monkeypatch):
  it = subjects.compiled("plain")
  with pytest.raises(ConfigError, match="trained on other data.*nothing was changed"):
    check(cursor_at(it) | {"data_hash": "0" * 64}, it.start(), it.experiment)
  cursor = cursor_at(it)
  assert set(cursor["switches"]) >= {"jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable"}
  with (
    jax.enable_x64(True),
    pytest.raises(ConfigError, match="jax_enable_x64=False and not True.*JAX_ENABLE_X64=False"),
  ):
    check(cursor, it.start(), it.experiment)
  older = {name: value for name, value in cursor.items() if name not in ("data_hash", "switches", "metrics")}
  check(older, it.start(), it.experiment)
