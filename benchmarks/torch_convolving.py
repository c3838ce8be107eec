"""The net of `convolving.py` in eager PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cljax.types import PyTree


def eager(
  params: PyTree,
  xs: np.ndarray,
  ys: np.ndarray,
  *,
  pools: Sequence[int],
  optimizer: Callable[[Any, Sequence[Any]], Any],
) -> Callable[[], PyTree]:
  """What takes a step on each batch from cljax's weights, and gives the weights as cljax has them.

  Args:
    optimizer: (torch.optim, weights) -> what takes the steps.
  """
  import torch
  from torch.nn import functional as F

  torch.set_num_threads(1)
  images = [torch.tensor(x.transpose(0, 3, 1, 2).copy()) for x in xs]
  labels = [torch.tensor(y).long() for y in ys]
  names = [f"Conv_{l}" for l in range(len(pools))]

  def logits(own: dict[str, Any], x: Any) -> Any:
    for name, size in zip(names, pools, strict=True):
      x = F.relu(F.conv2d(x, own[name]["kernel"], own[name]["bias"], padding=1))
      x = F.max_pool2d(x, size) if size > 1 else x
    x = x.permute(0, 2, 3, 1).flatten(1)  # as cljax orders them: channels last
    x = F.relu(x @ own["Dense_0"]["kernel"] + own["Dense_0"]["bias"])
    return x @ own["Dense_1"]["kernel"] + own["Dense_1"]["bias"]

  def run() -> PyTree:
    own = {layer: {leaf: torch.tensor(np.array(w)) for leaf, w in leaves.items()} for layer, leaves in params.items()}
    for name in names:
      own[name]["kernel"] = own[name]["kernel"].permute(3, 2, 0, 1).contiguous()
    weights = [w.requires_grad_() for leaves in own.values() for w in leaves.values()]
    rule = optimizer(torch.optim, weights)
    for x, y in zip(images, labels, strict=True):
      rule.zero_grad()
      F.cross_entropy(logits(own, x), y).backward()
      rule.step()
    found = {layer: {leaf: w.detach() for leaf, w in leaves.items()} for layer, leaves in own.items()}
    for name in names:
      found[name]["kernel"] = found[name]["kernel"].permute(2, 3, 1, 0)
    return {layer: {leaf: w.numpy() for leaf, w in leaves.items()} for layer, leaves in found.items()}

  return run
