"""What a run leaves: in memory an `Outcome`, in its folder a result file, report arrays, parts and figures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from cljax import artifacts, divergence, files
from cljax.checkpoint import by_path
from cljax.cursor import Carry
from cljax.experiment import Experiment
from cljax.looks import counts_of
from cljax.mesh import agree, gather
from cljax.methods.exhibits import EXHIBITS
from cljax.predict import told_of
from cljax.report import gallery, plots, store
from cljax.settings import Labels, Settings
from cljax.types import Method, Spec, State, nothing
from cljax.workdir import Older, check_claim, environment


class Outcome(NamedTuple):
  """What a run has found, and what it has learnt where it ran in this process."""

  result: dict[str, Any]  # as in result.json
  arrays: Mapping[str, np.ndarray]  # as in report.npz: the method's report after each task, [S, T, ...]
  state: State | None = None  # [S, ...]; None when a finished run was only read
  experiment: Experiment | None = None
  sweep: tuple["Outcome", ...] = ()  # one for each value of a sweep, whose first one the fields above tell


def described(experiment: Experiment) -> dict[str, Any]:
  """What config.json says of an experiment that no config describes: all that two runs must share to be one.

  A method is told by its phases and by the shapes of its state; numbers that it holds in itself are not seen.
  """
  state = by_path(jax.eval_shape(experiment.method.init, jax.random.key(0)))
  told = ("name", "batch", "epochs", "steps", "joint")
  return files.plain(
    {
      "method": {
        "phases": [{name: getattr(phase, name) for name in told} for phase in experiment.method.phases],
        "state": {name.lstrip("."): f"{leaf.dtype} {list(leaf.shape)}" for name, leaf in state.items()},
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


def described_now(there: Mapping[str, Any]) -> dict[str, Any]:
  """What `described` said before a field existed, with the field's default."""
  defaults = {"settings": Settings()._asdict(), "labels": Labels()._asdict(), "spec": Spec._field_defaults}
  return {**there, **{name: {**own, **there.get(name, {})} for name, own in defaults.items()}}


def bytes_of(state: State) -> int:
  """Bytes of one seed's share of a state whose leaves have a leading [S]."""
  leaves = jax.tree.leaves(state)
  return sum(int(np.prod(leaf.shape[1:], dtype=int)) * leaf.dtype.itemsize for leaf in leaves)


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
    report={name: value[own] for name, value in carry.reports.items()},
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
    environment=environment(experiment.config),
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
  reports = {name: value[own] for name, value in carry.reports.items()}
  state = jax.device_put(jax.tree.map(lambda leaf: leaf[own], gather(carry.state, len(experiment.seeds))))
  return Outcome(result_of(experiment, carry, v), reports, state, experiment)


def as_folder(text: str) -> str:
  """Words that a folder may be called."""
  return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def shortly(value: Any) -> str:
  """A number in six digits, anything else as it is typed."""
  return f"{value:g}" if isinstance(value, float) else as_folder(str(value))


def names_of(values: Sequence[Mapping[str, Any]]) -> list[str]:
  """The folder of each value of a sweep, below that of the run: of six digits, or of all where these are not enough."""
  short = [",".join(f"{key}={shortly(one)}" for key, one in value.items()) for value in values]
  exact = [",".join(f"{key}={as_folder(repr(one))}" for key, one in value.items()) for value in values]
  return [name if short.count(name) == 1 else all_digits for name, all_digits in zip(short, exact, strict=True)]


def folders_of(folder: epath.Path, values: Sequence[Mapping[str, float]]) -> list[epath.Path]:
  """All folders that a run writes into by itself: its own, those of its sweep, and what lies below these."""
  own = [folder / name for name in names_of(values)]
  parts = [path for each in own for path in (each / "parts").glob("seed_*")]
  below = [each / name for each in own for name in ("figures", "parts")]
  return [folder, folder / "checkpoints", *(each for each in own if each != folder), *below, *parts]


def finished(folder: epath.Path, values: Sequence[Mapping[str, float]]) -> Outcome | None:
  """What a finished run left, or None; a sweep is finished when its last value is."""
  folders = [folder / name for name in names_of(values)]  # of {} the folder itself
  if not all((each / "result.json").exists() for each in folders):
    return None
  found = [Outcome(store.read_result(each / "result.json"), store.read_report_arrays(each)) for each in folders]
  for lost in store.without_arrays([(each.result, own) for each, own in zip(found, folders, strict=True)]):
    logging.warning("%s is gone; delete result.json beside it, and the same command writes both again", lost)
  return found[0]._replace(sweep=tuple(found) if len(found) > 1 else ())


def left(
  folder: epath.Path,
  writes: bool,
  config: Mapping[str, Any],
  values: tuple[dict[str, float], ...],
  older: Older,
) -> Outcome | None:
  """What a finished run of this config has left in the folder, in every process; None without one. Only reads.

  Raises:
    ConfigError: the folder is another run's, or holds damaged results.
  """
  if writes:
    check_claim(folder, config, older)
  done = finished(folder, values)
  return (done or finished(folder, values) or Outcome({}, {})) if agree(done is not None and writes) else None


def write_outcome(folder: epath.Path, outcome: Outcome, method: Method) -> None:
  """Parts, report arrays and figures, and last the result file, which marks the run as finished."""
  folder.mkdir(parents=True, exist_ok=True)
  if method.parts is not nothing:
    found = jax.device_get(jax.jit(jax.vmap(method.parts))(outcome.state))
    for s, seed in enumerate(outcome.result["seeds"]):
      artifacts.write(artifacts.folder_of(folder, seed), jax.tree.map(lambda leaf, s=s: leaf[s], found))
    if outcome.experiment is not None:
      it = outcome.experiment
      files.write_sealed(
        folder / "parts" / "spec.json", told_of(it.config, it.spec, it.stream.bank.x.dtype, it.normalised)
      )
  store.write_report_arrays(folder / "report.npz", outcome.arrays)
  plots.save(folder / "figures", gallery.run_figures(outcome.result, outcome.arrays, EXHIBITS))
  files.write_sealed(folder / "result.json", outcome.result)
