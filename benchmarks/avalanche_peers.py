"""Avalanche's own strategies on its own SimpleMLP: two layers of 256 and one head, batches of 10, plain SGD.

It has no heads by task, so cljax meets it with `scenario="domain"`: the same network. Its Replay fills the memory once
after each task and not after each batch, and joins current and replayed rows to one step. What its other strategies do
differently from cljax and from the papers is told in PARITY.md.
"""

import contextlib
import importlib
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import problem
from benchmarks.avalanche_changes import Called
from benchmarks.torch_data import Pair, share

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
      with quietly():  # qpsolvers warns of having no solver at all
        return importlib.import_module("avalanche.training"), kept
    except ImportError as error:
      if not str(error.name).startswith(UNUSED):
        raise
      sys.modules["torch.utils.tensorboard" if error.name == "tensorboard" else str(error.name)] = mock.MagicMock()
      for other in [other for other in sys.modules if other.split(".")[0] == "avalanche"]:
        del sys.modules[other]


def quietly() -> contextlib.AbstractContextManager[Any]:
  """Without warnings: that nothing logs, and what Avalanche deprecates of its own."""
  return mock.patch.object(warnings, "warn")


class Strategy:
  """A strategy on one experience for each task."""

  def __init__(self, called: Called, params: Any, train: Sequence[Pair], test: Sequence[Pair], shuffle: bool = True):
    """
    Args:
      params: cljax's initial weights, heads apart.
      train, test: rows of each task.
      shuffle: else the rows come in the order given.
    """
    import torch

    torch.manual_seed(0)
    self.called, self.params, self.test, self.shuffle = called, params, test, shuffle
    self.steps = len(train[0][0]) // called.rows
    self.training, self.declared = load()
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import DataAttribute, TaskAwareClassificationDataset

    def labelled(x, y):
      labels = DataAttribute(y.tolist(), "targets")
      tasks = DataAttribute([0] * len(y), "targets_task_labels", use_in_getitem=True)
      return TaskAwareClassificationDataset([torch.utils.data.TensorDataset(x, y)], data_attributes=[labels, tasks])

    self.experiences = list(benchmark_from_datasets(train=[labelled(x, y) for x, y in train]).train_stream)
    self.strategy = self.fresh()

  def fresh(self) -> Any:
    """A strategy that has seen nothing, with cljax's initial weights and nothing that logs."""
    import torch
    from avalanche.models import SimpleMLP
    from avalanche.training.plugins import EvaluationPlugin

    pixels, width = self.params["first"]["kernel"].shape
    sizes = {"input_size": pixels, "hidden_size": width, "hidden_layers": 2, "drop_rate": 0.0}
    net = SimpleMLP(num_classes=problem.CLASSES, **sizes)
    head = {name: np.array(leaf)[..., 0, :] for name, leaf in self.params["head"].items()}
    with torch.no_grad():
      for module, layer in zip(linear(net), (self.params["first"], self.params["hidden_1"], head), strict=True):
        module.weight.copy_(torch.tensor(np.array(layer["kernel"]).T))
        module.bias.copy_(torch.tensor(np.array(layer["bias"])))
    with quietly():
      evaluator = EvaluationPlugin()
    return getattr(self.training.supervised, self.called.strategy)(
      model=net,
      optimizer=torch.optim.SGD(net.parameters(), lr=problem.LR),
      criterion=torch.nn.CrossEntropyLoss(),
      train_mb_size=self.called.rows,
      train_epochs=1,
      eval_mb_size=500,
      evaluator=evaluator,
      **self.called.keywords,
    )

  def train(self, task: int) -> None:
    with quietly(), self.called.change():
      self.strategy.train(self.experiences[task], shuffle=self.shuffle)

  def keep(self) -> None:
    """Nothing: a strategy is hooked into many places, so `back` learns task 0 again."""

  def back(self) -> None:
    self.strategy = self.fresh()
    self.train(0)

  def accuracy(self) -> float:
    """Mean over the tasks."""
    self.strategy.model.eval()
    shares = [share(pair, self.strategy.model) for pair in self.test]
    self.strategy.model.train()
    return float(np.mean(shares))

  def weights(self) -> list[np.ndarray]:
    """Kernels [in, out] and biases of the layers in order, copied."""
    found = [(module.weight.detach().numpy().T, module.bias.detach().numpy()) for module in linear(self.strategy.model)]
    return [leaf.copy() for pair in found for leaf in pair]


def linear(net: Any) -> list[Any]:
  """The dense layers of a net, in order."""
  import torch

  return [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
