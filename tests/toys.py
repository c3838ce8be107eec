"""Small banks, streams and methods for the tests."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cljax.config import Experiment, build_timeline, default
from cljax.data.warp import Permutation
from cljax.nets import MLP, RoutedMLP
from cljax.ops.learner import supervised
from cljax.types import Bank, Method, Phase, Rows, Spec, Stream, Task


def bank(rows: int = 120, classes: int = 4, shape: tuple[int, ...] = (4, 4, 1), seed: int = 0) -> Bank:
  """Learnable uint8 pictures: a class mean and noise."""
  means = np.random.default_rng(9).integers(0, 200, (classes, *shape))  # the same classes for every seed
  random = np.random.default_rng(seed)
  y = np.arange(rows) % classes
  x = np.clip(means[y] + random.integers(0, 55, (rows, *shape)), 0, 255)
  return Bank(x.astype(np.uint8), y.astype(np.int32))


def pad(tables: list[Any]) -> tuple[np.ndarray, np.ndarray]:
  count = np.array([len(table) for table in tables], np.int32)
  idx = np.zeros((len(tables), max(1, count.max())), np.int32)
  for row, table in zip(idx, tables, strict=True):
    row[: len(table)] = table
  return idx, count


def stream(
  counts=(30, 23, 40), heads: int | None = None, boundaries: bool = True, seed: int = 0
) -> tuple[Spec, Stream]:
  """Permuted tasks of ragged lengths over one bank, with 8 validation rows each."""
  T, train, test = len(counts), bank(), bank(rows=60, seed=1)
  random = np.random.default_rng(seed)
  warp = Permutation(np.stack([random.permutation(16) for _ in range(T)]).astype(np.int32))
  order = [random.permutation(120).astype(np.int32) for _ in range(T)]
  tasks = Task(
    Rows(*pad([rows[8 : 8 + count] for rows, count in zip(order, counts, strict=True)]), warp),
    Rows(*pad([rows[:8] for rows in order]), warp),
    np.tile(np.arange(4, dtype=np.int32), (T, 1)),
    np.tile(np.arange(4, dtype=np.int32), (T, 1)),
    np.ones((T, 4), bool),
  )
  heads = heads or (T if boundaries else 1)
  spec = Spec((4, 4, 1), T, 4, heads, boundaries)
  return spec, Stream(train, tasks, test, Rows(*pad([np.arange(60 - 7 * t) for t in range(T)]), warp))


def mlp(spec: Spec) -> MLP:
  return MLP(heads=spec.heads, classes=spec.C, hidden=(8, 8))


def routed(spec: Spec, experts: int = 6, width: int = 3) -> RoutedMLP:
  return RoutedMLP(heads=spec.heads, classes=spec.C, widths=(width, width), experts=experts)


def experiment(
  method: Method, spec: Spec, data: Stream, seeds=(0, 1), executor: str = "map", **config: Any
) -> Experiment:
  """An experiment around a hand-made method and stream; `config` overrides keys of the default config."""
  full = default()
  full.update({"evaluate_group": 16, "log_every_steps": 1, **config})
  rows = np.broadcast_to(data.tasks.train.count, (len(seeds), spec.T)).astype(np.int64)
  return Experiment(
    config=full,
    spec=spec,
    stream=jax.device_put(data),
    axes=jax.tree.map(lambda leaf: None, data),
    method=method,
    timeline=build_timeline(full, spec, method, rows),
    seeds=tuple(seeds),
    readouts=("task",) if spec.heads > 1 else ("domain",),
    executor=executor,
    test_rows=np.broadcast_to(data.test.count, (len(seeds), spec.T)).astype(np.int64),
    data_hash="toy",
  )


@flax.struct.dataclass
class Plain:
  params: Any
  opt_state: Any


def plain(spec: Spec, *, batch: int = 10, epochs: int = 1, steps: int = 0, **phase: Any) -> Method:
  """Fine-tuning with room for other phase fields."""
  learner = supervised(mlp(spec), optax.sgd(0.1), spec)

  def step(key, state, batch, clock, view):
    params, opt_state, info = learner.learn(state.params, state.opt_state, batch)
    return Plain(params, opt_state), info

  return Method(
    lambda key: Plain(*learner.init(key)),
    (Phase("fit", batch, step, epochs=0 if steps else epochs, steps=steps, **phase),),
    lambda state, x, slot: learner.apply(state.params, x, slot),
    lambda state: {"parameters": jnp.int32(1), "memory_bytes": jnp.int32(0)},
  )
