"""Masks, saliency and onsets by hand, and against slower ways to the same numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cljax.errors import ConfigError
from cljax.methods.subnetwork import saliency
from cljax.methods.subnetwork.subnets import kernels
from cljax.nets import CNN, MLP
from cljax.nets.taps import derivatives
from cljax.ops import masks, onset


@pytest.mark.parametrize("shape", [(3,), (8,), (5, 7), (2, 3, 5)])
def test_packing_is_lossless_and_small(shape):
  mask = jax.random.bernoulli(jax.random.key(0), 0.3, shape)
  bits = masks.pack(mask)
  assert bits.dtype == jnp.uint8 and bits.nbytes == -(-mask.size // 8)
  np.testing.assert_array_equal(masks.unpack(bits, shape), mask)


def test_a_tiny_mask():
  score = jnp.array([0.9, 0.1, 0.5, 0.5])
  np.testing.assert_array_equal(masks.top_mask(score, 2), [True, False, True, False])
  np.testing.assert_allclose(masks.normalised(score), [1.8, 0.2, 1, 1], rtol=1e-6)
  one, other = jnp.array([1, 0, 1, 0], bool), jnp.array([1, 1, 0, 0], bool)
  assert int(masks.hamming(one, other)) == 2 and float(masks.overlap(one, other)) == 0.5
  assert float(masks.overlap(jnp.zeros(4, bool), one)) == 0
  np.testing.assert_array_equal(masks.normalised(jnp.zeros(3)), 0)


def test_the_top_with_ties_is_that_of_sorting():
  """Of numbers of both signs and all sizes, the extremes among them, and for every k of one program."""
  draw = np.random.default_rng(0)
  score = np.float32(draw.normal(size=60) * 10.0 ** draw.integers(-30, 30, 60)).reshape(6, 10)
  score[0, :4], score[1, :4] = (0, 3e38, -3e38, 1e-38), score[2, 0]
  top = jax.jit(masks.top_with_ties)
  for k in range(1, 61):
    np.testing.assert_array_equal(top(score, k), score >= np.sort(score, axis=None)[60 - k], err_msg=str(k))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_top_mask_takes_k_and_ranks_agree(k):
  score = jnp.round(jax.random.uniform(jax.random.key(1), (4, 5)), 1)  # with ties
  mask = masks.top_mask(score, k)
  assert int(mask.sum()) == k
  assert float(jnp.where(mask, score, 9).min()) >= float(jnp.where(mask, -1, score).max())
  np.testing.assert_array_equal(masks.ranked(score) < k, mask)
  stable = np.argsort(-np.asarray(score).ravel(), kind="stable")[:k]
  np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(stable))


def test_deviation():
  new, old = jnp.array([1.0, 2.0, 9.0]), jnp.array([2.0, 2.0, 1.0])
  assert float(masks.deviation(new, old, jnp.array([True, True, False]))) == pytest.approx(0.25)
  assert float(masks.deviation(new, old, jnp.zeros(3, bool))) == 0


def test_masked_copies_leave_the_weights_alone():
  weights = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
  kept = masks.keep_only(weights, {"a": jnp.array([True, False]), "b": None})
  np.testing.assert_array_equal(kept["a"], [1, 0])
  np.testing.assert_array_equal(kept["b"], [3])
  np.testing.assert_array_equal(weights["a"], [1, -2])


def test_a_frozen_weight_keeps_its_bits_under_adam():
  """A zeroed gradient would move it by .67 of the rate: Adam's momentum goes on."""
  tx = optax.adam(0.1)
  weights = jnp.array([1.0, -0.0])
  opt_state = tx.init(weights)
  updates, opt_state = tx.update(jnp.ones(2), opt_state, weights)
  weights = optax.apply_updates(weights, updates)
  updates, _ = tx.update(jnp.zeros(2), opt_state, weights)
  np.testing.assert_allclose(updates, -0.067006, atol=1e-5)  # the leak
  frozen = jnp.array([True, True])
  negative = jnp.array([float(weights[0]), -0.0])
  held = masks.step_free(negative, jnp.array([0.5, 0.0]), frozen)
  assert np.asarray(held).tobytes() == np.asarray(negative).tobytes()
  np.testing.assert_array_equal(masks.step_free(weights, updates, ~frozen), weights + updates)


def net_and_rows(B=6, net=None):
  net = net or MLP(heads=1, classes=5, hidden=(7, 4))
  x, y = jax.random.uniform(jax.random.key(2), (B, 5, 5, 2)), jnp.arange(B) % 5
  params = jax.jit(net.init)(jax.random.key(3), x, jnp.zeros(B, jnp.int32))["params"]
  return net, params, x, y


NETWORKS = {
  "mlp": MLP(heads=1, classes=5, hidden=(7, 4)),
  "cnn": CNN(heads=1, classes=5, channels=(3, 4), hidden=(6,)),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_scores_equal_those_of_every_example_s_own_gradient(network):
  net, params, x, y = net_and_rows(net=NETWORKS[network])

  def one(params, x, y):
    logits = net.apply({"params": params}, x[None], jnp.zeros(1, jnp.int32)).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, y[None])[0]

  weights, zero = kernels(params, params), jnp.zeros(6, jnp.int32)

  def losses(out):
    return optax.softmax_cross_entropy_with_integer_labels(out.logits, y)

  @jax.jit
  def both(params):
    each = kernels(jax.vmap(jax.grad(one), (None, 0, 0))(params, x, y), params)
    wanted = {
      "grad": {name: jnp.abs(g).mean(axis=0) for name, g in each.items()},
      "taylor": {name: jnp.abs(g * weights[name]).mean(axis=0) for name, g in each.items()},
      "fisher": {name: (g**2).mean(axis=0) for name, g in each.items()},
    }
    slopes, hidden = derivatives(net, {"params": params}, x, zero, losses), tuple(weights)[:-1]
    mean = saliency.mean_score(slopes, hidden, jnp.ones(6, bool))
    return wanted, {kind: saliency.scores(net, params, x, zero, losses, kind) for kind in saliency.KINDS}, mean

  wanted, found, mean = both(params)
  assert set(wanted) == set(saliency.KINDS)
  chex.assert_trees_all_close(found, wanted, atol=1e-6)
  flat = np.concatenate([np.asarray(wanted["grad"][name]).ravel() for name in tuple(weights)[:-1]])
  np.testing.assert_allclose(mean, flat.mean(), rtol=1e-5)


def test_biases_and_scales_are_scored_where_asked():
  """Of one example the score is the size of its gradient."""

  class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, slot):
      return nn.LayerNorm(name="norm")(nn.Dense(3, name="dense")(x))

  net, x, zero = Normalised(), jnp.array([[1.0, -2.0]]), jnp.zeros(1, jnp.int32)
  params = {
    "dense": {"kernel": jnp.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]), "bias": jnp.array([0.1, 0.2, 0.3])},
    "norm": {"scale": jnp.array([2.0, -1.0, 0.5]), "bias": jnp.zeros(3)},
  }

  def losses(out):
    return (out**2).sum(axis=1)

  @jax.jit
  def both():
    gradient = jax.grad(lambda params: losses(net.apply({"params": params}, x, zero))[0])(params)
    return gradient, {leaf: saliency.scores(net, params, x, zero, losses, leaf=leaf) for leaf in ("bias", "scale")}

  gradient, found = both()
  assert set(found["bias"]) == {"dense", "norm"} and set(found["scale"]) == {"norm"}
  for leaf, scores in found.items():
    for layer, score in scores.items():
      np.testing.assert_allclose(score, np.abs(gradient[layer][leaf]), rtol=1e-4)


def test_opposite_gradients_do_not_cancel():
  net = MLP(heads=1, classes=2, hidden=(1,))
  params = net.init(jax.random.key(0), jnp.ones((1, 1)), jnp.zeros(1, jnp.int32))["params"]
  params = jax.tree.map(lambda leaf: jnp.ones_like(leaf), params)
  x, sign = jnp.ones((2, 1)), jnp.array([1.0, -1.0])
  found = saliency.scores(net, params, x, jnp.zeros(2, jnp.int32), lambda out: sign * out.logits[:, 0])
  np.testing.assert_allclose(found["first"], [[1.0]])


def test_an_unknown_score_is_refused():
  net, params, x, _ = net_and_rows()
  with pytest.raises(ConfigError, match="grad, taylor, fisher"):
    saliency.scores(net, params, x, jnp.zeros(6, jnp.int32), lambda out: out.logits[:, 0], "hessian")


def onsets(scores, needed=2, factor=3.0, quantile=0.99, warmup=0, window=50):
  detector, found, fired = onset.quiet(window, needed), [], []
  for score in scores:
    detector, fires, is_onset = onset.watch(
      detector, jnp.float32(score), factor=factor, quantile=quantile, warmup=warmup
    )
    fired.append(bool(fires))
    found.append(bool(is_onset))
  return fired, found


def test_two_firing_batches_are_an_onset():
  fired, found = onsets([1, 1, 1, 50, 60])
  assert fired == [False] * 3 + [True, True] and found == [False] * 4 + [True]


def test_a_single_spike_is_none_and_does_not_raise_the_bar():
  fired, found = onsets([1, 1, 1, 50, 1, 1, 1, 4, 4])
  assert not any(found[:8]) and found[8] and fired[7]


def test_nothing_fires_while_it_warms_up():
  assert not any(onsets([1, 1, 1, 50, 60, 70], warmup=6)[0])
  assert not any(onsets([100, 200])[0])  # and never before there is a history


def test_a_half_new_batch_does_not_hide_the_onset():
  """The score rises below the bar first: it waits outside the history while the next ones are judged."""
  assert onsets([1.0] * 10 + [2.9, 20, 20], quantile=1.0)[1][-1]
  assert onsets([1.0] * 10 + [2.9, 4, 4], quantile=1.0)[1][-1]  # with 2.9 in the history the bar would be 8.7


def test_scores_that_are_not_finite_fire():
  assert onsets([1, 1, 1, float("nan"), float("inf")])[1][-1]


def test_the_history_is_a_window():
  fired, _ = onsets([9] * 5 + [1] * 12 + [5], window=8, quantile=1.0)
  assert fired[-1]  # the nines are gone
  assert not onsets([9] * 5 + [1] * 6 + [5], window=50, quantile=1.0)[0][-1]


def test_a_known_bar_asks_for_batches_in_a_row():
  detector, found = onset.quiet(4, 2), []
  for score in (0.9, 0.5, 0.9, float("nan"), 0.8):
    detector, fires, noticed = onset.watch_level(detector, jnp.float32(score), 0.8)
    found.append((bool(fires), bool(noticed)))
  assert found == [(True, False), (False, False), (True, False), (True, True), (False, False)]
