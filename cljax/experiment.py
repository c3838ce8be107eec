"""A config becomes an experiment: data, stream, net, optimizer, method, timeline, on the devices of a mesh.

All refusals of a config happen here and in `config.py`, before anything is trained.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cljax.config import (
  check_outer,
  hyperparameters,
  keywords,
  method_fields,
  section,
  sweep_values,
)
from cljax.data import STREAMS, bank, join
from cljax.data.streams import stack
from cljax.errors import ConfigError
from cljax.keys import STREAM
from cljax.mesh import choose_executor, make_mesh, put
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.pieces.optimizers import OPTIMIZERS
from cljax.timeline import Timeline, edges_of
from cljax.types import Method, Spec, Stream

LONGEST_CHUNK = 1000

Laid = tuple[Spec, Stream, Any, str]  # what `build_stream` gives


class Experiment(NamedTuple):
  config: ConfigDict
  spec: Spec
  stream: Stream  # on the devices
  axes: Stream  # 0 or None for each leaf of `stream`
  method: Method  # at the config's own numbers: what is static about it
  make: Callable[[dict[str, Any]], Method]  # the method at other numbers, `hyper` of one row
  hyper: dict[str, np.ndarray]  # [S] float32: the learning rate and the method's numbers, by row of the seed axis
  timeline: Timeline
  seeds: tuple[int, ...]  # of each row of the seed axis; with a sweep all seeds of its first value come first
  values: tuple[dict[str, float], ...]  # the sweep, one entry a value; a single {} without
  readouts: tuple[str, ...]  # the first is the main one
  executor: str
  mesh: Mesh
  test_rows: np.ndarray  # [S, T]
  data_hash: str

  def on_devices(self, tree: Any, axes: Any) -> Any:
    """Host arrays on the devices: along the seed axis where the axis is 0, on all of them where it is None."""
    return put(tree, axes, self.mesh)

  def numbers(self, *numbers: Any) -> list[jax.Array]:
    """int32 arrays on all devices, put there explicitly (a transfer guard refuses silent ones)."""
    return [put(np.asarray(number, np.int32), None, self.mesh) for number in numbers]


def build_stream(config: ConfigDict, seeds: tuple[int, ...], data_dir: str | None) -> Laid:
  """(spec, stream of numpy arrays with the seeds joined, its axes, the data's hash)."""
  builder, fields = section(config, "stream", STREAMS)
  source_name = fields.pop("source", "digits")
  keywords("stream", fields, builder, 2)
  if config.debug and "tasks" in fields:
    fields["tasks"] = min(fields["tasks"] or 2, 2)
  shape = {key: fields[key] for key in ("size", "channels", "fit") if key in fields}
  together = bool(shape) or "+" in source_name
  source = join.load(source_name, data_dir, **shape) if together else bank.load(source_name, data_dir)
  keys = {seed: jax.random.fold_in(jax.random.key(seed), STREAM) for seed in seeds}
  built = {seed: builder(source, key, **fields) for seed, key in keys.items()}
  return built[seeds[0]][0], *stack([built[seed][1] for seed in seeds]), source.hash


def build_method(config: ConfigDict, spec: Spec, hyper: Mapping[str, Any] | None = None) -> Method:
  """The method with its net and optimizer; `hyper` replaces numbers of the config, and may be traced."""
  hyper = dict(hyper or {})
  factory, fields = section(config, "method", METHODS)
  net_type, net_fields = section(config, "net", NETS)
  keywords("net", net_fields, net_type)
  net = net_type(heads=spec.heads, classes=spec.C, **net_fields)
  optimizer, rates = section(config, "optimizer", OPTIMIZERS)
  if "lr" not in rates:
    raise ConfigError("config.optimizer.lr is missing")
  lr = hyper.pop("lr", rates.pop("lr"))
  second = list(inspect.signature(factory).parameters)[1]
  if second == "lr" and (config.optimizer.name != "sgd" or any(rates.values())):
    raise ConfigError(
      f"config.method.name={config.method.name!r} takes plain sgd steps of its own; "
      f"config.optimizer={config.optimizer.to_dict()} is refused: use name='sgd' with lr only"
    )
  keywords("optimizer", rates, optimizer, 1)
  tx = lr if second == "lr" else optimizer(lr, **rates)
  keywords("method", fields, factory, 3)
  method = factory(net, tx, spec, **method_fields(config, hyper))
  if config.debug:
    method = method._replace(phases=tuple(p._replace(epochs=0, steps=min(p.steps or 10, 10)) for p in method.phases))
  return method


def readouts_of(spec: Spec, scenario: str, method: Method) -> tuple[str, ...]:
  """What is asked after each task, the main one first."""
  main = {"task": ("task",), "class": ("class", "task"), "domain": ("domain",)}[scenario]
  return main + (("inferred",) if method.infers else ())


def build_timeline(config: ConfigDict, spec: Spec, method: Method, rows: np.ndarray) -> Timeline:
  """The units of the run, with the chunk length that suits its longest phase."""
  if not spec.boundaries and method.told:
    raise ConfigError(
      f"config.method.name={config.method.name!r} has to know where tasks begin, and config.stream.boundaries=False "
      "hides it; set it to True, or take a method that does without: finetune, er, subnetwork"
    )
  if not spec.boundaries and (len(method.phases) > 1 or "tick" in edges_of(method.phases[0])):
    raise ConfigError(
      "where boundaries are hidden a method has one phase without a tick: there are no epochs of a task"
    )
  if not spec.boundaries and method.phases[0].epochs != 1:
    raise ConfigError(
      f"config.method.epochs={method.phases[0].epochs}: where boundaries are hidden the stream is seen once; set "
      "config.method.epochs=1 and repeat the rows of each task by config.stream.passes"
    )
  oracle = all(phase.joint for phase in method.phases)
  tasks = tuple(range(spec.T)) if config.every_task or not oracle else (spec.T - 1,)
  timeline = Timeline(method.phases, spec, rows, tasks, 1, config.checkpoint_every_chunks)
  longest = max(int(timeline.phase_steps(t, p).max()) for t in timeline.segments() for p in range(len(method.phases)))
  block = math.lcm(*(phase.block.size if phase.block else 1 for phase in method.phases))
  wanted = config.chunk or min(longest, LONGEST_CHUNK)
  return timeline._replace(chunk=-(-wanted // block) * block)


def seeds_of(config: ConfigDict) -> tuple[int, ...]:
  """The seed of each row of the seed axis."""
  return tuple(range(config.seed, config.seed + config.num_seeds)) * len(sweep_values(config))


def build(config: ConfigDict, data_dir: str | None = None, data: Laid | None = None) -> Experiment:
  """Everything that a run needs, checked.

  Args:
    data: what `build_stream` gave for these seeds; None builds it.

  Raises:
    ConfigError: for every wrong value, before anything is trained.
  """
  check_outer(config)
  values, own = sweep_values(config), hyperparameters(config)
  hyper = {key: np.repeat(np.array([each[key] for each in own], np.float32), config.num_seeds) for key in own[0]}
  seeds = seeds_of(config)
  spec, stream, axes, data_hash = data or build_stream(config, seeds, data_dir)
  if stream.tasks.classes.shape[-2] != spec.T:
    raise ConfigError(f"the stream has {stream.tasks.classes.shape[-2]} tasks, but spec.T={spec.T} slots for them")
  method = build_method(config, spec)
  mesh = make_mesh(len(seeds), config.data_devices)

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
    stream=put(stream, axes, mesh),
    axes=axes,
    method=method,
    make=partial(build_method, config, spec),
    hyper=hyper,
    timeline=timeline,
    seeds=seeds,
    values=values,
    readouts=readouts_of(spec, config.stream.get("scenario", "task"), method),
    executor=choose_executor(config.seed_executor, method.branches),
    mesh=mesh,
    test_rows=by_seed(stream.test.count),
    data_hash=data_hash,
  )
