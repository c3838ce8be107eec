"""The problem as PyTorch tensors, and the share of right answers on it."""

from collections.abc import Callable
from typing import Any

from benchmarks.problem import Problem

Pair = tuple[Any, Any]  # x float32 [N, 784], y [N]
Tensors = list[Pair]  # training rows of tasks 0 and 1, then their test rows


def as_tensors(data: Problem) -> Tensors:
  """The rows of a problem; from then on PyTorch keeps to one thread."""
  import torch

  torch.set_num_threads(1)
  return [as_pair(x, y) for x, y in (*zip(data.x, data.y, strict=True), *((x, data.test_y) for x in data.test_x))]


def as_pair(x: Any, y: Any) -> Pair:
  """Pixels 0..255 and labels as tensors."""
  import torch

  return torch.tensor(x).float() / 255, torch.tensor(y).long()


def share(pair: Pair, answer: Callable[[Any], Any]) -> float:
  """The share of rows that `answer(x)` classifies rightly by its logits."""
  import torch

  x, y = pair
  with torch.no_grad():
    return float((answer(x).argmax(dim=1) == y).float().mean())


def accuracy(tensors: Tensors, answer: Callable[[Any, Any], Any]) -> float:
  """Mean over tasks 0 and 1 of the share of test rows that `answer(x, task)` classifies rightly by its logits."""
  import torch

  def of(t: int) -> float:
    return share(tensors[2 + t], lambda x: answer(x, torch.full((len(x),), t)))

  return (of(0) + of(1)) / 2
