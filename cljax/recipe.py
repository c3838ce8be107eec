"""What a config says about data and method, read once: a stream of arrays, and a recipe that makes the method.

A recipe is a function of numbers, so that one compiled function serves all their values; nothing is read, chosen or
refused in it that the config alone decides.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cljax.checkpoint import by_path
from cljax.data import bank, join, local
from cljax.data.arrays import check_pair, laid_out
from cljax.data.bank import Source
from cljax.data.folder import Shape
from cljax.data.streams import stack
from cljax.declared import check
from cljax.declared import fields as fields_of
from cljax.errors import ConfigError, choose
from cljax.files import checksum
from cljax.host import fit_into, host_bytes
from cljax.keys import STREAM
from cljax.mesh import check_same
from cljax.named import pick
from cljax.nets import headed
from cljax.pieces.course import Course, restarts, scheduled
from cljax.pieces.gated import Gate, gated
from cljax.pieces.gates import GATES
from cljax.sections import OWN, RATE, SOURCE, keywords, numbers_of, section
from cljax.settings import Labels
from cljax.sweep import sweep_values
from cljax.types import Method, Spec, Stream

DEBUG_TASKS, DEBUG_STEPS = 2, 10

Laid = tuple[Spec, Stream, Any, str]  # what `build_stream` gives


def seeds_of(config: ConfigDict) -> tuple[int, ...]:
  """The seed of each row of the seed axis."""
  return tuple(range(config.seed, config.seed + config.num_seeds)) * len(sweep_values(config))


def build_stream(
  config: ConfigDict, seeds: tuple[int, ...], data_dir: str | None = None, source: Source | None = None
) -> Laid:
  """(spec, stream of numpy arrays with the seeds joined, its axes, the data's hash).

  Args:
    source: a data set in place of the one that `config.stream.source` names.

  Raises:
    ConfigError: an unknown name or a wrong field.
  """
  if config.stream.name == OWN:
    raise ConfigError("the run was trained on arrays given from Python: train(config, workdir, stream=...) takes them")
  builder, fields = section(config, "stream")
  source_name = fields.pop("source", SOURCE.default)
  fields = keywords("stream", fields, builder, 2)
  shape = {key: fields[key] for key in Shape._fields if key in fields}
  source = source or join.one_or_joined(source_name, data_dir, **shape)
  check_same(source.hash)
  keys = {seed: jax.random.fold_in(jax.random.key(seed), STREAM) for seed in seeds}
  built: dict[int, tuple[Spec, Stream]] = {}
  for seed, key in keys.items():
    built[seed] = builder(source, key, **fields)
    if len(built) == 2:
      first, second = (stream for _, stream in built.values())
      check_apart(first, second, len(keys))
  if config.debug:
    built = {seed: shortened(config, *laid) for seed, laid in built.items()}
  spec = built[seeds[0]][0]
  rows = np.max([each.rows for each, _ in built.values()], axis=0)
  return spec._replace(rows=tuple(rows.tolist())), *stack([built[seed][1] for seed in seeds]), source.hash


def given_stream(config: ConfigDict, given: tuple[Spec, Stream]) -> Laid:
  """What `build_stream` gives, of one's own arrays; the config's `stream` then says their hash and scenario.

  Without heads of their own, tasks that ask about the same classes are of the `domain` scenario, else of `class`.

  Raises:
    ConfigError: no spec and stream, or arrays that do not fit.
  """
  spec, stream = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
  check_pair(spec, stream)
  digest = checksum(by_path(stream))
  live = np.asarray(stream.tasks.classes)
  alike = bool((live == live[..., :1, :]).all())
  scenario = "task" if spec.heads > 1 else "domain" if alike else "class"
  config.stream = {"name": OWN, "hash": digest, "scenario": scenario}
  config.paper = config.preset = config.cell = ""  # no cell of a paper's table
  if config.debug:
    spec, stream = shortened(config, spec, stream)
  return spec, stream, laid_out(spec, stream, None, len(seeds_of(config))), digest


def shortened(config: ConfigDict, spec: Spec, stream: Stream) -> tuple[Spec, Stream]:
  """The first tasks of a stream, for `config.debug`: as many as are given, and one or two more.

  Where boundaries are hidden the tasks keep so many rows that the one pass takes a few steps.
  """
  T = min(max(DEBUG_TASKS, config.given_tasks + 1), spec.T)
  tasks, test = jax.tree.map(lambda leaf: leaf[:T], (stream.tasks, stream.test))
  rows = spec.rows[:T]
  if not spec.boundaries:
    most = -(-DEBUG_STEPS * config.method.get("batch_size", 1) // T)
    rows = tuple(min(count, most) for count in rows)
    count = np.minimum(tasks.train.count, most)
    tasks = tasks._replace(train=tasks.train._replace(idx=tasks.train.idx[:, : max(rows)], count=count))
  heads = T if spec.heads == spec.T else spec.heads
  return spec._replace(T=T, heads=heads, rows=rows), stream._replace(tasks=tasks, test=test)


def check_apart(one: Stream, other: Stream, seeds: int) -> None:
  """Refuses so many seeds whose streams do not fit into the memory together.

  Raises:
    ConfigError: says both sizes.
  """
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  apart = sum(leaf.nbytes for leaf, its in pairs if leaf is not its and not np.array_equal(leaf, its))
  wanted = 2 * seeds * apart  # one by one, then side by side
  fit_into(host_bytes(), "this machine", f"the streams of {seeds} seeds take", wanted, "lower config.num_seeds")


def labels_of(config: ConfigDict) -> Labels:
  """What a config calls its result."""
  stream = "_".join(filter(None, (local.short(config.stream.get("source", ""), bank.KNOWN), config.stream.name)))
  method = config.method.name if config.gate.name == "none" else f"{config.method.name}+{config.gate.name}"
  return Labels(config.paper, config.preset, config.cell, method, stream)


class Recipe(NamedTuple):
  """The method of a config as a function of numbers.

  Raises:
    ConfigError: when it is called, for a number that the method does not have, or a wrong one.
  """

  factory: Callable[..., Method]
  net: nn.Module
  optimizer: Callable[..., Any] | None  # None: the factory takes the learning rate
  rates: Mapping[str, Any]  # of the optimizer, with its `lr`
  course: Course  # of the optimizer over the run
  spec: Spec
  fields: Mapping[str, Any]  # keywords of the factory
  places: Mapping[str, tuple[str, ...]]  # where among `fields` the numbers stand
  debug: bool  # a few steps a phase, where boundaries are given
  gate: Gate | None  # what finds the task

  def method(self, hyper: Mapping[str, Any]) -> Method:
    """The method with the numbers of `hyper`, which may be traced, in place of the config's."""
    rates, own = dict(self.rates), dict(self.fields)
    lr = hyper.get("lr", rates.pop("lr"))
    for name, value in hyper.items():
      if name != "lr":
        place, *below = self.places[choose("hyper", name, self.places)]
        own[place] = {**own[place], below[0]: value} if below else value

    def by(tx: Any) -> Method:
      return self.factory(self.net, tx, self.spec, **own)

    def at(rate: Any) -> Method:
      tx = rate if self.optimizer is None else self.optimizer(rate, **rates)
      return restarts(by, tx) if self.course.restart and self.optimizer else by(tx)

    method = scheduled(at, lr, self.course)
    method = gated(method, self.gate) if self.gate else method
    if not (self.debug and self.spec.boundaries):
      return method
    short = tuple(p._replace(epochs=0, steps=min(p.steps or DEBUG_STEPS, DEBUG_STEPS)) for p in method.phases)
    return method._replace(phases=short)


def steps_by_itself(factory: Callable[..., Any]) -> bool:
  """Whether a method takes plain SGD steps of its own: it is given a rate in place of an optimizer."""
  return list(inspect.signature(factory).parameters)[1] == "lr"


def check_steps(config: ConfigDict) -> None:
  """
  Raises:
    ConfigError: an optimizer for a method that takes plain SGD steps of its own.
  """
  (factory, _), (optimizer, rates) = section(config, "method"), section(config, "optimizer")
  others = {key: rates[key] for key in fields_of(optimizer, 1) if key in rates}
  if steps_by_itself(factory) and (config.optimizer.name != "sgd" or any(others.values())):
    raise ConfigError(
      f"config.method.name={config.method.name!r} takes plain sgd steps of its own; "
      f"config.optimizer={dict(name=config.optimizer.name, **others)} is refused: use name='sgd' with lr only, and a "
      "schedule if you like"
    )


def gate_of(config: ConfigDict, spec: Spec) -> Gate | None:
  """What finds the task for the method, where the config asks for it."""
  keywords = {key: value for key, value in config.gate.to_dict().items() if value is not None}
  factory = pick("gate", keywords.pop("name"), {"none": None, **GATES}, 1)
  return factory(spec, **keywords) if factory else None


def recipe(config: ConfigDict, spec: Spec) -> Callable[[Mapping[str, Any]], Method]:
  """The method of a config as a function of numbers: `Recipe.method`.

  Raises:
    ConfigError: an unknown name, a field that is unknown or missing, or choices that do not go together.
  """
  factory, fields = section(config, "method")
  net_type, net_fields = section(config, "net")
  net = headed(net_type(heads=spec.heads, classes=spec.C, **keywords("net", net_fields, net_type, 2)), spec)
  optimizer, rates = section(config, "optimizer")
  if "lr" not in rates:
    raise ConfigError("config.optimizer.lr is missing")
  check("config.optimizer.lr", rates["lr"], RATE)
  ours = set(Course._fields) - set(fields_of(optimizer, 1))  # an optimizer of one's own may have such a keyword itself
  course = Course(**{key: rates.pop(key) for key in ours & set(rates)}).checked()
  if course.restart and not spec.boundaries:
    raise ConfigError(
      "config.optimizer.restart=True has to know where tasks begin, and config.stream.boundaries=False hides it; set "
      "one of them otherwise"
    )
  others = {key: value for key, value in rates.items() if key != "lr"}
  check_steps(config)
  keywords("optimizer", others, optimizer, 1)
  keywords("method", fields, factory, 3)
  tx = None if steps_by_itself(factory) else optimizer
  return Recipe(
    factory,
    net,
    tx,
    rates,
    course,
    spec,
    fields,
    {key: number.place for key, number in numbers_of(config).items()},
    config.debug,
    gate_of(config, spec),
  ).method
