"""Config files: loading one, and refusing overrides that it does not have."""

import contextlib
import importlib.util
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from cljax.errors import ConfigError, choose
from cljax.files import flatten

ROOT = Path(__file__).resolve().parent.parent  # of the checkout: configs/ lies beside launch/


@contextlib.contextmanager
def written_in(path: str) -> Iterator[None]:
  """What the code of a config file raises, as one line that names the line."""
  try:
    yield
  except ConfigError:
    raise
  except Exception as error:  # anything may be written there
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = getattr(error, "lineno", None) or (frames[-1] if frames else None)
    where = f"--config={path}" + (f", line {line}" if line else "")
    raise ConfigError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error


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
  return list(flatten(config.to_dict()))


def meant(flag: str, argv: list[str]) -> str:
  """A hint for a flag that does not exist: a key of the config without its section, or what another main calls so."""
  name = {"seeds": "num_seeds"}.get(flag.removeprefix("no"), flag)
  found = [key for key in keys_of(argv) if name in (key, key.split(".")[-1])]
  if found:
    return f" Did you mean --config.{found[0]}?"
  if flag.startswith("config."):
    return " Flags of a config go with --config=FILE.py, of launch.train; launch.reproduce takes --seeds and --only"
  return " Did you mean --seeds?" if name == "num_seeds" else ""


def check_overrides(argv: list[str]) -> None:
  """Refuses `--config.x` for an x that the config does not have, naming the nearest that it has."""
  known = keys_of(argv)
  words = [word.lstrip("-").partition("=") for word in argv if word.startswith("-")]
  for name, _, _ in words if known else ():
    if name.startswith("config."):
      choose("--config key", name.removeprefix("config."), known)
