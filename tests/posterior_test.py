"""Configurations, their posterior and prior, by numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.ops import posterior as ops

P = np.log(np.array([[0.8, 0.5], [0.4, 0.5], [0.6, 0.25], [0.2, 0.5]], np.float32))  # [K, B] p(y_i) under c0..c3
LIVE = np.ones(2, bool)
UNIFORM = np.full(4, 0.25, np.float32)


def test_the_first_choice_toggles_fastest():
  np.testing.assert_array_equal(ops.configurations(2), [[1, 1], [0, 1], [1, 0], [0, 0]])
  assert ops.configurations(3)[0].all() and not ops.configurations(3)[-1].any()


def test_a_posterior_by_hand():
  q = ops.posterior(UNIFORM, ops.log_likelihood(P, LIVE))
  np.testing.assert_allclose(q, np.array([8, 4, 3, 2]) / 17, rtol=1e-6)
  shared = q @ ops.configurations(2).astype(np.float32)
  np.testing.assert_allclose(shared, [11 / 17, 12 / 17], rtol=1e-6)
  q = ops.posterior(UNIFORM, ops.log_likelihood(P, LIVE, mean=True))
  np.testing.assert_allclose(q, np.array([26, 18, 17, 14]) / 75, rtol=1e-6)


def test_the_prior_counts_the_most_probable():
  likelihood = ops.log_likelihood(P, LIVE)
  weights = jnp.zeros(4)
  np.testing.assert_allclose(ops.prior_of(weights, 1.0), UNIFORM)
  weights = ops.counted(weights, ops.posterior(ops.prior_of(weights, 1.0), likelihood), whole=False)
  np.testing.assert_allclose(ops.prior_of(weights, 1.0), np.array([2, 1, 1, 1]) / 5)
  q = ops.posterior(ops.prior_of(weights, 1.0), likelihood)
  np.testing.assert_allclose(q, [0.64, 0.16, 0.12, 0.08], atol=1e-6)
  np.testing.assert_allclose(ops.prior_of(ops.counted(weights, q, whole=False), 1.0), np.array([3, 1, 1, 1]) / 6)


def test_the_prior_is_the_mean_of_the_posteriors():
  likelihood, weights, found = ops.log_likelihood(P, LIVE, mean=True), jnp.zeros(4), []
  for _ in range(2):
    q = ops.posterior(ops.prior_of(weights, 0.0), likelihood)
    weights = ops.counted(weights, q, whole=True)
    found.append(q)
  np.testing.assert_allclose(found[1], [0.4552, 0.2182, 0.1946, 0.1320], atol=1e-4)
  np.testing.assert_allclose(ops.prior_of(weights, 0.0), [0.4009, 0.2291, 0.2106, 0.1593], atol=1e-4)


def test_counts_of_many_batches():
  """Priors sum to 1, are at least 1 / (N + K), and a likelihood times a constant changes no posterior."""
  random, weights = np.random.default_rng(0), jnp.zeros(8)
  for n in range(20):
    likelihood = random.normal(size=8).astype(np.float32)
    prior = ops.prior_of(weights, 1.0)
    q = ops.posterior(prior, likelihood)
    np.testing.assert_allclose(ops.posterior(prior, likelihood - 60), q, atol=1e-5)
    np.testing.assert_allclose(prior.sum(), 1, rtol=1e-6)
    assert prior.min() >= 1 / (n + 8) - 1e-7 and weights.sum() == n
    weights = ops.counted(weights, q, whole=False)


def test_dead_rows_explain_nothing_and_ties_go_to_the_first():
  for mean in (False, True):
    with_dead = np.concatenate([P, np.full((4, 1), -50, np.float32)], axis=1)
    found = ops.log_likelihood(with_dead, np.array([True, True, False]), mean)
    np.testing.assert_allclose(found, ops.log_likelihood(P, LIVE, mean), rtol=1e-6)
  np.testing.assert_array_equal(ops.counted(jnp.zeros(4), jnp.asarray(UNIFORM), whole=False), [1, 0, 0, 0])


def test_a_hopeless_batch_still_has_a_posterior():
  """Its product would be 0 in float32."""
  q = ops.posterior(UNIFORM, np.array([-300, -290, -310, -299], np.float32))
  np.testing.assert_allclose(q, np.exp([-10, 0, -20, -9]) / np.exp([-10, 0, -20, -9]).sum(), rtol=1e-5)


def test_a_fixed_posterior():
  np.testing.assert_allclose(ops.leaning(0.5, 3, 16), np.where(np.arange(16) == 3, 0.5, 0.5 / 15), rtol=1e-6)
  np.testing.assert_array_equal(ops.leaning(1.0, 0, 4), [1, 0, 0, 0])


def test_effective_configurations():
  assert float(ops.effective(jnp.asarray(UNIFORM))) == pytest.approx(4)
  assert float(ops.effective(jnp.array([1.0, 0, 0, 0]))) == pytest.approx(1)


def test_the_norm_of_what_is_not_orthogonal():
  """3 sqrt(n) at twice the identity, and a slope of 0, not nan, at an orthogonal matrix."""
  for n in (2, 5):
    assert float(ops.orthogonality(2 * jnp.eye(n))) == pytest.approx(3 * np.sqrt(n))
  value, slope = jax.value_and_grad(ops.orthogonality)(jnp.eye(3))
  assert value == 0 and (slope == 0).all()


def test_limits_of_the_uniform_distribution():
  assert ops.glorot_limit((3, 3, 4, 8)) == pytest.approx(np.sqrt(6 / (9 * 12)))
  assert ops.glorot_limit((12,)) == pytest.approx(0.5)
