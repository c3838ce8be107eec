"""Config files: loading one, and refusing overrides that it does not have."""

import importlib.util
from pathlib import Path
from types import ModuleType

from cljax.errors import ConfigError, choose
from cljax.files import flatten

ROOT = Path(__file__).resolve().parent.parent  # of the checkout: configs/ lies beside launch/


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
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--config={path} has no function get_config(arg='')")
  return module


def check_overrides(argv: list[str]) -> None:
  """Refuses `--config.x` for an x that the config does not have, naming the nearest that it has."""
  words = [word.lstrip("-").partition("=") for word in argv if word.startswith("-")]
  chosen = [value for name, _, value in words if name == "config"]
  chosen += [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in ("--config", "-config")]
  if not chosen:
    return
  path, _, arg = chosen[-1].partition(":")
  known = flatten(load_config(path).get_config(arg).to_dict())
  for name, _, _ in words:
    if name.startswith("config."):
      choose("--config key", name.removeprefix("config."), known)
