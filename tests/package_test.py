"""The wheel: all that code reads travels in it, and it works outside a checkout."""

import configparser
import fnmatch
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from cljax.errors import ConfigError
from launch import bench, cells, config_files
from launch.config_files import ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
ROOMS = ("cljax", "launch", "configs", "benchmarks")


def lines(section, key):
  return SETUP[section][key].split()


def travels(path):
  """Whether a file of the checkout is in the wheel, by what setup.cfg says."""
  package = ".".join(path.relative_to(ROOT).parent.parts)
  kept = any(fnmatch.fnmatch(package, each) for each in lines("options.packages.find", "include"))
  left = any(fnmatch.fnmatch(package, each) for each in lines("options.packages.find", "exclude"))
  data = path.suffix == ".py" or any(fnmatch.fnmatch(path.name, each) for each in lines("options.package_data", "*"))
  return kept and not left and data


def test_all_that_code_reads_is_in_the_wheel():
  """Every file of the rooms that code is in or reads from, and nothing that tests or builds leave there."""
  known = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
  paths = [ROOT / name for name in known.splitlines()]
  assert len(paths) > 100 and [path for path in paths if not travels(path)] == []
  for name in ("tests/tree.py", "cljax/__pycache__/run.py", "results/x.json", "notebooks/own.ipynb"):
    assert not travels(ROOT / name)


def test_code_reads_no_other_folder():
  """What stands beside the rooms is only of a checkout, and those who ask for it know that."""
  of_checkout = {"launch/cells.py", "launch/config_files.py"}
  for room in ROOMS:
    for path in (ROOT / room).rglob("*.py"):
      for found in re.findall(r'(?:ROOT|parent\.parent) / "([^"]+)"', path.read_text()):
        assert found in ROOMS or path.relative_to(ROOT).as_posix() in of_checkout, (path, found)


def test_every_extra_that_is_named_exists():
  extras = set(SETUP["options.extras_require"])
  pages = [*ROOT.glob("*.md"), *(path for room in (*ROOMS, "docs") for path in (ROOT / room).rglob("*.*"))]
  texts = [path.read_text() for path in pages if path.suffix in (".py", ".md")]
  named = {name for text in texts for name in re.findall(r"(?:cljax|-e '?\.|\.whl)\[([\w,]+)\]", text)}
  assert named and {part for name in named for part in name.split(",")} <= extras


def test_a_packaged_config_is_found_from_anywhere(tmp_path, monkeypatch):
  """A file in the current folder wins."""
  monkeypatch.chdir(tmp_path)
  name, packaged = "configs/quickstart.py", str(ROOT / "configs" / "quickstart.py")
  words = ["train", "--config.seed=1", f"--config={name}:method=er", "--workdir=x", "-config", name, "--config=/no.py"]
  found = [f"--config={packaged}:method=er", f"--config={packaged}", "--config=/no.py"]
  assert config_files.config_first(words) == ["train", *found, "--config.seed=1", "--workdir=x"]
  assert config_files.load_config(name).METHODS == config_files.load_config(packaged).METHODS
  (tmp_path / "configs").mkdir()
  (tmp_path / name).write_text("METHODS = ()\ndef get_config(arg=''):\n  return None\n")
  assert config_files.config_first(words[:3]) == ["train", words[2], words[1]]
  assert config_files.load_config(name).METHODS == ()


def test_a_package_called_configs_hides_nothing(tmp_path, monkeypatch):
  """What the packaged configs import is found behind a person's own `configs/__init__.py`; a module is told."""
  for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "configs.py").write_text("")
  with pytest.raises(ConfigError, match=r"configs.py hides the folder of configs that come with the package"):
    config_files.load_config("configs/papers/metateacher/table1.py")
  del sys.modules["configs"]
  (tmp_path / "configs.py").unlink()
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "__init__.py").write_text("MINE = 1\n")
  (tmp_path / "configs" / "own.py").write_text("")
  assert hasattr(config_files.load_config("configs/papers/metateacher/table1.py"), "get_config")
  assert sys.modules["configs"].MINE == 1 and importlib.import_module("configs.own")
  for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
    del sys.modules[name]


def test_an_installed_package_is_not_written_into(tmp_path, monkeypatch):
  monkeypatch.setattr(config_files, "OF_CHECKOUT", "no_such_file")
  with pytest.raises(ConfigError, match="--readme=quick writes into .* an installed package"):
    cells.write_readme(str(tmp_path), "quick", None)
  monkeypatch.setattr(bench, "WRITE", SimpleNamespace(value=True))
  with pytest.raises(ConfigError, match="--write writes into .* an installed package"):
    bench.check_write([])


def quietly(*words, **options):
  """What a command prints; it must end well."""
  own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may name the checkout
  done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, env=own, **options)
  assert done.returncode == 0, done.stderr
  return done.stdout


def outside(tmp_path):
  """The Python of an environment that has the wheel, and of this environment the packages that the wheel needs."""
  tree = tmp_path / "tree"  # building leaves files beside the sources
  for room in ROOMS:
    shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, tree)
  quietly(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", tree)
  venv.create(tmp_path / "venv", with_pip=False)
  python = tmp_path / "venv" / "bin" / "python"
  there = Path(quietly(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
  (wheel,) = (tmp_path / "dist").glob("*.whl")
  quietly(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", there, wheel)
  for path in Path(pytest.__file__).parent.parent.iterdir():
    if not path.name.startswith(("__editable__", "cljax")) and not (there / path.name).exists():
      (there / path.name).symlink_to(path)  # without what makes the checkout importable
  return python


@pytest.mark.slow
def test_commands_from_a_wheel_in_an_empty_folder(tmp_path):
  """The quickstart and a table, cut short, and what needs no data."""
  python, empty = outside(tmp_path), tmp_path / "empty"
  empty.mkdir()
  names = quietly(python, "-c", "import cljax, configs.quickstart as q; print(cljax.__file__, q.__file__)", cwd=empty)
  assert names.count(str(tmp_path)) == 2

  def typed(*words):
    return quietly(python, "-m", "cljax", *words, cwd=empty)

  cut = ["--config.num_seeds=1", "--config.debug=True"]
  assert "routing_cotrain" in typed("train", "--config=configs/quickstart.py", "--workdir=runs/quick", *cut)
  assert (empty / "runs" / "quick" / "report.html").exists()
  only = "--only=stream=mnist_rot,method=joint"
  assert "joint" in typed("reproduce", "--paper=cotraining", "--preset=smoke", "--workdir=runs/s", "--seeds=1", only)
  assert (
    json.loads((empty / "runs" / "s" / "digits_rot" / "joint" / "environment.json").read_text())["git_commit"] is None
  )
  assert "configs/papers/lasem/table1.py" in typed("list", "configs")
  assert "--rounds" in typed("bench", "--help")
