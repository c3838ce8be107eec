"""Nets: counts of the paper, experts against a plain loop, starts by one expert's fan, and who gets a gradient."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.errors import ConfigError
from cljax.nets import CNN, MLP, RoutedMLP
from cljax.nets.heads import Heads, own_head, with_head
from cljax.nets.routed import Experts, match_width, parameter_count, weighted_sum
from cljax.pieces.learner import Trained, supervised
from cljax.pieces.optimizers import sgd
from cljax.types import At, Batch, Place, Spec


def count(net, *arguments) -> int:
  """Parameters of a net on one 28x28 picture, without making them."""
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1, jnp.int32), *arguments)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def test_the_shared_bottom_has_318152_parameters():
  assert count(MLP(heads=20, classes=10)) == 784 * 256 + 256 + 256 * 256 + 256 + 20 * (256 * 10 + 10) == 318152


@pytest.mark.parametrize("widths,expected", [((19, 19), 310700), ((19, 31), 317900), ((20, 20), 327400)])
def test_the_mixture_has_the_parameters_of_the_formula(widths, expected):
  """The net, and two routers of [20, 20]."""
  net = RoutedMLP(heads=20, classes=10, widths=widths)
  assert count(net, [jnp.ones((1, 20))] * 2) + 2 * 20 * 20 == parameter_count(widths) == expected


def test_the_defaults_are_the_paper_s():
  assert RoutedMLP(heads=20, classes=10).widths == (match_width(318152),) * 2 == (19, 19)


@pytest.mark.parametrize("geometry", [{}, {"experts": 3, "inputs": 64, "tasks": 2, "heads": 1}])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_matched_width_is_the_largest_that_fits(geometry, layers):
  for budget in (30_000, 318_152):
    width = match_width(budget, layers=layers, **geometry)
    at, above = (parameter_count((w,) * layers, **geometry) for w in (width, width + 1))
    assert at <= budget < above
  assert match_width(at, layers=layers, **geometry) == width


def test_a_budget_below_width_one_is_refused():
  smallest = parameter_count((1, 1))
  assert match_width(smallest) == 1
  with pytest.raises(ValueError, match=f"{smallest - 1} parameters do not hold 2 layers of width 1.*{smallest}"):
    match_width(smallest - 1)


E, D, W = 4, 5, 3  # experts, inputs, width
GATES = np.array([[0.5, 0, 0.5, 0], [0, 0, 0, 1], [0.25, 0, 0.25, 0.5]], np.float32)


@pytest.fixture(scope="module")
def layer():
  """A layer, its parameters with biases that matter, and three rows."""
  random = np.random.default_rng(0)
  net = Experts(E, W)
  params = jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32),
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, D)), jnp.ones((1, E)))["params"],
  )
  return net, params, random.normal(size=(3, D)).astype(np.float32)


@pytest.fixture(scope="module")
def value_and_gradients(layer):
  """(params, x, gates) -> output, and the gradients of its sum of squares; compiled once."""
  net = layer[0]

  def loss(params, x, gates):
    out = net.apply({"params": params}, x, gates)
    return (out**2).sum(), out

  return jax.jit(lambda *arguments: jax.grad(loss, (0, 1, 2), has_aux=True)(*arguments)[::-1])


def test_experts_are_a_weighted_sum_of_layers(layer, value_and_gradients):
  _, params, x = layer
  out, _ = value_and_gradients(params, x, GATES)
  expected = np.zeros((3, W))
  for e in range(E):
    own = slice(e * W, (e + 1) * W)
    expected += GATES[:, e : e + 1] * np.maximum(x @ params["kernel"][:, own] + params["bias"][own], 0)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_experts_without_weight_get_no_gradient(layer, value_and_gradients):
  """Expert 1 is asked for by no row: exactly zero."""
  _, (grads, _, _) = value_and_gradients(*layer[1:], GATES)
  kernel = np.asarray(grads["kernel"]).reshape(D, E, W)
  assert not kernel[:, 1].any() and not np.asarray(grads["bias"])[W : 2 * W].any()
  assert all(kernel[:, e].any() for e in (0, 2, 3))


def test_the_derivatives_written_out_are_those_of_the_sum():
  """Of experts without weight, too: a straight-through sampler learns to turn them on."""
  random = np.random.default_rng(4)
  z, slope = (random.normal(size=shape).astype(np.float32) for shape in ((3, E, W), (3, W)))
  plain = jax.vjp(lambda z, gates: jnp.einsum("beh,be->bh", jnp.maximum(z, 0), gates), z, jnp.asarray(GATES))[1]
  by_z, by_gate = jax.vjp(weighted_sum, z, jnp.asarray(GATES))[1](slope)
  chex.assert_trees_all_close((by_z, by_gate), plain(slope), atol=1e-6)
  assert np.asarray(by_gate)[np.asarray(GATES) == 0].any()


def test_an_inactive_expert_that_overflowed_stays_out(layer, value_and_gradients):
  """Output and all gradients are those of an expert of zeros."""
  _, params, x = layer
  own = np.arange(W, 2 * W)
  quiet = {"kernel": params["kernel"].copy(), "bias": params["bias"].copy()}
  quiet["kernel"][:, own], quiet["bias"][own] = 0, 0
  expected = value_and_gradients(quiet, x, GATES)
  for bias in (np.inf, np.nan):
    loud = {"kernel": quiet["kernel"], "bias": quiet["bias"].copy()}
    loud["bias"][own] = bias
    chex.assert_trees_all_equal(value_and_gradients(loud, x, GATES), expected)
  huge = {"kernel": quiet["kernel"].copy(), "bias": quiet["bias"]}
  huge["kernel"][:, own] = 3e38 * np.sign(x[0])[:, None]
  with np.errstate(over="ignore"):
    assert np.isinf(x @ huge["kernel"][:, own]).any()
  out, (grads, by_x, _) = value_and_gradients(huge, x, GATES)
  chex.assert_trees_all_equal((out, grads, by_x), (expected[0], *expected[1][:2]))


def test_an_active_expert_that_overflowed_shows(layer, value_and_gradients):
  """Divergence must not be hidden."""
  _, params, x = layer
  loud = {"kernel": params["kernel"], "bias": params["bias"].copy()}
  loud["bias"][:W] = np.inf
  out, _ = value_and_gradients(loud, x, GATES)
  np.testing.assert_array_equal(np.isfinite(out).all(axis=1), [False, True, False])


@pytest.mark.parametrize("name", ["he", "glorot"])
def test_experts_start_by_the_fan_of_one_expert(name):
  """Variance 2 / inputs (He) or 2 / (inputs + width) (Glorot) of one expert, whatever their number; no bias."""
  inputs, width, experts = 60, 30, 40
  net = Experts(experts, width, name)
  params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, inputs)), jnp.ones((1, experts)))["params"]
  by_expert = np.asarray(params["kernel"]).reshape(inputs, experts, width)
  expected = {"he": 2 / inputs, "glorot": 2 / (inputs + width)}[name]
  np.testing.assert_allclose(by_expert.var(), expected, rtol=0.02)
  np.testing.assert_allclose(by_expert.var(axis=(0, 2)), expected, rtol=0.2)
  assert abs(by_expert.mean()) < 0.01 and not np.asarray(params["bias"]).any()
  bound = {"he": 2 * np.sqrt(expected) / 0.87962566, "glorot": np.sqrt(3 * expected)}[name]  # truncated, or uniform
  assert np.abs(by_expert).max() <= bound * 1.0001
  assert len(np.unique(by_expert[0, :, 0])) == experts


@pytest.mark.parametrize("name", ["he", "glorot"])
def test_the_shared_bottom_starts_as_one_expert_does(name):
  net = MLP(heads=1, classes=2, hidden=(80, 60), kernel_init=name)
  params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 10, 10)), jnp.zeros(1, jnp.int32))["params"]
  for layer, (inputs, outputs) in {"first": (100, 80), "hidden_1": (80, 60)}.items():
    expected = {"he": 2 / inputs, "glorot": 2 / (inputs + outputs)}[name]
    np.testing.assert_allclose(np.var(params[layer]["kernel"]), expected, rtol=0.05)


def test_an_unknown_start_is_refused():
  with pytest.raises(ConfigError, match="config.net.kernel_init='hee'.*Did you mean he"):
    jax.eval_shape(Experts(2, 2, "hee").init, jax.random.key(0), jnp.zeros((1, 3)), jnp.ones((1, 2)))


@pytest.fixture(scope="module")
def heads():
  net = Heads(heads=3, classes=4)
  random = np.random.default_rng(1)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 6)), jnp.zeros(1, jnp.int32))["params"]
  params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)
  return net, params, random.normal(size=(5, 6)).astype(np.float32)


def test_each_row_has_its_head_and_slots_past_the_last_take_the_last(heads):
  net, params, features = heads
  slot = np.array([2, 0, 1, 3, 19])
  logits = jax.jit(net.apply)({"params": params}, features, slot)
  for row, head in zip(range(5), [2, 0, 1, 2, 2], strict=True):
    own = slice(4 * head, 4 * head + 4)
    expected = features[row] @ params["kernel"][:, own] + params["bias"][own]
    np.testing.assert_allclose(logits[row], expected, atol=1e-5)


def test_only_heads_that_are_asked_get_a_gradient(heads):
  net, params, features = heads
  slot = np.array([2, 0, 2, 0, 0])
  grads = jax.jit(jax.grad(lambda params: (net.apply({"params": params}, features, slot) ** 2).sum()))(params)
  kernel, bias = (np.asarray(grads[name]).reshape(-1, 3, 4) for name in ("kernel", "bias"))
  assert not kernel[:, 1].any() and not bias[:, 1].any()
  assert all(kernel[:, head].all() and bias[:, head].all() for head in (0, 2))


@pytest.mark.parametrize("slot,head", [(0, 0), (1, 1), (2, 2), (3, 2), (19, 2)])
def test_one_head_may_be_taken_out_and_put_back(heads, slot, head):
  """It answers as all heads do where every row asks for it, and the others stay as they are when it is replaced."""
  net, params, features = heads
  own = own_head(params, jnp.int32(slot), 4)
  slots = np.full(5, slot)
  alone = Heads(heads=1, classes=4).apply({"params": own}, features, slots)
  np.testing.assert_allclose(alone, jax.jit(net.apply)({"params": params}, features, slots), atol=1e-6)
  replaced = with_head(params, jax.tree.map(lambda leaf: 0 * leaf + 7, own), jnp.int32(slot), 4)
  for name in ("kernel", "bias"):
    before, after = (np.asarray(tree[name]).reshape(-1, 3, 4) for tree in (params, replaced))
    assert (after[:, head] == 7).all()
    np.testing.assert_array_equal(np.delete(after, head, 1), np.delete(before, head, 1))


def test_a_learner_that_is_told_that_rows_are_alike_takes_the_same_step():
  net, spec = MLP(heads=3, classes=4, hidden=(5, 5)), Spec(T=3, C=4, x_shape=(2, 2, 1), heads=3)
  learner = supervised(net, sgd(0.1), spec)
  state = Trained(**learner.init(jax.random.key(0)))
  random, B = np.random.default_rng(0), 6
  slot = jnp.full(B, 1)
  place = Place(slot, jnp.arange(B))
  live = jnp.arange(B) < 4
  x, y = random.normal(size=(B, 2, 2, 1)).astype(np.float32), random.integers(4, size=B)
  batch = Batch(x, y, slot, jnp.ones((B, 4), bool), place, slot, live)
  at = At(jax.random.key(0), None, None)
  plain, alike = (jax.jit(partial(learner.step, at, alike=told))(state, batch) for told in (False, True))
  chex.assert_trees_all_close(alike, plain, atol=1e-7)
  assert (
    np.asarray(alike[0].params["head"]["kernel"])[:, 4:8] != np.asarray(state.params["head"]["kernel"])[:, 4:8]
  ).any()


def test_heads_start_by_the_fan_of_one_head():
  params = jax.jit(Heads(30, 20).init)(jax.random.key(0), jnp.zeros((1, 50)), jnp.zeros(1, jnp.int32))["params"]
  np.testing.assert_allclose(np.var(params["kernel"]), 2 / (50 + 20), rtol=0.03)
  assert not np.asarray(params["bias"]).any()


def test_a_routed_net_wants_gates_for_each_layer():
  net = RoutedMLP(heads=1, classes=2, widths=(2, 2), experts=3)
  assert net.layers == ("first", "hidden_1")
  with pytest.raises(ValueError):
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32), [jnp.ones((1, 3))])


def test_a_convolutional_net_counts_and_answers():
  net = CNN(heads=2, classes=10)
  assert count(net) == (9 * 16 + 16) + (9 * 16 * 32 + 32) + (7 * 7 * 32 * 128 + 128) + 2 * (128 * 10 + 10)
  out, _ = net.init_with_output(jax.random.key(0), jnp.zeros((3, 28, 28, 1)), jnp.array([0, 1, 1]))
  assert out.logits.shape == (3, 10) and out.features.shape == (3, 128)


@pytest.mark.parametrize("fields", [{"channels": ()}, {"window": 0}, {"stride": 0}])
def test_a_convolutional_net_without_convolution_is_refused(fields):
  with pytest.raises(ConfigError, match=r"config\.net\."):
    CNN(heads=1, classes=2, **fields).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1, jnp.int32))
