"""What there is to choose from: methods, guards, gates, nets, streams, optimizers, looks, settings and configs.

python -m launch.list            all names, a line each
python -m launch.list streams    those of one kind
python -m launch.list er         what `er` does, its paper, and its fields with their ranges and defaults
python -m launch.list configs/quickstart.py:method=er    what a config says, and all its keys
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from cljax.config import OUTER
from cljax.declared import fields
from cljax.errors import ConfigError, near
from cljax.looks import LOOKS
from cljax.sections import BESIDE
from cljax.timeline import WHEN
from launch import app, config_files
from launch.fields import SECTIONS, described_config, field_lines, matching


class Kind(NamedTuple):
  """A table to choose from."""

  table: Mapping[str, Callable[..., Any]]
  given: int  # first parameters, which the engine passes
  flag: str  # what picks one, and what its fields begin with


SHOWN = ("method", "method.guard", "gate", "net", "stream", "optimizer")  # in this order
KINDS = {f"{name.rpartition('.')[2]}s": Kind(*SECTIONS[name], f"config.{name}") for name in SHOWN}
OTHERS = ("looks", "settings", "configs")


def first_line(text: str | None) -> str:
  """The first sentence of a docstring, on one line."""
  return " ".join(re.split(r"(?<!et al)\.\s|\n\n", (text or "").strip())[0].split()).removesuffix(".")


def about(factory: Any) -> str:
  """What a factory says of itself, or else its file."""
  return first_line(factory.__doc__) or first_line(sys.modules[inspect.unwrap(factory).__module__].__doc__)


def paper(factory: Any) -> str | None:
  """The first link that a factory, or else its file or its folder, gives."""
  module = inspect.unwrap(factory).__module__
  texts = [factory.__doc__, *(sys.modules[name].__doc__ for name in (module, module.rpartition(".")[0]))]
  found = re.search(r"https?://[^\s)>,;]+", " ".join(filter(None, texts)))
  return found[0].rstrip(".") if found else None


def docs(kind: str, factory: Any) -> list[str]:
  """What a factory says of itself; of a method or a guard also what its file, or else its folder, says."""
  module = inspect.unwrap(factory).__module__
  files = (module, module.rpartition(".")[0]) if kind in ("methods", "guards") else ()
  of_file = next((text for name in files if (text := sys.modules[name].__doc__) and "." in name), None)
  texts = dict.fromkeys(inspect.cleandoc(text) for text in (factory.__doc__, of_file) if text)
  more = [text for text in texts if first_line(text) != " ".join(text.split()).removesuffix(".")]
  return [*textwrap.indent("\n\n".join(more), "  ").splitlines(), ""] if more else []


def configs() -> dict[str, str]:
  """{what is typed: what it says of itself} of the config files."""
  found = config_files.listed()
  return {name: first_line(ast.get_docstring(ast.parse(path.read_text()))) for name, path in found.items()}


def names_of(kind: str) -> dict[str, str]:
  """{name: a line about it} of a kind."""
  if kind in KINDS:
    return {name: about(factory) for name, factory in KINDS[kind].table.items()}
  if kind == "configs":
    return configs()
  if kind == "settings":
    return {name: field.bound.about for name, field in OUTER.items()}
  return {name: f"{look.split} rows, {WHEN[look.when]}" for name, look in LOOKS.items()}


def listed(kind: str) -> list[str]:
  """A heading and a line for each name."""
  found = names_of(kind)
  how = {"configs": "--config=PATH", "settings": "--config.NAME=...", "looks": '--config.looks=("NAME",)'}
  width = max(map(len, found), default=0)
  heading = f"{kind} ({how[kind] if kind in how else f'--{KINDS[kind].flag}.name=NAME'}):"
  return [heading, *(f"  {name:<{width}}  {text}" for name, text in found.items()), ""]


def described(name: str) -> list[str]:
  """All that is known of a name, of each kind that has it."""
  lines = []
  for kind, one in KINDS.items():
    if name in one.table:
      factory = one.table[name]
      link = paper(factory)
      lines += [f"{name}, of {kind}: {about(factory)}", *([f"  paper: {link}"] if link else []), ""]
      known = {**BESIDE.get(one.flag.removeprefix("config."), {}), **fields(factory, one.given)}
      lines += [*docs(kind, factory), f"  --{one.flag}.name={name}", *field_lines(f"{one.flag}.", known), ""]
  if name in OUTER:
    lines += [f"{name}, a setting", *field_lines("config.", {name: OUTER[name]}), ""]
  if name in LOOKS:
    lines += [f"{name}, of looks: {names_of('looks')[name]}", f'  --config.looks=("{name}",)', ""]
  return lines


def refuse(name: str) -> NoReturn:
  """
  Raises:
    ConfigError: nothing is called so; the nearest names.
  """
  known = [*KINDS, *OTHERS, *(each for kind in (*KINDS, *OTHERS) for each in names_of(kind))]
  raise ConfigError(f"nothing is called {name!r}.{near(name, known)} `cljax list` shows all names")


def main(name: str = "") -> None:
  """Prints all kinds, one kind, or one name."""
  kinds = [*KINDS, *OTHERS]
  if not name:
    print("\n".join(line for kind in kinds for line in listed(kind)).rstrip())
  elif name in kinds:
    print("\n".join(listed(name)).rstrip())
  else:
    lines = described(name)
    lines += [f"`cljax list {path}` shows the paper's config" for path in matching(name)] if lines else []
    print("\n".join(lines or described_config(name) or refuse(name)).rstrip())


if __name__ == "__main__":
  app.run(main, words=1)
