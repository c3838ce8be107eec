"""The equations of Expert Gate's gate and of its experts' losses, by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.nets.autoencoder import Autoencoder, sparse
from cljax.ops import gate
from cljax.ops.losses import distillation, probabilities
from cljax.pieces import early

gate_choice, gate_probabilities, relatedness = map(
  jax.jit, (gate.gate_choice, gate.gate_probabilities, gate.relatedness)
)


@pytest.mark.parametrize("temperature", [0.1, 2.0, 50.0])
def test_gate_probabilities(temperature):
  errors = jnp.array([1.0, 3.0, 5.0])
  found = gate_probabilities(errors, temperature)
  if temperature == 2:
    np.testing.assert_allclose(found, [0.665241, 0.244728, 0.090031], atol=1e-6)
  assert float(found.sum()) == pytest.approx(1)
  assert int(found.argmax()) == 0 == int(gate_choice(errors))
  np.testing.assert_allclose(gate_probabilities(errors + 1000, temperature), found, atol=1e-4)


def test_gate_probabilities_at_the_ends_of_the_temperature():
  errors = jnp.array([1.0, 3.0, 5.0])
  np.testing.assert_allclose(gate_probabilities(errors, 1e9), np.full(3, 1 / 3), atol=1e-6)
  np.testing.assert_array_equal(gate_probabilities(errors, 1e-3), [1, 0, 0])
  np.testing.assert_array_equal(gate_probabilities(1e6 * errors, 2.0), [1, 0, 0])  # underflow is no fault


@pytest.mark.parametrize(
  ("errors", "choice", "share"),
  [
    ([jnp.nan, 3.0, 5.0], 1, [0, 0.731059, 0.268941]),
    ([jnp.inf, 3.0, jnp.inf], 1, [0, 1, 0]),
    ([jnp.nan, jnp.inf, jnp.nan], -1, [0, 0, 0]),
    ([2.0, 2.0, 2.0], 0, [1 / 3] * 3),
  ],
)
def test_errors_that_are_not_finite_are_never_chosen(errors, choice, share):
  assert int(gate_choice(jnp.array(errors))) == choice
  np.testing.assert_allclose(gate_probabilities(jnp.array(errors), 2.0), share, atol=1e-6)


@pytest.mark.parametrize(
  ("error", "own", "expected"),
  [(1.1, 1, 0.9), (1.2, 1, 0.8), (1, 1, 1), (0.9, 1, 1.1), (2, 1, 0), (3, 1, -1), (2.5, 2, 0.75), (1100, 1000, 0.9)],
)
def test_relatedness(error, own, expected):
  assert float(relatedness(jnp.float32(error), jnp.float32(own))) == pytest.approx(expected, abs=1e-6)


def test_relatedness_of_the_edges():
  one = jnp.float32(1)
  assert float(relatedness(jnp.float32(jnp.nan), one)) == -math.inf
  assert float(relatedness(one, jnp.float32(jnp.inf))) == -math.inf
  assert float(relatedness(jnp.float32(7), jnp.float32(7))) == 1
  assert np.isfinite(relatedness(one, jnp.float32(0)))
  assert float(relatedness(jnp.float32(2), one)) != float(relatedness(one, jnp.float32(2)))


def test_a_tiny_autoencoder():
  params = {
    "encoder": {"kernel": jnp.array([[1.0], [-1.0]]), "bias": jnp.zeros(1)},
    "decoder": {"kernel": jnp.array([[2.0, -2.0]]), "bias": jnp.zeros(2)},
  }
  x = jnp.array([[0.8, 0.2]])

  @jax.jit
  def measured(params, x):
    logits, code = Autoencoder(2, 1).apply({"params": params}, x)
    slope = jax.grad(lambda logits: gate.entropy_error(logits, x).sum())(logits)
    return code, jax.nn.sigmoid(logits), gate.squared_error(logits, x), gate.entropy_error(logits, x), slope

  code, rebuilt, squared, entropy, slope = measured(params, x)
  np.testing.assert_allclose(code, [[0.6]], atol=1e-6)
  np.testing.assert_allclose(rebuilt, [[0.768525, 0.231475]], atol=1e-6)
  np.testing.assert_allclose(squared, [0.00198138], atol=1e-7)
  np.testing.assert_allclose(entropy, [1.006565], atol=1e-5)
  np.testing.assert_allclose(slope, [[-0.031475, 0.031475]], atol=1e-6)


def test_the_sparse_initialisation_has_fifteen_weights_a_unit():
  kernel = np.asarray(jax.jit(sparse, static_argnums=1)(jax.random.key(0), (40, 7)))
  np.testing.assert_array_equal((kernel != 0).sum(axis=0), np.full(7, 15))
  assert 0.6 < float(kernel[kernel != 0].std()) < 1.4
  assert (np.asarray(jax.jit(sparse, static_argnums=1)(jax.random.key(0), (4, 7))) != 0).all()


def test_distillation():
  teacher, student, classes = jnp.array([2.0, 0.0]), jnp.zeros(2), jnp.ones(2, bool)
  loss = functools.partial(distillation, teacher=teacher, classes=classes, temperature=2.0)
  both = jax.jit(jax.value_and_grad(loss))
  value, slope = both(student)
  assert float(value) == pytest.approx(0.693147, abs=1e-6)
  np.testing.assert_allclose(slope, [-0.115529, 0.115529], atol=1e-6)
  value, slope = both(teacher)
  assert float(value) == pytest.approx(0.582203, abs=1e-6)
  np.testing.assert_allclose(slope, 0, atol=1e-7)
  power = jax.nn.softmax(teacher) ** 0.5
  np.testing.assert_allclose(power / power.sum(), jax.nn.softmax(teacher / 2), atol=1e-6)


def test_distillation_keeps_to_the_live_classes():
  teacher, student = jnp.array([[2.0, 0.0, 99.0]] * 2), jnp.array([[0.0, 0.0, -50.0]] * 2)
  classes = jnp.array([[True, True, False], [False] * 3])

  def total(student, teacher):
    return distillation(student, teacher, classes, 2.0).sum()

  value, (slope, back) = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(student, teacher)
  assert float(value) == pytest.approx(0.693147, abs=1e-6)
  assert np.isfinite(slope).all() and (np.asarray(slope)[:, 2] == 0).all() and (np.asarray(slope)[1] == 0).all()
  assert not np.asarray(back).any()


def test_probabilities_of_no_live_class_are_zero():
  found = jax.jit(probabilities)(np.float32([[1, 1, 9]] * 2), np.array([[True, True, False], [False] * 3]))
  np.testing.assert_allclose(found, [[0.5, 0.5, 0], [0, 0, 0]], atol=1e-6)


def test_early_stop_keeps_the_best_epoch():
  measure = jax.jit(functools.partial(early.measure, patience=2))
  best = early.begin(jnp.float32(-1))
  for epoch, loss in enumerate([5.0, 3.0, 4.0, 3.5, 1.0, 0.5]):
    best = measure(best, jnp.float32(epoch), jnp.float32(loss))
  assert bool(best.stopped) and int(best.epochs) == 4  # the lower losses came after it stopped
  assert float(best.params) == 1 and float(best.loss) == 3
