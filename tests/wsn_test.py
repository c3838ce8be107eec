"""Winning subnetworks against plain numpy in float64; what a finished task computes with keeps its bits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.methods import METHODS
from cljax.nets import CNN, MLP
from cljax.ops.masks import unpack
from cljax.pieces.optimizers import sgd
from cljax.pieces.scores import winners
from tests.walks import B, C, T, Walk, batches, double, gradients, stream

RATE, MOMENTUM, STEPS, SHARE = 0.2, 0.9, 5, 0.4


def walk(net, tx, heads=T, **keywords):
  return Walk(METHODS["wsn"](net, tx, stream(heads)[0], batch_size=B, winning_share=SHARE, **keywords), STEPS, heads)


def winning(score):
  """The mask of a layer's largest scores."""
  chosen = np.argsort(score.ravel())[score.size - round(SHARE * score.size) :]
  return np.isin(np.arange(score.size), chosen).reshape(score.shape)


def follow(w, scores, union, t, heads, size):
  """One task in numpy: SGD with momentum begun anew; masks of `scores` by size or by value."""
  rank = np.abs if size else np.array
  masked = list(scores)
  speed, score_speed = jax.tree.map(np.zeros_like, w), {name: 0.0 for name in masked}
  own = {"first": {"kernel": ~union["first"], "bias": np.full(8, t == 0)}}
  column = np.repeat(np.arange(T) == t, C)
  own["head"] = (
    {"kernel": column, "bias": column} if heads > 1 else {"kernel": ~union["head"], "bias": np.array(t == 0)}
  )
  for k in range(STEPS):
    batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches(t, STEPS, heads))
    inside = jax.tree.map(np.copy, w)
    masks = {name: winning(rank(scores[name])) for name in masked}
    for name in masked:
      inside[name]["kernel"] *= masks[name]
    slope, _ = gradients(inside, batch.x, batch.y, t)
    for name in masked:
      pull = slope[name]["kernel"] * w[name]["kernel"] * (np.sign(scores[name]) if size else 1)
      score_speed[name] = MOMENTUM * score_speed[name] + pull
      scores[name] = scores[name] - RATE * score_speed[name]
      slope[name]["kernel"] = slope[name]["kernel"] * masks[name]
    speed = jax.tree.map(lambda v, g: MOMENTUM * v + g, speed, slope)
    w = jax.tree.map(lambda w, v, own: np.where(own, w - RATE * v, w), w, speed, own)
  return w, scores, {name: winning(rank(scores[name])) for name in masked}


@pytest.mark.parametrize(("heads", "scored_by"), [(T, "size"), (1, "value")])
def test_steps_and_masks_are_those_of_a_plain_implementation(heads, scored_by):
  found = walk(MLP(heads, C, (8,)), optax.sgd(RATE, MOMENTUM), heads, scored_by=scored_by).states()
  w = double(found[0][0].params)
  scores = {path.split("/")[0]: leaf for path, leaf in double(found[0][0].scores).items()}
  assert set(scores) == ({"first"} if heads > 1 else {"first", "head"})
  union = {name: np.zeros(leaf.shape, bool) for name, leaf in scores.items()}
  for t in range(T):
    w, scores, masks = follow(w, scores, union, t, heads, scored_by == "size")
    union = {name: union[name] | masks[name] for name in union}
    (after,) = found[t + 1]
    chex.assert_trees_all_close(double(after.params), w, atol=1e-5)
    for name, mask in masks.items():
      np.testing.assert_allclose(after.scores[f"{name}/kernel"], scores[name], atol=1e-5)
      np.testing.assert_array_equal(unpack(after.bits[f"{name}/kernel"][t], mask.shape), mask)
  assert SHARE < union["first"].mean() < 1


@pytest.mark.parametrize(
  ("net", "tx", "heads"),
  [(MLP(T, C, (8,)), optax.adamw(0.05, weight_decay=0.1), T), (CNN(1, C, channels=(3, 4), hidden=(6,)), sgd(0.1), 1)],
  ids=["adamw", "cnn_one_head"],
)
def test_old_tasks_keep_their_bits(net, tx, heads):
  states = walk(net, tx, heads, carry_scores=False).check_old_logits_keep_their_bits()
  first, last = states[1][0], states[3][0]
  assert (np.asarray(first.params["first"]["kernel"]) != np.asarray(last.params["first"]["kernel"])).any()
  assert all(leaf.dtype == jnp.uint8 and leaf.shape[0] == T for leaf in last.bits.values())
  assert last.bits["first/kernel"].nbytes == T * -(-last.params["first"]["kernel"].size // 8)


def test_all_weights_win_where_the_share_is_one():
  """Then the first task is fine-tuned, bit for bit, and later ones learn a head only."""
  method = METHODS["wsn"](MLP(T, C, (8,)), sgd(0.3), stream()[0], batch_size=B, winning_share=1.0)
  won = Walk(method, STEPS).states()
  tuned = Walk(METHODS["finetune"](MLP(T, C, (8,)), sgd(0.3), stream()[0], block=1), STEPS).states()
  chex.assert_trees_all_equal(won[1][0].params, tuned[1][0].params)
  chex.assert_trees_all_equal(won[1][0].params["first"], won[3][0].params["first"])


def test_one_weight_wins_at_least():
  ranks = {"layer": jnp.array([[0.1, 3.0], [2.0, 0.5]])}
  chosen = jax.jit(winners)
  np.testing.assert_array_equal(chosen(ranks, 0.0)["layer"], [[False, True], [False, False]])
  np.testing.assert_array_equal(chosen(ranks, 0.5)["layer"], [[False, True], [True, False]])
