"""All that can be timed, by name, built from one problem: the same pixels, permutations and initial weights."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax

from benchmarks import bare, problem, scans
from benchmarks.ours import Library, config_of, experiment_of
from benchmarks.problem import Problem
from benchmarks.timing import Subject

SEEDS = 15
EWC = {"guard": {"name": "ewc", "fisher_rows": 200}}  # of 20,000 of a task, so that steps are what is timed
# Name -> (method, what differs from the benchmark's config).
LIBRARY: dict[str, tuple[str, dict[str, Any]]] = {
  "cotrain": ("routing", {}),
  "no_cotrain": ("routing", {"cotrain": False}),
  "memory": ("routing", {"capacity": 10_000}),
  "tasks": ("routing", {"tasks": 100}),
  "seeds": ("routing", {"seeds": SEEDS}),
  "er": ("er", {}),
  "er_ewc": ("er", EWC),
  "finetune": ("finetune", {}),
  "finetune_ewc": ("finetune", EWC),
  "er_one_head": ("er", {"update": "union", "scenario": "domain"}),
}
COTRAINING = bare.Setting(problem.LR, problem.BATCH, problem.EXPERTS, problem.K, problem.NOISE, cotrain=True)
SCANS = {  # name -> (setting, steps of a block, the library's subject whose initial weights it takes)
  "cotrain": (COTRAINING, 2, "routing"),
  "cotrain_plain": (COTRAINING, 1, "routing"),
  "er": (bare.Setting(problem.LR, problem.BATCH), 2, "er"),
}


class Workshop:
  """Builds subjects of `steps` steps a task."""

  def __init__(self, steps: int):
    self.steps = steps
    self.source = problem.source(steps * problem.BATCH)

  def experiment(self, name: str, **fields: Any) -> Any:
    return experiment_of(config_of(name, **fields), self.source)

  @cached_property
  def data(self) -> Problem:
    return problem.problem(self.source, self.experiment("er").stream.tasks.train.warp.index)

  @cached_property
  def tensors(self) -> Any:
    from benchmarks.torch_data import as_tensors

    return as_tensors(self.data)

  def initial(self, name: str, **fields: Any) -> Any:
    """The initial state of cljax's first seed, its heads apart."""
    experiment = self.experiment(name, **fields)
    state = jax.tree.map(lambda leaf: leaf[0], Library(experiment).carry.state)
    return state.replace(params=scans.heads_apart(state.params, experiment.spec.heads, experiment.spec.C))

  def library(self, name: str) -> Subject:
    method, fields = LIBRARY[name.removesuffix("_plain")]
    if name == "seeds":  # as many steps in all as the others, or it would take longer than they together
      few = Workshop(max(self.steps // SEEDS, 8))
      return Library(few.experiment(method, **fields))
    return Library(self.experiment(method, **fields, **({"block": 1} if name.endswith("_plain") else {})))

  def bare(self, name: str) -> Subject:
    setting, block, method = SCANS[name]
    state = self.initial(method)
    routes = (state.router, state.used) if setting.experts else ()
    return scans.Scan(setting, block, scans.weights_of(state.params, *routes), self.data)

  def torch(self, name: str) -> Subject:
    from benchmarks import torch_cotraining, torch_er, torch_tuned

    state = self.initial("er" if name == "er" else "routing")
    if name == "er":
      return torch_er.Replay(torch_er.net_of(state.params), self.tensors, union=False)
    if name == "tuned":
      return torch_tuned.Tuned(state.params, state.router, self.tensors)
    net = {"stacked": torch_cotraining.stacked_net, "modulelist": torch_cotraining.textbook_net}[name]
    return torch_cotraining.Eager(net(state.params, state.router), self.tensors)

  def avalanche(self, name: str) -> Subject:
    from benchmarks.avalanche_replay import Avalanche

    _, fields = LIBRARY["er_one_head"]
    return Avalanche(self.initial("er", **fields).params, self.tensors)

  def one(self, name: str) -> Subject:
    """The subject of this name, `room.name`."""
    rooms = {"cljax": self.library, "bare": self.bare, "torch": self.torch, "avalanche": self.avalanche}
    room, name = name.split(".")
    return rooms[room](name)

  def make(self, names: Sequence[str]) -> dict[str, Subject]:
    """The subjects of these names."""
    return {name: self.one(name) for name in names}
