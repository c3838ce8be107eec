"""Config files: loading one, and refusing overrides that it does not have."""

import contextlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cljax import named
from cljax.errors import ConfigError, choose
from cljax.files import flatten
from cljax.overrides import is_name, opened, renamed

ROOT = Path(__file__).resolve().parent.parent  # of the checkout: configs/ lies beside launch/


def written_in(path: str) -> contextlib.AbstractContextManager[None]:
  """What the code of a config file raises, as one line that names the line."""
  return named.written_in(f"--config={path}", path)


def load_config(path: str) -> ModuleType:
  """The module of a config file.

  Raises:
    ConfigError: there is none.
  """
  if not Path(path).is_file():
    near = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.py"))
    raise ConfigError(f"--config={path} is no file (looked in {Path.cwd()}); configs are: {', '.join(near)}")
  spec = importlib.util.spec_from_file_location("cljax_config", path)
  if spec is None or spec.loader is None:
    raise ConfigError(f"--config={path} is no Python file")
  module = importlib.util.module_from_spec(spec)
  with written_in(path):
    spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--config={path} has no function get_config(arg='')")
  return module


def keys_of(argv: list[str]) -> list[str]:
  """The dotted keys of the config that a command line names; none where it names none."""
  chosen = [word.partition("=")[2] for word in argv if word.lstrip("-").startswith("config=")]
  chosen += [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in ("--config", "-config")]
  if not chosen:
    return []
  path, _, arg = chosen[-1].partition(":")
  module = load_config(path)
  with written_in(path):
    config = module.get_config(arg)
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"--config={path}: get_config gives {type(config).__name__}, not a ConfigDict")
  return list(flatten(prepared(config, argv).to_dict()))


def prepared(config: Any, argv: Sequence[str]) -> Any:
  """A run's config as flags may change it: with the choices that a command line names and all of their keywords.

  Raises:
    ConfigError: an unknown choice, or a config that is wrong by itself.
  """
  if not isinstance(config, ConfigDict) or "method" not in config:  # of a meta-training, or nothing yet
    return config
  return opened(renamed(config, {key: value for key, value in typed_in(argv).items() if is_name(key)}))


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
      example = f"{key}.name={value}" if f"{key}.name" in below and value else f"{below[0]}=..."
      raise ConfigError(f"--config.{key} is a section, whose fields are given one by one: --config.{example}")
    alike = [one for one in known if one.startswith("sweep.") == key.startswith("sweep.")]
    choose("--config key", key, alike)
