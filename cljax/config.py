"""A ConfigDict becomes an experiment: data, stream, net, optimizer, method, timeline. All refusals happen here.

`default()` is the whole list of keys outside `stream`, `net`, `optimizer` and `method`, whose fields are the keywords
of the builder that their `name` picks.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cljax.data import bank
from cljax.data.streams import STREAMS, stack
from cljax.mesh import EXECUTORS, choose_executor
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.timeline import Timeline, edges_of
from cljax.types import ConfigError, Method, Spec, Stream, choose

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam, "adagrad": optax.adagrad, "rmsprop": optax.rmsprop}
PRECISIONS = ("highest", "high", "default")
EVALUATE = ("all", "seen", "ends")
INIT, STREAM, TRAIN = range(3)  # purposes of a seed's key
LONGEST_CHUNK = 1000

# The least value of every number that a config may hold, by the last part of its key.
AT_LEAST = {
  **dict.fromkeys(("num_seeds", "log_every_steps", "evaluate_group", "tasks", "batch_size", "epochs"), 1),
  **dict.fromkeys(("hidden", "widths", "experts", "k"), 1),
  **dict.fromkeys(("seed", "chunk", "checkpoint_every_chunks", "examples_per_task", "valid_per_task"), 0),
  **dict.fromkeys(("replay", "capacity", "lr", "cotrain_lr", "router_lr", "noise", "router_init"), 0),
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


class Experiment(NamedTuple):
  config: ConfigDict
  spec: Spec
  stream: Stream  # on the device
  axes: Stream  # 0 or None for each leaf of `stream`
  method: Method
  timeline: Timeline
  seeds: tuple[int, ...]
  readouts: tuple[str, ...]  # the first is the main one
  executor: str
  test_rows: np.ndarray  # [S, T]
  data_hash: str


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
  allowed = [name for name in parameters if name not in (*given, "parent", "name")]
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
  return config


def defaults(factory: Callable, given: int) -> dict[str, Any]:
  """Keywords and defaults of a factory, without the first `given` that the engine passes."""
  parameters = list(inspect.signature(factory).parameters.values())[given:]
  return {parameter.name: parameter.default for parameter in parameters if parameter.name not in ("parent", "name")}


def section(config: ConfigDict, name: str, table: dict[str, Any]) -> tuple[Callable, dict[str, Any]]:
  """(what `config.<name>.name` picks from the table, the other fields); a list in a field becomes a tuple."""
  fields = {key: tuple(v) if isinstance(v, list) else v for key, v in config[name].items()}
  return table[choose(f"config.{name}.name", str(fields.pop("name", "")), table)], fields


def build_stream(config: ConfigDict, seeds: tuple[int, ...], data_dir: str | None) -> tuple[Spec, Stream, Any, str]:
  """(spec, stream of numpy arrays with the seeds joined, its axes, the data's hash)."""
  builder, fields = section(config, "stream", STREAMS)
  source_name = fields.pop("source", "digits")
  keywords("stream", fields, builder, ("source", "key"))
  if config.debug:
    fields["tasks"] = min(fields.get("tasks", 2), 2)
  source = bank.load(source_name, data_dir)
  keys = [jax.random.fold_in(jax.random.key(seed), STREAM) for seed in seeds]
  specs, streams = zip(*(builder(source, key, **fields) for key in keys), strict=True)
  return specs[0], *stack(streams), source.hash


def build_method(config: ConfigDict, spec: Spec) -> Method:
  """The method with its net and optimizer."""
  factory, fields = section(config, "method", METHODS)
  net_type, net_fields = section(config, "net", NETS)
  keywords("net", net_fields, net_type, ("heads", "classes"))
  net = net_type(heads=spec.heads, classes=spec.C, **net_fields)
  optimizer, rates = section(config, "optimizer", OPTIMIZERS)
  if "lr" not in rates:
    raise ConfigError("config.optimizer.lr is missing")
  lr = rates.pop("lr")
  second = list(inspect.signature(factory).parameters)[1]
  if second == "lr" and (config.optimizer.name != "sgd" or any(rates.values())):
    raise ConfigError(
      f"config.method.name={config.method.name!r} takes plain sgd steps of its own; "
      f"config.optimizer={config.optimizer.to_dict()} is refused: use name='sgd' with lr only"
    )
  keywords("optimizer", rates, optimizer, ("learning_rate",))
  tx = lr if second == "lr" else optimizer(lr, **rates)
  method = factory(net, tx, spec, **keywords("method", fields, factory, ("net", second, "spec")))
  if config.debug:
    method = method._replace(phases=tuple(p._replace(epochs=0, steps=min(p.steps or 10, 10)) for p in method.phases))
  return method


def readouts_of(spec: Spec, scenario: str, method: Method) -> tuple[str, ...]:
  """What is asked after each task, the main one first."""
  main = {"task": ("task",), "class": ("class", "task"), "domain": ("domain",)}[scenario]
  return main + (("inferred",) if method.infers else ())


def build_timeline(config: ConfigDict, spec: Spec, method: Method, rows: np.ndarray) -> Timeline:
  """The units of the run, with the chunk length that suits its longest phase."""
  if not spec.boundaries and (len(method.phases) > 1 or "tick" in edges_of(method.phases[0])):
    raise ConfigError(
      "where boundaries are hidden a method has one phase without a tick: there are no epochs of a task"
    )
  oracle = all(phase.joint for phase in method.phases)
  tasks = tuple(range(spec.T)) if config.every_task or not oracle else (spec.T - 1,)
  timeline = Timeline(method.phases, spec, rows, tasks, 1, config.checkpoint_every_chunks)
  longest = max(int(timeline.phase_steps(t, p).max()) for t in timeline.segments() for p in range(len(method.phases)))
  block = math.lcm(*(phase.block.size if phase.block else 1 for phase in method.phases))
  wanted = config.chunk or min(longest, LONGEST_CHUNK)
  return timeline._replace(chunk=-(-wanted // block) * block)


def build(config: ConfigDict, data_dir: str | None = None) -> Experiment:
  """Everything that a run needs, checked.

  Raises:
    ConfigError: for every wrong value, before anything is trained.
  """
  check_numbers(config)
  choose("config.evaluate", config.evaluate, EVALUATE)
  choose("config.seed_executor", config.seed_executor, ("auto", *EXECUTORS))
  choose("config.matmul_precision", config.matmul_precision, PRECISIONS)
  seeds = tuple(range(config.seed, config.seed + config.num_seeds))
  spec, stream, axes, data_hash = build_stream(config, seeds, data_dir)
  method = build_method(config, spec)

  def by_seed(count):
    return np.broadcast_to(count, (len(seeds), spec.T)).astype(np.int64)

  timeline = build_timeline(config, spec, method, by_seed(stream.tasks.train.count))
  if method.branches and config.seed_executor == "vmap":
    raise ConfigError(
      f"config.seed_executor='vmap' is refused for config.method.name={config.method.name!r}: its steps "
      "branch on its state, and vmap would run both sides; use auto, map or each"
    )
  return Experiment(
    config=config,
    spec=spec,
    stream=jax.device_put(stream),
    axes=axes,
    method=method,
    timeline=timeline,
    seeds=seeds,
    readouts=readouts_of(spec, config.stream.get("scenario", "task"), method),
    executor=choose_executor(config.seed_executor, method.branches),
    test_rows=by_seed(stream.test.count),
    data_hash=data_hash,
  )
