"""The two sides of a comparison by accuracy: cljax and Avalanche on the same rows in the same order, from the same
initial weights.

Both learn permuted digits, which come with the library, with one head; each seed has its own initial weights,
permutations and orders.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ours import Library, config_of, experiment_of
from benchmarks.scans import heads_apart
from cljax.data.join import one_or_joined
from cljax.data.sample import view_at
from cljax.experiment import Experiment
from cljax.keys import TRAIN, keys_of
from cljax.loops import plan_current
from cljax.types import Clock

LOOKED_AT = 1  # the task after which weights are compared: the first that a method has something to hold


class Size(NamedTuple):
  """How much is learnt."""

  tasks: int = 3
  rows: int = 1000  # of each task, learnt once
  seeds: int = 3


class Side(NamedTuple):
  """What one side has learnt."""

  accuracy: np.ndarray  # [S] mean over all tasks after the last one
  weights: list[list[np.ndarray]]  # [S] those after task LOOKED_AT, kernels and biases of the layers in order


class Given(NamedTuple):
  """What Avalanche is given for one seed."""

  params: Any  # initial weights, heads apart
  train: list[tuple[np.ndarray, np.ndarray]]  # of each task: pixels [N, 64], labels [N], in the order of training
  test: list[tuple[np.ndarray, np.ndarray]]


class Course:
  """All seeds of a size, for one method after the other."""

  def __init__(self, size: Size):
    self.size = size
    self.source = one_or_joined("digits", None)

  def experiment(self, method: str, fields: Mapping[str, Any]) -> Experiment:
    config = config_of(method, tasks=self.size.tasks, seeds=self.size.seeds, scenario="domain", **fields)
    config.stream.examples_per_task = self.size.rows
    return experiment_of(config, self.source)

  def ours(self, method: str, fields: Mapping[str, Any]) -> Side:
    """cljax's side."""
    library = Library(self.experiment(method, fields))
    found: list[list[np.ndarray]] = []
    tasks = range(self.size.tasks)
    for task in tasks:
      library.train(task)
      if task == LOOKED_AT:
        found = [layers(self.params(library, seed)) for seed in range(self.size.seeds)]
    return Side(library.shares(tasks, tasks[-1]).mean(axis=1), found)

  def params(self, library: Library, seed: int) -> Any:
    spec = library.experiment.spec
    params = jax.tree.map(lambda leaf: np.array(leaf[seed]), library.carry.state.params)
    return heads_apart(params, spec.heads, spec.C)

  def given(self) -> list[Given]:
    """What Avalanche is given for each seed."""
    library = Library(self.experiment("finetune", {}))
    x, test_x = (bank.x.reshape(len(bank.x), -1) for bank in (self.source.train, self.source.test))
    found = []
    for seed in range(self.size.seeds):
      orders, permutations = orders_of(library.experiment, seed)
      train = [(x[rows][:, p], self.source.train.y[rows]) for rows, p in zip(orders, permutations, strict=True)]
      test = [(test_x[:, p], self.source.test.y) for p in permutations]
      found.append(Given(self.params(library, seed), train, test))
    return found

  def theirs(self, called: Any, given: Sequence[Given]) -> Side:
    """The side of Avalanche, called as a `Called` says."""
    from benchmarks.avalanche_peers import Strategy
    from benchmarks.torch_data import as_pair

    accuracy, weights = [], []
    for one in given:
      train, test = ([as_pair(*pair) for pair in pairs] for pairs in (one.train, one.test))
      strategy = Strategy(called, one.params, train, test, shuffle=False)
      for task in range(self.size.tasks):
        strategy.train(task)
        if task == LOOKED_AT:
          weights.append(strategy.weights())
      accuracy.append(strategy.accuracy())
    return Side(np.array(accuracy), weights)


def layers(params: Any) -> list[np.ndarray]:
  """Kernels and biases of a net of one head in the order of its layers; heads as `heads_apart` gives them."""
  head = {name: leaf[..., 0, :] for name, leaf in params["head"].items()}
  return [layer[name] for layer in (params["first"], params["hidden_1"], head) for name in ("kernel", "bias")]


def orders_of(experiment: Experiment, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """(rows [T, N] of the bank in the order in which each task is learnt, permutations [T, 64]) of one seed."""
  (phase,) = experiment.method.phases
  stream = jax.tree.map(
    lambda axis, leaf: leaf if axis is None else leaf[seed],
    experiment.axes,
    experiment.stream,
    is_leaf=lambda leaf: leaf is None,
  )
  count = experiment.spec.rows[0]
  steps = -(-count // phase.batch)
  zero, all_steps = jnp.int32(0), jnp.int32(steps)
  seeds = jnp.asarray(experiment.seeds[seed : seed + 1], jnp.int32)
  plan = jax.jit(partial(plan_current, phase, steps))
  found = []
  for t in range(experiment.spec.T):
    (key,) = keys_of(seeds, jnp.array((TRAIN, t, 0), jnp.int32))
    view = view_at(stream, jnp.int32(t), experiment.spec.heads)
    found.append(np.array(plan(key, view, Clock(zero, zero, all_steps, zero), all_steps).place.row).reshape(-1)[:count])
  return np.stack(found), np.asarray(stream.tasks.train.warp.index)


def apart(one: Side, other: Side) -> float:
  """The largest difference of a weight after task LOOKED_AT, of any seed."""
  pairs = zip(one.weights, other.weights, strict=True)
  return max(float(np.abs(a - b).max()) for seed in pairs for a, b in zip(*seed, strict=True))
