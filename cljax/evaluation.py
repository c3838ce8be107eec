"""A run asked again under other settings of its evaluation: the state of its newest checkpoint, and nothing is trained.

entries = evaluate_again("runs/pairs", {"evaluate_group": [1, 8, 32, 128]}, rows=1000)
entries[0]["readouts"]["inferred"]["task_recognition"]["mean"]

An entry is a plain dict, see FIELDS. `note` keeps entries in the work dir's evaluations.json, one a setting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cljax import files, seals
from cljax.checkpoint import Checkpoints
from cljax.cursor import Carry, resume, steps_done
from cljax.drive import ask, start
from cljax.errors import ConfigError, choose, shown
from cljax.experiment import Experiment, build
from cljax.files import flatten
from cljax.loops import split_of
from cljax.mesh import gather
from cljax.metrics import accuracy, spread
from cljax.over import check_heard, combined, values_of
from cljax.overrides import with_fields
from cljax.paths import located
from cljax.program import answer_of
from cljax.recipe import Laid, build_stream, seeds_of
from cljax.recorded import told_by
from cljax.report import store
from cljax.run import compile_events
from cljax.types import PyTree
from cljax.workdir import environment

FILE = "evaluations.json"
SCHEMA = 1
AWAY = "move it away, and it is written anew"
FIELDS = {
  "setting": "{config key: value} that was asked for; all other fields are the run's own",
  "sweep": "{key: value} of the run's own sweep, {} without one",
  "split": "test | valid: whose rows were asked; without it test",
  "rows": "the most of these rows of each task that were asked, the first ones; 0: all",
  "test_rows": "[S][T] how many of them were asked",
  "seeds": "[S] the seeds",
  "after_tasks": "tasks that were finished when the state was saved; all of them for a finished run",
  "steps": "steps of training before that, of the seed that takes most",
  "readouts": "{name: {accuracy [S][T] (null: the task has no slot), ACC: {mean, std over seeds (ddof 1), values "
  "[S]}}}; `inferred` also has strict_accuracy and strict_ACC, of right answers through the task's own slot, "
  "task_recognition as in result.json, and task_confusion [S][T][slots]",
  "data_hash": "sha256 of the data set",
  "environment": "versions, devices, git commit and command of the process that asked",
}


class Stored(NamedTuple):
  """A run as its work dir has it."""

  recorded: Mapping[str, Any]  # its config.json
  data: Laid  # with the rows that are asked as its test rows
  carry: Carry  # of its newest checkpoint; the state on the host, without copies that fill devices up
  steps: int
  asked: dict[str, Any]  # the fields `split` and `rows`


def evaluate_again(*args: Any, **keywords: Any) -> list[dict[str, Any]]:
  """The entries of all settings; see `evaluations`."""
  return list(evaluations(*args, **keywords))


def evaluations(
  workdir: epath.Path | str,
  over: Mapping[str, Sequence[Any]],
  rows: int = 0,
  data_dir: str | None = None,
  split: str = "test",
) -> Iterator[dict[str, Any]]:
  """Asks every readout of a run about the rows of all tasks, under every combination of some settings.

  Nothing is written. All settings are checked before the first is asked.

  Args:
    over: config key -> the values to ask under; {} asks under the run's own.
    rows: at most so many rows of each task, the first ones; 0: all.
    data_dir: of the prepared data sets, as for `train`.
    split: of the rows, `test` or `valid`.

  Yields:
    an entry for each setting, and for each value of the run's own sweep.

  Raises:
    ConfigError: no run with a whole checkpoint, other data or none, or a setting that the state does not fit or that no
      answer hangs on.
  """
  folder = located(workdir)
  recorded = told_by(folder)
  chosen = values_of(recorded, over)
  settings = combined(chosen)
  choose("--split", split, ("test", "valid"))
  if type(rows) is not int:
    raise ConfigError(f"--rows={shown(rows)} must be a whole number: 0 asks all test rows, N the first N of each task")
  if rows < 0:
    raise ConfigError(f"--rows={rows} is too small: 0 asks all test rows, N at most the first N of each task")
  run = restore(folder, recorded, rows, data_dir, split)
  for setting in settings:
    prepare(run, setting)
  check_heard(recorded, chosen, lambda setting: answer_of(build(with_fields(recorded, setting), data=run.data)))
  for setting in settings:
    experiment, carry, compiled = prepare(run, setting)
    with jax.default_matmul_precision(experiment.settings.matmul_precision):
      found = {name: counts_of(experiment, compiled, carry, name) for name in experiment.readouts}
    for v in range(len(experiment.values)):
      yield entry_of(run, experiment, setting, found, v)


def restore(folder: epath.Path, recorded: Mapping[str, Any], rows: int, data_dir: str | None, split: str) -> Stored:
  """
  Raises:
    ConfigError: no checkpoint that is whole, data that is not the run's, or a task without a row to ask.
  """
  place = folder / "checkpoints"
  nothing = ConfigError(
    f"{place} holds no checkpoint that can be read, and without the state nothing can be asked: a run in training has "
    "its first after its first task, a copy of result files none, and one that is damaged or that another version of "
    "the method wrote is of no use; to train anew use launch.train with another --workdir"
  )
  if not place.is_dir():
    raise nothing
  config = with_fields(recorded, {})
  spec, stream, axes, data_hash = build_stream(config, seeds_of(config), data_dir)
  store.check_data(folder, data_hash)
  data = (spec, first_rows(stream, split, rows), axes._replace(test=split_of(axes, split)[1]), data_hash)
  experiment = build(config, data=data)
  checkpoints = Checkpoints(place, writes=False)
  try:
    with jax.default_matmul_precision(experiment.settings.matmul_precision):
      carry, cursor, _ = resume(start(experiment, compile_events(experiment)), checkpoints, experiment)
  finally:
    checkpoints.close()
  if cursor is None:
    raise nothing
  carry.state = gather(carry.state, len(experiment.seeds))
  return Stored(recorded, data, carry, steps_done(experiment, cursor), {"split": split, "rows": rows})


def first_rows(stream: Any, split: str, rows: int) -> Any:
  """The stream with at most `rows` rows of each task of a split as its test rows; 0: all."""
  bank, test = split_of(stream, split)
  if not np.all(test.count):
    raise ConfigError(f"--split={split}: the run's stream holds no such rows of some task; leave it out")
  if rows:
    test = test._replace(idx=test.idx[..., :rows], count=np.minimum(test.count, rows))
  return stream._replace(test_bank=bank, test=test)


def prepare(run: Stored, setting: Mapping[str, Any]) -> tuple[Experiment, Carry, Mapping[str, Callable[..., Any]]]:
  """The run under a setting: (experiment, carry with the stored state, compiled functions).

  Raises:
    ConfigError: a wrong value, or a state of another shape than the stored one.
  """
  experiment = build(with_fields(run.recorded, setting), data=run.data)
  compiled = compile_events(experiment)
  hyper, seeds = experiment.on_devices((experiment.hyper, np.asarray(experiment.seeds, np.int32)), 0)
  keys = jax.eval_shape(compiled["keys"], seeds, *experiment.numbers((0,)))
  wanted = jax.eval_shape(compiled["init"], hyper, keys, experiment.parts)
  found = unlike(run.carry.state, wanted)
  if found:
    own = flatten(run.recorded)
    changed = [f"{key}={value}" for key, value in setting.items() if own.get(key) != value]
    raise ConfigError(
      f"--over={' --over='.join(changed)} asks for another state than the one that the run has trained:\n  "
      + "\n  ".join(found[:10])
      + (f"\n  and {len(found) - 10} more" if len(found) > 10 else "")
      + "\nLeave it out, or train with it: launch.train with another --workdir."
    )
  state = jax.tree.unflatten(jax.tree.structure(wanted), jax.tree.leaves(run.carry.state))
  return experiment, replace(run.carry, hyper=hyper, seeds=seeds, state=experiment.on_devices(state, 0)), compiled


def unlike(stored: PyTree, wanted: PyTree) -> list[str]:
  """A line for each leaf whose path, type or shape within a seed differs."""

  def of_a_seed(tree):
    named = ((f"state{jax.tree_util.keystr(path)}", leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))
    return {name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in named}

  return seals.unlike(of_a_seed(stored), of_a_seed(wanted), ("stored", "asked for"))


def counts_of(
  experiment: Experiment, compiled: Mapping[str, Callable[..., Any]], carry: Carry, readout: str
) -> dict[str, np.ndarray]:
  """`right`, `strict` [S, T] and `confusion` [S, T, slots] of one readout after the last task trained."""
  found = [counts for _, counts in ask(experiment, compiled, carry, readout, range(experiment.spec.T), carry.row - 2)]
  return {name: np.stack([counts[name] for counts in found], axis=1) for name in found[0]}


def entry_of(
  run: Stored,
  experiment: Experiment,
  setting: Mapping[str, Any],
  found: Mapping[str, Mapping[str, np.ndarray]],
  v: int,
) -> dict[str, Any]:
  """The entry of a setting, for the v-th value of the run's own sweep."""
  own = experiment.rows_of(v)
  test_rows = experiment.test_rows[own]
  readouts = {}
  for name, counts in found.items():
    readouts[name] = scores(counts["right"][own], test_rows, "accuracy", "ACC")
    if name == "inferred":
      readouts[name] |= scores(counts["strict"][own], test_rows, "strict_accuracy", "strict_ACC")
      readouts[name]["task_recognition"] = store.recognition(counts["confusion"][own], run.carry.slot_of[own])
      readouts[name]["task_confusion"] = counts["confusion"][own]
  entry = {
    "setting": dict(setting),
    "sweep": experiment.values[v],
    **run.asked,
    "test_rows": test_rows,
    "seeds": experiment.seeds[own],
    "after_tasks": max(run.carry.row - 1, 0),
    "steps": run.steps,
    "readouts": readouts,
    "data_hash": experiment.data_hash,
    "environment": environment(experiment.own_files),
  }
  return files.plain({name: entry[name] for name in FIELDS})


def scores(right: np.ndarray, rows: np.ndarray, by_task: str, mean: str) -> dict[str, Any]:
  """Counts [S, T] over test rows [S, T], as accuracies and as their mean over tasks, seed by seed."""
  matrices = store.shares(right[:, None], rows)
  return {by_task: matrices[:, 0], mean: spread([accuracy(R) for R in matrices])}


def name_of(entry: Mapping[str, Any]) -> str:
  """What tells an entry from others of the same run."""
  parts = {**entry["sweep"], **entry["setting"], **({"split": "valid"} if entry.get("split") == "valid" else {})}
  return " ".join([*(f"{key}={parts[key]}" for key in sorted(parts)), f"rows={entry['rows'] or 'all'}"])


def noted(path: epath.Path) -> dict[str, Any]:
  """{name: entry} of an evaluations.json; {} without one.

  Raises:
    ConfigError: the file is damaged or of another version.
  """
  found: dict[str, Any] = files.read_sealed(path, AWAY) if path.exists() else {"schema": SCHEMA, "evaluations": {}}
  if found.get("schema") != SCHEMA or not isinstance(found.get("evaluations"), dict):
    raise ConfigError(f"{path} is no list of evaluations of schema {SCHEMA}; {AWAY}")
  return dict(found["evaluations"])


def check_note(workdir: epath.Path | str) -> None:
  """Raises what `note` would, or that there is no run, before anything is asked; leaves nothing."""
  path = located(workdir) / FILE
  told_by(path.parent)
  noted(path)
  files.check_writable(path)


def note(workdir: epath.Path | str, entries: Sequence[Mapping[str, Any]]) -> epath.Path:
  """Writes entries into evaluations.json beside those that stand there; one of the same name is replaced.

  Raises:
    ConfigError: the file is damaged or of another version.
    OSError: it cannot be written; it stays as it was.
  """
  path = located(workdir) / FILE
  new = {name_of(entry): entry for entry in entries}
  files.write_sealed(path, {"schema": SCHEMA, "evaluations": {**noted(path), **new}})
  return path
