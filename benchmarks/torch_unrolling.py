"""The segment of `unrolling.py` in PyTorch: the student's gradient is part of the graph (`create_graph=True`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cljax.meta.unroll import Nets
from cljax.types import Batch

EPSILON = 1e-8


def eager(
  theta: Mapping[str, Mapping[str, np.ndarray]],
  nets: Nets,
  batches: Batch,
  *,
  names: Sequence[str],
  classes: int,
  old: int,
  alpha: float,
  scale: float,
) -> Callable[[], tuple[Any, dict[str, dict[str, np.ndarray]]]]:
  """What gives (the mean loss of a segment, its derivative by theta) of an MLP whose layers have these names."""
  import torch
  from torch.nn import functional as F

  torch.set_num_threads(1)

  def tensors(tree: Any) -> Any:
    if isinstance(tree, Mapping):
      return {name: tensors(each) for name, each in tree.items()}
    return torch.tensor(np.array(tree))

  xs = torch.tensor(np.array(batches.x)).flatten(2)
  ys, tasks = torch.tensor(np.array(batches.y)).long(), torch.tensor(np.array(batches.task)).long()
  begun, memory = tensors(nets.student), {name: torch.tensor(np.array(leaf)) for name, leaf in nets.memory.items()}

  def forward(w: Any, x: Any) -> tuple[Any, dict[str, Any]]:
    acts = {}
    for name in names:
      z = x @ w[name]["kernel"] + w[name]["bias"]
      out = F.relu(z)
      acts[name] = [each.mean(0).detach() for each in (x, z, out)]
      x = out
    return x, acts

  def loss_of(w: Any, features: Any, y: Any, task: Any) -> Any:
    logits = (features @ w["head"]["kernel"] + w["head"]["bias"]).reshape(len(y), -1, classes)
    return F.cross_entropy(logits[torch.arange(len(y)), task], y)

  def lstm(own: Any, state: Any, blocks: Sequence[Any]) -> tuple[Any, Any]:
    coming = sum(block @ own[name] for block, name in zip(blocks, ("weights", "gradients", "pre", "post"), strict=True))
    hs, cs, given = [], [], None
    for l in range(state.shape[1]):
      coming = coming if given is None else given @ own["stacked"][l - 1]
      enters, stays, new, leaves = (coming + state[0, l] @ own["recurrent"][l] + own["gates"][l]).chunk(4, -1)
      cs.append(torch.sigmoid(stays) * state[1, l] + torch.sigmoid(enters) * torch.tanh(new))
      hs.append(torch.sigmoid(leaves) * torch.tanh(cs[-1]))
      given = F.relu(hs[-1])
    return given, torch.stack([torch.stack(hs), torch.stack(cs)])

  def multiplier(own: Any, state: Any, w: Any, g: Any, acts: Sequence[Any]) -> tuple[Any, Any]:
    kernel = w.dim() == 2
    pre = acts[0] if kernel else acts[1][:, None]
    turned = (w.detach(), g.detach()) if kernel else (w.detach()[None], g.detach()[None])
    blocks = [turned[0].T, turned[1].T, pre, acts[2][:, None]]
    blocks = [block * torch.rsqrt(block.square().mean() + EPSILON) for block in blocks]
    given, state = lstm(own, state, blocks)
    delta = own["scale"] * torch.tanh(given @ own["out"] + own["bias"])
    return (delta.T if kernel else delta[:, 0]), state

  def plain(w: Any, x: Any, y: Any, task: Any) -> Any:
    leaves = {n: {leaf: each.detach().requires_grad_() for leaf, each in own.items()} for n, own in w.items()}
    flat = [each for own in leaves.values() for each in own.values()]
    slopes = iter(torch.autograd.grad(loss_of(leaves, forward(leaves, x)[0], y, task), flat))
    return {n: {leaf: (each - alpha * next(slopes)).detach() for leaf, each in own.items()} for n, own in w.items()}

  def student(meta: Any, w: Any, states: Any, x: Any, y: Any, task: Any) -> tuple[Any, Any]:
    features, acts = forward(w, x)
    flat = [each for own in w.values() for each in own.values()]
    slopes = iter(torch.autograd.grad(loss_of(w, features, y, task), flat, create_graph=True))
    after: Any = {}
    held = {}
    for n, own in w.items():
      after[n] = {}
      for leaf, each in own.items():
        g, tensor = next(slopes), f"{n}/{leaf}"
        delta = 1.0
        if tensor in meta:
          delta, held[tensor] = multiplier(meta[tensor], states[tensor], each, g, acts[n])
        after[n][leaf] = each - alpha * delta * g
    return after, held

  def run() -> tuple[Any, dict[str, dict[str, np.ndarray]]]:
    meta = {
      n: {leaf: torch.tensor(np.array(w)).requires_grad_() for leaf, w in own.items()} for n, own in theta.items()
    }
    teacher = begun
    w = {n: {leaf: each.clone().requires_grad_() for leaf, each in own.items()} for n, own in begun.items()}
    states, losses = memory, []
    for x, y, task in zip(xs, ys, tasks, strict=True):
      teacher = plain(teacher, x, y, task)
      w, states = student(meta, w, states, x[old:], y[old:], task[old:])
      with torch.no_grad():
        target = forward(teacher, x)[0]
      losses.append(scale * F.huber_loss(forward(w, x)[0], target))
    total = torch.stack(losses).mean()
    total.backward()
    return total.item(), {n: {leaf: each.grad.numpy() for leaf, each in own.items()} for n, own in meta.items()}

  return run
