"""The sections of a config: what their names pick from the tables, and the fields that this takes."""

import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from cljax.declared import REQUIRED, Field, at_least, checked, fields, free, kinds_of
from cljax.errors import ConfigError, choose
from cljax.methods import METHODS

OWN = "own"  # name of a stream whose arrays were given
RATE = Field(float, at_least(0, "the learning rate, for example 0.1"), REQUIRED)
SOURCE = Field(str, free("the data set, or several joined by +, for example digits"), REQUIRED)


def keywords(section: str, given: Mapping[str, Any], factory: Callable, skipped: int = 0) -> dict[str, Any]:
  """The fields of a section as keywords of what its name picks.

  Args:
    skipped: the factory's first parameters, which the engine passes.

  Raises:
    ConfigError: a field that the factory does not take, one that it needs and did not get, or a wrong value.
  """
  return values_of(section, given, fields(factory, skipped))


def values_of(section: str, given: Mapping[str, Any], known: Mapping[str, Field]) -> dict[str, Any]:
  """The values of a section, checked.

  Raises:
    ConfigError: an unknown field, one that is missing, or a wrong value.
  """
  found = checked(section, known, given)
  for name, field in known.items():
    if name not in given and field.default is REQUIRED:
      raise ConfigError(f"config.{section}.{name} is missing: {field.bound.about}")
  return found


def held(value: Any, field: Field) -> Any:
  """A checked value as a ConfigDict holds it, so that a flag may give all that the field may be."""
  alternatives = [one for one in kinds_of(field.kind) if one is not type(None)]
  kinds = [one for one in (float, bool, int, str) if one in alternatives]
  if value is None:
    return placeholder(kinds[0])
  several = any(typing.get_origin(one) is tuple for one in alternatives)
  return FieldReference(value, field_type=object) if several and kinds else value


def choices(config: ConfigDict) -> dict[str, Mapping[str, Callable]]:
  """The keywords of the method that are chosen from a table, and the table."""
  found = fields(METHODS[config.method.name], 3)
  return {key: field.bound.table() for key, field in found.items() if field.bound.table}


class Number(NamedTuple):
  """A real number of the method."""

  place: tuple[str, ...]  # below config.method
  field: Field


def numbers_of(config: ConfigDict) -> dict[str, Number]:
  """The keywords of the method that are real numbers, those that a sweep may vary; those of a choice have its name
  before theirs, `guard_strength`."""
  found: dict[str, Number] = {}
  for key, field in fields(METHODS[config.method.name], 3).items():
    table = field.bound.table() if field.bound.table else {}
    choice = config.method.get(key, field.default)["name"] if table else ""
    if choice in table:
      below = fields(table[choice], 2)
      found |= {f"{key}_{name}": Number((key, name), own) for name, own in below.items() if float in kinds_of(own.kind)}
    elif not choice and float in kinds_of(field.kind):
      found[key] = Number((key,), field)
  return found


def defaults(factory: Callable, given: int) -> dict[str, Any]:
  """Keywords and defaults of a factory, without the first `given` that the engine passes."""
  return {name: dict(f.default) if f.bound.table else f.default for name, f in fields(factory, given).items()}


def section(config: ConfigDict, name: str, table: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
  """(what `config.<name>.name` picks from the table, the other fields); a list in a field becomes a tuple."""
  own = {key: tuple(v) if isinstance(v, list) else v for key, v in config[name].to_dict().items()}
  return table[choose(f"config.{name}.name", str(own.pop("name", "")), table)], own
