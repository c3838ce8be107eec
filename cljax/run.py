"""A run from its config to its result file.

`train(config, workdir)` is what `launch.train` calls; without a work dir it keeps everything in memory, for notebooks.
The same call on the same work dir goes on where the last checkpoint stands, bit for bit.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cljax import fit
from cljax.checkpoint import Checkpoints
from cljax.config import Experiment, build, complete
from cljax.data.sample import view_at
from cljax.drive import Carry, Driver, drive, resume, start, steps_done
from cljax.mesh import over_seeds
from cljax.monitor import Monitor
from cljax.report import plots, store
from cljax.timeline import edges_of
from cljax.types import Method, PyTree, State, View, nothing
from cljax.workdir import claim, environment, note_environment


class Outcome(NamedTuple):
  result: dict[str, Any]  # as in result.json
  arrays: Mapping[str, np.ndarray]  # as in report.npz: the method's report after each task, [S, T, ...]
  state: State | None = None  # [S, ...]; None when a finished run was only read
  experiment: Experiment | None = None


def keys_of(seeds: jax.Array, positions: jax.Array) -> jax.Array:
  """[S] keys: key(seed), then a fold for each of the positions (purpose, task, phase)."""

  def one(seed):
    key = jax.random.key(seed)
    for i in range(positions.shape[0]):
      key = jax.random.fold_in(key, positions[i])
    return key

  return jax.vmap(one)(seeds)


def compile_events(experiment: Experiment) -> dict[str, Callable[..., Any]]:
  """The compiled functions by event: init, view, <phase>.enter|chunk|tick|exit, evaluate.<readout>, report, faults.

  Edges that do nothing are absent. Results have a leading [S]; wrapping the values records the order of events.
  """
  method, spec, timeline, axes = experiment.method, experiment.spec, experiment.timeline, experiment.axes
  by_seed = partial(over_seeds, executor=experiment.executor)
  clock_axis = 0 if np.ptp(timeline.rows, axis=0).any() else None
  phase_axes: tuple = (0, 0, View(axes.bank, axes.tasks, None), clock_axis)

  def view_tasks(tasks, t):
    stream = experiment.stream._replace(bank=None, tasks=tasks, test_bank=None, test=None)
    return view_at(stream, t if spec.boundaries else None, spec.heads).tasks

  if jax.tree.leaves(axes.tasks):
    view_tasks = jax.vmap(view_tasks, in_axes=(axes.tasks, None), out_axes=axes.tasks)
  compiled: dict[str, Callable[..., Any]] = {
    "keys": jax.jit(keys_of),
    "init": jax.jit(by_seed(method.init, (0,))),
    "view": jax.jit(view_tasks),
  }
  for phase in method.phases:
    chunk = by_seed(partial(fit.fit_chunk, phase, timeline.chunk), (*phase_axes, clock_axis))
    compiled[f"{phase.name}.chunk"] = jax.jit(chunk, donate_argnums=1)
    for name in edges_of(phase):
      edge = by_seed(partial(fit.edge, phase, name), phase_axes)
      compiled[f"{phase.name}.{name}"] = jax.jit(edge, donate_argnums=1)
  slot_axis = 0 if method.slots else None
  for readout in experiment.readouts:
    ask = partial(fit.evaluate, method, readout, experiment.config.evaluate_group, "test")
    compiled[f"evaluate.{readout}"] = jax.jit(by_seed(ask, (0, axes, None, None, slot_axis)))
  compiled["report"] = jax.jit(by_seed(method.report, (0,)))
  if method.faults is not nothing:
    compiled["faults"] = jax.jit(by_seed(method.faults, (0,)))
  return compiled


def result_of(experiment: Experiment, carry: Carry) -> dict[str, Any]:
  """The result file of a finished run."""
  config, main = experiment.config, experiment.readouts[0]
  seconds = carry.seconds
  steps = experiment.timeline.steps()
  per_second = steps * len(experiment.seeds) / seconds["train"] if seconds["train"] else 0.0
  return store.make_result(
    paper=config.paper,
    preset=config.preset,
    cell=config.cell,
    method=config.cell.split("/")[-1] or config.method.name,
    stream=config.cell.split("/")[0] if "/" in config.cell else f"{config.stream.source}_{config.stream.name}",
    seeds=experiment.seeds,
    oracle=any(phase.joint for phase in experiment.method.phases),
    readout=main,
    right=carry.right,
    rows=experiment.test_rows,
    task_confusion=carry.confusion.get("inferred"),
    parameters=int(carry.reports["parameters"][0, -1]),
    memory_bytes=int(carry.reports["memory_bytes"][0, -1]),
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
      "device_count": jax.device_count(),
    },
    config=config.to_dict(),
  )


def write_parts(folder: epath.Path, parts: Mapping[str, PyTree]) -> None:
  """One .npz for each part of a method that can be loaded alone; leaves [S, ...] under their paths."""
  for name, tree in parts.items():
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.npz").open("wb") as file:
      np.savez(file, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})


def finished(folder: epath.Path) -> Outcome | None:
  """What a finished run left, or None."""
  path = folder / "result.json"
  return Outcome(store.read_result(path), store.read_report_arrays(folder)) if path.exists() else None


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
  folder = epath.Path(workdir).expanduser().absolute() if workdir is not None else None
  if folder is not None:
    claim(folder, config.to_dict(), overrides or {})
    done = finished(folder)
    if done:
      return done
  with jax.default_matmul_precision(config.matmul_precision):
    experiment = build(config, data_dir)
    if folder is not None:
      note_environment(folder, environment())
    checkpoints = Checkpoints(folder / "checkpoints") if folder is not None else None
    compiled = compile_events(experiment)
    carry, cursor, lines = resume(start(experiment, compiled), checkpoints)
    label = config.cell or config.method.name
    monitor = Monitor(folder, experiment.timeline.steps(), steps_done(experiment, cursor), lines, label, quiet)
    if cursor is not None:
      monitor.say(f"going on from step {monitor.done} of {monitor.total}")
    driver = Driver(experiment, compiled, monitor, checkpoints, stop_asked)
    try:
      drive(experiment.timeline.units(cursor, carry.row), carry, driver)
    finally:
      monitor.close()
      if checkpoints is not None:
        checkpoints.close()
  outcome = Outcome(result_of(experiment, carry), carry.reports, carry.state, experiment)
  if folder is not None:
    write_outcome(folder, outcome, experiment.method)
  return outcome


def write_outcome(folder: epath.Path, outcome: Outcome, method: Method) -> None:
  """Parts, report arrays and figures, and last the result file, which marks the run as finished."""
  if method.parts is not nothing:
    write_parts(folder / "parts", jax.vmap(method.parts)(outcome.state))
  store.write_report_arrays(folder / "report.npz", outcome.arrays)
  plots.save(folder / "figures", plots.run_figures(outcome.result, outcome.arrays))
  store.write_json(folder / "result.json", outcome.result)
