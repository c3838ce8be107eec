"""Experience replay in eager PyTorch as a person writes it: shared bottom, one head for each task, a reservoir."""

import copy
from typing import Any

import numpy as np

from benchmarks import problem
from benchmarks.torch_cotraining import Reservoir, as_linear
from benchmarks.torch_data import Tensors, accuracy


def net_of(params: Any) -> Any:
  """784-256-256 with heads, from cljax's initial weights."""
  import torch
  from torch import nn

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      hidden = [as_linear(params["first"]), nn.ReLU(), as_linear(params["hidden_1"]), nn.ReLU()]
      self.bottom = nn.Sequential(*hidden)
      self.heads = nn.Parameter(torch.tensor(np.array(params["head"]["kernel"])).permute(1, 0, 2).contiguous())
      self.bias = nn.Parameter(torch.tensor(np.array(params["head"]["bias"])))

    def forward(self, x, task):
      return torch.einsum("bd,bdc->bc", self.bottom(x), self.heads[task]) + self.bias[task]

  return Net()


class Replay:
  """A step on the current rows and one on as many from memory, or one step on both together."""

  def __init__(self, net: Any, tensors: Tensors, union: bool):
    import torch

    torch.manual_seed(0)
    self.net, self.tensors, self.union = net, tensors, union
    self.steps = len(tensors[0][0]) // problem.BATCH
    self.memory = Reservoir(problem.CAPACITY, np.random.default_rng(0))
    self.optimizer = torch.optim.SGD(self.net.parameters(), lr=problem.LR)
    self.kept: Any = None

  def learn(self, x: Any, y: Any, task: Any) -> None:
    from torch.nn import functional as F

    self.optimizer.zero_grad()
    F.cross_entropy(self.net(x, task), y).backward()
    self.optimizer.step()

  def step(self, x: Any, y: Any, t: int) -> None:
    import torch

    rows = [x, y, torch.full((len(x),), t)]
    replayed = self.memory.sample(problem.REPLAY) if self.memory.seen else None
    if self.union and replayed:
      self.learn(*(torch.cat(pair) for pair in zip(rows, replayed, strict=True)))
    else:
      self.learn(*rows)
      if replayed:
        self.learn(*replayed)
    for i in range(len(x)):
      self.memory.add(x[i], y[i], t)

  def train(self, task: int) -> None:
    import torch

    x, y = self.tensors[task]
    for rows in torch.randperm(len(x)).view(-1, problem.BATCH):
      self.step(x[rows], y[rows], task)

  def keep(self) -> None:
    self.kept = copy.deepcopy((self.net, self.memory))

  def back(self) -> None:
    import torch

    self.net, self.memory = copy.deepcopy(self.kept)
    self.optimizer = torch.optim.SGD(self.net.parameters(), lr=problem.LR)

  def accuracy(self) -> float:
    return accuracy(self.tensors, self.net)
