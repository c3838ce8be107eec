"""Finding the subnetwork that a batch belongs to, from its pictures alone: each rule gives a number a slot, the least
is taken. A batch comes from one task; where a rule needs labels it takes the net's own answers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.errors import choose
from cljax.ops import masks
from cljax.ops.masking import Layers
from cljax.ops.slots import mean_of_live, over_live
from cljax.types import Array


class Known(NamedTuple):
  """What the rules may ask about the slots, and about the rows of one batch."""

  live: Array  # [S] bool, slots that can answer
  done: Array  # [S] bool, slots with a mask
  function: Callable[[Array], Any]  # slot -> the weights of its function
  expert: Callable[[Array], Any]  # slot -> the weights of its expert, whole
  logits: Callable[[Any], Array]  # weights -> [B, C]
  represent: Callable[
    [Any], dict[str, Array]
  ]  # weights -> `features` [B, F] of the last hidden layer, `pictures` [B, D]
  typical: Callable[[Array], dict[str, Array]]  # slot -> their [2, ...] mean and variance over rows of its own task
  scores: Callable[[Any], Layers]  # weights -> mean |dL/dw| with the weights' own answers as labels
  mask: Callable[[Array], Layers]  # slot -> its own mask
  stored: Callable[[Array], Array]  # slot -> [] sum of the scores on its mask when it was chosen
  largest: Callable[[Layers], Layers]  # scores -> the mask of the largest


def mean_entropy(logits: Array) -> Array:
  """[] mean over rows of the entropy of softmax(logits), nats."""
  chex.assert_rank(logits, 2)
  chex.assert_type(logits, float)
  log = jax.nn.log_softmax(logits, axis=-1)
  return -(jnp.exp(log) * log).sum(axis=-1).mean()


def entropy(known: Known) -> Array:
  """[S] how undecided each subnetwork answers."""
  return over_live(lambda s: mean_entropy(known.logits(known.function(s))), known.live)


def pseudo_grad(known: Known) -> Array:
  """[S] the gradients on each slot's mask, through its subnetwork, as a share of those stored."""

  def one(s):
    found, mask = known.scores(known.function(s)), known.mask(s)
    inside = sum(jnp.where(mask[name], found[name], 0).sum() for name in mask)
    return inside / jnp.maximum(known.stored(s), masks.EPSILON)

  return jnp.where(known.done, over_live(one, known.done), jnp.inf)


def entropy_slopes(function: Callable[[Array], Any], logits: Callable[[Any], Array], live: Array) -> Array:
  """[S] dH/dalpha of the superposition of the live slots' weights, each with weight alpha = 1/k, where H is the mean
  entropy of its answers; 0 of the others.

  Args:
    function: slot -> weights.
    logits: weights -> [B, C].
    live: [S] bool.
  """
  chex.assert_rank(live, 1)
  chex.assert_type(live, bool)
  slope = jax.grad(lambda weights: mean_entropy(logits(weights)))(mean_of_live(function, live))

  def along(s):
    return sum(jax.tree.leaves(jax.tree.map(lambda g, leaf: (g * leaf).sum(), slope, function(s))))

  return over_live(along, live)


def supsup_oneshot(known: Known) -> Array:
  """[S] the slope of the entropy by each subnetwork's share in a superposition of all (SupSup, Wortsman et al. 2020):
  the slot whose weight would lower it fastest."""
  return entropy_slopes(known.function, known.logits, known.live)


def hamming(known: Known) -> Array:
  """[S] the paper's words: the distance of the batch's own map, on the whole expert, from each stored map."""

  def one(s):
    new, old = known.largest(known.scores(known.expert(s))), known.mask(s)
    return sum(masks.hamming(new[name], old[name]) for name in old).astype(jnp.float32)

  return jnp.where(known.done, over_live(one, known.done), jnp.inf)


def nearest(name: str, known: Known) -> Array:
  """[S] how far the mean of the batch's `represent` lies from that of the slot's own task, in units of its variance.

  A tenth of the mean variance is added to each: what never varied there must not decide alone.
  """

  def one(s):
    mean, variance = known.typical(s)[name]
    found = known.represent(known.function(s))[name].mean(axis=0)
    scale = variance + 0.1 * variance.mean()
    return ((found - mean) ** 2 / jnp.where(scale > 0, scale, 1)).mean()

  return jnp.where(known.done, over_live(one, known.done), jnp.inf)


RULES: dict[str, Callable[[Known], Array]] = {
  "entropy": entropy,
  "features": partial(nearest, "features"),
  "pictures": partial(nearest, "pictures"),
  "pseudo_grad": pseudo_grad,
  "supsup_oneshot": supsup_oneshot,
  "hamming": hamming,
}


def infer(kind: str, known: Known) -> Array:
  """[] int32 the slot that a rule of `RULES` takes, -1 while there is none.

  Raises:
    ConfigError: an unknown rule.
  """
  chex.assert_rank([known.live, known.done], 1)
  chex.assert_type([known.live, known.done], bool)
  value = RULES[choose("rule", kind, RULES)](known)
  best = jnp.where(known.live, value, jnp.inf).argmin()
  return jnp.where(known.live.any(), best, -1).astype(jnp.int32)
