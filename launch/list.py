"""What there is to choose from: methods, guards, nets, streams, optimizers, looks, settings and configs.

python -m launch.list            all names, a line each
python -m launch.list streams    those of one kind
python -m launch.list er         the fields of `er` with their ranges and defaults, and where its paper is
"""

import ast
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from cljax.config import OUTER
from cljax.data import STREAMS
from cljax.declared import REQUIRED, Field, fields, kinds_of
from cljax.errors import ConfigError
from cljax.looks import LOOKS
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.pieces.guards import GUARDS
from cljax.pieces.optimizers import OPTIMIZERS
from cljax.sections import BESIDE
from cljax.timeline import WHEN
from launch import app
from launch.config_files import ROOT


class Kind(NamedTuple):
  """A table to choose from."""

  table: Mapping[str, Callable[..., Any]]
  given: int  # first parameters, which the engine passes
  flag: str  # what picks one, and what its fields begin with


KINDS = {
  "methods": Kind(METHODS, 3, "config.method"),
  "guards": Kind(GUARDS, 2, "config.method.guard"),
  "nets": Kind(NETS, 0, "config.net"),
  "streams": Kind(STREAMS, 2, "config.stream"),
  "optimizers": Kind(OPTIMIZERS, 1, "config.optimizer"),
}
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


def allowed(field: Field) -> str:
  """The range of a field in a few words."""
  bound, kinds = field.bound, kinds_of(field.kind)
  if bound.words:
    return " | ".join(bound.words)
  if bound.table:
    return "a name of: " + ", ".join(bound.table())
  names = {int: "int", float: "float", bool: "bool", str: "str", type(None): "None"}
  called = [names.get(one, "tuple" if "tuple" in str(one) else "") for one in kinds]
  kind = " or ".join(filter(None, dict.fromkeys(called)))
  low = "" if bound.low == float("-inf") else f"above {bound.low:g}" if bound.open else f"from {bound.low:g}"
  high = "" if bound.high == float("inf") else f"to {bound.high:g}"
  return " ".join(filter(None, [kind, low, high]))


def field_lines(prefix: str, known: Mapping[str, Field]) -> list[str]:
  """A line for each field: what is typed, its range, what it is."""
  typed = [f"--{prefix}{name}={'' if field.default is REQUIRED else field.default}" for name, field in known.items()]
  ranges = [allowed(field) for field in known.values()]
  widths = [max(map(len, column), default=0) for column in (typed, ranges)]
  return [
    f"  {text:<{widths[0]}}  {span:<{widths[1]}}  {field.bound.about}".rstrip()
    for text, span, field in zip(typed, ranges, known.values(), strict=True)
  ]


def configs() -> dict[str, str]:
  """{path from the checkout: what it says of itself} of the config files."""
  found = sorted([*(ROOT / "configs").glob("*.py"), *(ROOT / "configs").glob("papers/*/*.py")])
  return {str(path.relative_to(ROOT)): first_line(ast.get_docstring(ast.parse(path.read_text()))) for path in found}


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
      lines += [f"{name}, of {kind}: {about(factory)}", *([f"  {link}"] if link else [])]
      known = {**BESIDE.get(one.flag.split(".")[-1], {}), **fields(factory, one.given)}
      lines += [f"  --{one.flag}.name={name}", *field_lines(f"{one.flag}.", known), ""]
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
  near = difflib.get_close_matches(name, known, n=3)
  hint = f"; the nearest are {', '.join(dict.fromkeys(near))}" if near else ""
  raise ConfigError(f"nothing is called {name!r}{hint}. `cljax list` shows all names")


def main(name: str = "") -> None:
  """Prints all kinds, one kind, or one name."""
  kinds = [*KINDS, *OTHERS]
  if not name:
    print("\n".join(line for kind in kinds for line in listed(kind)).rstrip())
  elif name in kinds:
    print("\n".join(listed(name)).rstrip())
  else:
    print("\n".join(described(name) or refuse(name)).rstrip())


if __name__ == "__main__":
  app.run(main, words=1)
