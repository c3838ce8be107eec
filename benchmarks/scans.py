"""The bare scans as subjects: cljax's initial weights, and rows chosen by a schedule made before."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import bare, problem
from benchmarks.problem import Problem


def heads_apart(params: Any, heads: int, classes: int) -> Any:
  """The params with their heads as [D, heads, classes] and [heads, classes]."""
  head = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-1], heads, classes), params["head"])
  return {**params, "head": head}


def weights_of(params: Any, router: Any = None, used: Any = None) -> bare.Weights:
  """The weights of a cljax net of two hidden layers, for one seed; its heads as `heads_apart` gives them."""
  first, second, head = params["first"], params["hidden_1"], params["head"]
  T = head["bias"].shape[0]
  router = jnp.zeros((2, T, 0)) if router is None else router
  used = jnp.zeros(router.shape, bool) if used is None else used
  upper = (second["kernel"], second["bias"], head["kernel"], head["bias"])
  return jax.tree.map(jnp.asarray, bare.Weights(first["kernel"], first["bias"], upper, router, used))


class Scan:
  """A bare scan over the two tasks of a problem."""

  def __init__(self, setting: bare.Setting, block: int, weights: bare.Weights, data: Problem):
    N = data.y.shape[1]
    task = np.repeat(np.arange(2, dtype=np.int32), N)
    self.setting, self.data, self.weights = setting, data, weights
    pool = bare.Rows(data.x.reshape(2 * N, -1), data.y.reshape(-1), task)
    self.pool = jax.device_put(pool)
    self.steps = N // problem.BATCH
    plans = problem.schedules(N)
    self.index = [jax.device_put(np.concatenate([plan.current, plan.replayed], axis=1)) for plan in plans]
    self.key = jax.random.key(5)
    self.kept = weights

    def whole(weights, pool, index, key):
      return bare.scan(setting, block, weights, pool, index, key)

    self.whole = jax.jit(whole)

  def train(self, task: int) -> None:
    key = jax.random.fold_in(self.key, task)
    self.weights = jax.block_until_ready(self.whole(self.weights, self.pool, self.index[task], key))

  def keep(self) -> None:
    self.kept = self.weights

  def back(self) -> None:
    self.weights = self.kept

  def accuracy(self) -> float:
    right = [np.mean(np.asarray(self.answers(t)) == self.data.test_y) for t in (0, 1)]
    return float(np.mean(right))

  def answers(self, t: int) -> Any:
    """[rows] classes of task t's test rows, without noise."""
    x = bare.pixels(jnp.asarray(self.data.test_x[t]))
    task = jnp.full(len(x), t, jnp.int32)
    z = x @ self.weights.kernel + self.weights.bias
    gates = bare.gates_of(self.setting, self.weights.router, task, 0.0) if self.setting.experts else None
    return bare.logits_of(self.setting, self.weights.upper, z, task, gates).argmax(axis=-1)
