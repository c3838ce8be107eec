"""Gates: values and gradients by hand, the four samplers, usage, and the balancing losses against numpy and scipy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from cljax.ops import gating

top_k_mask = jax.jit(gating.top_k_mask, static_argnums=1)
top_k_gates = jax.jit(gating.top_k_gates, static_argnums=1)


@partial(jax.jit, static_argnums=3)
def noisy_topk(key, logits, sigma, k):
  return gating.noisy_topk(gating.NOISES["noisy_topk"](key, logits.shape), logits, sigma, k)


@partial(jax.jit, static_argnums=3)
def gumbel_topk(key, logits, scale, k):
  return gating.gumbel_topk(gating.NOISES["gumbel_topk"](key, logits.shape), logits, scale, k)


@jax.jit
def gumbel_matrix(key, logits, temperature):
  return gating.gumbel_matrix(gating.NOISES["gumbel_matrix"](key, logits.shape), logits, temperature)


unused_gates = jax.jit(gating.unused_gates)
importance_loss = jax.jit(gating.importance_loss)
load_loss = jax.jit(gating.load_loss, static_argnums=3)
ALL = np.ones(4, bool)

H = np.array([2, 1, 0, -1, 3], np.float32)
LOGITS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
TOP_K_SAMPLERS = {
  "none": lambda key, logits, k: top_k_gates(logits, k),
  "noisy_topk": lambda key, logits, k: noisy_topk(key, logits, 0.7, k),
  "gumbel_topk": lambda key, logits, k: gumbel_topk(key, logits, 0.7, k),
}


@partial(jax.jit, static_argnums=0)
def value_and_pull(gates, logits, upstream):
  """The gates, and the upstream gradient pulled back to the logits."""
  value, pull = jax.vjp(gates, logits)
  return value, pull(upstream)[0]


def draws(sampler, logits, count, **arguments):
  """[count, ...] gates under as many keys, in one compilation."""
  keys = jax.random.split(jax.random.key(0), count)
  return np.asarray(jax.jit(jax.vmap(lambda key: sampler(key, jnp.asarray(logits), **arguments)))(keys))


def assert_frequencies(counts, expected):
  """Pearson's test; the keys are fixed, so it passes always or never."""
  assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3, (counts, expected)


def test_gate_values_by_hand():
  np.testing.assert_allclose(top_k_gates(H, 2), [0.268941, 0, 0, 0, 0.731059], atol=1e-6)


def test_gate_gradient_by_hand():
  """Kept logits share a gradient that sums to zero, the others get exactly none."""
  upstream = np.array([1.0, 7.0, -7.0, 7.0, 2.0], np.float32)  # what other experts would have liked does not count
  _, gradient = value_and_pull(lambda logits: top_k_gates(logits, 2), H, upstream)
  chex.assert_trees_all_close(gradient, jnp.array([-0.196612, 0, 0, 0, 0.196612]), atol=1e-6)
  assert not np.asarray(gradient)[1:4].any()


@pytest.mark.parametrize("sampler", TOP_K_SAMPLERS)
def test_gradients_of_sampled_rows_sum_to_zero_over_the_kept(sampler):
  def gates(logits):
    return TOP_K_SAMPLERS[sampler](jax.random.key(3), logits, 2)

  upstream = np.random.default_rng(1).normal(size=LOGITS.shape).astype(np.float32)
  value, gradient = value_and_pull(gates, LOGITS, upstream)
  np.testing.assert_allclose(np.asarray(gradient).sum(axis=-1), 0, atol=1e-6)
  assert not np.asarray(gradient)[np.asarray(value) == 0].any()
  assert np.asarray(gradient)[np.asarray(value) != 0].all()


def test_ties_go_to_the_lower_index():
  mask = top_k_mask(np.array([[1.0, 2, 2, 2, 0], [0, 0, 0, 0, 0], [-1, 5, -1, -1, 5]]), 3)
  expected = [[False, True, True, True, False], [True, True, True, False, False], [True, True, False, False, True]]
  np.testing.assert_array_equal(mask, expected)
  np.testing.assert_array_equal(top_k_mask(np.array([1.0, 2, 2, 2, 0]), 2), [False, True, True, False, False])


@pytest.mark.parametrize("k", [5, 6, 100])
def test_as_many_as_there_are_is_the_whole_softmax(k):
  assert top_k_mask(H, k).all()
  np.testing.assert_allclose(top_k_gates(H, k), scipy.special.softmax(H), atol=1e-6)


@pytest.mark.parametrize("sampler", TOP_K_SAMPLERS)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_sampled_rows_are_distributions_over_k_experts(sampler, k):
  gates = draws(TOP_K_SAMPLERS[sampler], LOGITS, 40, k=k)
  assert (gates >= 0).all()
  assert ((gates > 0).sum(axis=-1) == min(k, 5)).all()
  np.testing.assert_allclose(gates.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("sampler", [*TOP_K_SAMPLERS, "gumbel_matrix"])
def test_a_draw_is_named_by_its_key(sampler):
  """The same key gives the same gates; other keys give others, where there is noise."""
  sample = TOP_K_SAMPLERS.get(sampler, lambda key, logits, k: gumbel_matrix(key, logits, 1.0))
  one, other = sample(jax.random.key(0), LOGITS, 2), sample(jax.random.key(0), LOGITS, 2)
  chex.assert_trees_all_equal(one, other)
  varied = draws(sample, LOGITS, 20, k=2)
  assert len(np.unique(varied, axis=0)) == 1 if sampler == "none" else len(np.unique(varied, axis=0)) > 10


def test_without_noise_all_samplers_are_top_k():
  key, expected = jax.random.key(0), top_k_gates(LOGITS, 2)
  chex.assert_trees_all_equal(noisy_topk(key, LOGITS, 0.0, 2), expected)
  chex.assert_trees_all_equal(gumbel_topk(key, LOGITS, 0.0, 2), expected)


def test_noisy_topk_weighs_by_the_noisy_logits():
  """softmax(KeepTopK(H, k)) of what was compared, with a scale for each expert."""
  key, sigma = jax.random.key(5), np.array([0.1, 0.5, 1.0, 2.0, 0.0], np.float32)
  noisy = LOGITS + sigma * np.asarray(jax.random.normal(key, LOGITS.shape))
  gates = np.asarray(noisy_topk(key, LOGITS, sigma, 2))
  for row, gate in zip(noisy, gates, strict=True):
    kept = np.argsort(-row)[:2]
    np.testing.assert_allclose(gate[kept], scipy.special.softmax(row[kept]), atol=1e-6)


def test_noise_gradient_is_the_gate_gradient_times_the_noise():
  """What the learned sigma of noisy_topk gets: dH/dsigma is the normal variable that was drawn."""
  key, v = jax.random.key(2), np.arange(5, dtype=np.float32)
  by = jax.jit(jax.grad(lambda logits, sigma: noisy_topk(key, logits, sigma, 3) @ v, (0, 1)))
  by_logits, by_sigma = by(H, np.full(5, 0.7, np.float32))
  chex.assert_trees_all_close(by_sigma, by_logits * jax.random.normal(key, (5,)), atol=1e-6)
  assert (np.asarray(by_sigma) != 0).sum() == 3


def test_gumbel_topk_weighs_by_the_clean_logits():
  gates = draws(TOP_K_SAMPLERS["gumbel_topk"], LOGITS, 200, k=3)
  for t, logits in enumerate(LOGITS):
    for gate in gates[:, t]:
      kept = np.flatnonzero(gate)
      np.testing.assert_allclose(gate[kept], scipy.special.softmax(logits[kept]), atol=1e-6)
  assert len({tuple(np.flatnonzero(gate)) for gate in gates[:, 0]}) > 3


def test_gumbel_noise_of_scale_one_chooses_by_softmax():
  """The Gumbel-max trick: k = 1 picks expert e with probability softmax(logits)[e]."""
  gates = draws(gumbel_topk, H, 20_000, scale=1.0, k=1)
  assert_frequencies(gates.sum(axis=0), 20_000 * scipy.special.softmax(H))


def test_gumbel_noise_draws_without_replacement():
  """Pairs of k = 2 come as in sampling by softmax without replacement."""
  p = scipy.special.softmax(H[:3].astype(np.float64))
  gates = draws(gumbel_topk, H[:3], 20_000, scale=1.0, k=2)
  left_out = (gates == 0).sum(axis=0)
  pairs = {e: [i for i in range(3) if i != e] for e in range(3)}
  expected = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in pairs.values()]
  assert_frequencies(left_out, 20_000 * np.array(expected))


@pytest.mark.parametrize("temperature", [0.5, 50.0])
def test_gumbel_matrix_turns_experts_on_one_by_one(temperature):
  """Expert e is on with probability sigmoid(logit), by itself and at any temperature; active ones are averaged."""
  gates = draws(gumbel_matrix, H, 20_000, temperature=temperature)
  on = gates > 0
  active = on.sum(axis=1, keepdims=True)
  np.testing.assert_array_equal(gates, (on / np.maximum(active, 1)).astype(np.float32))
  p = scipy.special.expit(H.astype(np.float64))
  for e in range(5):
    assert_frequencies([on[:, e].sum(), (~on[:, e]).sum()], 20_000 * np.array([p[e], 1 - p[e]]))
  correlation = np.corrcoef(on.T) - np.eye(5)
  assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_gumbel_matrix_with_nobody_on_gives_zeros():
  gates = gumbel_matrix(jax.random.key(0), np.full((2, 4), -40.0), 1.0)
  np.testing.assert_array_equal(gates, np.zeros((2, 4)))


def test_gumbel_matrix_gradient_is_that_of_the_soft_sample():
  """Straight-through: dw_i/ds_j = [i = j] / m - s_i c / m^2 at the hard sample s, with ds/dlogit of the soft one.

  m = max(sum s, 1); c says whether m follows the sum: 0 with nobody on, 1 with several. At one the maximum has a kink.
  """
  temperature, key = 1.7, jax.random.key(1)
  logits = np.random.default_rng(2).normal(size=(40, 4)).astype(np.float32) - 0.8
  v = np.random.default_rng(3).normal(size=(40, 4))
  gates, gradient = value_and_pull(lambda logits: gumbel_matrix(key, logits, temperature), logits, v.astype(np.float32))
  noise = np.asarray(jax.random.logistic(key, logits.shape), np.float64)
  soft = scipy.special.expit((logits + noise) / temperature)
  s = (soft > 0.5).astype(float)
  n = s.sum(axis=1, keepdims=True)
  m, c = np.maximum(n, 1), np.where(n > 1, 1.0, np.where(n == 1, 0.5, 0.0))
  by_sample = v / m - c * (v * s).sum(axis=1, keepdims=True) / m**2
  np.testing.assert_allclose(gates, s / m, atol=1e-7)
  np.testing.assert_allclose(gradient, by_sample * soft * (1 - soft) / temperature, atol=1e-6)
  assert set(np.unique(n)) >= {0, 1, 2, 3}


def test_usage_by_hand():
  """Two tasks of E = 5, k = 2: used {0, 1, 4}, so 2 and 3 are co-trained at a half each."""
  router = np.array([[3.0, 2, 1, 0, -1], [0, 5, 0, 0, 4]])
  used = np.asarray(top_k_mask(router, 2))
  np.testing.assert_array_equal(used, [[1, 1, 0, 0, 0], [0, 1, 0, 0, 1]])
  np.testing.assert_array_equal(unused_gates(used.any(axis=0)), [0, 0, 0.5, 0.5, 0])


def test_unused_gates_are_equal_or_all_zero():
  used = np.array([[False] * 5, [True] * 5, [True, False, False, True, False]])
  expected = np.array([[0.2] * 5, [0.0] * 5, [0, 1 / 3, 1 / 3, 0, 1 / 3]], np.float32)
  np.testing.assert_allclose(unused_gates(used), expected, atol=1e-7)


def test_cotraining_step_by_hand():
  """Scalar experts relu(w x), x = 2, w = [1, .5, .25], the first used, loss (out - 1)^2 / 2, a_c = .1."""
  gates = unused_gates(np.array([True, False, False]))

  def loss(w):
    out = gates @ jax.nn.relu(w * 2)
    return 0.5 * (out - 1) ** 2, out

  w = np.array([1, 0.5, 0.25], np.float32)
  gradient, out = jax.jit(jax.grad(loss, has_aux=True))(w)
  np.testing.assert_allclose(out, 0.75)
  np.testing.assert_allclose(gradient, [0, -0.25, -0.25])
  np.testing.assert_allclose(w - 0.1 * gradient, [1, 0.525, 0.275])
  assert gradient[0] == 0


def variation(values):
  """CV^2 as Shazeer et al. write it, in numpy."""
  return np.var(values) / np.mean(values) ** 2


def test_importance_loss_against_numpy():
  gates = np.asarray(top_k_gates(LOGITS, 2), np.float64)
  np.testing.assert_allclose(importance_loss(gates, ALL[:3]), variation(gates.sum(axis=0)), rtol=1e-5)
  live = np.array([True, False, True])
  np.testing.assert_allclose(importance_loss(gates, live), variation(gates[live].sum(axis=0)), rtol=1e-5)
  assert importance_loss(gates, np.zeros(3, bool)) == 0


def test_equal_importance_costs_nothing():
  gates = np.stack([np.roll([0.7, 0.3, 0, 0], e) for e in range(4)])
  assert abs(importance_loss(gates, ALL)) < 1e-7
  assert jax.jit(gating.squared_variation)(np.zeros(4)) == 0


@pytest.mark.parametrize("k", [1, 2, 4])
def test_load_loss_against_scipy(k):
  random = np.random.default_rng(4)
  logits, sigma = random.normal(size=(6, 5)), random.uniform(0.2, 2, size=(6, 5))
  noisy = logits + sigma * random.normal(size=(6, 5))
  load, live = np.zeros(5), np.array([True, True, False, True, False, True])
  for row in np.flatnonzero(live):
    for e in range(5):
      others = sorted((noisy[row, i] for i in range(5) if i != e), reverse=True)
      load[e] += scipy.stats.norm.cdf((logits[row, e] - others[k - 1]) / sigma[row, e])
  found = load_loss(logits, noisy, sigma, k, live)
  np.testing.assert_allclose(found, variation(load), rtol=1e-4)


def test_equal_load_costs_nothing():
  """Where each expert stands at each rank once; and where all are chosen anyway."""
  logits, ones = np.stack([np.roll([2.0, 1, 0, -1], e) for e in range(4)]), np.ones((4, 4))
  assert abs(load_loss(logits, logits, ones, 2, ALL)) < 1e-6
  assert load_loss(logits + H[:4], logits, ones, 4, ALL) == 0
  assert load_loss(logits + H[:4], logits + H[:4], ones, 2, ALL) > 0.01
