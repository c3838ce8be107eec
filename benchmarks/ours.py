"""cljax as a person runs it: `experiment.build`, `run.compile_events`, and the driver's units of a whole task."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import problem
from cljax.config import complete, default
from cljax.data.bank import Source
from cljax.drive import Driver, start
from cljax.experiment import Experiment, build
from cljax.journal import Noted
from cljax.monitor import Monitor
from cljax.recipe import build_stream, seeds_of
from cljax.run import compile_events

REPLAYING = ("er", "derpp", "routing")
WORK = ("view", "enter", "chunk", "tick", "exit")  # the units of a task besides evaluations and saves


def config_of(
  name: str,
  *,
  tasks: int = problem.TASKS,
  scenario: str = "task",
  seeds: int = 1,
  executor: str = "auto",
  net: str = "mlp",
  **method: Any,
) -> ConfigDict:
  """The benchmark's config of `finetune`, `lwf`, `er` or `routing`.

  Args:
    net: `mlp` or `cnn`; `routing` has its own.
    method: keywords of the method's factory.
  """
  config = default()
  config.num_seeds = seeds
  config.seed_executor = executor
  config.evaluate = "ends"
  config.stream = {"name": "permuted", "source": "benchmark", "tasks": tasks, "scenario": scenario}
  config.optimizer.lr = problem.LR
  fields: dict[str, Any] = {"batch_size": problem.BATCH}
  if name in REPLAYING:
    fields |= {"replay": problem.REPLAY, "capacity": problem.CAPACITY}
  if name == "routing":
    config.net = {"name": "routed_mlp", "widths": (problem.WIDTH,) * 2, "experts": problem.EXPERTS}
    fields |= {"k": problem.K, "sample": "gumbel_topk", "noise": problem.NOISE}
  else:
    config.net = {"name": "mlp", "hidden": (problem.HIDDEN,) * 2} if net == "mlp" else {"name": net, **problem.CNN}
  config.method = {"name": name, **fields, **method}
  return complete(config)


def experiment_of(config: ConfigDict, data: Source) -> Experiment:
  """What `experiment.build` makes of it, on this data set, to which no name leads."""
  return build(config, data=build_stream(config, seeds_of(config), source=data))


class Library:
  """The library's whole-task call: view, edges, planning, training, metrics brought to the host."""

  def __init__(self, experiment: Experiment):
    compiled = compile_events(experiment)
    monitor = Monitor(None, experiment.timeline.steps(), 0, Noted(), "benchmark", quiet=True)
    self.experiment = experiment
    self.steps = int(experiment.timeline.phase_steps(0, 0).sum())
    self.driver = Driver(experiment, compiled, monitor, None, lambda: False)
    self.carry = start(experiment, compiled)
    units = [unit for unit in experiment.timeline.units(None, 0) if unit.kind in WORK]
    self.units = [[unit for unit in units if unit.at.task == task] for task in range(experiment.spec.T)]
    self.kept: Any = None

  def train(self, task: int) -> None:
    for unit in self.units[task]:
      self.driver.perform(unit, self.carry)
    jax.block_until_ready(self.carry.state)

  def keep(self) -> None:
    self.kept = jax.tree.map(jnp.copy, self.carry.state)

  def back(self) -> None:
    self.carry.state = jax.block_until_ready(jax.tree.map(jnp.copy, self.kept))

  def accuracy(self) -> float:
    """Mean over seeds and over tasks 0 and 1."""
    return float(self.shares((0, 1), 1).mean())

  def shares(self, tasks: Sequence[int], now: int) -> np.ndarray:
    """[S, tasks] of the test rows of some tasks, those that are answered rightly after task `now`."""
    evaluate = self.driver.compiled[f"evaluate.{self.experiment.readouts[0]}"]
    own = self.carry.hyper, self.carry.state, self.experiment.stream
    seeds = len(self.experiment.seeds)
    counts = [evaluate(*own, *self.experiment.numbers(t, now, t), None)["right"][:seeds] for t in tasks]
    return np.stack(counts, axis=1) / self.experiment.test_rows[:, list(tasks)]

  def skipped(self) -> int:
    """Co-training steps left out because no expert was unused: they would make a step look cheap."""
    state = self.carry.state
    return int(state.skipped.sum()) if hasattr(state, "skipped") else 0
