"""What a name picks: an entry of a table, or what stands in a file or a package of one's own.

--config.net.name=mlp                  of the table NETS
--config.net.name=my_file.py:MyNet     of a file; its folder can be imported from while it is read
--config.optimizer.name=optax:adabelief    of a package
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from flax import linen as nn

from cljax.declared import PLAIN, declared, hints_of, is_record
from cljax.errors import ConfigError, choose, in_short

OWN_FILES = "own_files"  # the key of environment.json that tells them
MADE = {  # section -> (what its factory makes, whether it is one)
  "net": ("a flax.linen module", lambda made: isinstance(made, nn.Module)),
  "method": ("a cljax Method", lambda made: hasattr(made, "phases") and hasattr(made, "init")),
  "optimizer": ("an optax transformation", lambda made: hasattr(made, "init") and hasattr(made, "update")),
  "stream": ("a pair (Spec, Stream)", lambda made: isinstance(made, tuple) and len(made) == 2),
  "method.guard": ("a cljax Guard", lambda made: hasattr(made, "init")),
  "gate": ("a cljax Gate", lambda made: hasattr(made, "init") and hasattr(made, "errors")),
}


def is_own(name: Any) -> bool:
  """Whether a name is that of a file or a package, and not of a table."""
  return isinstance(name, str) and ":" in name


def pick(section: str, name: str, table: Mapping[str, Any], given: int) -> Any:
  """The factory that a name picks for a section of a config.

  Args:
    given: the factory's first parameters, which the engine passes.

  Raises:
    ConfigError: it is not in the table, or there is no such file, package or thing in it.
  """
  if is_own(name):
    return own_factory(section, *module_of(section, name), name, given)
  return table[choose(f"config.{section}.name", name, table, f"cljax list {section.rpartition('.')[2]}s")]


def own_names(config: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
  """Where in a config's sections names of one's own stand, and which."""
  found: dict[tuple[str, ...], str] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      found |= own_names(value, (*prefix, key))
    elif key == "name" and prefix and is_own(value):
      found[*prefix, key] = value
  return found


def own_files(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
  """{name: its file's whole `path` and `sha256`} of the names of one's own in a config, those of packages as well.

  Raises:
    ConfigError: there is no such file.
  """
  found = {}
  for (section, *_), name in own_names(config).items():
    module, attribute = module_of(section, name)
    defining = sys.modules.get(getattr(getattr(module, attribute, None), "__module__", ""), module)
    if file := (defining if path_of(name) is None else module).__file__:
      path = Path(file).absolute()
      found[name] = {"path": str(path), "sha256": digest(path)}
  return found


def check_own_files(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
  """
  Raises:
    ConfigError: the run began with other contents of a file of one's own.
  """
  for name, now in here.items():
    before = there.get(name)
    if isinstance(before, Mapping) and before.get("sha256") != now["sha256"]:
      raise ConfigError(
        f"{now['path']} is not what the run began with (sha256 {str(before.get('sha256'))[:12]}... there, "
        f"{now['sha256'][:12]}... here); nothing was changed: put it back, or use another --workdir"
      )


@contextlib.contextmanager
def written_in(what: str, path: str) -> Iterator[None]:
  """What the code of a person's file raises, as one line that names the line."""
  try:
    yield
  except ConfigError:
    raise
  except Exception as error:  # anything may be written there
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = getattr(error, "lineno", None) or (frames[-1] if frames else None)
    where = what + (f", line {line}" if line else "")
    raise ConfigError(f"{where}: {type(error).__name__}: {in_short(error)}") from error


def path_of(name: str) -> Path | None:
  """The file that a name of one's own names; None where it names a package."""
  place = name.rpartition(":")[0]
  return Path(os.path.abspath(os.path.expanduser(place))) if place.endswith(".py") else None


def module_of(section: str, name: str) -> tuple[ModuleType, str]:
  """(the module that holds it, what it is called there).

  Raises:
    ConfigError: there is none, or its code raises.
  """
  place, _, attribute = name.rpartition(":")
  where = f"config.{section}.name={name!r}"
  if not place or not attribute:
    raise ConfigError(f"{where} is not FILE.py:NAME or package.module:NAME, for example my_file.py:MyNet")
  path = path_of(name)
  if path is None:
    with written_in(where, ""):
      return importlib.import_module(place), attribute
  if not os.path.isfile(path):  # nor one of a name that is too long
    raise ConfigError(f"{where}: there is no file {path}")
  try:
    contents = digest(path)
  except OSError as error:
    raise ConfigError(f"{where} cannot be read: {in_short(error)}") from error
  return read_module(str(path), contents), attribute


def digest(path: Path) -> str:
  """The sha256 of a file."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def read_module(path: str, contents: str) -> ModuleType:
  """The module of a file, once for each of its contents."""
  name = f"cljax_own_{Path(path).stem}_{contents[:12]}"
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None, path
  module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
  folder = str(Path(path).parent)
  sys.path.insert(0, folder)  # as if it were run, so that it may import its neighbours
  try:
    with written_in(path, path):
      spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise
  finally:
    with contextlib.suppress(ValueError):
      sys.path.remove(folder)
  return module


def own_factory(section: str, module: ModuleType, attribute: str, name: str, given: int) -> Any:
  """What a module calls so, as a factory of a section.

  Raises:
    ConfigError: the module has nothing of that name, or no factory.
  """
  where = f"config.{section}.name={name!r}"
  if not hasattr(module, attribute):
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    choose(f"{where}: the name", attribute, known)
  found = getattr(module, attribute)
  what, _ = MADE[section]
  if isinstance(found, nn.Module) and section == "net":
    return with_heads(constant(found))
  if not callable(found):
    raise ConfigError(f"{where} is no function or class that makes {what}, but {type(found).__name__}")
  made = found if hasattr(found, "homes") else wrapped(section, found, name, given)
  return with_heads(made) if section == "net" else made


@functools.cache
def constant(net: nn.Module) -> Callable[..., nn.Module]:
  """A factory of a net that is made already."""
  return declared("net", 2)(lambda heads, classes: net)


@functools.cache
def with_heads(factory: Callable[..., Any]) -> Callable[..., Any]:
  """A net's declared factory, which takes `heads` and `classes` by their names as a class does."""

  @functools.wraps(factory)
  def make(*, heads: int, classes: int, **keywords: Any) -> Any:
    return factory(heads, classes, **keywords)

  return make


@functools.cache
def wrapped(section: str, found: Callable[..., Any], name: str, given: int) -> Any:
  """A person's factory behind the checks of `declared`; keywords whose defaults no config can hold stay at these."""
  what, is_one = MADE[section]
  parameters = list(inspect.signature(found).parameters.values())
  hints, path = hints_of(found), str(path_of(name) or "")
  engine = [p for p in parameters if p.name in ("heads", "classes")] if section == "net" else parameters[:given]
  passed = [p.name for p in engine]

  def make(*args: Any, **keywords: Any) -> Any:
    if section == "net":
      args, told = (), dict(zip(("heads", "classes"), args, strict=False)) | keywords
      keywords = {key: value for key, value in told.items() if key in passed or key not in ("heads", "classes")}
    with written_in(f"config.{section}.name={name!r}", path):
      made = found(*args, **keywords)
    if not is_one(made):
      raise ConfigError(f"config.{section}.name={name!r} makes {type(made).__name__}, and not {what}")
    return made

  first = [inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD) for key in ("heads", "classes")]
  own = [p for p in parameters if p not in engine and p.name not in ("parent", "name") and settable(p)]
  own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
  make.__signature__ = inspect.Signature([*(first if section == "net" else engine), *own])  # type: ignore[attr-defined]
  make.__annotations__ = {p.name: hints.get(p.name, type(p.default)) for p in own if p.default is not p.empty}
  make.__annotations__ |= {p.name: hints[p.name] for p in own if p.default is p.empty and p.name in hints}
  make.__name__, make.__doc__, make.__module__ = name, found.__doc__, found.__module__
  return declared(section, given)(make)


def settable(parameter: inspect.Parameter) -> bool:
  """Whether a config can hold a keyword: it has no default, or one of plain values."""
  if parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
    return False
  return parameter.default is parameter.empty or is_record(parameter.default) or is_plain(parameter.default)


def is_plain(value: Any) -> bool:
  """None, true or false, a number, a word, or several of these."""
  return value is None or type(value) in PLAIN or (isinstance(value, tuple | list) and all(map(is_plain, value)))
