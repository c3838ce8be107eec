"""Weights & Biases: a run is told to it under its own name, goes on there, and nothing needs the package."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from absl import flags

from cljax import files, monitor
from cljax.errors import ConfigError
from cljax.journal import Noted
from cljax.wandb_board import WandbBoard
from launch import boards


class Run:
  """What `wandb.init` gives, as far as it is used."""

  def __init__(self, **given):
    self.given, self.logged, self.ended = given, [], False

  def log(self, values, step):
    self.logged.append((values, step))

  def finish(self):
    self.ended = True


@pytest.fixture
def runs(monkeypatch):
  begun: list[Run] = []
  module = ModuleType("wandb")
  module.init = lambda **given: begun.append(Run(**given)) or begun[-1]
  monkeypatch.setitem(sys.modules, "wandb", module)
  return begun


def test_a_run_is_told_under_its_own_name(runs, tmp_path, monkeypatch):
  files.write_json(tmp_path / "config.json", {"seed": 3})
  monkeypatch.setattr(monitor, "BOARDS", [lambda folder, label: WandbBoard("mine", folder, label)])
  for done in (0, 7):  # begun, and gone on with
    own = monitor.Monitor(tmp_path, 10, done, Noted.of(0, None), "er", quiet=True)
    own.scalars({"train/loss": 0.5, "perf/steps_per_sec": float("inf")})
    own.close()
  assert [run.logged for run in runs] == [[({"train/loss": 0.5}, 0)], [({"train/loss": 0.5}, 7)]]
  first, second = (run.given for run in runs)
  assert first == second and first["project"] == "mine" and first["resume"] == "allow" and all(r.ended for r in runs)
  assert first["config"] == {"seed": 3} and WandbBoard("mine", tmp_path / "other", "er").run.given["id"] != first["id"]


@pytest.mark.parametrize(("typed", "project"), [("--wandb", "cljax"), ("--wandb=mine", "mine")])
def test_the_flag_names_a_project_or_stands_alone(runs, monkeypatch, tmp_path, typed, project):
  values = flags.FlagValues()
  values["wandb"] = flags.FLAGS["wandb"]
  values(["train", typed, "--", "rest"])
  monkeypatch.setattr(boards, "WANDB", SimpleNamespace(value=values["wandb"].value))
  monkeypatch.setattr(monitor, "BOARDS", [])
  boards.use_wandb()
  assert monitor.BOARDS[0](tmp_path, "er").run.given["project"] == project
  values["wandb"].unparse()


def test_without_the_flag_nobody_asks_for_the_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  monkeypatch.setattr(monitor, "BOARDS", [])
  monkeypatch.setattr(boards, "WANDB", SimpleNamespace(value=None))
  boards.use_wandb()
  assert monitor.BOARDS == []


def test_a_missing_package_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  monkeypatch.setattr(boards, "WANDB", SimpleNamespace(value="true"))
  with pytest.raises(ConfigError, match=r"pip install 'cljax\[wandb\]'"):
    boards.use_wandb()
