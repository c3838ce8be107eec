"""The problem as PyTorch tensors, and the share of right answers on it."""

from collections.abc import Callable
from typing import Any

from benchmarks.problem import Problem

Tensors = list[tuple[Any, Any]]  # (x float32 [N, 784], y): training rows of tasks 0 and 1, then their test rows


def as_tensors(data: Problem) -> Tensors:
  """The rows of a problem; from then on PyTorch keeps to one thread."""
  import torch

  torch.set_num_threads(1)
  pairs = [*zip(data.x, data.y, strict=True), *((x, data.test_y) for x in data.test_x)]
  return [(torch.tensor(x).float() / 255, torch.tensor(y).long()) for x, y in pairs]


def accuracy(tensors: Tensors, answer: Callable[[Any, Any], Any]) -> float:
  """Mean over tasks 0 and 1 of the share of test rows that `answer(x, task)` classifies rightly by its logits."""
  import torch

  with torch.no_grad():
    shares = []
    for t in (0, 1):
      x, y = tensors[2 + t]
      shares.append((answer(x, torch.full((len(x),), t)).argmax(dim=1) == y).float().mean())
  return float(sum(shares) / len(shares))
