"""A table over several processes: no cell twice, all of them done, also those of a machine that dies."""

import json
import threading
import time
from types import SimpleNamespace

import pytest
from etils import epath

from cljax import lock
from cljax.drive import Stopped
from cljax.errors import Busy, ConfigError
from launch import hosts, shards
from launch.shards import Shard, share
from tests.remote_test import bucket  # noqa: F401 - a fixture
from tests.shell import begin, shell

OTHER = {"host": "elsewhere", "pid": 7, "born": "1", "beat": 0}


@pytest.fixture
def quick(monkeypatch):
  """Clocks of a lock that are a hundred times as fast."""
  for name, seconds in {"BEAT": 0.05, "SILENT": 0.5, "LOOK": 0.02, "SETTLE": 0.05}.items():
    monkeypatch.setattr(lock, name, seconds)
  monkeypatch.setattr(shards, "LOOK", 0.005)


def named(folder, **changes):
  """The lock file of another host's process."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "new").write_text(json.dumps({**OTHER, **changes}))
  (folder / "new").replace(folder / ".lock")  # so that nobody reads a part


def folders_in(path, count):
  return [epath.Path(path) / f"cell_{i}" for i in range(count)]


class Worker(threading.Thread):
  """A machine: trains a cell by writing its result, as a run does."""

  def __init__(self, folders, shard, trained, seconds=0.01):
    super().__init__()
    self.folders, self.shard, self.trained, self.seconds = folders, shard, trained, seconds

  def train(self, i, name):
    folder = self.folders[i]
    assert folder.name == name
    with lock.locked(folder) as asked:
      if not (folder / "result.json").exists():
        self.trained.append((i, self.shard.place))
        time.sleep(self.seconds)
        asked()
        (folder / "result.json").write_text("{}")

  def run(self):
    names = [folder.name for folder in self.folders]
    share(self.folders[0].parent, names, self.shard, self.train, lambda: False)


def test_every_shard_begins_with_its_own_and_ends_with_all():
  for n in (1, 2, 3, 8):
    orders = [Shard(k, n).order(11) for k in range(n)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert sorted(cell for k, order in enumerate(orders) for cell in order[: len(range(k, 11, n))]) == list(range(11))


def test_two_share_a_table_and_none_is_trained_twice(tmp_path, quick):
  """One is slow: the other does its cells, too."""
  folders, trained = folders_in(tmp_path, 12), []
  workers = [Worker(folders, Shard(0, 2), trained, 0.3), Worker(folders, Shard(1, 2), trained)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  assert sorted(i for i, _ in trained) == list(range(12)) and {k for _, k in trained} == {0, 1}
  assert sum(k == 0 for _, k in trained) < 6  # even cells that were left


def test_a_cell_of_a_dead_machine_is_taken_over_and_one_of_a_living_is_not(tmp_path, quick):
  folders, trained = folders_in(tmp_path, 3), []
  named(folders[0])
  named(folders[1])
  worker = Worker(folders, Shard(0, 1), trained)
  worker.start()
  began = time.monotonic()
  for beat in range(40):
    named(folders[1], beat=beat)
    time.sleep(0.02)
  (folders[1] / "result.json").write_text("{}")
  worker.join()
  assert [i for i, _ in trained] == [2, 0] and time.monotonic() - began > 0.5  # both wait for a sign, once


def test_who_waits_can_be_stopped(tmp_path, quick):
  folders = folders_in(tmp_path, 1)
  named(folders[0])
  with pytest.raises(Stopped):
    share(folders[0].parent, [folders[0].name], Shard(0, 1), lambda *_: None, lambda: True)


def test_a_name_of_another_host_is_watched(tmp_path, quick, caplog):
  """A beat that grows is of a process that lives; one that stands still, is old, or is none is not."""
  folder = epath.Path(tmp_path) / "run"
  named(folder)
  growing = threading.Timer(0.1, named, [folder], {"beat": 1})
  growing.start()
  with pytest.raises(Busy, match="process 7 on host elsewhere"), lock.locked(folder):
    pass
  growing.join()
  began = time.monotonic()
  with lock.locked(folder):
    assert time.monotonic() - began > 0.3 and "is taken over" in caplog.text
    assert lock.owner_of(folder / ".lock")["host"] == lock.me()["host"]
  assert (folder / ".lock").read_text() == ""  # given back
  began = time.monotonic()
  for changes in ({"at": time.time() - 4000}, {"beat": None}):
    named(folder, **changes)
    if changes.get("beat", 0) is None:
      (folder / ".lock").write_text(json.dumps({name: OTHER[name] for name in ("host", "pid", "born")}))
    with lock.locked(folder):
      pass
  assert time.monotonic() - began < 0.3


def test_an_owner_beats_and_finds_that_it_was_thought_dead(tmp_path, quick):
  """It neither saves on nor takes the other's name away."""
  folder = epath.Path(tmp_path) / "run"
  with pytest.raises(Busy, match="process 7 on host elsewhere"), lock.locked(folder, lambda: True) as asked:
    first = lock.owner_of(folder / ".lock")["beat"]
    time.sleep(0.2)
    assert lock.owner_of(folder / ".lock")["beat"] > first and asked() is True
    named(folder)
    time.sleep(0.2)
    asked()
  assert lock.owner_of(folder / ".lock") == OTHER


def test_of_two_that_begin_at_once_in_an_object_store_one_has_it(bucket, quick, monkeypatch):  # noqa: F811
  with lock.locked(bucket):
    assert lock.owner_of(bucket / ".lock")["pid"]
  monkeypatch.setattr(lock, "SETTLE", 0.2)
  later = threading.Timer(0.05, named, [bucket])
  later.start()
  with pytest.raises(Busy, match="host elsewhere"), lock.locked(bucket):
    pass
  later.join()
  assert lock.owner_of(bucket / ".lock") == OTHER


def given(monkeypatch, text, distributed="auto"):
  monkeypatch.setattr(shards, "SHARD", SimpleNamespace(value=text))
  monkeypatch.setattr(hosts, "DISTRIBUTED", SimpleNamespace(value=distributed))
  for name in ("COORDINATOR", "PROCESSES", "PROCESS"):
    monkeypatch.setattr(hosts, name, SimpleNamespace(value=None))
  return shards.shard()


def test_what_shard_may_be(monkeypatch):
  assert given(monkeypatch, "") is None and given(monkeypatch, "2/8") == Shard(1, 8)
  for text in ("0/8", "9/8", "2", "2/", "/8", "a/b", "-1/8", "1.5/8", "2/8/3"):
    with pytest.raises(ConfigError, match=f"--shard={text} must be K/N"):
      given(monkeypatch, text)
  with pytest.raises(ConfigError, match="--distributed=on joins them"):
    given(monkeypatch, "2/8", "on")


def test_shards_of_a_slurm_step_are_not_joined(monkeypatch):
  """Though the environment names several processes."""
  given(monkeypatch, "2/8")
  monkeypatch.setenv("SLURM_NTASKS", "8")
  monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda *_: pytest.fail("joined"))
  hosts.join_hosts(auto=False)
  with pytest.raises(pytest.fail.Exception, match="joined"):
    hosts.join_hosts(auto=True)


TABLE = """from cljax.config import variant
from configs.quickstart import get_config as whole

NAMES = ("first", "second")


def sweep(arg=""):
  return [{"name": name} for name in NAMES]


def get_config(arg=""):
  config = whole("method=finetune")
  config.cell, config.num_seeds, config.debug = variant(arg, name=NAMES).get("name", "first"), 1, True
  config.seed = NAMES.index(config.cell)
  return config
"""


def test_two_processes_do_one_table(tmp_path):
  """Each cell once, and one report; the same command again only reads."""
  (tmp_path / "table.py").write_text(TABLE)
  words = ["launch.train", f"--config={tmp_path}/table.py", f"--workdir={tmp_path}/run"]
  running = [begin(*words, f"--shard={k}/2") for k in (1, 2)]
  done = [each.finish() for each in running]
  assert [each.returncode for each in done] == [0, 0], done
  assert all(name in each.stdout for name in ("first", "second") for each in done), done
  commands = set()
  for name in ("first", "second"):
    folder = tmp_path / "run" / name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["task"], row["step"]) for row in rows if row["event"] == "step"]
    assert len(steps) == len(set(steps)) > 0
    commands.add(json.loads((folder / "result.json").read_text())["environment"]["command"].split()[-1])
  assert commands == {"--shard=1/2", "--shard=2/2"}
  report = tmp_path / "run" / "report.html"
  assert "written: " in done[0].stdout + done[1].stdout and report.exists()
  written = report.stat().st_mtime_ns
  again = shell(*words, "--shard=2/2")
  assert again.returncode == 0 and "written: " not in again.stdout and report.stat().st_mtime_ns == written
  one = shell("launch.train", "--config=configs/quickstart.py:method=er", "--workdir=x", "--shard=1/2")
  assert one.returncode == 2 and "--shard=1/2 is of the cells of a table" in one.stderr
