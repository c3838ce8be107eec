"""PackNet against plain numpy in float64; old tasks keep their bits; without pruning it is fine-tuning in task 1."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.methods import METHODS
from cljax.methods.packnet import claimed
from cljax.nets import CNN, MLP
from cljax.pieces.optimizers import sgd
from tests.modes_test import Modal
from tests.walks import B, C, T, Walk, batches, double, gradients, stream

RATE, MOMENTUM, STEPS, SHARE = 0.2, 0.9, 4, 0.6


def walk(net, tx, heads=T, steps=STEPS, **keywords):
  return Walk(METHODS["packnet"](net(heads, C), tx, stream(heads)[0], batch_size=B, **keywords), steps, heads)


def small_mlp(heads, classes):
  return MLP(heads, classes, (8,))


def small_cnn(heads, classes):
  return CNN(heads, classes, channels=(3, 4), hidden=(6,))


def follow(w, t, free, heads):
  """One phase in numpy: SGD with momentum begun anew; entries move where the tree `free` is True."""
  speed = jax.tree.map(np.zeros_like, w)
  for k in range(STEPS):
    batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches(t, STEPS, heads))
    slope, _ = gradients(w, batch.x, batch.y, t)
    speed = jax.tree.map(lambda v, g: MOMENTUM * v + g, speed, slope)
    w = jax.tree.map(lambda w, v, free: np.where(free, w - RATE * v, w), w, speed, free)
  return w


def pruned(kernel, owner, t):
  """The layer with the smallest of its free weights at zero, of equal ones the last, and its owners."""
  free = np.flatnonzero(owner == -1)
  by_size = free[np.lexsort((-free, np.abs(kernel.ravel()[free])))]
  count = round(SHARE * len(free))
  owner, kernel = owner.copy(), kernel.copy()
  owner.ravel()[by_size[count:]] = t
  kernel.ravel()[by_size[:count]] = 0
  return kernel, owner


@pytest.mark.parametrize("heads", [T, 1])
def test_both_phases_are_those_of_a_plain_implementation(heads):
  found = walk(small_mlp, optax.sgd(RATE, MOMENTUM), heads, pruned_share=SHARE).states()
  w = double(found[0][0].params)
  owner = {name: np.full(w[name]["kernel"].shape, -1) for name in w}
  if heads > 1:
    owner["head"] = np.broadcast_to(np.repeat(np.arange(T), C), w["head"]["kernel"].shape)
  for t in range(T):
    for phase in (0, 1):
      own = {name: (owner[name] == t) | ((owner[name] == -1) & (phase == 0)) for name in w}
      free = {name: {"kernel": own[name], "bias": np.full(w[name]["bias"].shape, t == 0)} for name in w}
      free["head"]["bias"] = own["head"][0] if heads > 1 else free["head"]["bias"]
      w = follow(w, t, free, heads)
      if phase == 0:
        for name in ("first", "head")[: 2 if heads == 1 else 1]:
          w[name]["kernel"], owner[name] = pruned(w[name]["kernel"], owner[name], t)
      after = found[t + 1][phase]
      chex.assert_trees_all_close(double(after.params), w, atol=1e-5)
      for name in w:
        np.testing.assert_array_equal(
          np.broadcast_to(after.owner[name]["kernel"], owner[name].shape), owner[name], err_msg=f"{t} {phase} {name}"
        )


@pytest.mark.parametrize(
  ("net", "tx", "heads"),
  [
    (small_mlp, optax.adamw(0.05, weight_decay=0.1), T),
    (Modal, optax.adam(0.05), T),
    (small_cnn, optax.sgd(0.1, 0.9), 1),
  ],
  ids=["adamw", "dropout_and_statistics", "cnn_one_head"],
)
def test_old_tasks_keep_their_bits(net, tx, heads):
  states = walk(net, tx, heads).check_old_logits_keep_their_bits()
  first, last = states[1][-1], states[-1][-1]
  shares = [float((last.owner["first"]["kernel"] == t).mean()) for t in (*range(T), -1)]
  np.testing.assert_allclose(shares, [0.5, 0.25, 0.125, 0.125], atol=0.1)
  moved = jax.tree.map(lambda one, other: np.asarray(one) != np.asarray(other), first.params, last.params)
  assert moved["first"]["kernel"].any() and not moved["first"]["bias"].any()
  chex.assert_trees_all_equal(first.collections, last.collections)
  assert last.finished == T and last.owner["first"]["kernel"].dtype == jnp.int8


def test_a_task_in_training_computes_with_the_free_weights_and_others_without():
  own = walk(small_mlp, sgd(0.3))
  states = own.states()
  assert np.abs(own.logits(states[0][0], 0)).max() > 0  # before any training the whole network answers
  middle = states[1][-1].replace(
    params=jax.tree.map(lambda w, own: jnp.where(own == -1, 1.0, w), states[1][-1].params, states[1][-1].owner)
  )
  np.testing.assert_array_equal(own.logits(middle, 0), own.logits(states[1][-1], 0))
  assert (own.logits(middle, 1) != own.logits(states[1][-1], 1)).any()


def test_without_pruning_the_first_task_is_fine_tuned():
  """And all weights are its own, so that later tasks learn a head only."""
  packed = walk(small_mlp, sgd(0.3), retrain_epochs=0, pruned_share=0.0).states()
  tuned = Walk(METHODS["finetune"](small_mlp(T, C), sgd(0.3), stream()[0], block=1), STEPS).states()
  chex.assert_trees_all_equal(packed[1][-1].params, tuned[1][-1].params)
  chex.assert_trees_all_equal(packed[1][-1].params["first"], packed[-1][-1].params["first"])
  assert (np.asarray(packed[1][-1].params["head"]["kernel"]) != packed[-1][-1].params["head"]["kernel"]).any()


def test_of_equal_weights_as_many_are_given_back():
  owner = jnp.array([[-1, 0, -1], [-1, -1, 0]], jnp.int8)
  after = jax.jit(claimed)(owner, jnp.array([[1.0, 9.0, 1.0], [1.0, -1.0, 0.0]]), jnp.int32(2), 0.5)
  np.testing.assert_array_equal(after, [[2, 0, 2], [-1, -1, 0]])
  assert after.dtype == jnp.int8
