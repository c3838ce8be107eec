"""Whose folder it is: one process, one config, one set of JAX's switches; and what dead processes left."""

import json
import os
import subprocess
import sys
import time

import jax
import pytest
from etils import epath

from cljax import disk, files, lock, workdir
from cljax.checkpoint import Checkpoints
from cljax.config import completed
from cljax.errors import Busy, ConfigError
from cljax.files import as_json
from cljax.lock import locked
from cljax.meta.outer import Place
from cljax.meta.result import Progress, progress_of, result_of
from cljax.meta.settings import settings_of, with_defaults
from cljax.meta.train import train as meta_train
from cljax.run import train
from cljax.workdir import claim, environment, note_environment
from tests import toys

CONFIG = {"seed": 0, "net": {"name": "mlp", "hidden": (16, 16)}, "method": {"name": "er", "capacity": 5}}


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path) / "run"


def save(folder, **cursor):
  checkpoints = Checkpoints(folder / "checkpoints")
  checkpoints.save({"w": jax.numpy.ones(2)}, cursor)
  checkpoints.close()


# The lock.

HOLDER = """
import sys, time
from etils import epath
from cljax.lock import locked
with locked(epath.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


@pytest.fixture
def held(folder):
  """Another process that has the folder."""
  process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_the_second_process_is_told_who_has_the_folder(folder, held):
  """In one line, by host and number; killed, it leaves no lock."""
  says = rf"{folder} is in use by process {held.pid} on host {lock.me()['host']}"
  with pytest.raises(Busy, match=says) as caught, locked(folder):
    pass
  assert "\n" not in str(caught.value) and isinstance(caught.value, OSError)
  held.kill()
  held.wait()
  with locked(folder), pytest.raises(Busy, match=f"process {os.getpid()} "), locked(folder):
    pass
  with locked(folder):
    pass


@pytest.mark.parametrize("how", ["no flock", "another system"])
def test_without_flock_the_lock_file_tells_of_processes_of_this_host(folder, held, monkeypatch, caplog, how):
  def unknown(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(lock, "SETTLE", 0.02)
  if how == "no flock":
    monkeypatch.setattr(lock.fcntl, "flock", unknown)
  else:
    monkeypatch.setattr(lock, "fcntl", None)
  with pytest.raises(Busy, match=f"process {held.pid} "), locked(folder):
    pass
  held.kill()
  held.wait()
  with locked(folder):
    assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
  (folder / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 7, "born": "1"}))
  with locked(folder):
    assert "process 7 on host elsewhere was the last to use it" in caplog.text
  for text in ("", "[]", "\x00", '{"host": 3}', '{"pid": "x"}'):
    (folder / ".lock").write_text(text)
    with locked(folder):
      pass


def test_training_and_meta_training_take_the_lock(folder):
  """Before they write anything, and look at a finished run without it."""
  with locked(folder):
    with pytest.raises(Busy, match="is in use by process"):
      train(toys.config_of({"name": "finetune"}), folder, quiet=True)
    with pytest.raises(Busy, match="is in use by process"):
      meta_train({}, folder, quiet=True)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    settings, whole = settings_of({}), with_defaults({})
    trained = {0: (Progress(4, 12, True, 0.5, ((4, 0.1, 0.2, 3, 1),)), dict.fromkeys(Place._fields, 0.0))}
    files.write_sealed(folder / "meta.json", result_of(whole, settings, trained, "hash", {}))
    assert meta_train({}, folder, quiet=True)["seeds"] == [0]


def test_a_cursor_that_no_meta_training_can_have_is_refused():
  cursor = as_json(Progress(4, 12, False, 0.5, ((4, 0.1, 0.2, 3, 1),))._asdict()) | {"lines": 3}
  cursor |= workdir.identity({}, "hash")
  assert progress_of(cursor, "hash").segment == 4
  for key, wrong in {"segment": -1, "inner_steps": "x", "curve": [[1]], "lines": None, "seconds": True}.items():
    with pytest.raises(ConfigError, match=key):
      progress_of({**cursor, key: wrong}, "hash")
    with pytest.raises(ConfigError, match=key):
      progress_of({name: value for name, value in cursor.items() if name != key}, "hash")
  with pytest.raises(ConfigError, match="other data"):
    progress_of(cursor, "other")


# The config.


def today(there):
  """Completes a config; it knows no other keys than these."""
  known = {"seed": 0, "net": {"name": "mlp", "hidden": [16, 16]}, "method": {"name": "er", "capacity": 5, "later": 2}}
  if set(there) - set(known) or any(set(there[key]) - set(known[key]) for key in ("net", "method") if key in there):
    raise ConfigError("a field is not known")
  return {
    key: {**known[key], **value} if isinstance(value, dict) else value for key, value in {**known, **there}.items()
  }


NOW = today(CONFIG)


def test_a_new_field_at_its_default_is_no_difference_and_one_that_is_gone_is_named(folder):
  claim(folder, CONFIG, {})
  claim(folder, NOW, {}, today)
  with pytest.raises(ConfigError, match=r"another config:\n  config.method.later: 2 there, 3 here\nUse another"):
    claim(folder, {**NOW, "method": {**NOW["method"], "later": 3}}, {}, today)
  files.write_json(folder / "environment.json", {"git_commit": "abc123"})
  files.write_json(folder / "config.json", {**CONFIG, "method": {**CONFIG["method"], "old": 1}, "first": {"a": 1}})
  with pytest.raises(ConfigError) as caught:
    claim(folder, NOW, {}, today)
  told = str(caught.value).split("\n")[1:-1]
  advice = "a key that this version of cljax no longer has: go on with the version that began the run, commit abc123"
  assert told == [f"  config.first.a: 1 there, {advice}", f"  config.method.old: 1 there, {advice}"]
  config = toys.config_of({"name": "finetune"}).to_dict()
  there = {**config, "method": {**config["method"], "gone": 1}}
  del there["looks"], there["method"]["epochs"]
  found = workdir.changes(there, config, lambda there: completed(there).to_dict(), "")
  assert found == [f"config.method.gone: 1 there, {advice.removesuffix(', commit abc123')}"]
  files.write_json(folder / "config.json", {**CONFIG, "method": {"name": "other", "own": 1}})
  with pytest.raises(
    ConfigError, match=r"config.method.name: 'other' there, 'er' here\n  config.method.own: 1 there, '\(absent"
  ):
    claim(folder, NOW, {}, today)


def test_without_config_json_the_checkpoints_tell_whose_the_folder_is(folder):
  """Nothing is written where they tell of another run."""
  save(folder, config=CONFIG)
  with pytest.raises(ConfigError, match=r"as told by its checkpoints:\n  config.seed: 0 there, 1 here"):
    claim(folder, {**NOW, "seed": 1}, {}, today)
  assert [path.name for path in folder.iterdir()] == ["checkpoints"]
  claim(folder, NOW, {}, today)
  assert json.loads((folder / "config.json").read_text()) == files.as_json(NOW)
  files.write_json(folder / "config.json", {**NOW, "seed": 3})
  with pytest.raises(ConfigError, match=r"config.json is damaged.*\n  config.seed: 3 there, 0 here\nDelete it"):
    claim(folder, NOW, {}, today)
  (folder / "config.json").unlink()
  claim(folder, NOW, {}, today)
  save(folder, config={**CONFIG, "seed": 2})  # a copy of another run's
  with pytest.raises(ConfigError, match="config.seed: 2 there, 0 here"):
    claim(folder, NOW, {}, today)


def test_a_result_alone_tells_it_too(folder):
  folder.mkdir()
  files.write_sealed(folder / "result.json", {"config": CONFIG})
  claim(folder, NOW, {}, today)
  (folder / "config.json").unlink()
  with pytest.raises(ConfigError, match=r"as told by result.json:\n  config.seed: 0 there, 1 here"):
    claim(folder, {**NOW, "seed": 1}, {}, today)


KINDS = ["[]", "3", '"word"', "null", "{", "", "\x00", "[" * 100_000, '{"net": 3}', '{"net": {"name": []}, "seed": {}}']


@pytest.mark.parametrize("text", KINDS)
def test_a_config_of_another_kind_is_one_error_that_names_it(folder, text):
  folder.mkdir()
  (folder / "config.json").write_text(text)
  with pytest.raises(ConfigError, match=f"{folder}"):
    claim(folder, NOW, {}, today)


# The environment.


def test_other_switches_are_refused_once_there_is_a_checkpoint(folder, monkeypatch):
  """They stand in environment.json, which then stays as it was."""
  folder.mkdir()
  note_environment(folder, environment())
  before = (folder / "environment.json").read_text()
  assert json.loads(before)["switches"]["jax_enable_x64"] is False
  with jax.enable_x64(True):
    note_environment(folder, environment())  # nothing has begun
  (folder / "environment.json").write_text(before)
  save(folder, config=CONFIG)
  note_environment(folder, environment())
  before = (folder / "environment.json").read_text()
  with jax.threefry_partitionable(False), pytest.raises(ConfigError, match="JAX_THREEFRY_PARTITIONABLE=True"):
    note_environment(folder, environment())
  assert (folder / "environment.json").read_text() == before
  (folder / "environment.json").write_text("[]")
  with pytest.raises(ConfigError, match=r"environment\.json is damaged.*delete it"):
    note_environment(folder, environment())


# What dead processes left.


def test_leftovers_of_dead_processes_go_and_those_of_the_living_stay(folder, held):
  folder.mkdir(exist_ok=True)
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  dead = [f".report.npz.{gone.pid}", f".space.{gone.pid}", f".result.json.{os.getpid()}"]
  kept = [f".report.npz.{held.pid}", "report.npz.1", ".hidden", "metrics.jsonl", ".x.123456789012345678901"]
  for name in dead + kept:
    (folder / name).write_text("x")
  files.tidy([folder, folder / "nowhere"])
  assert sorted(path.name for path in folder.iterdir()) == sorted([*kept, ".lock"])
  (folder / dead[0]).write_text("x")
  files.tidy([folder], age=100)
  assert (folder / dead[0]).exists()
  os.utime(folder / dead[0], (time.time() - 200,) * 2)
  files.tidy([folder], age=100)
  assert not (folder / dead[0]).exists()


def test_the_errors_of_a_disk_name_the_file_and_the_way_out():
  says = {
    28: "make room",
    122: "make room",
    24: "open files",
    13: "may read and write",
    2: "still there",
    20: "name another folder",
    21: "name another file",
    5: "mend that",
  }
  for code, way in says.items():
    for error in (OSError(code, "x"), ValueError(f"y [OS error {code}: z]"), ValueError(os.strerror(code))):
      assert way in disk.remedy(error) and ("make room" in disk.remedy(error)) == (way == "make room")
  with (
    pytest.raises(OSError, match=r"No space.*make room.*'/a/metrics.jsonl'"),
    disk.naming(epath.Path("/a/metrics.jsonl")),
  ):
    raise OSError(28, "No space left on device")
  assert workdir.begun_by(epath.Path("/nowhere")) == ""
