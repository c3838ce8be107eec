"""The co-training step in eager PyTorch, tuned by hand: see `torch_cotraining`.

Replayed rows are decided before training, weights lie as cljax has them, derivatives come from `autograd.grad` and
updates from `torch._foreach_add_`. Current rows share one task, so their gates and head are taken once and not row by
row.
"""

from typing import Any

import numpy as np

from benchmarks import problem
from benchmarks.torch_cotraining import gates_of
from benchmarks.torch_data import Tensors, accuracy

E, H, K, LR = problem.EXPERTS, problem.WIDTH, problem.K, problem.LR


def forward(theta: list[Any], x: Any, task: Any, gates: Any) -> Any:
  """Logits; `task` is an int where all rows are of one task, and the gates are [2, E] or [2, B, E]."""
  import torch

  w1, b1, w2, b2, heads, bias = theta
  for layer, (w, b) in enumerate(((w1, b1), (w2, b2))):
    outputs = torch.addmm(b, x, w).relu_().view(-1, E, H)
    g = gates[layer]
    x = torch.bmm(g.unsqueeze(1), outputs).squeeze(1) if g.dim() == 2 else torch.matmul(g, outputs)
  if isinstance(task, int):
    return torch.addmm(bias[task], x, heads[task])
  return torch.baddbmm(bias[task].unsqueeze(1), x.unsqueeze(1), heads[task]).squeeze(1)


class Tuned:
  """Algorithm 1 on lists of tensors."""

  def __init__(self, params: Any, router: Any, tensors: Tensors):
    import torch

    torch.manual_seed(0)
    first, second, head = params["first"], params["hidden_1"], params["head"]
    arrays = [first["kernel"], first["bias"], second["kernel"], second["bias"]]
    arrays += [np.array(head["kernel"]).transpose(1, 0, 2), head["bias"], router]
    self.weights = [torch.tensor(np.ascontiguousarray(a)).requires_grad_() for a in arrays]
    self.used = torch.zeros(self.weights[-1].shape, dtype=torch.bool)
    self.tensors = tensors
    self.steps = len(tensors[0][0]) // problem.BATCH
    self.pool_x = torch.cat([x for x, _ in self.tensors[:2]])
    self.pool_y = torch.cat([y for _, y in self.tensors[:2]])
    self.pool_task = torch.arange(2).repeat_interleave(len(self.tensors[0][1]))
    plans = problem.schedules(len(tensors[0][0]))
    self.plans = [torch.tensor(np.concatenate([p.current, p.replayed], axis=1)).long() for p in plans]
    self.skipped = 0
    self.kept: Any = None

  def descend(self, weights: list[Any], logits: Any, y: Any) -> None:
    import torch

    grads = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), weights)
    with torch.no_grad():
      torch._foreach_add_(weights, grads, alpha=-LR)

  def step(self, x: Any, y: Any, task: Any, t: int) -> None:
    import torch

    theta, router, B = self.weights[:-1], self.weights[-1], problem.BATCH
    self.descend(self.weights, forward(theta, x[:B], t, gates_of(router[:, t], problem.NOISE)), y[:B])
    gates = gates_of(router, problem.NOISE)[:, task[B:]]
    self.descend(self.weights, forward(theta, x[B:], task[B:], gates), y[B:])
    with torch.no_grad():
      self.used[:, t] = False
      self.used[:, t].scatter_(-1, router[:, t].topk(K, dim=-1).indices, True)
      free = ~self.used.any(dim=1)
      counts = free.sum(dim=-1, keepdim=True)
    if not counts.all():
      self.skipped += 1
      return
    self.descend(theta, forward(theta, x, task, free / counts), y)

  def train(self, task: int) -> None:
    for rows in self.plans[task]:
      self.step(self.pool_x[rows], self.pool_y[rows], self.pool_task[rows], task)

  def keep(self) -> None:
    self.kept = [w.detach().clone() for w in self.weights], self.used.clone()

  def back(self) -> None:
    self.weights = [w.clone().requires_grad_() for w in self.kept[0]]
    self.used = self.kept[1].clone()

  def accuracy(self) -> float:
    *theta, router = self.weights
    return accuracy(self.tensors, lambda x, t: forward(theta, x, t, gates_of(router, 0)[:, t]))
