"""A run from a method and its data to a result file.

`fit(method, spec, stream)` trains what Python gives it, `train(config, workdir)` what a config describes; without a
work dir both keep everything in memory, for notebooks. The same call on the same work dir goes on where the last
checkpoint stands, bit for bit.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from cljax import loops
from cljax.advice import advice
from cljax.callbacks import OnRow, check_given, units_of
from cljax.checkpoint import Checkpoints
from cljax.config import complete, completed
from cljax.cursor import resume, steps_done
from cljax.data.sample import pool_of, view_at, warped_rows
from cljax.data.warp import is_costly, is_drawn
from cljax.drive import Driver, drive, event_of, start
from cljax.experiment import Experiment, assemble, build
from cljax.files import tidy
from cljax.given import MakeFn
from cljax.keys import keys_of
from cljax.lock import locked
from cljax.mesh import over_seeds, places, spread_rows
from cljax.monitor import Monitor
from cljax.outcome import Outcome, described, described_now, folders_of, left, outcome_of, write_outcomes
from cljax.paths import as_text, located
from cljax.readout import answers_of
from cljax.recipe import given_stream
from cljax.settings import UNNAMED, Labels, Settings, settings_of
from cljax.sweep import sweep_values
from cljax.timeline import edges_of
from cljax.traced import begin_of, chunk_of, edge_of, part_of
from cljax.types import Method, Spec, Stream, View, nothing
from cljax.workdir import ANSWERS, SHOWN, claim, environment, note_environment

POOL_BYTES = 2**30  # of the pictures of one task, of all seeds together


def compile_events(experiment: Experiment) -> dict[str, Callable[..., Any]]:
  """The compiled functions by event: init, view, pool, <phase>.enter|chunk|tick|exit, pictures.<split>,
  evaluate.<readout>[.valid], report, faults. All but keys, view, pool and pictures take the hyperparameters first.

  Edges that do nothing are absent. Results have a leading [S]; wrapping the values records the order of events.
  """
  method, spec, timeline, axes = experiment.method, experiment.spec, experiment.timeline, experiment.axes
  clock_axis = 0 if np.ptp(timeline.rows, axis=0).any() else None
  pool_axis = 0 if jax.tree.leaves(axes.tasks.train) else None
  phase_axes: tuple = (0, 0, View(axes.bank, axes.tasks, None, pool_axis), clock_axis)  # type: ignore[arg-type]

  placed = partial(places, mesh=experiment.mesh)

  def by_seed(fn, in_axes, **options):
    def one(hyper, *args):
      return fn(experiment.make(hyper), *args)

    mapped = over_seeds(one, (0, *in_axes), experiment.executor, experiment.mesh)
    return jax.jit(mapped, out_shardings=placed(0), **options)

  def view_tasks(tasks, t):
    stream = experiment.stream._replace(bank=None, tasks=tasks, test_bank=None, test=None)
    return view_at(stream, t if spec.boundaries else None, spec.heads).tasks

  if jax.tree.leaves(axes.tasks):
    view_tasks = jax.vmap(view_tasks, in_axes=(axes.tasks, None), out_axes=axes.tasks)
  spread = partial(spread_rows, mesh=experiment.mesh) if experiment.mesh.shape["data"] > 1 else loops.whole
  compiled = {
    "keys": jax.jit(keys_of, out_shardings=placed(0)),
    "init": by_seed(begin_of, (0, experiment.parts_axes or None)),
    "view": jax.jit(view_tasks, out_shardings=placed(axes.tasks)),
    **compile_pictures(experiment, pool_axis),
  }
  for p, phase in enumerate(method.phases):
    chunk = partial(chunk_of, p, timeline.chunk, spread)
    compiled[f"{phase.name}.chunk"] = by_seed(chunk, (*phase_axes, clock_axis), donate_argnums=2)
    for name in edges_of(phase):
      compiled[f"{phase.name}.{name}"] = by_seed(partial(edge_of, p, name), phase_axes, donate_argnums=2)
  asked = [("evaluate", readout, "test") for readout in experiment.readouts]
  asked += [(look.answer, experiment.readouts[0], look.split) for look in timeline.looks]
  for answer, readout, split in asked:
    answers = partial(answers_of, answer, readout, experiment.settings.evaluate_group, split)
    args = (0, axes, None, None, 0 if method.slots else None, rows_axis(axes, split))
    compiled[event_of(answer, readout, split)] = by_seed(answers, args)
  compiled["report"] = by_seed(partial(part_of, "report"), (0,))
  if method.faults is not nothing:
    compiled["faults"] = by_seed(partial(part_of, "faults"), (0,))
  return compiled


def rows_axis(axes: Stream, split: str) -> int | None:
  """0 where the rows of a split differ by seed."""
  return 0 if jax.tree.leaves(loops.split_of(axes, split)[1]) else None


def compile_pictures(experiment: Experiment, pool_axis: int | None) -> dict[str, Callable[..., Any]]:
  """`pool` and `pictures.<split>`, where the stream's warp is costly: pictures of a task, warped once for all uses.

  A pool that each seed has for itself is made only while all of them together stay small.
  """
  stream, axes = experiment.stream, experiment.axes
  if not is_costly(stream.tasks.train.warp):
    return {}
  found: dict[str, Callable[..., Any]] = {}
  rows = stream.tasks.train.idx.shape[-1] * (len(experiment.seeds) if pool_axis == 0 else 1)
  joint = all(phase.joint for phase in experiment.method.phases)
  whole = experiment.spec.boundaries and not joint and not is_drawn(stream.tasks.train.warp)
  if whole and 4 * rows * int(np.prod(experiment.spec.x_shape)) <= POOL_BYTES:
    pool = jax.vmap(pool_of, (axes.bank, axes.tasks, None)) if pool_axis == 0 else pool_of
    found["pool"] = jax.jit(pool, out_shardings=places(pool_axis, experiment.mesh))

  def pictures(split, stream, task):
    return warped_rows(*loops.split_of(stream, split), task)

  for split in ("test", *(look.split for look in experiment.timeline.looks)):
    axis, own = rows_axis(axes, split), partial(pictures, split)
    mapped = jax.vmap(own, (axes, None)) if axis == 0 else own
    found[f"pictures.{split}"] = jax.jit(mapped, out_shardings=places(axis, experiment.mesh))
  return found


def fit(
  method: Method | MakeFn,
  spec: Spec,
  stream: Stream,
  *,
  seeds: Sequence[int] = (0,),
  workdir: str | epath.Path | None = None,
  hyper: Mapping[str, Any] | None = None,
  axes: Stream | None = None,
  readouts: Sequence[str] = (),
  labels: Labels = UNNAMED,
  stop_asked: Callable[[], bool] = lambda: False,
  on_row: OnRow | None = None,
  quiet: bool = False,
  **settings: Any,
) -> Outcome:
  """Trains one's own method on one's own arrays: all seeds on all tasks.

  outcome = fit(er(net, optax.adam(1e-3), spec, capacity=500), spec, stream, seeds=(0, 1, 2), workdir="runs/mine")

  Args:
    method, spec, stream, seeds, hyper, axes, readouts, labels: see `assemble`; a builder of `data.STREAMS` makes a
      spec and a stream of a `Source` of arrays.
    workdir: the run's folder: begun, gone on with, or, where finished, only read. None keeps all in memory.
    stop_asked: asked after each chunk; True saves and raises.
    on_row: (`cursor.Carry`, row) -> {name: a number, or [S] one for each seed}, or None; called when a row of the
      accuracy matrix is done, 0 before training and t after task t. Its numbers stand beside the method's own: `report`
      of the result, `arrays[name]` [S, T], lines "own" of metrics.jsonl. Copy what you keep of the carry
      (`jax.device_get`). A run that goes on does not call it for rows that are done, but for one at which it failed.
    quiet: no progress.
    settings: fields of `Settings`.

  Raises:
    ConfigError: a mistake in what is given, or a work dir of another run.
    OSError: the work dir cannot be written; what was saved before stays readable.
    Stopped: a stop was asked for, and everything up to here is saved.
  """
  experiment = assemble(
    method, spec, stream, seeds=seeds, hyper=hyper, axes=axes, readouts=readouts, labels=labels, **settings
  )
  config = described(experiment, workdir is not None)
  experiment = experiment._replace(config=config, configs=(config,))
  return carry_out(
    lambda: experiment,
    experiment.settings,
    config,
    ({},),
    workdir,
    partial(described_now, config),
    stop_asked=stop_asked,
    on_row=on_row,
    quiet=quiet,
  )


def train(
  config: ConfigDict,
  workdir: str | epath.Path | None = None,
  *,
  data_dir: str | None = None,
  stream: tuple[Spec, Stream] | None = None,
  overrides: Mapping[str, Any] | None = None,
  stop_asked: Callable[[], bool] = lambda: False,
  on_row: OnRow | None = None,
  quiet: bool = False,
) -> Outcome:
  """Trains one cell: all its seeds on all its tasks.

  Args:
    config: see `cljax.config.default`.
    workdir, stop_asked, on_row, quiet: see `fit`.
    data_dir: of the prepared data sets; None asks TFDS_DATA_DIR, then TFDS's default.
    stream: one's own (spec, stream) in place of `config.stream`, as `cljax.data.from_arrays` gives them.
    overrides: what the user changed on the command line, kept in overrides.json.

  Raises:
    ConfigError: a mistake in the config, the data or the work dir.
    OSError: the work dir cannot be written; what was saved before stays readable.
    Stopped: a stop was asked for, and everything up to here is saved.
  """
  if data_dir:  # refused here where the run is finished, or brings its own data, too
    as_text("data_dir", data_dir)
  config = complete(config)
  data = given_stream(config, stream) if stream is not None else None
  return carry_out(
    partial(build, config, data_dir, data),
    settings_of({name: config[name] for name in Settings._fields}),
    config.to_dict(),
    sweep_values(config),
    workdir,
    lambda there: completed(there).to_dict(),
    overrides=overrides,
    stop_asked=stop_asked,
    on_row=on_row,
    quiet=quiet,
  )


def carry_out(
  begin: Callable[[], Experiment],
  settings: Settings,
  config: dict[str, Any],
  values: tuple[dict[str, float], ...],
  workdir: str | epath.Path | None,
  older: Callable[[Mapping[str, Any]], Mapping[str, Any]],
  *,
  overrides: Mapping[str, Any] | None = None,
  stop_asked: Callable[[], bool],
  on_row: OnRow | None,
  quiet: bool,
) -> Outcome:
  """What `fit` and `train` share: a run that is begun, gone on with, or only read.

  Args:
    begin: the experiment; called only where the run is not finished, or its state is asked for.
    config: as config.json tells it.
    values: of the sweep.
    older: the config of a work dir with what it said before a key existed, completed.
  """
  check_given(stop_asked, on_row, overrides or {}, quiet)
  folder = located(workdir) if workdir is not None else None
  writes = jax.process_index() == 0
  if folder is not None and (done := left(folder, writes, config, values, older, begin)):
    return done
  own = locked(folder, stop_asked) if folder is not None and writes else contextlib.nullcontext(stop_asked)
  with own as stop_asked:
    if folder is not None:
      if writes:
        claim(folder, config, overrides or {}, older)
        tidy(folders_of(folder, values))
      if done := left(folder, writes, config, values, older, begin):  # another process has just ended it
        return done
    with jax.default_matmul_precision(settings.matmul_precision):
      experiment = begin()
      for line in advice(experiment):
        logging.warning(line)
      outcomes = perform(experiment, folder, writes, stop_asked, on_row, quiet)
    if folder is not None and writes:
      write_outcomes(folder, experiment, outcomes)
  return outcomes[0]._replace(sweep=tuple(outcomes) if len(outcomes) > 1 else ())


def perform(
  experiment: Experiment,
  folder: epath.Path | None,
  writes: bool,
  stop_asked: Callable[[], bool],
  on_row: OnRow | None,
  quiet: bool,
) -> list[Outcome]:
  """The outcome of each value of the sweep, after all units that the newest checkpoint of the folder leaves to do."""
  if folder is not None and writes:
    told = {SHOWN: experiment.shown, ANSWERS: list(experiment.answers_by)}
    note_environment(folder, {**environment(experiment.own_files), **told})
  checkpoints = Checkpoints(folder / "checkpoints") if folder is not None else None
  compiled = compile_events(experiment)
  carry, cursor, noted = resume(start(experiment, compiled), checkpoints, experiment)
  labels = experiment.labels
  total, done_steps = experiment.timeline.steps(), steps_done(experiment, cursor)
  name = labels.cell or labels.method or "fit"
  monitor = Monitor(folder if writes else None, total, done_steps, noted, name, quiet or not writes)
  if cursor is not None:
    monitor.say(f"going on from step {monitor.done} of {monitor.total}")
  driver = Driver(experiment, compiled, monitor, checkpoints, stop_asked, on_row)
  try:
    drive(units_of(experiment.timeline, cursor, carry, on_row), carry, driver)
  finally:
    monitor.close()
    if checkpoints is not None:
      checkpoints.close()
  return [outcome_of(experiment, carry, v) for v in range(len(experiment.values))]
