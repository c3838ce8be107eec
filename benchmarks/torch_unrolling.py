"""The segment of `unrolling.py` in PyTorch: the student's gradient is part of the graph (`create_graph=True`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cljax.meta.unroll import Nets
from cljax.types import Batch

EPSILON = 1e-8


class Segment(NamedTuple):
  """What a segment is made of; all arrays are torch's."""

  names: Sequence[str]  # of the layers below the heads
  classes: int
  alpha: float

  def forward(self, w: Any, x: Any) -> tuple[Any, dict[str, Any]]:
    """(features, [pre, mid, post] of each layer)."""
    acts = {}
    for name in self.names:
      z = x @ w[name]["kernel"] + w[name]["bias"]
      out = z.relu()
      acts[name] = [each.mean(0).detach() for each in (x, z, out)]
      x = out
    return x, acts

  def loss(self, w: Any, features: Any, y: Any, task: Any) -> Any:
    """The cross-entropy of each row's own head."""
    import torch

    logits = (features @ w["head"]["kernel"] + w["head"]["bias"]).reshape(len(y), -1, self.classes)
    return torch.nn.functional.cross_entropy(logits[torch.arange(len(y)), task], y)

  def plain(self, w: Any, x: Any, y: Any, task: Any) -> Any:
    """The weights after a step of SGD, outside the graph."""
    import torch

    leaves = {n: {leaf: each.detach().requires_grad_() for leaf, each in own.items()} for n, own in w.items()}
    flat = [each for own in leaves.values() for each in own.values()]
    slopes = iter(torch.autograd.grad(self.loss(leaves, self.forward(leaves, x)[0], y, task), flat))
    after = {n: {leaf: each - self.alpha * next(slopes) for leaf, each in own.items()} for n, own in w.items()}
    return {n: {leaf: each.detach() for leaf, each in own.items()} for n, own in after.items()}

  def ruled(self, meta: Any, w: Any, states: Any, x: Any, y: Any, task: Any) -> tuple[Any, Any]:
    """The weights and the states after a step of the rule, inside the graph."""
    import torch

    features, acts = self.forward(w, x)
    flat = [each for own in w.values() for each in own.values()]
    slopes = iter(torch.autograd.grad(self.loss(w, features, y, task), flat, create_graph=True))
    after: Any = {}
    held = {}
    for n, own in w.items():
      after[n] = {}
      for leaf, each in own.items():
        g, tensor, delta = next(slopes), f"{n}/{leaf}", 1.0
        if tensor in meta:
          delta, held[tensor] = multiplier(meta[tensor], states[tensor], each, g, acts[n])
        after[n][leaf] = each - self.alpha * delta * g
    return after, held


def lstm(own: Any, state: Any, blocks: Sequence[Any]) -> tuple[Any, Any]:
  """(what the stacked LSTM gives, its state)."""
  import torch

  coming = sum(block @ own[name] for block, name in zip(blocks, ("weights", "gradients", "pre", "post"), strict=True))
  hs: list[Any] = []
  cs: list[Any] = []
  for l in range(state.shape[1]):
    coming = hs[-1].relu() @ own["stacked"][l - 1] if l else coming
    enters, stays, new, leaves = (coming + state[0, l] @ own["recurrent"][l] + own["gates"][l]).chunk(4, -1)
    cs.append(torch.sigmoid(stays) * state[1, l] + torch.sigmoid(enters) * torch.tanh(new))
    hs.append(torch.sigmoid(leaves) * torch.tanh(cs[-1]))
  return hs[-1].relu(), torch.stack([torch.stack(hs), torch.stack(cs)])


def multiplier(own: Any, state: Any, w: Any, g: Any, acts: Sequence[Any]) -> tuple[Any, Any]:
  """(delta in the shape of w, the state) of a kernel or a bias."""
  import torch

  kernel = w.dim() == 2
  rows = (w.detach().T, g.detach().T) if kernel else (w.detach()[:, None], g.detach()[:, None])
  blocks = [*rows, acts[0] if kernel else acts[1][:, None], acts[2][:, None]]
  blocks = [block * torch.rsqrt(block.square().mean() + EPSILON) for block in blocks]
  given, state = lstm(own, state, blocks)
  delta = own["scale"] * torch.tanh(given @ own["out"] + own["bias"])
  return (delta.T if kernel else delta[:, 0]), state


def tensors(tree: Any, learnt: bool = False) -> Any:
  """The arrays of nested mappings as torch's, with a gradient where they are learnt."""
  import torch

  if isinstance(tree, Mapping):
    return {name: tensors(each, learnt) for name, each in tree.items()}
  return torch.tensor(np.array(tree)).requires_grad_(learnt)


def eager(
  theta: Any,
  nets: Nets,
  batches: Batch,
  *,
  segment: Segment,
  old: int,
  scale: float,
) -> Callable[[], tuple[Any, dict[str, dict[str, np.ndarray]]]]:
  """What gives (the mean loss of a segment, its derivative by theta) of an MLP.

  Args:
    old: leading rows that the student does not see.
    scale: of the loss.
  """
  import torch

  torch.set_num_threads(1)
  xs = tensors(batches.x).flatten(2)
  ys, tasks = tensors(batches.y).long(), tensors(batches.task).long()
  memory = tensors(nets.memory)

  def run() -> tuple[Any, dict[str, dict[str, np.ndarray]]]:
    meta, w, teacher, states = tensors(theta, True), tensors(nets.student, True), tensors(nets.teacher), memory
    losses = []
    for x, y, task in zip(xs, ys, tasks, strict=True):
      teacher = segment.plain(teacher, x, y, task)
      w, states = segment.ruled(meta, w, states, x[old:], y[old:], task[old:])
      with torch.no_grad():
        target = segment.forward(teacher, x)[0]
      losses.append(scale * torch.nn.functional.huber_loss(segment.forward(w, x)[0], target))
    total = torch.stack(losses).mean()
    total.backward()
    return total.item(), {n: {leaf: each.grad.numpy() for leaf, each in own.items()} for n, own in meta.items()}

  return run
