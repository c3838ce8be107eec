"""Config files: finding and loading one, and refusing overrides that it does not have."""

import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cljax import named
from cljax.config import completed_net
from cljax.errors import ConfigError, choose, near
from cljax.files import flatten
from cljax.named import is_own
from cljax.overrides import is_name, opened, renamed, under

ROOT = Path(__file__).resolve().parent.parent  # configs/ lies beside launch/, in a checkout and where it is installed
OF_CHECKOUT = "setup.cfg"  # lies there too, in a checkout alone


def installed() -> bool:
  """Whether this is an installed package and no checkout, so that nothing is written into its folders."""
  return not (ROOT / OF_CHECKOUT).exists()


def listed() -> dict[str, Path]:
  """{what is typed: the file} of the configs that come with the package."""
  found = sorted([*(ROOT / "configs").glob("*.py"), *(ROOT / "configs").glob("papers/*/*.py")])
  return {path.relative_to(ROOT).as_posix(): path for path in found if path.name != "__init__.py"}


def located(path: str) -> str:
  """The file of a config: as it is typed, else the one that comes with the package, else as it is typed."""
  return path if Path(path).is_file() or path not in listed() else str(listed()[path])


def config_first(argv: Sequence[str]) -> list[str]:
  """A command line with its configs before all other flags, which may be of their keys; each is a file as `located`
  finds it."""
  first, others, words = [], [], iter(argv[1:])
  for word in words:
    name, equals, value = word.partition("=")
    if name not in ("--config", "-config"):
      others.append(word)
    elif value := value if equals else next(words, ""):
      path, colon, arg = value.partition(":")
      first.append(f"--config={located(path)}{colon}{arg}")
    else:
      others.append(word)
  return [*argv[:1], *first, *others]


def written_in(path: str) -> contextlib.AbstractContextManager[None]:
  """What the code of a config file raises, as one line that names the line."""
  return named.written_in(f"--config={path}", path)


def find_packaged() -> None:
  """Lets `from configs.papers...` find what comes with the package behind a package `configs` of a person's own.

  A folder without `__init__.py` is no package by itself and hides nothing.
  """
  found = importlib.util.find_spec("configs")
  if found is not None and found.origin is not None:
    own = importlib.import_module("configs")
    if not hasattr(own, "__path__"):
      raise ConfigError(f"{found.origin} hides the folder of configs that come with the package: rename it")
    if str(ROOT / "configs") not in own.__path__:
      own.__path__.append(str(ROOT / "configs"))


def load_config(path: str) -> ModuleType:
  """The module of a config file.

  Raises:
    ConfigError: there is none.
  """
  path = located(path)
  if not Path(path).is_file():
    told = f"{near(path, listed())} `cljax list configs` shows all"
    raise ConfigError(f"--config={path} is no file (looked in {Path.cwd()}).{told}")
  spec = importlib.util.spec_from_file_location("cljax_config", path)
  if spec is None or spec.loader is None:
    raise ConfigError(f"--config={path} is no Python file")
  module = importlib.util.module_from_spec(spec)
  with written_in(path):
    find_packaged()
    spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--config={path} has no function get_config(arg='')")
  return module


def chosen(argv: Sequence[str]) -> str:
  """The config that a command line names, with its variant; '' where it names none."""
  found = [word.partition("=")[2] for word in argv if word.lstrip("-").startswith("config=")]
  return found[-1] if found else ""


def read_config(name: str) -> ConfigDict:
  """The config of FILE.py or FILE.py:VARIANT.

  Raises:
    ConfigError: there is no such file, or it makes none.
  """
  path, _, arg = name.partition(":")
  module = load_config(path)
  with written_in(str(module.__file__)):
    config = module.get_config(arg)
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"--config={path}: get_config gives {type(config).__name__}, not a ConfigDict")
  return config


def keys_of(argv: list[str]) -> list[str]:
  """The dotted keys of the config that a command line names; none where it names none."""
  name = chosen(argv)
  return list(flatten(prepared(read_config(name), argv).to_dict())) if name else []


def prepared(config: Any, argv: Sequence[str]) -> Any:
  """A run's config as flags may change it: with the choices that a command line names and all of their keywords.

  Raises:
    ConfigError: an unknown choice, or a config that is wrong by itself.
  """
  names = {key: value for key, value in typed_in(argv).items() if is_name(key)}
  if isinstance(config, ConfigDict) and "trains" in config:  # of a meta-training, which chooses its net alone
    config.net = completed_net(under("net", config.net.to_dict(), names.get("net.name", config.net.name)))
  elif isinstance(config, ConfigDict) and "method" in config:
    config = opened(renamed(config, names))
  return config


def typed_in(argv: Sequence[str]) -> dict[str, str]:
  """The overrides of a command line as they are typed: `--config.KEY=VALUE`, or the value as the next word."""
  found = {}
  for word, after in zip(argv, [*argv[1:], ""], strict=False):
    flag, is_whole, value = word.lstrip("-").partition("=")
    if word.startswith("-") and flag.startswith("config."):
      found[flag.removeprefix("config.")] = value if is_whole else after
  return found


def meant(flag: str, argv: list[str]) -> str:
  """A hint for a flag that does not exist: a key of the config without its section, or what another main calls so."""
  name = {"seeds": "num_seeds"}.get(flag.removeprefix("no"), flag)
  found = [key for key in keys_of(argv) if name in (key, key.split(".")[-1])]
  if found:
    return f" Did you mean --config.{found[0]}?"
  if flag.startswith("config."):
    return " Flags of a config go with --config=FILE.py, of launch.train; launch.reproduce takes --seeds and --only"
  return " Did you mean --seeds?" if flag == "num_seeds" else ""


def check_overrides(argv: list[str]) -> None:
  """Refuses `--config.x` for an x that the config does not have, naming the nearest that it has."""
  known = keys_of(argv)
  words = [word.lstrip("-").partition("=") for word in argv if word.startswith("-")]
  for name, _, value in words if known else ():
    if not name.startswith("config."):
      continue
    key = name.removeprefix("config.")
    below = [each for each in known if each.startswith(f"{key}.")]
    if below:
      first = f"{key}.lr" if key == "sweep" else below[0]
      example = f"{key}.name={value}" if f"{key}.name" in below and value else f"{first}=..."
      raise ConfigError(f"--config.{key} is a section, whose fields are given one by one: --config.{example}")
    alike = [one for one in known if one.startswith("sweep.") == key.startswith("sweep.")]
    section = key.rpartition(".")[0].replace("sweep", "method")
    choice = typed_in(argv).get(f"{section}.name")  # typed over the one in the file, whose keywords are others
    if is_own(choice):
      choose("--config key", key, [one for one in alike if one.startswith(f"{section}.")])
    if choice and key not in alike:
      told = f"{near(key, alike)} `cljax list {choice}` shows its keywords"
      raise ConfigError(f"--config key={key!r} is not known.{told}")
    choose("--config key", key, alike, f"cljax list {chosen(argv)}")
