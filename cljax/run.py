"""A run from its config to its result file.

`train(config, workdir)` is what `launch.train` calls; without a work dir it keeps everything in memory, for notebooks.
The same call on the same work dir goes on where the last checkpoint stands, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from cljax import artifacts, files, fit
from cljax.checkpoint import Checkpoints
from cljax.config import complete, sweep_values, with_values
from cljax.data.sample import pool_of, view_at, warped_rows
from cljax.data.warp import COSTLY
from cljax.drive import Carry, Driver, drive, resume, start, steps_done
from cljax.experiment import Experiment, build
from cljax.files import located
from cljax.keys import keys_of
from cljax.mesh import agree, gather, over_seeds, places, spread_rows
from cljax.monitor import Monitor
from cljax.predict import told_of
from cljax.report import plots, store
from cljax.timeline import edges_of
from cljax.types import Method, State, View, nothing
from cljax.workdir import claim, environment, note_environment

POOL_BYTES = 2**30  # of the pictures of one task, of all seeds together


class Outcome(NamedTuple):
  result: dict[str, Any]  # as in result.json
  arrays: Mapping[str, np.ndarray]  # as in report.npz: the method's report after each task, [S, T, ...]
  state: State | None = None  # [S, ...]; None when a finished run was only read
  experiment: Experiment | None = None
  sweep: tuple["Outcome", ...] = ()  # one for each value of a sweep, whose first one the fields above tell


# What is compiled, as functions of the method at the numbers of one row, and of that row's arguments.


def chunk_of(p: int, n: int, spread: Callable[..., Any], method: Method, *args: Any) -> Any:
  key, state, view, clock, stop = args
  return fit.fit_chunk(method.phases[p], n, key, state, view, clock, stop, spread)


def edge_of(p: int, name: str, method: Method, *args: Any) -> Any:
  return fit.edge(method.phases[p], name, *args)


def answers_of(readout: str, group: int, method: Method, *args: Any) -> Any:
  return fit.evaluate(method, readout, group, "test", *args)


def part_of(name: str, method: Method, *args: Any) -> Any:
  return getattr(method, name)(*args)


def compile_events(experiment: Experiment) -> dict[str, Callable[..., Any]]:
  """The compiled functions by event: init, view, pool, <phase>.enter|chunk|tick|exit, pictures, evaluate.<readout>,
  report, faults. All but keys, view, pool and pictures take the hyperparameters first.

  Edges that do nothing are absent. Results have a leading [S]; wrapping the values records the order of events.
  """
  method, spec, timeline, axes = experiment.method, experiment.spec, experiment.timeline, experiment.axes
  clock_axis = 0 if np.ptp(timeline.rows, axis=0).any() else None
  pool_axis = 0 if jax.tree.leaves(axes.tasks.train) else None
  phase_axes: tuple = (0, 0, View(axes.bank, axes.tasks, None, pool_axis), clock_axis)  # type: ignore[arg-type]

  placed = partial(places, mesh=experiment.mesh)

  def by_seed(fn, in_axes, **options):
    def whole(hyper, *args):
      return fn(experiment.make(hyper), *args)

    mapped = over_seeds(whole, (0, *in_axes), experiment.executor, experiment.mesh)
    return jax.jit(mapped, out_shardings=placed(0), **options)

  def view_tasks(tasks, t):
    stream = experiment.stream._replace(bank=None, tasks=tasks, test_bank=None, test=None)
    return view_at(stream, t if spec.boundaries else None, spec.heads).tasks

  if jax.tree.leaves(axes.tasks):
    view_tasks = jax.vmap(view_tasks, in_axes=(axes.tasks, None), out_axes=axes.tasks)
  spread = partial(spread_rows, mesh=experiment.mesh) if experiment.mesh.shape["data"] > 1 else fit.whole
  compiled = {
    "keys": jax.jit(keys_of, out_shardings=placed(0)),
    "init": by_seed(partial(part_of, "init"), (0,)),
    "view": jax.jit(view_tasks, out_shardings=placed(axes.tasks)),
    **compile_pictures(experiment, pool_axis),
  }
  for p, phase in enumerate(method.phases):
    chunk = partial(chunk_of, p, timeline.chunk, spread)
    compiled[f"{phase.name}.chunk"] = by_seed(chunk, (*phase_axes, clock_axis), donate_argnums=2)
    for name in edges_of(phase):
      compiled[f"{phase.name}.{name}"] = by_seed(partial(edge_of, p, name), phase_axes, donate_argnums=2)
  test_axis = 0 if jax.tree.leaves(axes.test) else None
  for readout in experiment.readouts:
    answers = partial(answers_of, readout, experiment.config.evaluate_group)
    asked = (0, axes, None, None, 0 if method.slots else None, test_axis)
    compiled[f"evaluate.{readout}"] = by_seed(answers, asked)
  compiled["report"] = by_seed(partial(part_of, "report"), (0,))
  if method.faults is not nothing:
    compiled["faults"] = by_seed(partial(part_of, "faults"), (0,))
  return compiled


def compile_pictures(experiment: Experiment, pool_axis: int | None) -> dict[str, Callable[..., Any]]:
  """`pool` and `pictures`, where the stream's warp is costly: pictures of a task, warped once for all who look at them.

  A pool that each seed has for itself is made only while all of them together stay small.
  """
  stream, axes = experiment.stream, experiment.axes
  if not isinstance(stream.tasks.train.warp, COSTLY):
    return {}
  found = {}
  test_axis = 0 if jax.tree.leaves(axes.test) else None
  rows = stream.tasks.train.idx.shape[-1] * (len(experiment.seeds) if pool_axis == 0 else 1)
  joint = all(phase.joint for phase in experiment.method.phases)
  if experiment.spec.boundaries and not joint and 4 * rows * int(np.prod(experiment.spec.x_shape)) <= POOL_BYTES:
    pool = jax.vmap(pool_of, (axes.bank, axes.tasks, None)) if pool_axis == 0 else pool_of
    found["pool"] = jax.jit(pool, out_shardings=places(pool_axis, experiment.mesh))

  def pictures(stream, task):
    return warped_rows(stream.test_bank, stream.test, task)

  if test_axis == 0:
    pictures = jax.vmap(pictures, (axes, None))
  return {**found, "pictures": jax.jit(pictures, out_shardings=places(test_axis, experiment.mesh))}


def result_of(experiment: Experiment, carry: Carry, v: int = 0) -> dict[str, Any]:
  """The result file of a finished run, or of the v-th value of its sweep. Times are of the whole run."""
  config, main = with_values(experiment.config, experiment.values[v]), experiment.readouts[0]
  own = rows_of(experiment, v)
  seconds = carry.seconds
  steps = experiment.timeline.steps()
  per_second = steps * len(experiment.seeds) / seconds["train"] if seconds["train"] else 0.0
  confusion = carry.confusion.get("inferred")
  return store.make_result(
    paper=config.paper,
    preset=config.preset,
    cell=config.cell,
    method=config.cell.split("/")[-1] or config.method.name,
    stream=config.cell.split("/")[0] if "/" in config.cell else f"{config.stream.source}_{config.stream.name}",
    seeds=experiment.seeds[own],
    oracle=any(phase.joint for phase in experiment.method.phases),
    readout=main,
    right={name: counts[own] for name, counts in carry.right.items()},
    rows=experiment.test_rows[own],
    train_rows=experiment.timeline.rows[own],
    task_confusion=None if confusion is None else confusion[own],
    slot_of=carry.slot_of[own],
    report={name: value[own] for name, value in carry.reports.items()},
    parameters=int(carry.reports["parameters"][own][0, -1]),
    memory_bytes=int(carry.reports["memory_bytes"][own][0, -1]),
    state_bytes=None,
    timing={
      "compile_seconds": seconds["compile"],
      "train_seconds": seconds["train"],
      "eval_seconds": seconds["eval"],
      "steps": steps,
      "steps_per_second": per_second,
    },
    environment=environment(),
    data_hash=experiment.data_hash,
    experiment={
      "precision": config.matmul_precision,
      "executor": experiment.executor,
      "device_count": experiment.mesh.size,
    },
    config=config.to_dict(),
  )


def rows_of(experiment: Experiment, v: int) -> slice:
  """The rows of the seed axis that belong to the v-th value of the sweep."""
  count = len(experiment.seeds) // len(experiment.values)
  return slice(v * count, (v + 1) * count)


def outcome_of(experiment: Experiment, carry: Carry, v: int = 0) -> Outcome:
  """What a run leaves in memory, or that of one value of its sweep."""
  own = rows_of(experiment, v)
  reports = {name: value[own] for name, value in carry.reports.items()}
  state = jax.tree.map(lambda leaf: jnp.asarray(leaf[own]), gather(carry.state, len(experiment.seeds)))
  return Outcome(result_of(experiment, carry, v), reports, state, experiment)


def name_of(values: Mapping[str, float]) -> str:
  """The folder of one value of a sweep."""
  return ",".join(f"{key}={value:g}" for key, value in values.items())


def finished(folder: epath.Path, values: Sequence[Mapping[str, float]]) -> Outcome | None:
  """What a finished run left, or None; a sweep is finished when its last value is."""
  folders = [folder / name_of(value) for value in values]  # of {} the folder itself
  if not all((each / "result.json").exists() for each in folders):
    return None
  found = [Outcome(store.read_result(each / "result.json"), store.read_report_arrays(each)) for each in folders]
  return found[0]._replace(sweep=tuple(found) if len(found) > 1 else ())


def train(
  config: ConfigDict,
  workdir: str | epath.Path | None = None,
  *,
  data_dir: str | None = None,
  overrides: Mapping[str, Any] | None = None,
  stop_asked: Callable[[], bool] = lambda: False,
  quiet: bool = False,
) -> Outcome:
  """Trains one cell: all its seeds on all its tasks.

  Args:
    config: see `cljax.config.default`.
    workdir: the run's folder: begun, gone on with, or, where finished, only read. None keeps all in memory.
    data_dir: of the prepared data sets; None asks TFDS_DATA_DIR, then TFDS's default.
    overrides: what the user changed on the command line, kept in overrides.json.
    stop_asked: asked after each chunk; True saves and raises.
    quiet: no progress.

  Raises:
    ConfigError: a mistake in the config, the data or the work dir.
    OSError: the work dir cannot be written; what was saved before stays readable.
    Stopped: a stop was asked for, and everything up to here is saved.
  """
  config = complete(config)
  writes = jax.process_index() == 0
  folder = located(workdir) if workdir is not None else None
  if folder is not None:
    if writes:
      claim(folder, config.to_dict(), overrides or {})
    done = finished(folder, sweep_values(config))
    if agree(done is not None and writes):
      return done or finished(folder, sweep_values(config)) or Outcome({}, {})
  with jax.default_matmul_precision(config.matmul_precision):
    experiment = build(config, data_dir)
    for line in idle(experiment):
      logging.warning(line)
    if folder is not None and writes:
      note_environment(folder, environment())
    checkpoints = Checkpoints(folder / "checkpoints") if folder is not None else None
    compiled = compile_events(experiment)
    carry, cursor, lines = resume(start(experiment, compiled), checkpoints, experiment)
    label = config.cell or config.method.name
    total, done_steps = experiment.timeline.steps(), steps_done(experiment, cursor)
    monitor = Monitor(folder if writes else None, total, done_steps, lines, label, quiet or not writes)
    if cursor is not None:
      monitor.say(f"going on from step {monitor.done} of {monitor.total}")
    driver = Driver(experiment, compiled, monitor, checkpoints, stop_asked)
    try:
      drive(experiment.timeline.units(cursor, carry.row), carry, driver)
    finally:
      monitor.close()
      if checkpoints is not None:
        checkpoints.close()
  outcomes = [outcome_of(experiment, carry, v) for v in range(len(experiment.values))]
  if folder is not None and writes:
    for value, outcome in zip(experiment.values, outcomes, strict=True):
      write_outcome(folder / name_of(value), outcome, experiment.make(value))
  return outcomes[0]._replace(sweep=tuple(outcomes) if len(outcomes) > 1 else ())


def idle(experiment: Experiment) -> list[str]:
  """Warnings about devices that have nothing to do."""
  used, there = experiment.mesh.size, jax.device_count()
  rows = len(experiment.seeds)
  if used < there:
    return [
      f"{rows} seed(s) keep {used} of {there} devices busy, {there - used} idle: raise config.num_seeds, or share "
      "large batches by config.data_devices"
    ]
  share = experiment.mesh.shape["seed"]
  return [f"{rows} seeds on {share} devices: {-rows % share} rows are copies, which fill up"] if rows % share else []


def write_outcome(folder: epath.Path, outcome: Outcome, method: Method) -> None:
  """Parts, report arrays and figures, and last the result file, which marks the run as finished."""
  folder.mkdir(parents=True, exist_ok=True)
  if method.parts is not nothing:
    found = jax.vmap(method.parts)(outcome.state)
    for s, seed in enumerate(outcome.result["seeds"]):
      artifacts.write(artifacts.folder_of(folder, seed), jax.tree.map(lambda leaf, s=s: leaf[s], found))
    if outcome.experiment is not None:
      files.write_json(folder / "parts" / "spec.json", told_of(outcome.experiment.config, outcome.experiment.spec))
  store.write_report_arrays(folder / "report.npz", outcome.arrays)
  plots.save(folder / "figures", plots.run_figures(outcome.result, outcome.arrays))
  files.write_json(folder / "result.json", outcome.result)
