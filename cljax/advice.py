"""What a person should know of a run before it begins, though nothing about it is wrong."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cljax.artifacts import trained_at
from cljax.experiment import Experiment
from cljax.types import Bank, Method, Rows


def advice(experiment: Experiment) -> list[str]:
  """A line for each thing."""
  platform = experiment.mesh.devices.flat[0].platform
  return [
    *idle(experiment),
    *trivial(experiment),
    *untested(experiment),
    *elsewhere(experiment),
    *slow(experiment.method, platform),
  ]


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


def here(leaf: Any, rank: int) -> np.ndarray:
  """An array of the stream, of the first seed of this process."""
  own = leaf.addressable_shards[0].data
  return np.asarray(own).reshape(-1, *own.shape[own.ndim - rank :])[0]


def numbered(tasks: list[int]) -> str:
  """Some tasks by their numbers, from 1."""
  return ", ".join(str(t + 1) for t in tasks[:5]) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")


def untested(experiment: Experiment) -> list[str]:
  """Of tasks that train a class without a test row, so that their accuracy says nothing about it."""
  stream = experiment.stream
  maps = here(stream.tasks.label_map, 2)

  def classes(bank: Bank, split: Rows) -> list[np.ndarray]:
    labels, rows, counts = here(bank.y, 1), here(split.idx, 2), here(split.count, 1)
    return [maps[t, labels[rows[t, : counts[t]]]] for t in range(len(counts))]

  trained, asked = classes(stream.bank, stream.tasks.train), classes(stream.test_bank, stream.test)
  found = [t for t, own in enumerate(trained) if np.setdiff1d(own, asked[t]).size]
  told = "some of its classes have no test rows, and its accuracy says nothing about them"
  return [f"task {numbered(found)}: {told}"] if found else []


def trivial(experiment: Experiment) -> list[str]:
  """Of tasks of a single class, whose readout is right by itself."""
  main = experiment.readouts[0]
  classes = here(experiment.stream.tasks.classes, 2)
  single = np.flatnonzero(classes.sum(axis=1) == 1).tolist()
  if not single or main not in ("task", "domain") or (main == "domain" and experiment.spec.C > 1):
    return []
  return [
    f"task {numbered(single)} has one class only, and the readout {main!r} chooses among a task's classes: its "
    "accuracy is 1 whatever is learnt. Lower config.stream.tasks, or set config.stream.scenario='class'"
  ]


def elsewhere(experiment: Experiment) -> list[str]:
  """Of keywords of the method at which the training that left a file had other numbers than the run has."""
  found: dict[str, None] = {}
  for part, leaves in experiment.parts.items():
    for key, value in trained_at(leaves).items():
      there = float(here(value, 0))
      for config in experiment.configs:
        own = config.get("method", {}).get(key)
        if isinstance(own, int | float) and not np.isclose(own, there, rtol=1e-5, atol=0):
          path = experiment.method.reads[part]
          found[f"{path} was trained at config.method.{key}={there:.6g}, and runs at {own:g} here"] = None
  return [*found]


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
