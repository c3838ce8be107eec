"""What a run leaves: in memory an `Outcome`, in its folder a result file, report arrays, parts and figures."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from cljax import artifacts, divergence, files
from cljax.checkpoint import Checkpoints, by_path
from cljax.cursor import Carry
from cljax.data.pictures import type_shown
from cljax.errors import ConfigError
from cljax.experiment import Experiment
from cljax.files import digest, plain
from cljax.journal import divide
from cljax.looks import counts_of
from cljax.mesh import agree, gather
from cljax.methods.exhibits import EXHIBITS
from cljax.predict import told_of
from cljax.program import TRACED_BY, program_of
from cljax.report import gallery, plots, store
from cljax.settings import Labels, Settings
from cljax.types import Method, Spec, State, nothing
from cljax.workdir import COMPUTES, Older, check_claim, check_identity, environment

LONGEST_NAME = 120  # characters of a folder's name


class Outcome(NamedTuple):
  """What a run has found, and what it has learnt."""

  result: dict[str, Any]  # as in result.json
  arrays: Mapping[str, np.ndarray]  # as in report.npz: the method's report after each task, [S, T, ...]
  learnt: Callable[[], State]  # gives `state`
  experiment: Experiment | None = None  # where it ran in this process
  sweep: tuple["Outcome", ...] = ()  # one for each value of a sweep, whose first one the fields above tell

  @property
  def state(self) -> State:
    """The method's state after the last task, leaves [S, ...]. Of a run that had finished before it is loaded from the
    last checkpoint when it is first asked for; on several processes all of them must ask.

    Raises:
      ConfigError: that checkpoint has gone, or is damaged, or the data have gone.
      OSError: it cannot be read now.
    """
    return self.learnt()


def described(experiment: Experiment, whole: bool = False) -> dict[str, Any]:
  """What config.json says of an experiment that no config describes: all that two runs must share to be one.

  A method is told by its phases, by the shapes of its state and, for the numbers that it holds in itself, by checksums
  of what it computes.

  Args:
    whole: with these checksums, for which the method is traced.
  """
  state = by_path(jax.eval_shape(experiment.method.init, jax.random.key(0)))
  told = ("name", "batch", "epochs", "steps", "joint")
  return files.plain(
    {
      "method": {
        "phases": [{name: getattr(phase, name) for name in told} for phase in experiment.method.phases],
        "state": {name.lstrip("."): f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in state.items()},
        **({COMPUTES: program_of(experiment)} if whole else {}),
      },
      "hyper": experiment.hyper,
      "settings": experiment.settings._asdict(),
      "labels": experiment.labels._asdict(),
      "spec": experiment.spec._asdict(),
      "readouts": experiment.readouts,
      "seeds": experiment.seeds,
      "data_hash": experiment.data_hash,
    }
  )


def described_now(here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
  """What `described` said before a field existed, with the field's default.

  Checksums that were not taken then, or by other versions of what traces a method, are today's: they tell nothing.

  Args:
    here: what it says now.
  """
  defaults = {"settings": Settings()._asdict(), "labels": Labels()._asdict(), "spec": Spec._field_defaults}
  found = {**there, **{name: {**own, **there.get(name, {})} for name, own in defaults.items()}}
  now, then = here["method"].get(COMPUTES), there["method"].get(COMPUTES, {})
  if now is not None and then.get(TRACED_BY) != now[TRACED_BY]:
    found["method"] = {**there["method"], COMPUTES: now}
  return found


def bytes_of(state: State) -> int:
  """Bytes of one seed's share of a state whose leaves have a leading [S]."""
  leaves = jax.tree.leaves(state)
  return sum(int(np.prod(leaf.shape[1:], dtype=int)) * leaf.dtype.itemsize for leaf in leaves)


def reports_of(carry: Carry, own: slice) -> dict[str, np.ndarray]:
  """[S, T, ...] of some rows of the seed axis: what the method told after each task, and what `on_row` did."""
  told = {**carry.reports, **{name: rows[:, 1:] for name, rows in carry.own.items()}}
  return {name: value[own] for name, value in told.items()}


def result_of(experiment: Experiment, carry: Carry, v: int = 0) -> dict[str, Any]:
  """The result file of a finished run, or of the v-th value of its sweep. Times are of the whole run."""
  labels, own = experiment.labels, experiment.rows_of(v)
  seconds = carry.seconds
  steps = experiment.timeline.steps()
  per_second = steps * len(experiment.seeds) / seconds["train"] if seconds["train"] else 0.0
  confusion = carry.confusion.get("inferred")
  return store.make_result(
    paper=labels.paper,
    preset=labels.preset,
    cell=labels.cell,
    method=labels.cell.split("/")[-1] or labels.method,
    stream=labels.cell.split("/")[0] if "/" in labels.cell else labels.stream,
    seeds=experiment.seeds[own],
    oracle=any(phase.joint for phase in experiment.method.phases),
    readout=experiment.readouts[0],
    right={name: counts[own] for name, counts in carry.right.items()},
    rows=experiment.test_rows[own],
    train_rows=experiment.timeline.rows[own],
    task_confusion=None if confusion is None else confusion[own],
    slot_of=carry.slot_of[own],
    looked=counts_of(experiment.timeline.looks, carry.looked, experiment.split_rows, own),
    report=reports_of(carry, own),
    parameters=int(carry.reports["parameters"][own][0, -1]),
    memory_bytes=int(carry.reports["memory_bytes"][own][0, -1]),
    state_bytes=bytes_of(carry.state),
    diverged=divergence.told(carry.diverged[own]),
    timing={
      "compile_seconds": seconds["compile"],
      "train_seconds": seconds["train"],
      "eval_seconds": seconds["eval"],
      "steps": steps,
      "steps_per_second": per_second,
    },
    environment=environment(experiment.own_files),
    data_hash=experiment.data_hash,
    experiment={
      "precision": experiment.settings.matmul_precision,
      "executor": experiment.executor,
      "device_count": experiment.mesh.size,
    },
    config=experiment.configs[v],
  )


def outcome_of(experiment: Experiment, carry: Carry, v: int = 0) -> Outcome:
  """What a run leaves in memory, or that of one value of its sweep."""
  own = experiment.rows_of(v)
  state = jax.device_put(jax.tree.map(lambda leaf: leaf[own], gather(carry.state, len(experiment.seeds))))
  return Outcome(result_of(experiment, carry, v), reports_of(carry, own), lambda: state, experiment)


def stored(begin: Callable[[], Experiment], folder: epath.Path) -> tuple[Experiment, State]:
  """The experiment of a finished run, and the state of its last checkpoint, as host arrays [S, ...]. Only reads.

  Raises:
    ConfigError: there is no such checkpoint, or the data of the run have gone.
    OSError: it cannot be read now.
  """
  place = folder / "checkpoints"
  if agree(jax.process_index() == 0 and place.is_dir()):
    experiment = begin()
    S, T, method = len(experiment.seeds), experiment.spec.T, experiment.method
    state = jax.eval_shape(method.init, jax.random.key(0))
    shapes = {"state": ((S,), state), "reports": ((S, T), jax.eval_shape(method.report, state))}

    def blank(leading):
      return lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leading + leaf.shape)

    like = {name: jax.tree.map(blank(leading), tree) for name, (leading, tree) in shapes.items()}
    checkpoints = Checkpoints(place, writes=False)
    try:
      with jax.default_matmul_precision(experiment.settings.matmul_precision):
        found = checkpoints.restore(like, lambda cursor: check_identity(cursor, experiment.data_hash))
    finally:
      checkpoints.close()
    if found is not None and found[1]["task"] > experiment.timeline.segments()[-1]:
      return experiment, found[0]["state"]
  raise ConfigError(
    f"{place} holds no checkpoint of the run's end any more, so what it learnt has gone; its result stays. To train it "
    "again, take another --workdir"
  )


def as_folder(text: str) -> str:
  """Words that a folder may be called."""
  return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def shortly(value: Any) -> str:
  """A number in six digits, anything else as it is typed."""
  return f"{value:g}" if isinstance(value, float) else as_folder(str(value))


def names_of(values: Sequence[Mapping[str, Any]]) -> list[str]:
  """The folder of each value of a sweep, below that of the run: of six digits, or of all where these are not enough;
  with a checksum where words are still alike, or too many for a folder."""
  short = [",".join(f"{key}={shortly(one)}" for key, one in value.items()) for value in values]
  exact = [",".join(f"{key}={as_folder(repr(one))}" for key, one in value.items()) for value in values]
  found = [name if short.count(name) == 1 else all_digits for name, all_digits in zip(short, exact, strict=True)]
  alone = [found.count(name) == 1 and len(name) <= LONGEST_NAME for name in found]
  marked = [f"{name[:LONGEST_NAME]}_{digest(plain(value))[:8]}" for name, value in zip(found, values, strict=True)]
  return [name if fine else other for name, fine, other in zip(found, alone, marked, strict=True)]


def folders_of(folder: epath.Path, values: Sequence[Mapping[str, float]]) -> list[epath.Path]:
  """All folders that a run writes into by itself: its own, those of its sweep, and what lies below these."""
  own = [folder / name for name in names_of(values)]
  parts = [path for each in own for path in (each / "parts").glob("seed_*")]
  below = [each / name for each in own for name in ("figures", "parts")]
  return [folder, folder / "checkpoints", *(each for each in own if each != folder), *below, *parts]


def finished(folder: epath.Path, values: Sequence[Mapping[str, float]]) -> list[tuple[dict[str, Any], Any]]:
  """(result, arrays) of each value of a finished run, or nothing; a sweep is finished when its last value is."""
  folders = [folder / name for name in names_of(values)]  # of {} the folder itself
  if not all((each / "result.json").exists() for each in folders):
    return []
  found = [(store.read_result(each / "result.json"), store.read_report_arrays(each)) for each in folders]
  for lost in store.without_arrays([(result, own) for (result, _), own in zip(found, folders, strict=True)]):
    logging.warning("%s is gone; delete result.json beside it, and the same command writes both again", lost)
  return found


def left(
  folder: epath.Path,
  writes: bool,
  config: Mapping[str, Any],
  values: tuple[dict[str, float], ...],
  older: Older,
  begin: Callable[[], Experiment],
) -> Outcome | None:
  """What a finished run of this config has left in the folder, in every process; None without one. Only reads.

  Args:
    begin: makes the experiment, once its state is asked for.

  Raises:
    ConfigError: the folder is another run's, or holds damaged results.
  """
  if writes:
    check_claim(folder, config, older)
  done = finished(folder, values)
  if not agree(bool(done) and writes):
    return None
  done = done or finished(folder, values) or [({}, {})] * len(values)
  load = cache(partial(stored, begin, folder))

  def learnt(v: int) -> State:
    experiment, state = load()
    return jax.device_put(jax.tree.map(lambda leaf: leaf[experiment.rows_of(v)], state))

  found = [Outcome(*each, cache(partial(learnt, v))) for v, each in enumerate(done)]
  return found[0]._replace(sweep=tuple(found) if len(found) > 1 else ())


def write_outcomes(folder: epath.Path, experiment: Experiment, outcomes: Sequence[Outcome]) -> None:
  """What a run leaves in its folder, or what each value of its sweep does in its own below that."""
  folders = [folder / name for name in names_of(experiment.values)]
  if len(folders) > 1:
    divide(folder, folders)
  for v, outcome in enumerate(outcomes):
    write_outcome(folders[v], outcome, experiment.method_of(v))


def write_outcome(folder: epath.Path, outcome: Outcome, method: Method) -> None:
  """Parts, report arrays and figures, and last the result file, which marks the run as finished."""
  folder.mkdir(parents=True, exist_ok=True)
  if method.parts is not nothing:
    found = jax.device_get(jax.jit(jax.vmap(method.parts))(outcome.state))
    for s, seed in enumerate(outcome.result["seeds"]):
      artifacts.write(artifacts.folder_of(folder, seed), jax.tree.map(lambda leaf, s=s: leaf[s], found))
    if method.serve and outcome.experiment is not None:  # parts that answer by themselves
      it = outcome.experiment
      shown = type_shown(it.stream.test.warp, it.stream.bank.x.dtype, it.normalised)
      told = told_of(outcome.result["config"], it.spec, shown, it.normalised)  # with the numbers of its own value
      files.write_sealed(folder / "parts" / "spec.json", told)
  store.write_report_arrays(folder / "report.npz", outcome.arrays)
  plots.save(folder / "figures", gallery.run_figures(outcome.result, outcome.arrays, EXHIBITS))
  files.write_sealed(folder / "result.json", outcome.result)
