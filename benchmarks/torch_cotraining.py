"""The co-training step in eager PyTorch, written three ways; torch is imported where a learner is built.

`Stacked` and `Textbook` are what a person writes first: autograd, `torch.optim.SGD`, a reservoir written example by
example. They differ in the experts: side by side in one linear layer, or a `ModuleList` of linear layers, all of which
answer and are weighted. `Tuned` is the fastest eager form that was found: which rows are replayed is decided before
training, derivatives come from `autograd.grad`, updates from `torch._foreach_add_`, and gates of the current rows are
drawn for their one task.

All take cljax's initial weights, rows that are warped already, and one thread.
"""

import copy
from typing import Any

import numpy as np

from benchmarks import problem
from benchmarks.torch_data import Tensors, accuracy

E, H, K, LR = problem.EXPERTS, problem.WIDTH, problem.K, problem.LR


def stacked_net(params: Any, router: Any) -> Any:
  """Experts of a layer in one `Linear`, heads in one tensor."""
  import torch
  from torch import nn
  from torch.nn import functional as F

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.layers = nn.ModuleList([as_linear(params["first"]), as_linear(params["hidden_1"])])
      self.heads = nn.Parameter(torch.tensor(np.array(params["head"]["kernel"])).permute(1, 0, 2).contiguous())
      self.bias = nn.Parameter(torch.tensor(np.array(params["head"]["bias"])))
      self.router = nn.Parameter(torch.tensor(np.array(router)))

    def forward(self, x, task, gates):
      for layer, weights in zip(self.layers, gates, strict=True):
        x = (F.relu(layer(x)).view(-1, E, H) * weights.unsqueeze(-1)).sum(dim=1)
      return torch.einsum("bd,bdc->bc", x, self.heads[task]) + self.bias[task]

  return Net()


def textbook_net(params: Any, router: Any) -> Any:
  """A `ModuleList` of experts for each layer and of heads; every expert answers."""
  import torch
  from torch import nn
  from torch.nn import functional as F

  def split(layer):
    kernels = np.split(np.array(layer["kernel"]), E, axis=1)
    biases = np.split(np.array(layer["bias"]), E)
    return nn.ModuleList([as_linear({"kernel": w, "bias": b}) for w, b in zip(kernels, biases, strict=True)])

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.layers = nn.ModuleList([split(params["first"]), split(params["hidden_1"])])
      kernel, bias = np.array(params["head"]["kernel"]), np.array(params["head"]["bias"])
      self.heads = nn.ModuleList([as_linear({"kernel": kernel[:, t], "bias": bias[t]}) for t in range(len(bias))])
      self.router = nn.Parameter(torch.tensor(np.array(router)))

    def forward(self, x, task, gates):
      for experts, weights in zip(self.layers, gates, strict=True):
        outputs = torch.stack([F.relu(expert(x)) for expert in experts], dim=1)
        x = (outputs * weights.unsqueeze(-1)).sum(dim=1)
      logits = x.new_empty(len(x), problem.CLASSES)
      for t in task.unique().tolist():
        logits[task == t] = self.heads[t](x[task == t])
      return logits

  return Net()


def as_linear(layer: Any) -> Any:
  """`torch.nn.Linear` of a kernel [in, out] and a bias."""
  import torch

  kernel, bias = np.array(layer["kernel"]), np.array(layer["bias"])
  linear = torch.nn.Linear(*kernel.shape)
  with torch.no_grad():
    linear.weight.copy_(torch.tensor(kernel.T))
    linear.bias.copy_(torch.tensor(bias))
  return linear


def gumbel(shape: Any) -> Any:
  """Gumbel noise as a tensor of that shape."""
  import torch

  return -torch.empty(shape).exponential_().log_()


def gates_of(router: Any, noise: float) -> Any:
  """[..., E]: a softmax over the k largest of router + noise."""
  import torch

  compared = router.detach() + noise * gumbel(router.shape) if noise else router.detach()
  kept = torch.zeros_like(compared, dtype=torch.bool).scatter_(-1, compared.topk(K, dim=-1).indices, True)
  return torch.softmax(router.masked_fill(~kept, -torch.inf), dim=-1)


class Eager:
  """Algorithm 1 around a net, with two optimizers and a reservoir of rows."""

  def __init__(self, net: Any, tensors: Tensors):
    import torch

    torch.manual_seed(0)
    self.net, self.tensors = net, tensors
    self.steps = len(tensors[0][0]) // problem.BATCH
    self.kept: Any = None
    self.memory = Reservoir(problem.CAPACITY, np.random.default_rng(0))
    self.used = torch.zeros(net.router.shape, dtype=torch.bool)
    self.skipped = 0
    self.optimizers()

  def optimizers(self) -> None:
    import torch

    theta = [p for p in self.net.parameters() if p is not self.net.router]
    self.both = torch.optim.SGD(self.net.parameters(), lr=LR)
    self.theta = torch.optim.SGD(theta, lr=LR)

  def learn(self, x: Any, y: Any, task: Any) -> None:
    """One SGD step on experts, heads and router through drawn gates."""
    from torch.nn import functional as F

    gates = gates_of(self.net.router, problem.NOISE)[:, task]
    self.both.zero_grad()
    F.cross_entropy(self.net(x, task, gates), y).backward()
    self.both.step()

  def step(self, x: Any, y: Any, t: int) -> None:
    import torch
    from torch.nn import functional as F

    task = torch.full((len(x),), t)
    self.learn(x, y, task)
    if self.memory.seen:
      replayed = self.memory.sample(problem.REPLAY)
      self.learn(*replayed)
      together = [torch.cat(pair) for pair in zip((x, y, task), replayed, strict=True)]
    else:
      together = [x, y, task]
    for i in range(len(x)):
      self.memory.add(x[i], y[i], t)
    with torch.no_grad():
      self.used[:, t] = False
      self.used[:, t].scatter_(-1, self.net.router[:, t].topk(K, dim=-1).indices, True)
      free = ~self.used.any(dim=1)
    if not free.any(dim=-1).all():
      self.skipped += 1
      return
    weights = free / free.sum(dim=-1, keepdim=True)
    x, y, task = together
    self.theta.zero_grad()
    F.cross_entropy(self.net(x, task, weights[:, None].expand(-1, len(x), -1)), y).backward()
    self.theta.step()

  def train(self, task: int) -> None:
    import torch

    x, y = self.tensors[task]
    for rows in torch.randperm(len(x)).view(-1, problem.BATCH):
      self.step(x[rows], y[rows], task)

  def keep(self) -> None:
    self.kept = copy.deepcopy((self.net, self.memory, self.used))

  def back(self) -> None:
    self.net, self.memory, self.used = copy.deepcopy(self.kept)
    self.optimizers()

  def accuracy(self) -> float:
    return accuracy(self.tensors, lambda x, t: self.net(x, t, gates_of(self.net.router, 0)[:, t]))


class Reservoir:
  """A memory of rows, written example by example."""

  def __init__(self, capacity: int, random: np.random.Generator):
    import torch

    self.random = random
    self.x = torch.empty(capacity, problem.SIDE**2)
    self.y = torch.empty(capacity, dtype=torch.long)
    self.task = torch.empty(capacity, dtype=torch.long)
    self.seen = 0

  def add(self, x: Any, y: Any, task: int) -> None:
    slot = self.seen if self.seen < len(self.y) else int(self.random.integers(self.seen + 1))
    if slot < len(self.y):
      self.x[slot], self.y[slot], self.task[slot] = x, y, task
    self.seen += 1

  def sample(self, count: int) -> tuple[Any, Any, Any]:
    import torch

    rows = torch.randperm(min(self.seen, len(self.y)))[:count]
    return self.x[rows], self.y[rows], self.task[rows]
