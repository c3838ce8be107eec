"""Where a new task goes: to the slot that knows it, to an expert with a similar task, or to a new expert (3.3, 3.4)."""

from typing import NamedTuple

import jax.numpy as jnp

from cljax.methods.subnetwork.keywords import Sharing
from cljax.methods.subnetwork.subnets import Subnets
from cljax.types import Array


class Assignment(NamedTuple):
  """The slot and the expert of a new task."""

  known: Array  # [] bool, a finished slot is that task
  shared: Array  # [] bool, an expert with a similar task has room
  full: Array  # [] bool, a new expert or slot is needed and there is none
  slot: Array  # [] int32
  expert: Array  # [] int32, the last one where it is full


def assign(
  subnets: Subnets, losses: Array, similarity: Array, share: Array, experts: int, rules: Sharing
) -> Assignment:
  """A known task first, then the most similar task whose expert has room, else a new expert (3.3, 3.4).

  Args:
    losses: [S] of the new task through each finished slot.
    similarity: [S] its overlap with each similar task, -1 for the others.
    share: [E, layers] what would be frozen of each expert.
    experts: that there is room for.
  """
  done, expert_of = subnets.done, subnets.expert_of
  losses = jnp.where(done, losses, jnp.inf)
  known = losses.min() <= rules.recurring_below
  limits = jnp.array([rules.capacity_hidden] * (share.shape[1] - 1) + [rules.capacity_output])
  room = (share <= limits).all(axis=1)
  good = done & (similarity >= 0) & room[expert_of]
  used = (expert_of >= 0).sum()
  similar = expert_of[jnp.where(good, similarity, -1).argmax()]
  expert = jnp.where(good.any(), similar, expert_of.max() + 1)
  full = ~known & ((expert >= experts) | (used >= len(done)))
  slot = jnp.where(known, losses.argmin(), used).astype(jnp.int32)
  expert = jnp.where(known, expert_of[slot], jnp.minimum(expert, experts - 1)).astype(jnp.int32)
  return Assignment(known, good.any(), full, slot, expert)
