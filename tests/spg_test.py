"""SPG against plain numpy in float64; what matters wholly keeps its bits; the first task is fine-tuned."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.data.sample import fetch
from cljax.methods import METHODS
from cljax.methods.spg import softened
from cljax.nets import CNN, MLP
from cljax.ops.slots import largest_of_live
from cljax.pieces.optimizers import sgd
from cljax.types import Place
from tests.tiers import at_release
from tests.walks import B, C, T, Walk, batches, double, gradients, pulled_back, stream

RATE, STEPS = 0.3, 5


def walk(net, tx, heads=T, **keywords):
  return Walk(METHODS["spg"](net, tx, stream(heads)[0], batch_size=B, **keywords), STEPS, heads)


@functools.cache
def plainly(heads=T):
  return walk(MLP(heads, C, (8,)), sgd(RATE), heads).states()


def follow(w, gamma, t, heads):
  """One task in numpy by plain SGD."""
  whole = np.concatenate([leaf.ravel() for leaf in gamma.values()]).mean()
  for k in range(STEPS):
    batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches(t, STEPS, heads))
    slope, _ = gradients(w, batch.x, batch.y, t)
    held = {"first": {leaf: (1 - gamma[leaf]) * slope["first"][leaf] for leaf in gamma}}
    held["head"] = {leaf: (1 - whole) * slope["head"][leaf] for leaf in gamma}
    w = jax.tree.map(lambda w, g: w - RATE * g, w, held)
  return w


def tanh_of(g):
  return np.abs(np.tanh((g - g.mean()) / g.std(ddof=1)))


def importance(w, t, heads):
  """Of the first layer, over all of the task's rows: through its own head, and through those of earlier tasks."""
  _, data, views = stream(heads)
  rows = data.tasks.train.idx[t, : data.tasks.train.count[t]]
  batch = jax.jit(fetch)(views[t], Place(jnp.full(rows.shape, t), jnp.asarray(rows)))
  found = [gradients(w, batch.x, batch.y, t)[0]["first"]]
  for head in range(t if heads > 1 else 0):
    found.append(pulled_back(w, batch.x, np.full(len(rows), head), np.ones((len(rows), C)))[0]["first"])
  return [{leaf: tanh_of(each[leaf]) for leaf in each} for each in found]


@pytest.mark.parametrize("heads", [T, 1])
def test_steps_and_importances_are_those_of_a_plain_implementation(heads):
  found = plainly(heads)
  w, gamma = double(found[0][0].params), {"kernel": np.zeros((16, 8)), "bias": np.zeros(8)}
  for t in range(T):
    w = follow(w, gamma, t, heads)
    for each in importance(w, t, heads):
      gamma = jax.tree.map(np.maximum, gamma, each)
    (after,) = found[t + 1]
    chex.assert_trees_all_close(double(after.params), w, atol=1e-5)
    chex.assert_trees_all_close(double(after.importance), {"first": gamma}, atol=2e-5)
  assert 0.3 < gamma["kernel"].mean() < 1


def test_earlier_heads_may_be_left_out():
  """Then a task's importances are those of its own head; without a second task both are the same."""
  alone, all_heads = walk(MLP(T, C, (8,)), sgd(RATE), across_heads=False).states(), plainly()
  chex.assert_trees_all_equal(alone[1][0], all_heads[1][0])
  (before,), (after,) = alone[1:3]
  own = importance(double(after.params), 1, T)[0]
  wanted = jax.tree.map(np.maximum, double(before.importance["first"]), own)
  chex.assert_trees_all_close(double(after.importance["first"]), wanted, atol=2e-5)
  assert (np.asarray(all_heads[2][0].importance["first"]["kernel"]) > after.importance["first"]["kernel"]).any()


@pytest.mark.parametrize(
  ("net", "tx"),
  [
    (MLP(T, C, (8,)), optax.adamw(0.05, weight_decay=0.1)),
    *at_release((CNN(T, C, channels=(3, 4), hidden=(6,)), optax.sgd(0.1, 0.9))),
  ],
)
def test_what_matters_wholly_keeps_its_bits(net, tx):
  """With importances of 1 everywhere earlier answers do, and of 1 somewhere the parameters there; whatever momentum."""
  method = walk(net, tx).method
  (phase,) = method.phases

  def leave(key, state, view, clock):
    return state.replace(importance=jax.tree.map(lambda gamma: jnp.ones_like(gamma), state.importance))

  whole = Walk(method._replace(phases=(phase._replace(exit=leave),)), STEPS).check_old_logits_keep_their_bits()
  chex.assert_trees_all_equal(whole[1][0].params["first"], whole[3][0].params["first"])
  some = jax.tree.map(lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 2.0, whole[1][0].importance)
  step = jax.jit(phase.step)
  state, batch = whole[1][0].replace(importance=some), jax.tree.map(lambda leaf: leaf[0], batches(1, STEPS))
  after, _ = step(jax.random.key(0), state, batch, None, stream()[2][1])
  for name, held in some.items():
    for leaf in held:
      same = np.asarray(after.params[name][leaf]) == np.asarray(state.params[name][leaf])
      assert same[np.asarray(held[leaf]) == 1].all() and not same.all(), (name, leaf)


def test_the_first_task_is_fine_tuned():
  """Bit for bit, and earlier heads stay as their tasks left them."""
  states = plainly()
  tuned = Walk(METHODS["finetune"](MLP(T, C, (8,)), sgd(RATE), stream()[0], block=1), STEPS).states()
  chex.assert_trees_all_equal(states[1][0].params, tuned[1][0].params)
  heads = [np.asarray(states[t][0].params["head"]["kernel"]) for t in (1, 3)]
  np.testing.assert_array_equal(heads[0][:, :C], heads[1][:, :C])
  assert (heads[0][:, C:] != heads[1][:, C:]).any()


def test_a_gradient_is_normalised_within_its_tensor():
  """By the deviation of n - 1 entries, so that even a gradient of 0 matters; but not where all are alike, or alone."""
  soft = jax.jit(softened)
  np.testing.assert_allclose(soft(jnp.array([0.0, 0, 0, 3])), np.tanh([0.5, 0.5, 0.5, 1.5]), rtol=1e-6)
  np.testing.assert_array_equal(soft(jnp.full((2, 3), 0.25)), np.zeros((2, 3)))
  np.testing.assert_array_equal(soft(jnp.array([7.0])), [0])


def test_the_largest_of_live_slots():
  leaves = jnp.array([[1.0, 5.0], [3.0, -1.0], [9.0, 9.0]])
  largest = jax.jit(lambda live: largest_of_live(lambda s: leaves[s], live))
  np.testing.assert_array_equal(largest(jnp.array([True, True, False])), [3, 5])
  np.testing.assert_array_equal(largest(jnp.array([False, True, False])), [3, 0])
  np.testing.assert_array_equal(largest(jnp.zeros(3, bool)), [0, 0])
