"""`cljax` and `cljax list`: every command and every name is shown, and a wrong one is one clear line."""

import importlib
from pathlib import Path

import pytest

from cljax.declared import fields
from cljax.errors import ConfigError
from launch import commands
from launch import list as listing
from tests.shell import shell

ROOT = Path(__file__).resolve().parent.parent


def test_every_launcher_is_a_command():
  """All modules of launch/ that have a main, and no other."""
  mains = {path.stem for path in (ROOT / "launch").glob("*.py") if '__name__ == "__main__"' in path.read_text()}
  assert mains == set(commands.COMMANDS)


def test_by_itself_it_says_what_there_is(capsys):
  listing.main()
  text = capsys.readouterr().out
  for kind in (*listing.KINDS, *listing.OTHERS):
    assert f"{kind} (" in text
    for name, about in listing.names_of(kind).items():
      assert f"  {name} " in text and about and about in text, name
  assert "configs/quickstart.py" in text


@pytest.mark.parametrize(
  ("kind", "name"), [(kind, name) for kind, one in listing.KINDS.items() for name in one.table], ids=lambda text: text
)
def test_a_name_says_all_its_fields_with_range_and_default(capsys, kind, name):
  listing.main(name)
  text, one = capsys.readouterr().out, listing.KINDS[kind]
  assert f"{name}, of {kind}: " in text and f"--{one.flag}.name={name}\n" in text
  for key, field in fields(one.table[name], one.given).items():
    (line,) = [line for line in text.splitlines() if line.startswith(f"  --{one.flag}.{key}=")]
    assert listing.allowed(field) in line and field.bound.about in line
  if kind in ("methods", "guards") and name not in ("joint", "single"):  # which no paper has to itself
    assert "https://" in text


def test_ranges_in_a_few_words():
  er, ewc = fields(listing.METHODS["er"], 3), fields(listing.GUARDS["ewc"], 2)
  assert listing.allowed(er["epochs"]) == "int from 1" and listing.allowed(er["update"]) == "sequential | union"
  assert listing.allowed(ewc["strength"]) == "float from 0" and listing.allowed(er["guard"]) == "a name of: ewc, si"


def test_one_kind_a_setting_and_a_look(capsys):
  listing.main("nets")
  assert capsys.readouterr().out.startswith("nets (--config.net.name=NAME):\n  cnn")
  listing.main("evaluate")
  assert "--config.evaluate=all  all | seen | ends" in capsys.readouterr().out
  listing.main("watch")
  assert '--config.looks=("watch",)' in capsys.readouterr().out


def test_a_wrong_name_has_its_nearest():
  with pytest.raises(ConfigError, match=r"nothing is called 'routng'; the nearest are routing.*cljax list"):
    listing.main("routng")


def test_commands_from_the_shell():
  done = shell("cljax", "list", "er")
  assert done.returncode == 0 and "--config.method.capacity=1000" in done.stdout, done.stderr
  done = shell("cljax", "trian")
  assert done.returncode == 2 and "Did you mean train?" in done.stderr and "Traceback" not in done.stderr
  done = shell("cljax", "train")
  assert done.returncode == 2 and "--workdir is missing" in done.stderr and "Traceback" not in done.stderr
  done = shell("cljax")
  assert done.returncode == 2 and all(f"cljax {name} " in done.stdout for name in commands.COMMANDS)


def test_the_console_command_is_installed_under_its_name():
  text = (ROOT / "setup.cfg").read_text()
  target = text.partition("  cljax = ")[2].partition("\n")[0]
  module, _, name = target.partition(":")
  assert importlib.import_module(module).__dict__[name] is commands.main
