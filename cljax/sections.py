"""The sections of a config: what their names pick from the tables, and the fields that this takes."""

import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from cljax.data import STREAMS
from cljax.declared import REQUIRED, Field, at_least, checked, fields, free, kinds_of
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.named import pick
from cljax.nets import NETS
from cljax.pieces.course import Course
from cljax.pieces.optimizers import OPTIMIZERS
from cljax.settings import Settings

OWN = "own"  # name of a stream whose arrays were given
TABLES: dict[str, tuple[Mapping[str, Any], int]] = {  # section -> (table, first parameters that the engine passes)
  "stream": (STREAMS, 2),
  "net": (NETS, 2),
  "optimizer": (OPTIMIZERS, 1),
  "method": (METHODS, 3),
}
CHOICE = 2  # of a keyword that is chosen from a table: first parameters of what it picks
RATE = Field(float, at_least(0, "the learning rate, for example 0.1"), REQUIRED)
SOURCE = Field(
  str, free("the data set, an .npz file or a folder of pictures by class, or several joined by +: digits"), "digits"
)
BESIDE: dict[str, Mapping[str, Field]] = {  # fields that no factory of the section declares
  "stream": {"source": SOURCE},
  "optimizer": {"lr": RATE, **fields(Course)},
}


def keywords(section: str, given: Mapping[str, Any], factory: Callable, skipped: int = 0) -> dict[str, Any]:
  """The fields of a section as keywords of what its name picks.

  Args:
    skipped: the factory's first parameters, which the engine passes.

  Raises:
    ConfigError: a field that the factory does not take, one that it needs and did not get, or a wrong value.
  """
  return values_of(section, given, fields(factory, skipped))


def values_of(section: str, given: Mapping[str, Any], known: Mapping[str, Field], command: str = "") -> dict[str, Any]:
  """The values of a section, checked.

  Raises:
    ConfigError: an unknown field, one that is missing, or a wrong value.
  """
  found = checked(section, known, given, command)
  for name, field in known.items():
    if name not in given and field.default is REQUIRED:
      raise ConfigError(f"config.{section}.{name} is missing: {field.bound.about}")
  return found


def held(value: Any, field: Field) -> Any:
  """A checked value as a ConfigDict holds it, so that a flag may give all that the field may be."""
  alternatives = [one for one in kinds_of(field.kind) if one is not type(None)]
  kinds = [one for one in (float, bool, int, str) if one in alternatives]
  if value is None:
    return placeholder(kinds[0] if kinds else object)
  several = any(typing.get_origin(one) is tuple for one in alternatives)
  return FieldReference(value, field_type=object) if several and kinds else value


def choices(config: ConfigDict) -> dict[str, Mapping[str, Callable]]:
  """The keywords of the method that are chosen from a table, and the table."""
  found = fields(factory_of("method", config.method.name), 3)
  return {key: field.bound.table() for key, field in found.items() if field.bound.table}


class Number(NamedTuple):
  """A value that a sweep may vary."""

  place: tuple[str, ...]  # of the method's real numbers below config.method
  field: Field


def numbers_of(config: ConfigDict) -> dict[str, Number]:
  """The keywords of the method that are real numbers, those that a sweep may vary; those of a choice have its name
  before theirs, `guard_strength`."""
  found: dict[str, Number] = {}
  for key, field in fields(factory_of("method", config.method.name), 3).items():
    table = field.bound.table() if field.bound.table else {}
    choice = config.method.get(key, field.default)["name"] if table else ""
    if choice != "none" and table:
      below = fields(pick(f"method.{key}", choice, table, CHOICE), CHOICE)
      found |= {f"{key}_{name}": Number((key, name), own) for name, own in below.items() if float in kinds_of(own.kind)}
    elif not table and float in kinds_of(field.kind):
      found[key] = Number((key,), field)
  return found


def apart_of(config: ConfigDict) -> dict[str, Number]:
  """What a sweep may vary in runs of their own: the choices, and all keywords and settings but `lr` and `numbers_of`.

  A key is the keyword's name; where two sections have one of that name, it is the later one's of settings, stream,
  optimizer, net and method. Places are those from the top of the config.
  """
  found = {key: Number((key,), field) for key, field in fields(Settings).items()}
  for name in ("stream", "optimizer", "net", "method"):
    if (name, config[name].name) == ("stream", OWN):
      continue
    known = {**BESIDE.get(name, {}), **fields(factory_of(name, config[name].name), TABLES[name][1])}
    found |= {key: Number((name, key), field) for key, field in known.items() if not field.bound.table}
  word = Field(str, free("a name"), REQUIRED)
  found |= {name: Number((name, "name"), word) for name in TABLES}
  for key, table in choices(config).items():
    found[key] = Number(("method", key, "name"), word)
    if (choice := config.method[key]["name"]) != "none":
      below = fields(pick(f"method.{key}", choice, table, CHOICE), CHOICE)
      found |= {f"{key}_{name}": Number(("method", key, name), own) for name, own in below.items()}
  return {key: number for key, number in found.items() if key not in ("lr", *numbers_of(config))}


def defaults(factory: Callable, given: int) -> dict[str, Any]:
  """Keywords and defaults of a factory, without the first `given` that the engine passes."""
  return {name: dict(f.default) if f.bound.table else f.default for name, f in fields(factory, given).items()}


def factory_of(section: str, name: str) -> Any:
  """What a name picks for a section.

  Raises:
    ConfigError: nothing of its table, and no `FILE.py:NAME`.
  """
  table, given = TABLES[section]
  return pick(section, name, table, given)


def section(config: ConfigDict, name: str) -> tuple[Callable, dict[str, Any]]:
  """(what `config.<name>.name` picks, the other fields); a list in a field becomes a tuple."""
  own = {key: tuple(v) if isinstance(v, list) else v for key, v in config[name].to_dict().items()}
  return factory_of(name, str(own.pop("name", ""))), own
