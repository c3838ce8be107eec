"""A method, its data and the devices become an experiment: `assemble` from Python, `build` from a config.

All refusals happen here and in what these call, before anything is trained.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cljax.checkpoint import by_path
from cljax.config import check_outer
from cljax.data.arrays import check_pair, laid_out, one_seed
from cljax.data.pictures import one_for_all, shown_as
from cljax.errors import ConfigError
from cljax.files import checksum
from cljax.given import (
  MakeFn,
  at_numbers,
  check_answers,
  check_hash,
  check_jax,
  check_made_for,
  check_method,
  check_report,
  check_seeds,
  readouts_of,
  rows_of_hyper,
)
from cljax.looks import looks_of
from cljax.memory import check_length, check_memory
from cljax.mesh import choose_executor, make_mesh, padded, put
from cljax.methods import WITHOUT_BOUNDARIES
from cljax.named import own_files
from cljax.recipe import Laid, build_stream, labels_of, recipe, seeds_of
from cljax.settings import UNNAMED, Labels, Settings, check_labels, settings_of
from cljax.start import adapted, check_given, check_known, check_start, read_parts
from cljax.sweep import hyperparameters, sweep_values, with_values
from cljax.timeline import Look, Timeline, edges_of
from cljax.types import Method, Spec, Stream

LONGEST_CHUNK = 1000
OF_SCENARIO = {"task": ("task",), "class": ("class", "task"), "domain": ("domain",), "all": ("task",)}  # what is asked


class Experiment(NamedTuple):
  """All that a run needs, checked and on the devices."""

  settings: Settings
  labels: Labels
  config: dict[str, Any]  # what config.json says; {} where no work dir is asked for
  configs: tuple[dict[str, Any], ...]  # of each value of the sweep, as its result.json says it
  spec: Spec
  stream: Stream  # on the devices
  axes: Stream  # 0 or None for each leaf of `stream`
  method: Method  # at the numbers of the first row: what is static about it
  parts: dict[str, dict[str, Any]]  # what the method reads, on the devices
  parts_axes: dict[str, int | None]  # 0 where each seed reads a file of its own
  make: MakeFn
  hyper: dict[str, np.ndarray]  # [S] float32 by row of the seed axis; from a config the learning rate is among them
  timeline: Timeline
  seeds: tuple[int, ...]  # of each row of the seed axis; with a sweep all seeds of its first value come first
  values: tuple[dict[str, float], ...]  # the sweep, one entry a value; a single {} without
  readouts: tuple[str, ...]  # the first is the main one
  executor: str
  mesh: Mesh
  test_rows: np.ndarray  # [S, T]
  data_hash: str
  valid_rows: np.ndarray  # [S, T]
  normalised: dict[str, dict[str, list[float]]]  # {seed: mean and scale of each channel}, where all tasks share them
  shown: dict[str, Any]  # what the net is given of a picture, see `data.pictures.shown_as`
  answers_by: tuple[str, ...]  # fields of the method's state, where it is told the task
  own_files: dict[str, dict[str, str]]  # {name or part: path and sha256} of one's own, as they were read

  def split_rows(self, split: str) -> np.ndarray:
    """[S, T] rows of a split, `test` or `valid`."""
    return self.test_rows if split == "test" else self.valid_rows

  def on_devices(self, tree: Any, axes: Any) -> Any:
    """Host arrays on the devices: along the seed axis where the axis is 0, on all of them where it is None."""
    return put(tree, axes, self.mesh)

  def numbers(self, *numbers: Any) -> list[jax.Array]:
    """int32 arrays on all devices, put there explicitly (a transfer guard refuses silent ones)."""
    return [put(np.asarray(number, np.int32), None, self.mesh) for number in numbers]

  def rows_of(self, v: int) -> slice:
    """The rows of the seed axis that belong to the v-th value of the sweep."""
    count = len(self.seeds) // len(self.values)
    return slice(v * count, (v + 1) * count)

  def method_of(self, v: int) -> Method:
    """The method at the numbers of the v-th value of the sweep."""
    first = self.rows_of(v).start
    return self.make({name: float(rows[first]) for name, rows in self.hyper.items()})


def build_timeline(
  settings: Settings, labels: Labels, spec: Spec, method: Method, rows: np.ndarray, looks: tuple[Look, ...]
) -> Timeline:
  """The units of the run, with the chunk length that suits its longest phase.

  Raises:
    ConfigError: a method that cannot learn where boundaries are hidden, or two of its phases have one name.
  """
  if not spec.boundaries and method.needs_boundaries:
    if labels.method.partition("+")[0] in WITHOUT_BOUNDARIES:
      raise ConfigError(
        f"{name_of(labels)} with its guard, memory or gate has to know where tasks begin, and "
        "config.stream.boundaries=False hides it; set it to True, or take the method without them "
        "(config.method.guard.name=none, config.method.memory=reservoir, config.gate.name=none)"
      )
    raise ConfigError(
      f"{name_of(labels)} has to know where tasks begin, and config.stream.boundaries=False hides it; set it to True, "
      f"or take a method that does without: {', '.join(WITHOUT_BOUNDARIES)}"
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
  names = [phase.name for phase in method.phases]
  if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
    raise ConfigError(
      f"{name_of(labels)} has the phases {', '.join(names)}: give {twice[0]!r} another name where it stands again, as "
      "a phase is known by its name"
    )
  oracle = all(phase.joint for phase in method.phases)
  tasks = tuple(range(spec.T)) if settings.every_task or not oracle else (spec.T - 1,)
  check_given(settings.given_tasks, spec, oracle)
  every, given, looking = settings.checkpoint_every_chunks, settings.given_tasks, settings.look_every_steps
  timeline = Timeline(method.phases, spec, rows, tasks, 1, every, looks, given, looking)
  check_length(timeline)
  for task, phase in itertools.product(timeline.segments(), range(len(method.phases))):
    timeline.marks(task, phase)  # what it refuses is refused before anything is trained
  longest = max(int(timeline.phase_steps(t, p).max()) for t in timeline.segments() for p in range(len(method.phases)))
  block = math.lcm(*(phase.block.size if phase.block else 1 for phase in method.phases))
  wanted = min(max(longest, 1), settings.chunk or LONGEST_CHUNK)
  return timeline._replace(chunk=-(-wanted // block) * block)


def name_of(labels: Labels) -> str:
  """The method, in a message."""
  return f"config.method.name={labels.method!r}" if labels.method else "this method"


def rows_by_seed(spec: Spec, stream: Stream, seeds: int) -> tuple[Spec, dict[str, np.ndarray]]:
  """(spec with the most training rows of each task, {split: [S, T] its rows}) of `train`, `valid` and `test`.

  Raises:
    ConfigError: a spec that tells other rows.
  """
  tables = {"train": stream.tasks.train, "valid": stream.tasks.valid, "test": stream.test}
  rows = {name: np.broadcast_to(one.count, (seeds, spec.T)).astype(np.int64) for name, one in tables.items()}
  longest = tuple(rows["train"].max(axis=0).tolist())
  if spec.rows not in ((), longest):
    raise ConfigError(f"spec.rows={spec.rows}, but the stream's tasks have {longest} training rows")
  return spec._replace(rows=longest), rows


def assemble(
  method: Method | MakeFn,
  spec: Spec,
  stream: Stream,
  *,
  seeds: Sequence[int] = (0,),
  hyper: Mapping[str, Any] | None = None,
  axes: Stream | None = None,
  readouts: Sequence[str] = (),
  labels: Labels = UNNAMED,
  data_hash: str | None = None,
  **settings: Any,
) -> Experiment:
  """An experiment of one's own method on one's own arrays.

  Args:
    method: a method, or a function hyper -> method, which is traced with the numbers of a row of the seed axis: all
      rows share one program, and the numbers reach it as arguments.
    stream: numpy arrays. Leaves may have a leading axis of the seeds.
    seeds: of each row of the seed axis.
    hyper: {name: number, or one for each seed} for a function.
    axes: 0 or None for each leaf of `stream`, as `data.streams.stack` gives them; None finds them by their shapes.
    readouts: of `task`, `class`, `domain` and `inferred`, the main one first; () chooses by the heads.
    labels: what the result is called.
    data_hash: a word that tells the data apart; None is the checksum of the arrays.
    settings: fields of `Settings`.

  Raises:
    ConfigError: for every wrong value, before anything is trained.
  """
  check_jax()
  own, seeds, labels = settings_of(settings), check_seeds(seeds, bool(hyper)), check_labels(labels)
  check_method(method)
  data_hash = check_hash(data_hash)
  check_pair(spec, stream)
  axes = laid_out(spec, stream, axes, len(seeds))
  spec, rows = rows_by_seed(spec, stream, len(seeds))
  numbers = rows_of_hyper(hyper or {}, len(seeds))
  first, make = at_numbers(adapted(method, own.start_from, own.steps_per_task), numbers)
  check_made_for(first, spec, name_of(labels))
  answers_by = check_answers(first, spec, name_of(labels))
  executor = choose_executor(own.seed_executor, first.branches, name_of(labels))
  looks = looks_of(own.looks, spec, rows["valid"], first)
  mesh = make_mesh(len(seeds), own.data_devices)
  timeline = build_timeline(own, labels, spec, first, rows["train"], looks)
  lanes = padded(len(seeds), mesh) // mesh.shape["seed"]
  at_once = lanes if executor == "vmap" else 1
  check_memory(first, one_seed(stream, axes), timeline, own.evaluate_group, lanes, at_once, mesh.local_devices[0])
  check_start(first, own.start_from, spec)
  check_report(first, name_of(labels))
  parts, parts_axes = read_parts(first, seeds)
  check_known(first, own.start_from, own.given_tasks, spec, parts, parts_axes)
  return Experiment(
    settings=own,
    labels=labels,
    config={},
    configs=({},),
    spec=spec,
    stream=put(stream, axes, mesh),
    axes=axes,
    method=first,
    parts=put(parts, parts_axes, mesh),
    parts_axes=parts_axes,
    make=make,
    hyper={name: rows.astype(np.float32) for name, rows in numbers.items()},
    timeline=timeline,
    seeds=seeds,
    values=({},),
    readouts=readouts_of(readouts, spec, first),
    executor=executor,
    mesh=mesh,
    test_rows=rows["test"],
    data_hash=data_hash or checksum(by_path(stream)),
    valid_rows=rows["valid"],
    normalised=one_for_all(stream.test.warp, seeds),
    shown=shown_as(stream),
    answers_by=answers_by,
    own_files={name: {"path": first.reads[name], "sha256": checksum(part)} for name, part in parts.items()},
  )


def build(config: ConfigDict, data_dir: str | None = None, data: Laid | None = None) -> Experiment:
  """The experiment that a config describes.

  Args:
    data: what `build_stream` gave for these seeds; None builds it.

  Raises:
    ConfigError: for every wrong value, before anything is trained.
  """
  check_outer(config)
  values, own, seeds = sweep_values(config), hyperparameters(config), seeds_of(config)
  spec, stream, axes, data_hash = data or build_stream(config, seeds, data_dir)
  make, own_code = recipe(config, spec), own_files(config.to_dict())
  for numbers in own[1:]:
    make(numbers)  # what the factory refuses in a later value
  experiment = assemble(
    make,
    spec,
    stream,
    seeds=seeds,
    hyper={name: np.repeat([each[name] for each in own], config.num_seeds) for name in own[0]},
    axes=axes,
    readouts=OF_SCENARIO.get(str(config.stream.get("scenario")), ()),  # one's own stream may have other words, or none
    labels=labels_of(config),
    data_hash=data_hash,
    **{name: config[name] for name in Settings._fields},
  )
  told = tuple(with_values(config, value).to_dict() for value in values)
  read = {**own_code, **experiment.own_files}
  return experiment._replace(config=config.to_dict(), configs=told, values=values, own_files=read)
