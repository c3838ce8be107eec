"""A sweep: values of the learning rate and of a method's numbers, each with all seeds, as rows of one run."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cljax.declared import check, shown
from cljax.errors import ConfigError
from cljax.overrides import changed, relabel
from cljax.sections import RATE, Number, apart_of, numbers_of


def sweep_values(config: ConfigDict) -> tuple[dict[str, float], ...]:
  """All combinations of the values in `config.sweep`.

  Raises:
    ConfigError: a value that is no number, or one given twice; or values that need runs of their own.
  """
  if apart := apart_in(config):
    key = next(iter(apart))
    raise ConfigError(
      f"config.sweep.{key}={shown(config.sweep[key])}: each of these values is a run of its own; python -m "
      "launch.train runs them all, and from Python cljax.sweep.cells(config) gives their configs"
    )
  wanted = {key: values for key, values in config.sweep.items() if values}
  known = {"lr": RATE} | {key: number.field for key, number in numbers_of(config).items()} if wanted else {}
  for key, values in wanted.items():
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
      raise ConfigError(f"config.sweep.{key}={values} must hold numbers only")
    for value in values:
      check(f"config.sweep.{key}", value, known[key], values)
    if len(set(np.asarray(values, np.float32).tolist())) < len(values):
      raise ConfigError(f"config.sweep.{key}={values} names a value twice, as float32 has them")
  return tuple(dict(zip(wanted, map(float, chosen), strict=True)) for chosen in itertools.product(*wanted.values()))


def apart_in(config: ConfigDict) -> dict[str, Number]:
  """What a config's sweep varies in runs of their own."""
  given = {key for key, values in config.sweep.items() if values}
  return {key: number for key, number in apart_of(config).items() if key in given}


def cells(config: ConfigDict, overrides: Mapping[str, Any] | None = None) -> list[tuple[dict[str, Any], ConfigDict]]:
  """[(values, config)] of the runs that a config's sweep asks for; [({}, config)] where one run does it all.

  Args:
    config: complete.
    overrides: what the user set besides, by dotted names, which another choice has to have.

  Raises:
    ConfigError: a wrong value, one given twice, or one that does not go with another.
  """
  found = apart_in(config)
  if not found:
    return [({}, config)]
  for key, number in found.items():
    values = config.sweep[key]
    for value in values:
      check(f"config.sweep.{key}", value, number.field, values)
    if len(set(values)) < len(values):
      raise ConfigError(f"config.sweep.{key}={shown(values)} names a value twice")
  rest = {key: value for key, value in (overrides or {}).items() if not key.startswith("sweep.")}
  alone = ConfigDict(config.to_dict())
  alone.sweep = {key: values for key, values in config.sweep.items() if key not in found}
  made = []
  for chosen in itertools.product(*(config.sweep[key] for key in found)):
    changes = {".".join(number.place): value for number, value in zip(found.values(), chosen, strict=True)}
    own = changed(alone, {**rest, **changes})
    relabel(own, changes)
    made.append((dict(zip(found, chosen, strict=True)), own))
  return made


def with_values(config: ConfigDict, values: Mapping[str, float]) -> ConfigDict:
  """The config of one value of a sweep, as if it ran alone."""
  config = ConfigDict(config.to_dict())
  numbers = numbers_of(config)
  for key, value in values.items():
    *above, last = ("optimizer", "lr") if key == "lr" else ("method", *numbers[key].place)
    place = config
    for name in above:
      place = place[name]
    place[last] = value
  config.sweep = {key: () for key in config.sweep}
  return config


def hyperparameters(config: ConfigDict) -> tuple[dict[str, float], ...]:
  """For each value of the sweep the numbers that are passed to the compiled functions: one program serves them all.

  The numbers of a choice whose strength is 0 and is not swept are not passed: it is no choice at all, and the program
  is that without it.
  """
  numbers = {}
  for key, (place, _) in numbers_of(config).items():
    own = config.method
    for name in place:
      parent, own = own, own[name]
    off = len(place) > 1 and parent.get("strength") == 0 and not config.sweep.get(f"{place[0]}_strength")
    if (own is not None or config.sweep.get(key)) and not off:
      numbers[key] = place
  found = []
  for values in sweep_values(config):
    config_of_value = with_values(config, values)
    row = {"lr": config_of_value.optimizer.lr}
    for key, place in numbers.items():
      value = config_of_value.method
      for name in place:
        value = value[name]
      row[key] = value
    found.append(row)
  return tuple(found)
