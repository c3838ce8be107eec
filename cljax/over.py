"""Under which other settings a run may be asked again: those that decide how it answers, and no others."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from cljax.errors import ConfigError, choose, shown
from cljax.files import flatten
from cljax.overrides import with_fields
from cljax.values import typed

OTHER_DATA = ("seed", "num_seeds", "sweep", "stream", "debug")  # fields and sections that decide what rows there are
ANSWERING = ("evaluate_group", "matmul_precision", "seed_executor")  # of the outer level, what decides how it answers
SECTIONS = ("method", "net", "gate")  # some of whose keys do


def values_of(recorded: Mapping[str, Any], over: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
  """The values by key, each of its field's type.

  Raises:
    ConfigError: an unknown key, one that asks other data or that no answer hangs on, or a wrong value.
  """
  if not isinstance(over, Mapping):
    raise ConfigError(f"over={shown(over)} must be a mapping of config keys to lists of values")
  full = with_fields(recorded, {}).to_dict()
  config, sweep = flatten(full), full["sweep"]
  swept = {"optimizer.lr" if key == "lr" else f"method.{key}" for key, values in sweep.items() if values}
  chosen = {}
  for key, values in over.items():
    if str(key).split(".")[0] in OTHER_DATA:
      raise ConfigError(
        f"--over={key}: the run was trained on the data that its config.json tells, and other data is another run: "
        "use launch.train with another --workdir. What can be changed is how it answers, for example evaluate_group"
      )
    choose("--over key", key, [name for name in config if name.split(".")[0] not in OTHER_DATA])
    if key in swept:
      raise ConfigError(f"--over={key}: the run's own sweep varies it, and each of its values is asked as it is")
    if key.split(".")[0] not in (*ANSWERING, *SECTIONS):
      raise unheard(key)
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
      raise ConfigError(f"--over={key}={values!r} must be a list of values, for example --over=evaluate_group=1,8,32")
    chosen[key] = [typed(f"--over={key}", value, config[key]) for value in values]
    if len(set(chosen[key])) < len(values):
      raise ConfigError(f"--over={key}={','.join(map(str, values))} names a value twice")
  return chosen


def unheard(key: str) -> ConfigError:
  """What is said of a key that no answer hangs on."""
  return ConfigError(
    f"--over={key}: no answer hangs on it, as it says how a run is trained, saved or called: a row under it would tell "
    "the run's own answers under another name. Leave it out; evaluate_group, matmul_precision and what a method "
    "answers by can be changed, and to train otherwise use launch.train with another --workdir"
  )


def combined(chosen: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
  """All combinations of the values."""
  return [dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())]


def check_heard(
  recorded: Mapping[str, Any], chosen: Mapping[str, Sequence[Any]], program: Callable[[Mapping[str, Any]], str]
) -> None:
  """Refuses a key of method, net or gate under none of whose values anything else is computed.

  Args:
    program: a setting -> the checksum of what is computed for an answer under it.

  Raises:
    ConfigError: names the key.
  """
  own = flatten(with_fields(recorded, {}).to_dict())

  @cache
  def known(setting: tuple[tuple[str, Any], ...]) -> str:
    return program(dict(setting))

  for key, values in chosen.items():
    each = [own[key], *values] if len(values) == 1 else values
    if key in ANSWERING or set(each) == {own[key]}:
      continue
    others = combined({name: rest for name, rest in chosen.items() if name != key})
    if all(len({known(tuple(sorted({**rest, key: value}.items()))) for value in each}) == 1 for rest in others):
      raise unheard(key)
