"""A work dir on an object store, played by one in memory: what a run writes beside its checkpoints."""

import json

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from cljax import paths
from cljax.errors import ConfigError
from cljax.journal import Noted
from cljax.monitor import Monitor
from cljax.report import store
from cljax.workdir import claim


@pytest.fixture
def bucket(tmp_path):
  for protocol in ("gs", "gcs"):
    fsspec.register_implementation(protocol, MemoryFileSystem, clobber=True)
  folder = epath.Path(f"gs://bucket/{tmp_path.name}")
  yield folder
  MemoryFileSystem.store.clear()


def test_metrics_are_written_whole_and_go_on_where_the_checkpoint_stood(bucket, capsys):
  """An object store cannot append; lines after the checkpoint are dropped, as on a disk."""
  bucket.mkdir(parents=True, exist_ok=True)
  monitor = Monitor(bucket, 10, 0, Noted(), "toy")
  monitor.write({"event": "step", "step": 0})
  monitor.flush()
  monitor.write({"event": "step", "step": 1})
  monitor.close()
  again = Monitor(bucket, 10, 0, Noted.of(1, None), "toy", quiet=True)
  again.scalars({"train/loss": 1.0})
  again.write({"event": "step", "step": 7})
  again.close()
  rows = [json.loads(line) for line in (bucket / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [0, 7]
  assert "local work dirs only" in capsys.readouterr().err


def test_a_remote_work_dir_belongs_to_one_config(bucket):
  claim(bucket, {"seed": 0}, {})
  claim(bucket, {"seed": 0}, {})
  with pytest.raises(ConfigError, match="seed"):
    claim(bucket, {"seed": 1}, {})


def test_arrays_come_back_from_a_remote_work_dir(bucket):
  bucket.mkdir(parents=True, exist_ok=True)
  store.write_report_arrays(bucket / "report.npz", {"routing": np.arange(6).reshape(2, 3)})
  np.testing.assert_array_equal(store.read_report_arrays(bucket)["routing"], [[0, 1, 2], [3, 4, 5]])


def test_a_store_whose_package_is_missing_names_what_to_install(monkeypatch):
  def missing(scheme):
    raise ImportError(f"no package for {scheme}")

  monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(paths.fsspec, "get_filesystem_class", missing)
  with pytest.raises(ConfigError, match=r"gs://b/r: no package for gs: pip install 'cljax\[gcs\]'"):
    paths.located("gs://b/r")


@pytest.mark.parametrize(
  ("path", "words"),
  [
    ("a" * 300, "300 of them in one part, which is too long for this disk: give a shorter one"),
    ("/".join(["b" * 200] * 30), "characters, 200 of them in one part, which is too long"),
    ("\ud800", "cannot be written as the name of a file"),
    ("a\0b", "must be a path, as a word"),
  ],
)
def test_a_name_that_the_disk_does_not_take(tmp_path, path, words):
  with pytest.raises(ConfigError, match=words):
    paths.located(f"{tmp_path}/{path}")
