"""Pictures warped once a task, and once for a memory as a chunk finds it: the same numbers as warping each batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cljax.run
from cljax.config import complete, default
from cljax.data.sample import held_pictures, pictures
from cljax.data.warp import Rotation
from cljax.experiment import build
from cljax.run import compile_events, train
from cljax.types import Bank, Place, Rows, Stream, Task
from tests.rows import fetch, pool_of, view_at, warped_rows
from tests.tiers import at_release

T, N = 3, 7


def turned() -> Stream:
  """Three tasks of 3, 5 and 4 rows of one bank, each turned by its own angle; test rows are other rows."""
  random = np.random.default_rng(0)
  bank = Bank(random.integers(0, 256, (40, 6, 6, 1), np.uint8), random.integers(0, 2, 40).astype(np.int32))
  index = np.stack([random.permutation(40)[:N] for _ in range(T)]).astype(np.int32)
  rows = Rows(index, np.array([3, 5, 4], np.int32), Rotation(np.float32([0, 30, 60])))
  labels = np.tile(np.arange(2, dtype=np.int32), (T, 1))
  tasks = Task(rows, rows._replace(count=np.zeros(T, np.int32)), labels, labels, np.ones((T, 2), bool))
  return jax.device_put(Stream(bank, tasks, bank, rows))


def test_a_pool_holds_the_rows_of_its_task():
  data = turned()
  for t in range(T):
    pool = pool_of(data.bank, data.tasks, jnp.int32(t))
    live = data.tasks.train.idx[t, : data.tasks.train.count[t]]
    place = Place(np.full(len(live), t), live)
    expected = fetch(view_at(data, jnp.int32(t)), place).x
    np.testing.assert_allclose(pool.x[pool.at[live]], expected, atol=1e-6)


@pytest.mark.parametrize("group", [3, 7, 100])
def test_warped_rows_keep_the_table_s_order(group):
  data = turned()
  x = warped_rows(data.test_bank, data.test, jnp.int32(1), group)
  expected = Rotation(jnp.float32(30))(data.test_bank.x[data.test.idx[1]] / np.float32(255))
  assert x.shape == (N, 6, 6, 1)
  np.testing.assert_allclose(x, expected, atol=1e-6)


def test_rows_of_earlier_tasks_come_from_the_memory_as_it_was():
  """Slot 1 held a row of task 0 and still does; slot 0 was overwritten by a row of the current task since."""
  data = turned()
  view = view_at(data, jnp.int32(2))
  found = Place(np.array([1, 0]), data.tasks.train.idx[[1, 0], 0])  # what the chunk found
  view = view._replace(pool=pool_of(data.bank, data.tasks, jnp.int32(2)))
  now = Place(np.array([2, 0]), np.array([data.tasks.train.idx[2, 1], found.row[1]]))
  x = pictures(view, now, jnp.array([0, 1]), held_pictures(view, found))
  np.testing.assert_allclose(x, fetch(view, now).x, atol=1e-6)
  assert np.abs(np.asarray(x[0]) - np.asarray(held_pictures(view, found)[0])).max() > 0.1


def config(method: str):
  it = default()
  it.num_seeds = 2
  it.stream = {"name": "rotated", "source": "digits", "tasks": 3, "examples_per_task": 60}
  it.net = {"name": "mlp", "hidden": (8, 8)}
  it.method = {"name": method} if method != "er" else {"name": method, "capacity": 30}
  it.chunk = 3
  return it


@pytest.mark.parametrize("method", ["er", "finetune", "joint"])
def test_a_pool_is_made_where_it_can_be_used(monkeypatch, method):
  """Each seed draws its own rows here. A pool that would be too large is not made; a joint phase takes none."""
  experiment = build(complete(config(method)))
  assert ("pool" in compile_events(experiment)) == (method != "joint")
  monkeypatch.setattr(cljax.run, "POOL_BYTES", 0)
  assert "pool" not in compile_events(experiment)


@pytest.mark.parametrize("method", ["er", *at_release("finetune", "joint")])
def test_a_run_with_pools_is_a_run_without(monkeypatch, method):
  pooled = train(config(method), quiet=True)
  monkeypatch.setattr(cljax.run, "POOL_BYTES", 0)
  plain = train(config(method), quiet=True)
  chex.assert_trees_all_close(pooled.state, plain.state, atol=1e-5)
  accuracies = (np.array(it.result["accuracy"], float) for it in (pooled, plain))
  np.testing.assert_allclose(*accuracies, atol=0.01)


def test_cheap_warps_need_no_pool():
  it = config("er")
  it.stream.name = "permuted"
  assert not {"pool", "pictures.test"} & set(compile_events(build(complete(it))))
