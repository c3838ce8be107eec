"""Changes of a config by dotted names, `method.name` or `method.guard.strength`, in two passes.

The names of sections come first: what they pick brings its keywords with their defaults. Of the values that stood
there, those that the new choice has as well stay, if they were no defaults; the others go. Then come the keywords: one
that the new choice does not have is refused.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, completed, whole
from cljax.declared import Field, check, fields
from cljax.errors import ConfigError, choose
from cljax.files import flatten
from cljax.sections import BESIDE, OWN, TABLES, apart_of, choices, defaults, factory_of, numbers_of


def changed(config: ConfigDict | Mapping[str, Any], changes: Mapping[str, Any]) -> ConfigDict:
  """A config with other values under dotted names, complete.

  Raises:
    ConfigError: a key that it does not have, or a wrong value.
  """
  config = opened(renamed(config, {key: value for key, value in changes.items() if is_name(key)}))
  known = flatten(config.to_dict())
  for key, value in changes.items():
    *sections, field = choose("config key", key, known).split(".")
    place = config
    for name in sections:
      place = place[name]
    del place[field]  # a new type, such as a number in place of None, is no concern here
    place[field] = value
  return complete(config)


def opened(config: ConfigDict) -> ConfigDict:
  """A complete config with all keys that its sweep may have; `complete` takes away those that stay empty."""
  config.sweep = {**{key: () for key in apart_of(config)}, **config.sweep}
  return config


def with_fields(recorded: Mapping[str, Any], changes: Mapping[str, Any]) -> ConfigDict:
  """The config that a config.json tells, with other values under dotted names, complete again.

  Raises:
    ConfigError: a value that goes with another choice.
  """
  return changed(completed(recorded), changes)


def is_name(key: str) -> bool:
  """Whether a dotted name is that of a choice: of a section, of a keyword of the method, or of the gate."""
  place = key.split(".")
  return place[-1] == "name" and place[0] in (*TABLES, "gate") and len(place) <= (3 if place[0] == "method" else 2)


def renamed(config: ConfigDict | Mapping[str, Any], names: Mapping[str, Any]) -> ConfigDict:
  """The config with other choices, complete: the first pass.

  Args:
    names: `stream.name`, `net.name`, `optimizer.name`, `method.name`, `method.<keyword>.name` or `gate.name` -> what
      it picks.

  Raises:
    ConfigError: an unknown name.
  """
  told = whole(config)
  swept = {key: values for key, values in told.pop("sweep").items() if values}
  for section in TABLES:
    told[section] = under(section, told[section], str(names.get(f"{section}.name", told[section]["name"])))
  found = complete(told)
  for one in choices(found):
    home = one.home(found)
    old, new = home[one.key].name, str(names.get(f"{one.place()}.name", home[one.key].name))
    if new != old:
      own = kept(one.place(), home[one.key].to_dict(), one.values(old), one.fields(new))
      home[one.key] = {"name": new, **own}
  found.sweep = {key: values for key, values in swept.items() if key in ("lr", *numbers_of(found), *apart_of(found))}
  return complete(found)


def under(section: str, own: Mapping[str, Any], name: str) -> dict[str, Any]:
  """What a section says under a name, and of what it said under another one that which outlives the change.

  Raises:
    ConfigError: an unknown name.
  """
  before, given = str(own["name"]), TABLES[section][1]
  if name == before:
    return dict(own)
  old = {} if (section, before) == ("stream", OWN) else defaults(factory_of(section, before), given)
  known = {**BESIDE.get(section, {}), **fields(factory_of(section, name), given)}
  return {"name": name, **kept(section, own, old, known)}


def kept(place: str, own: Mapping[str, Any], before: Mapping[str, Any], known: Mapping[str, Field]) -> dict[str, Any]:
  """The values of a section that outlive another choice: they were set, and it may have them.

  Args:
    before: defaults of the choice that stood there.
    known: keywords of the new one.
  """
  found = {}
  for key, value in own.items():
    if key in known and value is not None and (key not in before or before[key] != value):
      try:
        found[key] = check(f"config.{place}.{key}", value, known[key])
      except ConfigError:  # of another kind or range than the new choice's keyword of that name
        continue
  return found


def relabel(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
  """Drops the labels that a config lost by what the user overrode.

  Another method or stream is another cell, of no paper's table; another number of rows or epochs is another scale, so
  that no published number is held against it.
  """
  if {"method.name", "gate.name", "stream.name", "stream.source"} & set(overrides):
    config.paper = config.cell = config.preset = ""
  elif "method.epochs" in overrides or any(key.startswith("stream.") for key in overrides):
    config.preset = ""
