"""Avalanche's own Replay strategy on its own SimpleMLP: 784-256-256, one head, batches of 10 and 10, a memory of 1,000.

It has no heads by task, so cljax meets it with `scenario="domain"`: the same network. Avalanche fills its memory once
after each task and not after each batch, and joins current and replayed rows to one step.
"""

import importlib
import re
import sys
import warnings
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import problem
from benchmarks.torch_data import Tensors, accuracy

# What Avalanche imports for logging, downloads and methods that are not used here; stood in for where not installed.
UNUSED = ("dill", "gdown", "GPUtil", "pytorchcv", "qpsolvers", "tensorboard", "torchmetrics", "wandb")


def declare_operators() -> Any:
  """Imports torchvision even where its compiled part does not load, whose operators are then declared by name only.

  Returns:
    what keeps the declarations alive.
  """
  import torch

  library = torch.library.Library("torchvision", "FRAGMENT")
  while True:
    try:
      importlib.import_module("torchvision")
      return library
    except RuntimeError as error:
      missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
      if missing is None:
        raise
      library.define(f"{missing[1]}(Tensor x) -> Tensor")
      for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def load() -> tuple[Any, Any]:
  """The module `avalanche.training`, and what must stay referenced."""
  kept = declare_operators()
  while True:
    try:
      return importlib.import_module("avalanche.training"), kept
    except ImportError as error:
      if not str(error.name).startswith(UNUSED):
        raise
      sys.modules["torch.utils.tensorboard" if error.name == "tensorboard" else str(error.name)] = mock.MagicMock()
      for other in [other for other in sys.modules if other.split(".")[0] == "avalanche"]:
        del sys.modules[other]


class Avalanche:
  """The strategy on one experience for each task. A timed round starts from a strategy with a full memory."""

  def __init__(self, params: Any, tensors: Tensors):
    import torch

    torch.manual_seed(0)
    self.params, self.tensors = params, tensors
    self.steps = len(tensors[0][0]) // problem.BATCH
    self.training, self.declared = load()
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import DataAttribute, TaskAwareClassificationDataset

    def labelled(x, y):
      labels = DataAttribute(y.tolist(), "targets")
      tasks = DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True)
      return TaskAwareClassificationDataset([torch.utils.data.TensorDataset(x, y)], data_attributes=[labels, tasks])

    sets = [labelled(x, y) for x, y in self.tensors[:2]]
    self.experiences = list(benchmark_from_datasets(train=sets).train_stream)
    self.strategy = self.fresh()

  def fresh(self) -> Any:
    """A strategy that has seen nothing, with cljax's initial weights and nothing that logs."""
    import torch
    from avalanche.models import SimpleMLP
    from avalanche.training.plugins import EvaluationPlugin

    sizes = {"hidden_size": problem.HIDDEN, "hidden_layers": 2, "drop_rate": 0.0}
    net = SimpleMLP(num_classes=problem.CLASSES, input_size=problem.SIDE**2, **sizes)
    linear = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    head = {name: np.array(leaf)[..., 0, :] for name, leaf in self.params["head"].items()}
    with torch.no_grad():
      for module, layer in zip(linear, (self.params["first"], self.params["hidden_1"], head), strict=True):
        module.weight.copy_(torch.tensor(np.array(layer["kernel"]).T))
        module.bias.copy_(torch.tensor(np.array(layer["bias"])))
    with mock.patch.object(warnings, "warn"):
      evaluator = EvaluationPlugin()
    return self.training.Replay(
      model=net,
      optimizer=torch.optim.SGD(net.parameters(), lr=problem.LR),
      criterion=torch.nn.CrossEntropyLoss(),
      mem_size=problem.CAPACITY,
      train_mb_size=problem.BATCH,
      train_epochs=1,
      eval_mb_size=500,
      evaluator=evaluator,
    )

  def train(self, task: int) -> None:
    with mock.patch.object(warnings, "warn"):  # that nothing logs, and what Avalanche deprecates of its own
      self.strategy.train(self.experiences[task])

  def keep(self) -> None:
    """Nothing: a strategy is hooked into many places, so `back` learns task 0 again."""

  def back(self) -> None:
    self.strategy = self.fresh()
    self.train(0)

  def accuracy(self) -> float:
    self.strategy.model.eval()
    share = accuracy(self.tensors, lambda x, t: self.strategy.model(x))
    self.strategy.model.train()
    return share
