"""`cljax` and `cljax list`: every command and every name is shown, and a wrong one is one clear line."""

import importlib.util
import re
from pathlib import Path

import pytest

from cljax import config
from cljax.declared import fields
from cljax.errors import ConfigError, near, nearest
from cljax.files import flatten
from cljax.methods import METHODS
from cljax.pieces.guards import GUARDS
from launch import commands, config_files
from launch import list as listing
from launch.fields import allowed
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
    assert allowed(field) in line and field.bound.about in line
  if kind in ("methods", "guards") and name not in ("joint", "single"):  # which no paper has to itself
    assert "https://" in text


def test_ranges_in_a_few_words():
  er, ewc = fields(METHODS["er"], 3), fields(GUARDS["ewc"], 2)
  assert allowed(er["epochs"]) == "int from 1" and allowed(er["update"]) == "sequential | union"
  assert allowed(ewc["strength"]) == "float from 0" and allowed(er["guard"]) == f"a name of: {', '.join(GUARDS)}"


def test_one_kind_a_setting_and_a_look(capsys):
  listing.main("nets")
  assert capsys.readouterr().out.startswith("nets (--config.net.name=NAME):\n  cnn")
  listing.main("evaluate")
  assert "--config.evaluate=all  all | seen | ends" in capsys.readouterr().out
  listing.main("watch")
  assert '--config.looks=("watch",)' in capsys.readouterr().out


@pytest.mark.parametrize("name", [*config_files.listed(), "quickstart", "cotraining", "papers/lasem/table1"])
def test_a_config_says_what_it_is_and_all_its_keys(capsys, name):
  """Its docstring, its paper, and a line with value and range for each key."""
  listing.main(name)
  text = capsys.readouterr().out
  path = next(path for path in config_files.listed() if name in path)
  assert f"{path}, a config\n" in text and f"  --config={path}\n" in text
  assert "papers" not in path or "  paper: " in text
  shown = {line.split("=")[0].strip(): line for line in text.splitlines() if line.startswith("  --config.")}
  values = flatten(config_files.read_config(path).to_dict())
  assert {f"--config.{key}" for key in values} <= set(shown)
  assert all(f"={value}" in shown[f"--config.{key}"] for key, value in values.items() if isinstance(value, int))
  rates = [line for key, line in shown.items() if key in ("--config.optimizer.lr", "--config.outer.lr")]
  assert any("float from 0  " in line or "float above 0  " in line for line in rates)


def test_a_variant_of_a_config(capsys):
  listing.main("configs/quickstart.py:method=er")
  text = capsys.readouterr().out
  assert "--config=configs/quickstart.py:method=er\n" in text and "--config.method.name=er " in text
  with pytest.raises(ConfigError, match="'erx' is not known. Did you mean er"):
    listing.main("configs/quickstart.py:method=erx")


def defined_in(name):
  """The flags that a file of launch/ defines."""
  return set(re.findall(r"DEFINE_[^\"]*\"(\w+)\"", (ROOT / "launch" / f"{name}.py").read_text()))


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_has_an_example_first_and_own_flags(name):
  """No flag of a library, and all that the file defines or says that it takes."""
  done = shell(f"launch.{name}", "--help")
  assert done.returncode == 0 and not done.stderr
  first = next(line for line in done.stdout.splitlines()[1:] if line)
  assert f"python -m launch.{name}" in first or f"cljax {name}" in first
  own = defined_in(name)
  shown = set(re.findall(r"^  --(?:\[no\])?(\w+)", done.stdout, flags=re.M))
  shared = {"workdir", "data_dir", "max_hours", "config"}
  hosts = defined_in("hosts") | defined_in("shards") | defined_in("boards")
  assert own <= shown <= own | shared | hosts and "jax_" not in done.stdout
  assert name in ("bench", "list", "prepare") or "workdir" in shown
  assert ("config" in shown) == (name in ("train", "meta"))


WRONG = {  # what a config says: the three nearest, and the command
  "method": ({"method": {"name": "erx"}}, "Did you mean er? Near it: der, mer. `cljax list methods` shows all"),
  "net": ({"net": {"name": "mpl"}}, "Did you mean mlp? Near it: "),
  "guard": (
    {"method": {"name": "er", "guard": {"name": "ewcc"}}},
    "Near it: online_ewc, lwf. `cljax list guards` shows all",
  ),
  "stream": ({"stream": {"name": "splt", "source": "digits"}}, "`cljax list streams` shows all"),
  "optimizer": ({"optimizer": {"name": "adamm", "lr": 0.1}}, "`cljax list optimizers` shows all"),
  "keyword": ({"method": {"name": "er", "epoch": 3}}, "Did you mean epochs? Near it: "),
  "keyword's command": ({"method": {"name": "er", "epoch": 3}}, ". `cljax list er` shows all"),
  "setting": ({"num_seed": 3}, "Did you mean num_seeds? Near it: seed, "),
  "setting's command": ({"num_seed": 3}, "`cljax list settings` shows all"),
  "sweep": ({"sweep": {"learning": (0.1, 0.2)}}, "`cljax list finetune` shows all"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_name_of_a_config_has_its_three_nearest_and_the_command(case):
  given, told = WRONG[case]
  with pytest.raises(ConfigError) as caught:
    config.complete({**config.default().to_dict(), **given})
  assert told in str(caught.value)


def test_nearest_looks_at_the_last_word_of_a_dotted_name():
  keys = ("stream.source", "method.capacity", "method.cotrain", "seed")
  assert nearest("capacty", keys)[0] == "method.capacity" and near("x", ()) == ""
  assert near("SEDE", keys).startswith(" Did you mean seed? Near it: ")
  assert near("zzzz", keys).startswith(" The nearest are ") and near("zzzz", keys).count(",") == 2


def test_a_wrong_name_has_its_nearest():
  with pytest.raises(ConfigError, match=r"'routng'. Did you mean routing\? Near it: \w+, \w+. `cljax list` shows"):
    listing.main("routng")


def test_commands_from_the_shell():
  done = shell("cljax", "list", "er")
  assert done.returncode == 0 and "--config.method.capacity=1000" in done.stdout, done.stderr
  done = shell("cljax", "trian")
  assert done.returncode == 2 and "Did you mean train?" in done.stderr and "Traceback" not in done.stderr
  done = shell("cljax", "train", "--help")
  assert done.returncode == 0 and "\n  cljax train --config=configs/quickstart.py " in done.stdout
  done = shell("cljax", "train", "--wrkdir=x")
  assert done.returncode == 2
  assert "unknown flag --wrkdir. Did you mean --workdir? Near it: --" in done.stderr
  assert done.stderr.rstrip().endswith("`cljax train --help` shows all flags")
  done = shell("cljax", "train")
  assert done.returncode == 2 and "--workdir is missing" in done.stderr and "Traceback" not in done.stderr
  done = shell("cljax")
  assert done.returncode == 2 and all(f"cljax {name} " in done.stdout for name in commands.COMMANDS)


def test_the_console_command_is_installed_under_its_name():
  text = (ROOT / "setup.cfg").read_text()
  target = text.partition("  cljax = ")[2].partition("\n")[0]
  module, _, name = target.partition(":")
  assert importlib.import_module(module).__dict__[name] is commands.main


def test_the_page_of_all_methods_is_what_the_code_declares():
  """`python docs/methods.py` writes it again."""
  loaded = importlib.util.spec_from_file_location("methods_page", ROOT / "docs" / "methods.py")
  module = importlib.util.module_from_spec(loaded)
  loaded.loader.exec_module(module)
  assert module.PAGE.read_text() == module.page()
  told = module.PAGE.read_text()
  assert all(f"### {name}\n" in told for table in (METHODS, GUARDS) for name in table)
