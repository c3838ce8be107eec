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
from cljax.pieces.gates import GATES
from cljax.pieces.optimizers import OPTIMIZERS
from cljax.settings import Settings

OWN = "own"  # name of a stream whose arrays were given
TABLES: dict[str, tuple[Mapping[str, Any], int]] = {  # section -> (table, first parameters that the engine passes)
  "stream": (STREAMS, 2),
  "net": (NETS, 2),
  "optimizer": (OPTIMIZERS, 1),
  "method": (METHODS, 3),
}
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


class Choice(NamedTuple):
  """A key of a config, below its sections, that is chosen from a table: {"name": ..., and keywords}."""

  section: tuple[str, ...]  # that it stands in; () at the top
  key: str
  table: Mapping[str, Callable]
  given: int  # first parameters of what it picks, which the engine or the method passes
  usual: str = "none"  # the name that it has by default

  def place(self) -> str:
    """Its dotted name."""
    return ".".join([*self.section, self.key])

  def home(self, config: Any) -> Any:
    """The mapping that has it as `key`."""
    for name in self.section:
      config = config[name]
    return config

  def fields(self, name: str) -> Mapping[str, Field]:
    """The keywords of what a name picks; none of `none`."""
    factory = pick(self.place(), name, {"none": None, **self.table}, self.given)
    return fields(factory, self.given) if factory else {}

  def values(self, name: str) -> dict[str, Any]:
    """Their defaults."""
    return {key: field.default for key, field in self.fields(name).items()}


def choices(config: ConfigDict) -> tuple[Choice, ...]:
  """The keywords of the method that are chosen from a table, and the gate."""
  found = fields(factory_of("method", config.method.name), 3)
  of_method = [
    Choice(("method",), key, field.bound.table(), 2, field.default.get("name", "none"))
    for key, field in found.items()
    if field.bound.table
  ]
  return *of_method, Choice((), "gate", GATES, 1)


class Number(NamedTuple):
  """A value that a sweep may vary."""

  place: tuple[str, ...]  # of the method's real numbers below config.method
  field: Field


def numbers_of(config: ConfigDict) -> dict[str, Number]:
  """The keywords of the method that are real numbers, those that a sweep may vary; those of a choice have its name
  before theirs, `guard_strength`."""
  found: dict[str, Number] = {}
  known = fields(factory_of("method", config.method.name), 3)
  for key, field in known.items():
    if not field.bound.table and float in kinds_of(field.kind):
      found[key] = Number((key,), field)
  for one in (one for one in choices(config) if one.section == ("method",)):
    below = one.fields(config.method.get(one.key, known[one.key].default)["name"])
    real = {name: own for name, own in below.items() if float in kinds_of(own.kind)}
    found |= {f"{one.key}_{name}": Number((one.key, name), own) for name, own in real.items()}
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
  for one in choices(config):
    place = (*one.section, one.key)
    found[one.key] = Number((*place, "name"), word)
    below = one.fields(one.home(config)[one.key]["name"])
    found |= {f"{one.key}_{name}": Number((*place, name), own) for name, own in below.items()}
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
