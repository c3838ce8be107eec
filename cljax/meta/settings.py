"""What a meta-training is told: the sections of its config, their ranges and defaults."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

from cljax.config import completed_net, whole
from cljax.data.transfers import HALVES
from cljax.declared import above, at_least, check, checked, field_of, fields, free, one_of
from cljax.errors import ConfigError
from cljax.meta.curriculum import Curriculum
from cljax.meta.outer import Adam
from cljax.meta.unroll import Inner
from cljax.methods import PLAINEST
from cljax.pieces.rule import Rule
from cljax.sections import SOURCE, factory_of, keywords
from cljax.types import Method


class Data(NamedTuple):
  """What episodes are drawn from."""

  source: Annotated[str, free("the rule of names of config.stream.source: mnist, or cifar10+cifar100")] = SOURCE.default
  size: Annotated[int, at_least(0, "height and width of all pictures; 0: of the first data set's", 1024)] = 0
  channels: Annotated[int, at_least(0, "1 or 3; 0: those of the first data set", 3)] = 0
  old: Annotated[tuple[int, ...], at_least(0, "classes of the old task, in the order of its logits")] = (0, 1, 2, 3, 4)
  new: Annotated[tuple[int, ...], at_least(0, "classes that new tasks are drawn from")] = (5, 6, 7, 8, 9)
  classes: Annotated[int, at_least(1, "of a new task, and outputs of a head", 10_000)] = 5
  tasks: Annotated[int, at_least(1, "new tasks in an episode, one after the other", 100)] = 1
  half: Annotated[str, one_of(tuple(HALVES), "rows of each new class: all, at even places, or at odd places")] = "first"


class Start(NamedTuple):
  """The networks that know the old task."""

  epochs: Annotated[int, at_least(1, "over the old task's rows", 100_000)] = 6
  batch_size: Annotated[int, at_least(1, "rows a step", 1_000_000)] = 128
  lr: Annotated[float, above(0, "of SGD")] = 0.1
  momentum: Annotated[float, at_least(0, "of SGD", 1)] = 0.9
  last_epochs: Annotated[int, at_least(0, "epochs at the end that are at last_lr", 100_000)] = 1
  last_lr: Annotated[float, above(0, "of SGD in the last epochs")] = 0.01
  of: Annotated[str, one_of(("old", "both"), "what they know; both: the half of the new classes too, in one head")] = (
    "old"
  )
  networks: Annotated[int, at_least(1, "that episodes start from, drawn anew for each; one more is kept", 10_000)] = 1
  file: Annotated[str, free("file of a start.npz of another run, in place of all this")] = ""


class Length(NamedTuple):
  """How long theta is trained, and what is kept of it."""

  segments: Annotated[int, at_least(1, "at most, in whole calls", 100_000_000)] = 6500
  episodes: Annotated[int, at_least(0, "after which training ends; 0 asks the segments alone", 100_000_000)] = 0
  call: Annotated[int, at_least(1, "segments of one compiled call, at most all of them", 1_000_000)] = 50
  log_every: Annotated[int, at_least(1, "segments between rows of metrics.jsonl", 1_000_000)] = 10
  checkpoint_every_calls: Annotated[int, at_least(1, "besides the end", 1_000_000)] = 4
  scale: Annotated[float | None, at_least(0, "that multipliers start with; none begins as plain SGD")] = None

  @property
  def whole(self) -> int:
    """Segments, in whole calls."""
    return -(-self.segments // self.call) * self.call


RECORDS: dict[str, Any] = {
  "data": Data,
  "start": Start,
  "rule": Rule,
  "inner": Inner,
  "curriculum": Curriculum,
  "outer": Adam,
  "length": Length,
}
TRAINS = ("rule", "start", "nothing")
OUTER = {
  "paper": field_of(Annotated[str, free("a folder of configs/papers")], ""),
  "preset": field_of(Annotated[str, free("the scale of the run")], ""),
  "trains": field_of(
    Annotated[str, one_of(TRAINS, "in episodes: a rule; the network to begin with, see meta.query; or no episode")],
    "rule",
  ),
  "seed": field_of(Annotated[int, at_least(0, "the first seed", 2**31 - 10_001)], 0),
  "num_seeds": field_of(Annotated[int, at_least(1, "seeds are seed, seed + 1, ..., one after the other", 10_000)], 1),
}


class Settings(NamedTuple):
  """A config, read."""

  data: Data
  start: Start
  rule: Rule
  inner: Inner
  curriculum: Curriculum
  outer: Adam
  length: Length
  net: Any  # of flax, with a head for each task
  learner: Callable[..., Method]  # (net, tx, spec, batch_size=, epochs=): trains the networks to begin with
  trains: str
  seeds: tuple[int, ...]


def default() -> dict[str, Any]:
  """The keys that every config of a meta-training has, with their defaults."""
  outside = {name: field.default for name, field in OUTER.items()}
  outside |= {"net": {"name": "mlp"}, "method": {"name": PLAINEST}}
  return outside | {name: record()._asdict() for name, record in RECORDS.items()}


def settings_of(config: Mapping[str, Any]) -> Settings:
  """What a config, a mapping or a ConfigDict, says; what it leaves out is at its default.

  Raises:
    ConfigError: an unknown key or a wrong value; says what is allowed.
  """
  config = whole(config, default())
  outer = {name: check(f"config.{name}", config[name], field) for name, field in OUTER.items()}
  read = {name: record(**checked(name, fields(record), config[name])) for name, record in RECORDS.items()}
  data, inner, curriculum, start = (read[name] for name in ("data", "inner", "curriculum", "start"))
  if start.last_epochs > start.epochs:
    raise ConfigError(
      f"config.start.last_epochs={start.last_epochs} is more than the config.start.epochs={start.epochs}"
    )
  if start.file and (start.networks > 1 or start.of == "both"):
    raise ConfigError(
      "config.start.file is one network that knows the old task: set config.start.networks=1 and "
      "config.start.of='old', or leave the file out"
    )
  if outer["trains"] == "start" and start.networks > 1:
    raise ConfigError("config.trains='start' trains one network: set config.start.networks=1")
  learner = learner_of(config["method"])
  alone = outer["trains"] == "nothing" and (start.of, start.networks, start.file) == ("old", 1, "")
  if config["method"]["name"] != PLAINEST and not alone:
    raise ConfigError(
      f"config.method.name={config['method']['name']!r} trains networks that know the old task for a method that goes "
      "on from them: set config.trains='nothing', config.start.of='old' and config.start.networks=1, and no "
      f"config.start.file; what is meta-trained begins with networks of {PLAINEST}"
    )
  net = completed_net(config["net"])
  net_type = factory_of("net", net["name"])
  own = keywords("net", {key: value for key, value in net.items() if key != "name"}, net_type, 2)
  seeds = tuple(range(outer["seed"], outer["seed"] + outer["num_seeds"]))
  length = read["length"]._replace(call=min(read["length"].call, read["length"].segments))
  made = net_type(heads=data.tasks + 1, classes=data.classes, **own)
  if not {"heads", "classes"} <= set(type(made).__dataclass_fields__):
    raise ConfigError(
      f"config.net.name={net['name']!r} makes {type(made).__name__}, which has no fields heads and classes; a "
      "teacher's net gives Outputs of (x, slot) with a head for each task, as cljax.nets.MLP does"
    )
  read |= {"inner": inner.checked(), "curriculum": curriculum.checked(), "length": length}
  return Settings(**read, net=made, learner=learner, trains=outer["trains"], seeds=seeds)


def learner_of(method: Mapping[str, Any]) -> Callable[..., Method]:
  """What `config.method` names, with its keywords; how long it trains stands in `config.start`.

  Raises:
    ConfigError: an unknown name or keyword, or a wrong value.
  """
  own = {key: value for key, value in method.items() if key != "name"}
  for name in set(own) & {"batch_size", "epochs"}:
    raise ConfigError(f"config.method.{name}={own[name]!r} is config.start.{name} here; set it there")
  factory = factory_of("method", method["name"])
  return partial(factory, **keywords("method", own, factory, 3))


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with every key, as config.json tells it.

  Raises:
    ConfigError: an unknown key, or a value of another kind than a config may hold.
  """
  known = default()
  told = whole(config, known)
  return {**told, **{name: {**known[name], **told[name]} for name in RECORDS}, "net": completed_net(told["net"])}
