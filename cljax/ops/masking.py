"""Which weights of each layer belong to a task: a rule that turns scores into masks."""

from collections.abc import Callable, Mapping

from cljax.ops import masks, trees
from cljax.types import Array

Layers = dict[str, Array]  # by the layer's path

LADDER = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)  # shares of a layer that `accuracy` tries
KINDS = ("topk", "threshold", "accuracy")


def most(kind: str, size: int, share: float) -> int:
  """The most weights that a mask can have in a layer of `size` weights: a `share` of it for `topk`, else half."""
  return max(1, round(share * size)) if kind == "topk" else -(-size // 2)


def largest(z: Layers, counts: Mapping[str, int]) -> Layers:
  """The mask of the `counts` largest scores of each layer."""
  return {name: masks.top_mask(z[name], counts[name]) for name in counts}


def select_masks(
  kind: str,
  z: Layers,
  counts: Mapping[str, int],
  *,
  above: Array | float,
  accuracy_of: Callable[[Layers], Array],
  needed: Array | float,
) -> Layers:
  """A task's masks from its normalised scores z.

  Args:
    kind: `topk`, the `counts` largest; `threshold`, scores over `above`, at most `counts`; `accuracy`, the smallest
      share of `LADDER`, the same in each layer, whose `accuracy_of` reaches `needed`, or else half of each layer.
    accuracy_of: masks -> [] accuracy of the net inside them.
  """
  if kind == "topk":
    return largest(z, counts)
  rank = {name: masks.ranked(z[name]) for name in counts}
  if kind == "threshold":
    return {name: (z[name] > above) & (rank[name] < counts[name]) for name in counts}
  best = largest(z, counts)
  for share in LADDER[::-1]:
    mask = {name: rank[name] < max(1, round(share * z[name].size)) for name in counts}
    best = trees.where(accuracy_of(mask) >= needed, mask, best)
  return best
