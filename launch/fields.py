"""Fields in words: what is typed, the range, what it is; of a keyword's owner, or of all keys of a config."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cljax.config import OUTER
from cljax.declared import REQUIRED, Field, fields, free, kinds_of
from cljax.errors import ConfigError
from cljax.files import flatten
from cljax.meta import settings as meta
from cljax.pieces.gates import GATES
from cljax.pieces.guards import GUARDS
from cljax.report.pages import read_published
from cljax.sections import BESIDE, TABLES
from launch import config_files

WIDEST = 44  # column; what is longer moves the next one of its line
SECTIONS: dict[str, tuple[Mapping[str, Any], int]] = {  # the table, and how many parameters the engine passes
  **TABLES,
  "method.guard": (GUARDS, 2),
  "gate": (GATES, 1),
}


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
  shown = {name: "" if field.default is REQUIRED else field.default for name, field in known.items()}
  typed = [f"--{prefix}{name}={value}" for name, value in shown.items()]
  ranges = [allowed(field) for field in known.values()]
  widths = [max(map(len, column), default=0) for column in (typed, ranges)]
  widths = [min(width, WIDEST) for width in widths]
  return [
    f"  {text:<{widths[0]}}  {span:<{widths[1]}}  {field.bound.about}".rstrip()
    for text, span, field in zip(typed, ranges, known.values(), strict=True)
  ]


def matching(name: str) -> list[str]:
  """The configs that come with the package and that a name may mean: a path, or a part of one, such as a paper."""
  parts = {typed: typed.removesuffix(".py") for typed in config_files.listed()}
  return [typed for typed, path in parts.items() if name in (path, path.removeprefix("configs/"), *path.split("/")[1:])]


def known_to(config: Mapping[str, Any]) -> Iterator[tuple[str, Field]]:
  """The dotted keys of a complete config that say their range."""
  of_meta = "trains" in config
  yield from (meta.OUTER if of_meta else OUTER).items()
  for name, record in meta.RECORDS.items() if of_meta else ():
    yield from ((f"{name}.{key}", field) for key, field in fields(record).items())
  for name, (table, given) in SECTIONS.items():
    place: Any = config
    for word in name.split("."):
      place = place.get(word, {})
    if place.get("name") == "none":  # each of them can be set together with the name
      yield from ((f"{name}.{key}", field) for each in table.values() for key, field in fields(each, given).items())
    if place.get("name") in table:
      yield f"{name}.name", Field(str, free("see `cljax list " + name.rpartition(".")[2] + "s`"), place["name"])
      found = {**BESIDE.get(name, {}), **fields(table[place["name"]], given)}
      yield from ((f"{name}.{key}", field) for key, field in found.items())


def paper_of(path: Path) -> list[str]:
  """The paper of a config's folder and the first link there, as a line; [] where it has none."""
  folder, root = path.parent, config_files.ROOT / "configs" / "papers"
  if folder.parent != root:
    return []
  published = read_published(folder.name, root.parent)
  texts = [path.read_text(), (folder / "README.md").read_text(), published.get("link", "")]
  links = [link.rstrip(".") for text in texts for link in re.findall(r"https?://[^\s)>,\"]+", text)]
  links = [link for link in links if "arxiv.org" in link] or links
  return ["  paper: " + ", ".join(filter(None, [published.get("paper", ""), *links[:1]]))]


def described_config(name: str) -> list[str]:
  """What a config says, its paper, its cells and all keys with values and ranges; [] where no config is meant.

  Args:
    name: FILE.py or FILE.py:VARIANT, or a part of the path of those that come with the package.

  Raises:
    ConfigError: a variant that the file does not have.
  """
  path, colon, arg = name.partition(":")
  found = [path] if path.endswith(".py") and Path(config_files.located(path)).is_file() else matching(path)
  lines = []
  for typed in found:
    file = Path(config_files.located(typed)).resolve()
    lines += [f"{typed}, a config", *paper_of(file), "", ast.get_docstring(ast.parse(file.read_text())) or "", ""]
    lines += [f"  --config={typed}{colon}{arg}", *keys_in(typed + colon + arg), ""]
  return lines


def keys_in(name: str) -> list[str]:
  """A line for each key of a config; why there are none where the file asks for a variant."""
  try:
    config = config_files.read_config(name).to_dict()
  except ConfigError as error:
    if ":" in name:
      raise
    return [f"  its keys: {error}"]
  values = flatten(config)
  known = dict(known_to(config))
  several = Field(tuple, free("of each value all seeds, in one run"), ())
  known |= {key: several for key in values if key.startswith("sweep.")}
  rows = {key: known.get(key, Field(type(value), free(""), value)) for key, value in values.items()}
  return field_lines("config.", {key: field._replace(default=values[key]) for key, field in rows.items()})
