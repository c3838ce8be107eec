"""Scores of weights, and the masks that they choose: subnetworks that are learnt by the derivative of their masks."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.ops.masks import pack, top_with_ties, unpack
from cljax.pieces.learner import Trained
from cljax.pieces.owners import first_owners, is_shared
from cljax.types import Array, Key, Spec

ByPath = dict[str, Array]  # of the kernels that have masks


@flax.struct.dataclass
class Scored(Trained):
  """A network and its subnetworks, one a task."""

  scores: Any = None  # by path, of the task in training
  bits: Any = None  # [T, bytes] uint8 by path: the packed masks of finished tasks, zeros of the others
  finished: Any = None  # [] int32 tasks

  def mask(self, t: Array) -> ByPath:
    """The mask of the finished task t []."""
    return {path: unpack(bits[t], self.scores[path].shape) for path, bits in self.bits.items()}

  def union(self) -> ByPath:
    """Which weights some finished task has."""
    return {
      path: unpack(jnp.bitwise_or.reduce(bits, axis=0), self.scores[path].shape) for path, bits in self.bits.items()
    }

  def ended(self, t: Array, masks: ByPath) -> Any:
    """The state once task t [] has these masks for good."""
    bits = {path: bits.at[t].set(pack(masks[path])) for path, bits in self.bits.items()}
    return self.replace(bits=bits, finished=t + 1)  # type: ignore[attr-defined]

  def params_of(self, t: Array, now: ByPath) -> Any:
    """What task t [] computes with; `now` are the masks of the task in training, and of those to come."""
    masks = {path: jnp.where(t < self.finished, mask, now[path]) for path, mask in self.mask(t).items()}
    return within(self.params, masks)


def no_masks(found: ByPath, tasks: int) -> ByPath:
  """The packed masks before the first task."""
  return {path: jnp.zeros((tasks, -(-leaf.size // 8)), jnp.uint8) for path, leaf in found.items()}


def kernels(params: Any, spec: Spec) -> ByPath:
  """The kernels that have masks: all but those of heads of single tasks."""
  owners = flatten_dict(first_owners(params, spec), sep="/")
  return {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if is_shared(owners[path], leaf)}


def drawn(key: Key, found: ByPath) -> ByPath:
  """Scores, uniform within 1 / sqrt(inputs) of 0."""
  scores = {}
  for k, (path, leaf) in enumerate(found.items()):
    most = (leaf.shape[-1] / leaf.size) ** 0.5
    scores[path] = jax.random.uniform(jax.random.fold_in(key, k), leaf.shape, minval=-most, maxval=most)
  return scores


def winners(ranks: ByPath, share: Array | float) -> ByPath:
  """The masks, bool, of the `share` of each kernel that ranks highest; of one weight at least."""
  return {path: top_with_ties(rank, jnp.maximum(jnp.round(share * rank.size), 1)) for path, rank in ranks.items()}


def straight_through(masks: ByPath, ranks: ByPath) -> ByPath:
  """The masks as numbers whose derivative by the ranks is 1."""
  through = jax.tree.map(lambda rank: rank - jax.lax.stop_gradient(rank), ranks)  # 0, with a derivative of 1
  return jax.tree.map(jnp.add, masks, through)


def within(params: Any, masks: ByPath) -> Any:
  """The params with their kernels times the masks."""
  return unflatten_dict(
    {path: leaf * masks[path] if path in masks else leaf for path, leaf in flatten_dict(params, sep="/").items()},
    sep="/",
  )
