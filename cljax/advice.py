"""What a person should know of a run before it begins, though nothing about it is wrong."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cljax.experiment import Experiment
from cljax.types import Method


def advice(experiment: Experiment) -> list[str]:
  """A line for each thing."""
  return [*idle(experiment), *trivial(experiment), *slow(experiment.method, experiment.mesh.devices.flat[0].platform)]


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


def slow(method: Method, platform: str) -> list[str]:
  """Of `nn.Conv` on a CPU, whose derivatives are many times slower inside a loop than outside; wherever they are found
  as the method's state is made, by a trace and without a number."""
  if platform != "cpu":
    return []
  found: dict[str, None] = {}

  def note(call: Any, args: Any, keywords: Any, context: Any) -> Any:
    layer = context.module
    pictures = isinstance(layer, nn.Conv) and np.size(layer.kernel_size) == 2 and layer.feature_group_count == 1
    if pictures and layer.conv_general_dilated is None and layer.conv_general_dilated_cls is None:
      found["/".join(layer.path) or type(layer).__name__] = None
    return call(*args, **keywords)

  with nn.intercept_methods(note):
    jax.eval_shape(lambda key: method.init(key), jax.random.key(0))  # a function that no cache of traces knows
  if not found:
    return []
  names = ", ".join([*found][:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
  return [
    f"the net has nn.Conv ({names}), whose derivatives are many times slower inside a loop on a CPU: take "
    "cljax.nets.conv.Conv in its place, which has the same keywords and params (`from cljax.nets.conv import Conv`)"
  ]
