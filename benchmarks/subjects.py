"""All that can be timed, by name, built from one problem: the same pixels, permutations and initial weights."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax

from benchmarks import bare, problem, scans
from benchmarks.avalanche_changes import Called, first_rows, solved_somehow
from benchmarks.ours import Library, config_of, experiment_of
from benchmarks.problem import Problem
from benchmarks.timing import Subject

SEEDS = 15
FISHER_ROWS = 200  # of 20,000 of a task, so that steps are what is timed
EWC = {"guard": {"name": "ewc", "fisher_rows": FISHER_ROWS}}
DARK, REPTILE = {"alpha": 0.1, "beta": 0.5}, {"beta": 1.0, "gamma": 0.5}  # of DER++ and of MER
FEWER = {"seeds": SEEDS, "mer": 40}  # steps of these, or they would take longer than the others together
STRENGTH = 0.1  # of what pulls weights back: whatever it is, a step costs as much
PER_TASK = problem.CAPACITY // problem.TASKS  # rows of each task in the memory


def one_head(guard: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """Fine-tuning of one head under a guard."""
  return "finetune", {"scenario": "domain", "guard": guard}


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
  "ewc": one_head({"name": "ewc", "strength": STRENGTH, "fisher_rows": FISHER_ROWS}),
  "ewc_all": one_head({"name": "ewc", "strength": STRENGTH}),
  "si": one_head({"name": "si", "strength": STRENGTH}),
  "agem": one_head({"name": "agem", "per_task": PER_TASK, "drawn_rows": problem.REPLAY}),
  "gem": one_head({"name": "gem", "per_task": PER_TASK, "margin_as": "bound"}),
  "lwf": ("lwf", {"scenario": "domain", "epochs": 1, "warmup_epochs": 0}),
  "naive": ("finetune", {"scenario": "domain"}),
  "mas": one_head({"name": "mas", "strength": STRENGTH}),
  "derpp": ("derpp", {"scenario": "domain", **DARK}),
  "mer": ("mer", {"scenario": "domain", "batch_size": 1, "replay": 20, "reptile_batches": 5, **REPTILE}),
}
COTRAINING = bare.Setting(problem.LR, problem.BATCH, problem.EXPERTS, problem.K, problem.NOISE, cotrain=True)
SCANS = {  # name -> (setting, steps of a block, the library's subject whose initial weights it takes)
  "cotrain": (COTRAINING, 2, "routing"),
  "cotrain_plain": (COTRAINING, 1, "routing"),
  "er": (bare.Setting(problem.LR, problem.BATCH), 2, "er"),
}


def called(name: str) -> Called:
  """How Avalanche's strategy of this name is called."""
  return {
    "replay": Called("Replay", {"mem_size": problem.CAPACITY}),
    "ewc": Called("EWC", {"ewc_lambda": STRENGTH / 2}, first_rows(FISHER_ROWS)),
    "ewc_all": Called("EWC", {"ewc_lambda": STRENGTH / 2}),
    "si": Called("SynapticIntelligence", {"si_lambda": 2 * STRENGTH, "eps": 0.1}),
    "lwf": Called("LwF", {"alpha": 1.0, "temperature": 2.0}),
    "naive": Called("Naive"),
    "mas": Called("MAS", {"lambda_reg": STRENGTH}),
    "derpp": Called("DER", {"mem_size": problem.CAPACITY, "batch_size_mem": problem.REPLAY, **DARK}),
    "mer": Called("MER", {"mem_size": problem.CAPACITY, "batch_size_mem": 4, "n_inner_steps": 5, **REPTILE}, rows=1),
    "agem": Called("AGEM", {"patterns_per_exp": PER_TASK, "sample_size": problem.REPLAY}),
    "gem": Called("GEM", {"patterns_per_exp": PER_TASK, "memory_strength": 0.5}, solved_somehow),
  }[name]


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
    from benchmarks.avalanche_peers import Strategy

    method, fields = LIBRARY["er_one_head" if name == "replay" else name]
    params = self.initial(method, **fields).params
    return Strategy(called(name), params, self.tensors[:2], self.tensors[2:])

  def one(self, name: str) -> Subject:
    """The subject of this name, `room.name`."""
    room, name = name.split(".")
    shop = Workshop(max(self.steps // FEWER[name], 8)) if name in FEWER else self
    rooms = {"cljax": shop.library, "bare": shop.bare, "torch": shop.torch, "avalanche": shop.avalanche}
    return rooms[room](name)

  def make(self, names: Sequence[str]) -> dict[str, Subject]:
    """The subjects of these names."""
    return {name: self.one(name) for name in names}
