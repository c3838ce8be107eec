"""The seed axis and the data axis: one function for one seed becomes one computation for all of them, on all devices.

Seeds are spread over devices by `shard_map` and never by automatic partitioning (`jax.pmap` is in maintenance mode).
Within a device an executor runs them: `vmap` batches seeds (accelerators); `map` runs them one after the other inside
one program (CPU, where batched small products leave the cache); `each` unrolls them (convolution gradients on CPU must
not stand in a loop). Equal seeds give equal bits by `map` and `each`, and results within rounding by `vmap`.

The data axis splits the rows of each batch instead, for batches that are large. It is left to automatic partitioning,
which adds the sums over devices by itself, so no method knows of it.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cljax.errors import ConfigError
from cljax.types import Batch

EXECUTORS = ("vmap", "map", "each")


def choose_executor(wanted: str, branches: bool, method: str = "this method") -> str:
  """`auto` is `map` on CPU and for methods with costly branches on their state, else `vmap`.

  Args:
    method: its name, for the message.

  Raises:
    ConfigError: `vmap` is wanted for a method that branches.
  """
  if wanted == "vmap" and branches:
    raise ConfigError(
      f"config.seed_executor='vmap' is refused for {method}: its steps "
      "branch on its state, and vmap would run both sides; use auto, map or each"
    )
  if wanted != "auto":
    return wanted
  return "map" if branches or jax.default_backend() == "cpu" else "vmap"


def make_mesh(lanes: int, data: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
  """The devices as [seed, data]; with one process no more of them than `lanes` rows of the seed axis can use.

  Raises:
    ConfigError: `data` does not divide the devices.
  """
  devices = jax.devices() if devices is None else devices
  if data < 1 or len(devices) % data:
    raise ConfigError(
      f"config.data_devices={data} does not divide the {len(devices)} devices; use a divisor of {len(devices)}"
    )
  count = len(devices) // data
  if jax.process_count() == 1:
    count = min(count, lanes)
  return Mesh(np.array(devices[: count * data]).reshape(count, data), ("seed", "data"))


def padded(lanes: int, mesh: Mesh) -> int:
  """Rows of the seed axis on the devices: `lanes`, filled up so that they divide."""
  return -(-lanes // mesh.shape["seed"]) * mesh.shape["seed"]


def pad(leaf: Any, mesh: Mesh) -> np.ndarray:
  """[lanes, ...] with copies of the last row, so that the rows divide the devices."""
  leaf = np.asarray(leaf)
  return leaf[np.minimum(np.arange(padded(len(leaf), mesh)), len(leaf) - 1)]


def put(tree: Any, axes: Any, mesh: Mesh) -> Any:
  """Host arrays on the devices: leaves whose axis is 0 padded and spread along the seed axis, others on all of them."""
  leaves, structure = jax.tree.flatten(tree)
  placed = [
    jax.device_put(leaf if axis is None else pad(leaf, mesh), places(axis, mesh))
    for leaf, axis in zip(leaves, leaf_axes(axes, tree), strict=True)
  ]
  return jax.tree.unflatten(structure, placed)


def places(axes: Any, mesh: Mesh) -> Any:
  """The sharding of what lies as `put` lays it."""
  seed, everywhere = NamedSharding(mesh, P("seed")), NamedSharding(mesh, P())
  return jax.tree.map(lambda axis: everywhere if axis is None else seed, axes, is_leaf=lambda node: node is None)


def gather(tree: Any, lanes: int) -> Any:
  """Device arrays [padded, ...] as host arrays [lanes, ...], the same in every process."""
  if jax.process_count() > 1:
    tree = multihost_utils.process_allgather(tree, tiled=True)
  return jax.tree.map(lambda leaf: leaf[:lanes], jax.device_get(tree))


def agree(flag: bool) -> bool:
  """Whether any process says so; all of them must ask."""
  return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


def check_same(digest: str) -> None:
  """All processes must call it.

  Raises:
    ConfigError: another process has read other data.
  """
  if jax.process_count() == 1:
    return
  own = np.frombuffer(hashlib.sha256(digest.encode()).digest(), np.uint8)
  every = np.asarray(multihost_utils.process_allgather(own))
  if odd := np.flatnonzero((every != every[0]).any(axis=1)).tolist():
    raise ConfigError(
      f"the processes {odd} of {len(every)} read other data than process 0 (here sha256 {digest[:12]}...): give each "
      "host the same files, or a folder that all of them share"
    )


def over_seeds(fn: Callable[..., Any], axes: tuple[Any, ...], executor: str, mesh: Mesh) -> Callable[..., Any]:
  """`fn` over a leading axis of rows, on the devices of `mesh`.

  Args:
    axes: one entry an argument, as `jax.vmap`'s in_axes: 0, None (shared by all seeds), or a tree of these.
    executor: one of EXECUTORS.

  Returns:
    a function whose every result leaf has the leading axis.
  """
  inside = on_a_device(fn, axes, executor)
  if mesh.size == 1:
    return inside
  specs = jax.tree.map(lambda axis: P() if axis is None else P("seed"), axes, is_leaf=lambda node: node is None)
  # Not check_vma: seeds are independent programs, and it would sum their gradients.
  return jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=P("seed"), axis_names={"seed"}, check_vma=False)


def spread_rows(batch: Batch, axis: int, mesh: Mesh) -> Batch:
  """A batch with its rows, which lie on `axis`, spread over the data axis.

  Raises:
    ConfigError: they do not divide it.
  """
  data = mesh.shape["data"]
  if batch.live.shape[axis] % data:
    raise ConfigError(
      f"config.data_devices={data} does not divide the {batch.live.shape[axis]} rows of a step (batch_size and replay)"
    )
  place = NamedSharding(mesh, P(*(None,) * axis, "data"))
  return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, place), batch)


def on_a_device(fn: Callable[..., Any], axes: tuple[Any, ...], executor: str) -> Callable[..., Any]:
  """`fn` over the rows that one device holds."""
  if executor == "vmap":
    return jax.vmap(fn, in_axes=axes)

  def mapped(*args):
    leaves, structure = jax.tree.flatten(args)
    by_seed = [axis == 0 for axis in leaf_axes(axes, args)]

    def one(own):
      # Do not simplify: without barriers XLA fuses the first and last operations with those around the loop, other ones
      # for one seed than for several, and their last bits differ.
      own = iter(jax.lax.optimization_barrier(own))
      args = jax.tree.unflatten(structure, [next(own) if b else x for b, x in zip(by_seed, leaves, strict=True)])
      return jax.lax.optimization_barrier(fn(*args))

    split = [leaf for b, leaf in zip(by_seed, leaves, strict=True) if b]
    if executor == "map":
      return jax.lax.map(one, split)
    results = [one([leaf[s] for leaf in split]) for s in range(split[0].shape[0])]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

  return mapped


def leaf_axes(axes: Any, tree: Any) -> list[int | None]:
  """The axis of each leaf of `tree`, with `axes` as a prefix of it."""
  flat: list[int | None] = []
  jax.tree.map(
    lambda axis, part: flat.extend([axis] * len(jax.tree.leaves(part))), axes, tree, is_leaf=lambda node: node is None
  )
  return flat
