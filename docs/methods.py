"""Writes docs/methods.md: all methods, guards and gates, with paper, length, and every option with its range.

python docs/methods.py
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cljax.declared import Field, fields  # noqa: E402
from cljax.methods import METHODS, WITHOUT_BOUNDARIES  # noqa: E402
from cljax.report.apart import written  # noqa: E402
from launch.fields import allowed  # noqa: E402
from launch.list import KINDS, Kind, about, paper  # noqa: E402

PAGE = ROOT / "docs" / "methods.md"
HEAD = """# All methods, guards and gates

Written by `python docs/methods.py` from what the code declares; `cljax list packnet` tells one of them on a terminal,
with what its file says of itself. A length is that of the method's file, or of the files of its folder.

| method | what | paper | lines | takes a guard | without boundaries |
|---|---|---|---|---|---|
"""


def length(factory: Callable[..., Any]) -> int:
  """Lines of the factory's file; of all of a folder that is its own."""
  path = Path(str(inspect.getsourcefile(inspect.unwrap(factory))))
  own = sorted(path.parent.glob("*.py")) if path.parent.name not in ("methods", "guards", "gates") else [path]
  return sum(len(each.read_text().splitlines()) for each in own)


def cell(text: str) -> str:
  """A text within one cell of a table, without links, which stand in a column of their own."""
  return " ".join(re.sub(r",?\s*https?://[^\s),]+", "", text).replace("|", "\\|").split())


def link(factory: Callable[..., Any]) -> str:
  """The paper that a factory or its file names."""
  found = paper(factory)
  return f"[link]({found})" if found else "-"


def options(known: Mapping[str, Field]) -> list[str]:
  """A table of the keywords."""
  if not known:
    return ["No keywords.", ""]
  lines = ["| keyword | range | default | what |", "|---|---|---|---|"]
  for name, field in known.items():
    default = field.default["name"] if field.bound.table else written(field.default)
    lines.append(f"| `{name}` | {cell(allowed(field))} | `{default or '(empty)'}` | {cell(field.bound.about)} |")
  return [*lines, ""]


def section(title: str, kind: Kind, level: str) -> list[str]:
  """The options of all of one kind."""
  lines = [f"## {title}", ""]
  for name, factory in sorted(kind.table.items()):
    lines += [f"{level} {name}", "", f"{cell(about(factory))}. `--{kind.flag}.name={name}`", ""]
    lines += options(fields(factory, kind.given))
  return lines


def page() -> str:
  """The text of the page."""
  rows = []
  for name, factory in sorted(METHODS.items()):
    guard = "yes" if "guard" in fields(factory, 3) else "-"
    hidden = "yes" if name in WITHOUT_BOUNDARIES else "-"
    rows.append(f"| `{name}` | {cell(about(factory))} | {link(factory)} | {length(factory)} | {guard} | {hidden} |")
  text = [HEAD + "\n".join(rows), ""]
  for title, kind in (("Guards", KINDS["guards"]), ("Gates", KINDS["gates"])):
    text += [f"| {title.lower()[:-1]} | what | paper | lines |", "|---|---|---|---|"]
    named = sorted(kind.table.items())
    text += [f"| `{name}` | {cell(about(one))} | {link(one)} | {length(one)} |" for name, one in named]
    text += [""]
  text += section("Options of the methods", KINDS["methods"], "###")
  text += section("Options of the guards", KINDS["guards"], "###")
  text += section("Options of the gates", KINDS["gates"], "###")
  return "\n".join(text).rstrip() + "\n"


if __name__ == "__main__":
  PAGE.write_text(page())
  print(f"written: {PAGE}")  # noqa: T201
