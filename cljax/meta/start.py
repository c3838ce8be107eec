"""Networks that know the old task, before anything new comes: what episodes start from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import linen as nn

from cljax import artifacts
from cljax.data import join
from cljax.data.bank import Source
from cljax.data.streams import Layout, lay
from cljax.data.transfers import rows_of_class, transfer
from cljax.errors import ConfigError
from cljax.files import checksum
from cljax.keys import HEADS
from cljax.meta.query import joined, parted
from cljax.meta.settings import Data, Settings
from cljax.run import fit
from cljax.settings import Labels
from cljax.types import Method, PyTree, Spec, Stream

AT_ONCE = 16  # networks that an accelerator trains side by side; of a ResNet-32 more may not fit


def source_of(data: Data, data_dir: str | None) -> Source:
  """The data set, or several as one.

  Raises:
    ConfigError: unknown, missing or unsuitable data.
  """
  try:
    return join.one_or_joined(data.source, data_dir, data.size, data.channels)
  except ConfigError as error:  # which says what a stream's keys are called
    raise ConfigError(str(error).replace("config.stream.", "config.data.")) from error


def old_task(source: Source, data: Data) -> tuple[Spec, Stream]:
  """The stream of the old task alone, of a net with a head for every task of an episode."""
  spec, stream = transfer(
    source, jax.random.key(0), old=data.old, new=data.new, new_tasks=data.tasks, new_classes=data.classes
  )
  tasks, test = (jax.tree.map(lambda leaf: leaf[:1], tree) for tree in (stream.tasks, stream.test))
  return spec._replace(T=1, rows=spec.rows[:1]), stream._replace(tasks=tasks, test=test)


def both_tasks(source: Source, data: Data) -> tuple[Spec, Stream]:
  """The old task's rows and the half of the new classes' as one task."""
  halves = {**dict.fromkeys(data.old, "all"), **dict.fromkeys(data.new, data.half)}
  rows = np.sort(np.concatenate([rows_of_class(source.train.y, label, half) for label, half in halves.items()]))
  return lay(source, Layout([np.array(list(halves), np.int32)], None), "task", [rows], [rows[:0]])


def shapes_of(net: nn.Module, x_shape: tuple[int, ...]) -> PyTree:
  """The net's variables, in shapes only."""
  return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *x_shape)), jnp.zeros(1, jnp.int32))


def learner_of(settings: Settings, net: nn.Module, spec: Spec) -> Method:
  """Training on one task by SGD with momentum; the network is a part, beside those of the method.

  Raises:
    ConfigError: a method that does not train one network.
  """
  start = settings.start
  before = spec.steps(start.batch_size, start.epochs - start.last_epochs)[0]
  rate = optax.piecewise_constant_schedule(start.lr, {before: start.last_lr / start.lr})
  tx = optax.sgd(rate, start.momentum or None)
  whole = spec._replace(T=net.heads, rows=())  # of all tasks that the network is for, whatever is trained here
  method = settings.learner(net, tx, whole, batch_size=start.batch_size, epochs=start.epochs)
  if not hasattr(jax.eval_shape(method.init, jax.random.key(0)), "params"):
    raise ConfigError("config.method.name: a network to begin with is the `params` of a method, and this one has none")
  return method._replace(parts=lambda state: {**method.parts(state), "start": state.params})


def files_of(settings: Settings) -> dict[str, dict[str, str]]:
  """{part: its file's path and the sha256 of what it holds} of the files that networks are read from.

  Raises:
    ConfigError: a file is missing or damaged.
  """
  file = settings.start.file
  return {"start": {"path": file, "sha256": checksum(artifacts.read(file))}} if file else {}


def starts_of(
  settings: Settings, source: Source, head: str, folder: epath.Path, stop_asked: Callable[[], bool], quiet: bool
) -> dict[int, tuple[PyTree, PyTree]]:
  """{seed: (networks [n, ...] that its episodes start from, the one that is kept)}, trained below `folder/start`.

  With several networks the one that is kept starts no episode. Of networks that know both tasks the heads are new.

  Args:
    head: the path of the net's heads.

  Raises:
    ConfigError: a file that does not fit, or holds NaN or infinity.
  """
  both = settings.start.of == "both"
  spec, stream = both_tasks(source, settings.data) if both else old_task(source, settings.data)
  net = settings.net.clone(heads=1, classes=spec.C) if both else settings.net
  like: Any = shapes_of(settings.net, spec.x_shape)["params"]
  if settings.start.file:
    leaves = artifacts.read(settings.start.file)
    artifacts.check_finite(leaves, settings.start.file)
    one = artifacts.fill(like, leaves, settings.start.file)
    return {seed: (jax.tree.map(lambda leaf: leaf[None], one), one) for seed in settings.seeds}
  n = settings.start.networks
  each = n + (n > 1)
  names = {seed: [seed * each + k for k in range(each)] for seed in settings.seeds}
  flat = [name for own in names.values() for name in own]
  labels = Labels(method="start", stream=settings.data.source)
  fit(
    learner_of(settings, net, spec),
    spec,
    stream,
    seeds=flat,
    workdir=folder / "start",
    labels=labels,
    stop_asked=stop_asked,
    quiet=quiet,
    seed_executor="map" if len(flat) > AT_ONCE else "auto",
  )

  known: Any = shapes_of(net, spec.x_shape)["params"]

  def read(name: int) -> PyTree:
    path = artifacts.folder_of(folder / "start", name) / "start.npz"
    own = artifacts.fill(known, artifacts.read(path), path)
    if not both:
      return own
    key, x = jax.random.fold_in(jax.random.key(name), HEADS), jnp.zeros((1, *spec.x_shape))
    fresh = settings.net.init(key, x, jnp.zeros(1, jnp.int32))["params"]
    return jax.device_get(joined(parted(fresh, head)[0], parted(own, head)[1]))

  found = {}
  for seed, own in names.items():
    trained = [read(name) for name in own]
    found[seed] = (jax.tree.map(lambda *leaves: np.stack(leaves), *trained[:n]), trained[-1])
  return found
