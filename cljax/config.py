"""What a config says and which configs are refused: keys, defaults, ranges.

`default()` is the whole list of keys outside `stream`, `net`, `optimizer` and `method`, whose fields are the keywords
of the builder that their `name` picks.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from cljax.data.bank import KNOWN
from cljax.data.local import rooted
from cljax.declared import REQUIRED, Field, at_least, check, fields, free, shown
from cljax.errors import ConfigError, choose
from cljax.methods import PLAINEST
from cljax.pieces.gates import NO_GATE
from cljax.sections import (
  BESIDE,
  OWN,
  SOURCE,
  TABLES,
  Choice,
  apart_of,
  choices,
  defaults,
  held,
  numbers_of,
  section,
  values_of,
)
from cljax.settings import Settings, check_label
from cljax.values import plain

# The range of the keys that the engine itself reads; those of streams, nets, optimizers and methods stand where these
# are declared.
OUTER = {
  "paper": Field(str, free("a folder of configs/papers"), ""),  # whose published numbers a report shows beside ours
  "preset": Field(str, free("the scale of the run"), ""),
  "cell": Field(str, free("its name in a table"), ""),  # `stream/method`
  "seed": Field(int, at_least(0, "the first seed", 2**31 - 10_001), 0),
  "num_seeds": Field(int, at_least(1, "seeds are seed, seed + 1, ...", 10_000), 5),
  **fields(Settings),
  "debug": Field(bool, free("2 tasks, 10 steps a phase"), False),
}


def default() -> ConfigDict:
  """The keys that every config has. It takes whatever is set; `complete` makes it plain, and refuses what is wrong."""
  return ConfigDict(
    {
      **{name: field.default for name, field in OUTER.items()},
      "stream": {"name": "permuted", "source": SOURCE.default},
      "net": {"name": "mlp"},
      "optimizer": {"name": "sgd", "lr": 0.1},
      "method": {"name": PLAINEST},
      "gate": dict(NO_GATE),  # finds the task for a method that has to be told
      # Values of `lr` and of the method's numbers, each with all seeds in one run, sweep.lr=(0.1, 0.03); and of all
      # else, each in a run of its own, sweep.method=("er", "lwf").
      "sweep": {},
    },
    type_safe=False,
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


def check_outer(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
  """The values of the keys that the engine itself reads.

  Raises:
    ConfigError: a wrong one; says what is allowed.
  """
  found = {name: check(f"config.{name}", config[name], field) for name, field in OUTER.items()}
  for name in ("paper", "preset", "cell"):
    check_label(name, found[name])
  return found


def complete(given: ConfigDict | Mapping[str, Any]) -> ConfigDict:
  """The config with every keyword of its stream, net, optimizer and method, at their defaults where it says nothing.

  So each can be overridden on the command line, and config.json tells all of them. Where a name was overridden,
  keywords of the other choice are dropped if they stand at their defaults. All values are plain, see `values.plain`,
  and checked.

  Raises:
    ConfigError: a key or field that does not exist, one that is missing, a wrong value, or a keyword of another choice
      that was set.
  """
  told = whole(given)
  config = ConfigDict({**told, **check_outer(told)}, type_safe=False)  # a lock would refuse the new fields
  for name in TABLES:
    if (name, config[name].get("name")) != ("stream", OWN):
      complete_section(config, name)
  for one in choices(config):
    one.home(config)[one.key] = complete_choice(one, one.home(config)[one.key])
  numbers, apart = ("lr", *numbers_of(config)), apart_of(config)
  for key, values in list(config.sweep.items()):
    if values == () and key not in numbers:  # nothing, perhaps of another choice that stood here before
      del config.sweep[key]
      continue
    choose("config.sweep field", key, (*numbers, *apart), f"cljax list {config.method.name}")
    if not isinstance(values, tuple):
      raise ConfigError(f"config.sweep.{key}={shown(values)} must be several values, such as (0.1, 0.03)")
  for key in numbers:
    if key not in config.sweep:
      config.sweep[key] = ()
  return config


def whole(config: ConfigDict | Mapping[str, Any], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """The plain values of a config with all keys of `known`, which has their defaults; None: those of `default`.

  Raises:
    ConfigError: a key that does not exist, or a section that is no mapping.
  """
  try:
    told = plain("config", config.to_dict() if isinstance(config, ConfigDict) else config)
  except RequiredValueError as error:
    raise ConfigError(f"the config lacks a value: {error}") from error
  if not isinstance(told, Mapping):
    raise ConfigError(f"a config is a ConfigDict as cljax.config.default() makes it, not {shown(told)}")
  known = default().to_dict() if known is None else known
  for key, value in told.items():
    choose("config key", key, known, "cljax list settings")
    if isinstance(known[key], Mapping) and not isinstance(value, Mapping):
      raise ConfigError(f"config.{key}={shown(value)} must be a mapping, such as {known[key] or {'lr': (0.1, 0.03)}}")
  sections = {key: told.get(key, known[key]) for key in TABLES if key in known}
  # A section that names no choice is about the default one.
  return {**known, **told, **{key: {"name": known[key]["name"], **own} for key, own in sections.items()}}


def complete_section(config: ConfigDict, name: str) -> None:
  """Gives a section every keyword of what its name picks; those of other choices go where they stand at their defaults.

  Raises:
    ConfigError: a keyword of another choice that was set.
  """
  (factory, own), (table, given) = section(config, name), TABLES[name]
  known = {**BESIDE.get(name, {}), **fields(factory, given)}
  if name == "optimizer" and (foreign := set(own) - set(known)):  # of another one, whose defaults go
    before = [each for each in (defaults(other, given) for other in table.values()) if foreign <= set(each)]
    own = {key: value for key, value in own.items() if key in foreign or all(each.get(key) != value for each in before)}
  for key, value in list(own.items()):
    others = [defaults(other, given) for other in table.values()]
    if key not in known and any(key in other for other in others):
      chosen = isinstance(value, Mapping) and value.get("name", "none") != "none"  # a guard, say: never left over
      if chosen or not any(key in other and other[key] == value for other in others):
        raise ConfigError(
          f"config.{name}.{key}={value!r} means nothing to config.{name}.name={config[name].name!r}, "
          f"which takes {', '.join(known)}"
        )
      del own[key]
  own = {"source": SOURCE.default, **own} if name == "stream" else own
  own = values_of(name, own, known, f"cljax list {config[name].name}")
  if name == "stream":
    own["source"] = rooted(own["source"], KNOWN)
  beside = {key: field.default for key, field in BESIDE.get(name, {}).items() if field.default is not REQUIRED}
  own |= {key: value for key, value in (beside | defaults(factory, given)).items() if key not in own}
  config[name] = {"name": config[name].name, **{key: held(value, known[key]) for key, value in own.items()}}


def completed_net(net: Mapping[str, Any]) -> dict[str, Any]:
  """`config.net` with every keyword of the net that it names.

  Raises:
    ConfigError: an unknown net, or a keyword of another one that was set.
  """
  config = ConfigDict({"net": dict(net)})
  complete_section(config, "net")
  return config.net.to_dict()


def complete_choice(choice: Choice, given: Any) -> ConfigDict:
  """{"name": ..., and its keywords}, complete; under `none` those of the whole table, without values, so that each
  can be set on a command line.

  Raises:
    ConfigError: an unknown name, or a keyword of another choice that was set.
  """
  place, table = choice.place(), choice.table
  where = f"config.{place}"
  if isinstance(given, ConfigDict):
    given = given.to_dict()
  if not isinstance(given, Mapping):
    raise ConfigError(f"{where}={shown(given)} must be a mapping, such as {{'name': '{next(iter(table))}'}}")
  own = dict(given)
  name = str(own.pop("name", choice.usual))
  taken = choice.fields(name)
  all_fields = {key: field for each in (*table, name) for key, field in choice.fields(each).items()}
  for key, value in own.items():
    choose(f"{where} field", key, all_fields)
    if value is not None and key not in taken:
      takers = [other for other in table if key in choice.fields(other)]
      takes = f"which takes {', '.join(taken)}" if taken else f"set {where}.name to {' or '.join(takers)}"
      raise ConfigError(f"{where}.{key}={shown(value)} means nothing to {where}.name={name!r}, {takes}")
  own = {key: value for key, value in own.items() if value is not None}
  own = values_of(place, own, taken)
  found = ConfigDict({"name": name})
  for key, field in (taken or all_fields).items():
    found[key] = held(own.get(key, field.default) if taken else None, field)
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
  return complete(recorded)
