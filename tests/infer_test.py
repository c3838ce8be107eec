"""Rules that find a batch's subnetwork, on nets of one layer whose numbers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.errors import ConfigError
from cljax.ops import infer

X = jnp.array([[1.0, 0.5, -0.2], [0.3, -1.0, 0.8]])
NETS = jnp.stack([0.1 * jnp.eye(3), 4.0 * jnp.eye(3), 1.0 * jnp.ones((3, 3)).at[0].set(-2.0)])
MASKS = jnp.array([[[1, 0, 0]] * 3, [[1, 0, 0]] * 2 + [[0, 1, 0]], [[0, 0, 1]] * 3], bool)
SCORES = jnp.array([[3.0, 1.0, 0.0], [2.0, 1.0, 0.5], [0.1, 4.0, 0.0]])

TYPICAL = {  # of each slot, mean and variance; the middle one's own task gives just these pictures
  "features": jnp.stack([jnp.stack([net.sum(axis=0) * 0.1, jnp.array([0.5, 0.0, 0.1])]) for net in NETS]),
  "pictures": jnp.array([[[2.0, 2, 2], [1, 1, 1]], [[0.65, -0.25, 0.3], [0, 1, 2]], [[0.65, -0.25, 0.9], [0, 0, 0]]]),
}


def known(live=(True, True, True), done=None, stored=(1.0, 1.0, 1.0), scores=lambda weights: SCORES):
  live = jnp.array(live)
  return infer.Known(
    live=live,
    done=live if done is None else jnp.array(done),
    function=lambda s: NETS[s],
    expert=lambda s: NETS[s],
    logits=lambda weights: X @ weights,
    represent=lambda weights: {"features": X @ weights, "pictures": X},
    typical=lambda s: {name: leaf[s] for name, leaf in TYPICAL.items()},
    scores=lambda weights: {"layer": scores(weights)},
    mask=lambda s: {"layer": MASKS[s]},
    stored=lambda s: jnp.array(stored)[s],
    largest=lambda scores: {"layer": scores["layer"] >= 2.0},
  )


def entropy_of(logits):
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  return -(p * np.log(p)).sum(axis=1).mean()


def test_entropy_is_that_of_each_net():
  found = infer.entropy(known())
  np.testing.assert_allclose(found, [entropy_of(np.asarray(X @ net)) for net in NETS], rtol=1e-5)
  assert int(infer.infer("entropy", known())) == 1


def test_entropy_of_one_half_and_of_one_hot():
  assert float(infer.mean_entropy(jnp.zeros((3, 2)))) == pytest.approx(0.693147, abs=1e-6)
  assert float(infer.mean_entropy(jnp.array([[1000.0, 0.0]]))) == 0


def test_one_shot_is_the_slope_of_the_entropy_by_each_share():
  """Central differences of H(sum_s alpha_s net_s) at alpha = 1/2 for the two live slots."""
  found = infer.supsup_oneshot(known(live=(True, False, True)))

  def entropy(alpha):
    weights = np.tensordot(alpha, np.asarray(NETS, np.float64), 1)
    return entropy_of(np.asarray(X, np.float64) @ weights)

  for s in (0, 2):
    step = 1e-5 * np.eye(3)[s]
    slope = (entropy(np.array([0.5, 0, 0.5]) + step) - entropy(np.array([0.5, 0, 0.5]) - step)) / 2e-5
    assert float(found[s]) == pytest.approx(slope, rel=1e-3, abs=1e-5)
  assert (
    int(infer.infer("supsup_oneshot", known(live=(True, False, True)))) == int(np.argmin(found[jnp.array([0, 2])])) * 2
  )


def test_pseudo_gradients_are_a_share_of_the_stored():
  found = infer.pseudo_grad(known(stored=(5.1, 4.0, 0.5)))
  np.testing.assert_allclose(found, [5.1 / 5.1, 9.0 / 4.0, 0.5 / 0.5], rtol=1e-6)


def test_pseudo_gradients_are_taken_through_each_own_net():
  found = infer.pseudo_grad(known(scores=lambda weights: jnp.full((3, 3), weights[1, 1])))
  np.testing.assert_allclose(found, [0.3, 12.0, 3.0], rtol=1e-6)


def test_hamming_counts_entries_that_differ():
  """SCORES >= 2 is true at (0, 0), (1, 0), (2, 1): the second mask."""
  np.testing.assert_array_equal(infer.hamming(known()), [2, 0, 6])
  assert int(infer.infer("hamming", known())) == 1


@pytest.mark.parametrize("name,values", [("features", [X @ net for net in NETS]), ("pictures", [X] * 3)])
def test_the_nearest_mean_is_measured_in_variances(name, values):
  """Mean over entries of (batch mean - own mean)^2 / (variance + a tenth of the mean variance); without any, over 1."""
  found = infer.RULES[name](known())
  for s in range(3):
    mean, variance = np.asarray(TYPICAL[name][s], np.float64)
    scale = variance + 0.1 * variance.mean()
    expected = ((np.asarray(values[s], np.float64).mean(axis=0) - mean) ** 2 / np.where(scale > 0, scale, 1)).mean()
    assert float(found[s]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
  assert int(infer.infer("pictures", known())) == 1


@pytest.mark.parametrize("kind", infer.RULES)
def test_one_slot_is_taken_whatever_it_says_and_none_is_none(kind):
  assert int(infer.infer(kind, known(live=(False, False, True)))) == 2
  assert int(infer.infer(kind, known(live=(False, False, False)))) == -1


@pytest.mark.parametrize("kind", ["features", "pictures", "pseudo_grad", "hamming"])
def test_a_slot_without_a_mask_is_not_taken_by_what_masks_keep(kind):
  assert int(infer.infer(kind, known(live=(True, True, True), done=(True, False, False)))) == 0


@pytest.mark.parametrize("kind", infer.RULES)
def test_rules_do_not_look_at_slots_that_are_not_live(kind):
  """Under jit a slot that is not live is not run: its numbers may be anything."""
  poisoned = known(live=(True, False, True))._replace(function=lambda s: jnp.where(s == 1, jnp.nan, NETS[s]))
  assert int(jax.jit(lambda: infer.infer(kind, poisoned))()) == int(infer.infer(kind, known(live=(True, False, True))))


def test_an_unknown_rule_is_refused():
  with pytest.raises(ConfigError, match="entropy, features, pictures, pseudo_grad, supsup_oneshot, hamming"):
    infer.infer("guess", known())
