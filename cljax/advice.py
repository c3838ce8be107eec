"""What a person should know of a run before it begins, though nothing about it is wrong."""

import jax
import numpy as np

from cljax.experiment import Experiment


def advice(experiment: Experiment) -> list[str]:
  """A line for each thing."""
  return [*idle(experiment), *trivial(experiment)]


def idle(experiment: Experiment) -> list[str]:
  """Of devices that have nothing to do; cores of a CPU are too many names for that, and only told where none works."""
  used, there = experiment.mesh.size, jax.device_count()
  rows = len(experiment.seeds)
  if used < there:
    return [
      f"{rows} seed(s) keep {used} of {there} devices busy, {there - used} idle: raise config.num_seeds, or share "
      "large batches by config.data_devices"
    ]
  share = experiment.mesh.shape["seed"]
  if not rows % share or experiment.mesh.devices.flat[0].platform == "cpu":
    return []
  more = -(-rows // share) * share
  return [f"{rows} seeds on {share} devices take as long as {more}, which config.num_seeds may ask for"]


def trivial(experiment: Experiment) -> list[str]:
  """Of tasks of a single class, whose readout is right by itself."""
  main = experiment.readouts[0]
  here = experiment.stream.tasks.classes.addressable_shards[0].data
  classes = np.asarray(here).reshape(-1, *here.shape[-2:])[0]  # [T, C] of the first seed of this process
  single = [str(t + 1) for t in np.flatnonzero(classes.sum(axis=1) == 1)]
  if not single or main not in ("task", "domain") or (main == "domain" and experiment.spec.C > 1):
    return []
  tasks = ", ".join(single[:5]) + (f" and {len(single) - 5} more" if len(single) > 5 else "")
  return [
    f"task {tasks} has one class only, and the readout {main!r} chooses among a task's classes: its accuracy is 1 "
    "whatever is learnt. Lower config.stream.tasks, or set config.stream.scenario='class'"
  ]
