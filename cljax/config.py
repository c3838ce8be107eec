"""What a config says and which configs are refused: keys, defaults, ranges, sweeps.

`default()` is the whole list of keys outside `stream`, `net`, `optimizer` and `method`, whose fields are the keywords
of the builder that their `name` picks.
"""

import contextlib
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import optax
from flax import linen as nn
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cljax.data import STREAMS
from cljax.errors import ConfigError, choose
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.pieces.learner import sgd

OPTIMIZERS = {"sgd": sgd, "adam": optax.adam, "adagrad": optax.adagrad, "rmsprop": optax.rmsprop}
PRECISIONS = ("highest", "high", "default")
EVALUATE = ("all", "seen", "ends")
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}

# The least value of every number that a config may hold, by the last part of its key.
AT_LEAST = {
  **dict.fromkeys(("num_seeds", "log_every_steps", "evaluate_group", "batch_size", "epochs"), 1),
  **dict.fromkeys(("hidden", "widths", "experts", "k", "data_devices"), 1),
  **dict.fromkeys(("seed", "chunk", "block", "checkpoint_every_chunks", "examples_per_task", "valid_per_task"), 0),
  **dict.fromkeys(("replay", "capacity", "lr", "cotrain_lr", "router_lr", "noise", "router_init"), 0),
  **dict.fromkeys(("code", "autoencoder_batch", "autoencoder_epochs", "patience", "gate_batch", "gate_epochs"), 1),
  **dict.fromkeys(("size", "channels"), 1),
  **dict.fromkeys(("warmup_epochs", "distill_weight", "autoencoder_lr", "autoencoder_decay", "gate_lr"), 0),
  **dict.fromkeys(("valid_share", "activate_above", "tasks"), 0),
  **dict.fromkeys(("temperature", "temperature_min", "gate_scale", "auxiliary_weight", "momentum"), 0),
}


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
      "method": {"name": "finetune"},
      "every_task": False,  # an oracle trains anew at every task; else once, at the last
      "evaluate": "all",  # all pairs of tasks | seen (enough for all metrics) | ends (diagonal and last row)
      "evaluate_group": 500,  # test rows a batch
      "chunk": 0,  # steps of one compiled call; 0 chooses
      "checkpoint_every_chunks": 20,  # besides every task's end; 0: at task ends only
      "log_every_steps": 100,
      "seed_executor": "auto",  # vmap | map | each
      "data_devices": 1,  # devices that share each batch; the others share the seeds
      "sweep": {},  # values of `lr` and of the method's numbers, each with all seeds in one run: sweep.lr=(0.1, 0.03)
      "matmul_precision": "highest",  # highest | high | default
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


def check_numbers(config: ConfigDict, prefix: str = "config") -> None:
  """Refuses numbers that are too small or not finite, wherever they stand."""
  for key, value in config.items():
    name = f"{prefix}.{key}"
    if isinstance(value, ConfigDict):
      check_numbers(value, name)
      continue
    for number in value if isinstance(value, tuple | list) else (value,):
      if isinstance(number, bool) or not isinstance(number, int | float):
        continue
      if not math.isfinite(number):
        raise ConfigError(f"{name}={value} is not a finite number")
      if key in AT_LEAST and number < AT_LEAST[key]:
        raise ConfigError(f"{name}={value} is too small; the least is {AT_LEAST[key]}")


def keywords(section: str, fields: dict[str, Any], factory: Callable, given: tuple[str, ...]) -> dict[str, Any]:
  """The fields of a section as keywords of what its name picks.

  Raises:
    ConfigError: a field that the factory does not take, or one that it needs and did not get.
  """
  parameters = inspect.signature(factory).parameters
  allowed = [name for name in parameters if name not in (*given, *hidden(factory))]
  for name in fields:
    choose(f"config.{section} field", name, allowed)
  for name in allowed:
    if name not in fields and parameters[name].default is inspect.Parameter.empty:
      raise ConfigError(f"config.{section}.{name} is missing")
  return fields


def complete(config: ConfigDict) -> ConfigDict:
  """The config with every keyword of its stream, net, optimizer and method, at their defaults where it says nothing.

  So each can be overridden on the command line, and config.json tells all of them. Where a name was overridden,
  keywords of the other choice are dropped if they stand at their defaults.

  Raises:
    ConfigError: a keyword of another choice that was set.
  """
  config = ConfigDict(config.to_dict())  # a lock would refuse the new fields
  for name, table, given in (("stream", STREAMS, 2), ("net", NETS, 2), ("method", METHODS, 3)):
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
  for key in ("lr", *numbers_of(config)):
    if key not in config.sweep:
      config.sweep[key] = ()
  for key in config.sweep:
    choose("config.sweep field", key, ("lr", *numbers_of(config)))
  return config


def with_fields(told: Mapping[str, Any], changes: Mapping[str, Any]) -> ConfigDict:
  """The config that a config.json tells, with other values under dotted names, complete again.

  Raises:
    ConfigError: a value that goes with another choice.
  """
  config = complete(ConfigDict(dict(told)))
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


def numbers_of(config: ConfigDict) -> list[str]:
  """The keywords of the method that are real numbers: those that a sweep may vary."""
  found = defaults(METHODS[config.method.name], 3)
  return [key for key, value in found.items() if value is None or isinstance(value, float)]


def sweep_values(config: ConfigDict) -> tuple[dict[str, float], ...]:
  """All combinations of the values in `config.sweep`.

  Raises:
    ConfigError: a value that is no number, or one given twice.
  """
  wanted = {key: values for key, values in config.sweep.items() if values}
  for key, values in wanted.items():
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
      raise ConfigError(f"config.sweep.{key}={values} must hold numbers only")
    if len(set(values)) < len(values):
      raise ConfigError(f"config.sweep.{key}={values} names a value twice")
  return tuple(dict(zip(wanted, map(float, chosen), strict=True)) for chosen in itertools.product(*wanted.values()))


def with_values(config: ConfigDict, values: Mapping[str, float]) -> ConfigDict:
  """The config of one value of a sweep, as if it ran alone."""
  config = ConfigDict(config.to_dict())
  for key, value in values.items():
    config["optimizer" if key == "lr" else "method"][key] = value
  config.sweep = {key: () for key in config.sweep}
  return config


def defaults(factory: Callable, given: int) -> dict[str, Any]:
  """Keywords and defaults of a factory, without the first `given` that the engine passes."""
  parameters = list(inspect.signature(factory).parameters.values())[given:]
  return {parameter.name: parameter.default for parameter in parameters if parameter.name not in hidden(factory)}


def hidden(factory: Callable) -> tuple[str, ...]:
  """Parameters of a net that linen adds and nobody sets."""
  return ("parent", "name") if isinstance(factory, type) and issubclass(factory, nn.Module) else ()


def section(config: ConfigDict, name: str, table: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
  """(what `config.<name>.name` picks from the table, the other fields); a list in a field becomes a tuple."""
  fields = {key: tuple(v) if isinstance(v, list) else v for key, v in config[name].items()}
  return table[choose(f"config.{name}.name", str(fields.pop("name", "")), table)], fields


def hyperparameters(config: ConfigDict) -> dict[str, float]:
  """The numbers of a config that are passed to the compiled functions: one program serves all their values."""
  found = {key: config.method[key] for key in numbers_of(config) if config.method[key] is not None}
  return {"lr": config.optimizer.lr, **found}
