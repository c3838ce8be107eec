"""What a config says and which configs are refused: keys, defaults, ranges.

`default()` is the whole list of keys outside `stream`, `net`, `optimizer` and `method`, whose fields are the keywords
of the builder that their `name` picks.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cljax.data import STREAMS
from cljax.declared import REQUIRED, Field, at_least, check, checked, fields, free, kinds_of
from cljax.errors import ConfigError, choose
from cljax.methods import METHODS, PLAINEST
from cljax.nets import NETS
from cljax.settings import Settings

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}

# The range of the keys that the engine itself reads; those of streams, nets, optimizers and methods stand where these
# are declared.
OUTER = {
  "seed": Field(int, at_least(0, "the first seed", 2**31 - 10_001), 0),
  "num_seeds": Field(int, at_least(1, "seeds are seed, seed + 1, ...", 10_000), 5),
  **fields(Settings),
  "debug": Field(bool, free("2 tasks, 10 steps a phase"), False),
}

RATE = Field(float, at_least(0, "the learning rate"), 0.1)


def default() -> ConfigDict:
  """The keys that every config has."""
  return ConfigDict(
    {
      "paper": "",  # a folder of configs/papers, whose published numbers a report shows beside ours
      "preset": "",
      "cell": "",  # the name of this cell in a table, `stream/method`
      "seed": 0,  # seeds are seed, seed + 1, ...
      "num_seeds": 5,
      "stream": {"name": "permuted", "source": "digits"},
      "net": {"name": "mlp"},
      "optimizer": {"name": "sgd", "lr": 0.1},
      "method": {"name": PLAINEST},
      **Settings()._asdict(),  # what each says and may be stands there
      "sweep": {},  # values of `lr` and of the method's numbers, each with all seeds in one run: sweep.lr=(0.1, 0.03)
      "debug": False,  # 2 tasks, 10 steps a phase
    }
  )


def variant(arg: str, **allowed: tuple[str, ...]) -> dict[str, str]:
  """The part of a config's name behind the colon, `key=value,key=value`, as a dict of what it pins.

  Args:
    allowed: the values of each key.

  Raises:
    ConfigError: a key or a value that is not allowed.
  """
  pinned = {}
  for part in filter(None, arg.split(",")):
    key, _, value = part.partition("=")
    choose("the config argument", key, allowed)
    pinned[key] = choose(f"the config argument {key}", value, allowed[key])
  return pinned


def check_outer(config: ConfigDict) -> None:
  """Refuses wrong values of the keys that the engine itself reads.

  Raises:
    ConfigError: says what is allowed.
  """
  for name, field in OUTER.items():
    check(f"config.{name}", config[name], field)


def keywords(section: str, given: Mapping[str, Any], factory: Callable, skipped: int = 0) -> dict[str, Any]:
  """The fields of a section as keywords of what its name picks.

  Args:
    skipped: the factory's first parameters, which the engine passes.

  Raises:
    ConfigError: a field that the factory does not take, one that it needs and did not get, or a wrong value.
  """
  known = fields(factory, skipped)
  found = checked(section, known, given)
  for name, field in known.items():
    if name not in given and field.default is REQUIRED:
      raise ConfigError(f"config.{section}.{name} is missing")
  return found


def complete(config: ConfigDict) -> ConfigDict:
  """The config with every keyword of its stream, net, optimizer and method, at their defaults where it says nothing.

  So each can be overridden on the command line, and config.json tells all of them. Where a name was overridden,
  keywords of the other choice are dropped if they stand at their defaults.

  Raises:
    ConfigError: a keyword of another choice that was set.
  """
  config = ConfigDict(config.to_dict())  # a lock would refuse the new fields
  for name, table, given in (("stream", STREAMS, 2), ("net", NETS, 2), ("method", METHODS, 3)):
    complete_section(config, name, table, given)
  for key, choice in choices(config).items():
    config.method[key] = complete_choice(f"config.method.{key}", config.method[key], choice)
  for key in ("lr", *numbers_of(config)):
    if key not in config.sweep:
      config.sweep[key] = ()
  for key in config.sweep:
    choose("config.sweep field", key, ("lr", *numbers_of(config)))
  return config


def choices(config: ConfigDict) -> dict[str, Mapping[str, Callable]]:
  """The keywords of the method that are chosen from a table, and the table."""
  found = fields(METHODS[config.method.name], 3)
  return {key: field.bound.table() for key, field in found.items() if field.bound.table}


def complete_section(config: ConfigDict, name: str, table: dict[str, Any], given: int) -> None:
  """Gives a section every keyword of what its name picks; those of other choices go where they stand at their defaults.

  Raises:
    ConfigError: a keyword of another choice that was set.
  """
  factory, fields = section(config, name, table)
  taken = defaults(factory, given)
  for key, value in fields.items():
    others = [defaults(other, given) for other in table.values()]
    if key not in taken and any(key in other for other in others):
      if not any(key in other and other[key] == value for other in others):
        raise ConfigError(
          f"config.{name}.{key}={value!r} means nothing to config.{name}.name={config[name].name!r}, "
          f"which takes {', '.join(taken)}"
        )
      del config[name][key]
  for key, value in taken.items():
    if key not in config[name]:
      config[name][key] = placeholder(float) if value is None else value


def completed_net(net: Mapping[str, Any]) -> dict[str, Any]:
  """`config.net` with every keyword of the net that it names.

  Raises:
    ConfigError: an unknown net, or a keyword of another one that was set.
  """
  config = ConfigDict({"net": dict(net)})
  complete_section(config, "net", NETS, 2)
  return config.net.to_dict()


def complete_choice(where: str, given: Mapping[str, Any], table: Mapping[str, Callable]) -> ConfigDict:
  """{"name": ..., and its keywords}, complete; under `none` those of the whole table, without values, so that each
  can be set on a command line.

  Raises:
    ConfigError: an unknown name, or a keyword of another choice that was set.
  """
  own = dict(given)
  name = choose(f"{where}.name", str(own.pop("name", "none")), ("none", *table))
  all_fields = {key: field for factory in table.values() for key, field in fields(factory, 2).items()}
  taken = fields(table[name], 2) if name != "none" else {}
  for key, value in own.items():
    choose(f"{where} field", key, all_fields)
    if value is not None and key not in taken:
      raise ConfigError(
        f"{where}.{key}={value!r} means nothing to {where}.name={name!r}, which takes {', '.join(taken)}"
      )
  own = {key: value for key, value in own.items() if value is not None}
  found = ConfigDict({"name": name})
  for key, field in (taken or all_fields).items():
    kind = next(one for one in (float, bool, int, str) if one in kinds_of(field.kind))
    value = own.get(key, field.default) if taken else None
    found[key] = placeholder(kind) if value is None else value
  return found


def completed(recorded: Mapping[str, Any]) -> ConfigDict:
  """The config that a config.json tells, with the defaults of keys that did not exist when it was written.

  Raises:
    ConfigError: it tells none, or one that is not allowed.
  """
  if not {"stream", "num_seeds"} <= set(recorded):
    raise ConfigError(
      "the run was begun from Python by `fit`, so no config tells its data and its method; ask it from Python, too"
    )
  return complete(ConfigDict({**default().to_dict(), **recorded}))


def with_fields(recorded: Mapping[str, Any], changes: Mapping[str, Any]) -> ConfigDict:
  """The config that a config.json tells, with other values under dotted names, complete again.

  Raises:
    ConfigError: a value that goes with another choice.
  """
  config = completed(recorded)
  for key, value in changes.items():
    *sections, field = key.split(".")
    place = config
    for name in sections:
      place = place[name]
    del place[field]  # a new type, such as a number in place of None, is no concern here
    place[field] = value
  return complete(config)


def typed(name: str, value: Any, like: Any) -> Any:
  """A value of the type of `like`, which a field holds now; words as they are typed are parsed.

  Args:
    name: of the field, for the message.
    like: None stands for an optional number, whose words are a number or `none`.

  Raises:
    ConfigError: a value of another type, or a field that holds several values.
  """
  kind = float if like is None else type(like)
  if kind not in WORDS:
    raise ConfigError(f"{name} holds {like!r}: only fields of one number, word, true or false can be changed here")
  if like is None and value in (None, "none"):
    return None
  if isinstance(value, str) and kind is bool:
    value = {"true": True, "false": False}.get(value.lower(), value)
  elif isinstance(value, str) and kind is not str:
    with contextlib.suppress(ValueError):
      value = kind(value)
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind:
    raise ConfigError(f"{name}={value!r} must be {WORDS[kind]}, as {like!r} is, which the run has")
  return value


def relabel(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
  """Drops the labels that a config lost by what the user overrode.

  Another method or stream is another cell, of no paper's table; another number of rows or epochs is another scale, so
  that no published number is held against it.
  """
  if {"method.name", "stream.name", "stream.source"} & set(overrides):
    config.paper = config.cell = config.preset = ""
  elif "method.epochs" in overrides or any(key.startswith("stream.") for key in overrides):
    config.preset = ""


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
