"""The learned rule: its sizes, plain SGD at the start, neurons that share weights but no state, files of a theta."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from cljax import artifacts
from cljax.errors import ConfigError
from cljax.nets import CNN, MLP
from cljax.nets.conv import Conv
from cljax.nets.heads import Heads
from cljax.nets.taps import layers, tapped
from cljax.ops.losses import cross_entropy
from cljax.pieces import rule as rules
from cljax.pieces.neurons import Tensor, activations, tensors_of_net
from cljax.pieces.rule import Rule, init_theta, learned
from cljax.types import Batch, Outputs, Place

STATIC, RAW, RELU = Rule(form="static"), Rule(inputs="raw", hidden=8), Rule(cell="relu", hidden=8)
SMALL = Rule(hidden=8, hidden_vectors=4)


class Normalised(nn.Module):
  """A convolution, a group normalisation, a mean over the window, heads."""

  heads: int = 2
  classes: int = 3

  @nn.compact
  def __call__(self, x, slot):
    x = nn.GroupNorm(num_groups=2, name="norm")(Conv(4, (3, 3), use_bias=False, name="conv")(x))
    features = nn.relu(x).mean(axis=(1, 2))
    return Outputs(Heads(self.heads, self.classes, name="head")(features, slot), features, slot)


def shapes(net, x_shape):
  variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *x_shape)), jnp.zeros(1, jnp.int32))
  return variables["params"], *tensors_of_net(net, variables, x_shape)


def batch_of(x_shape, rows=12, classes=3):
  x = jax.random.normal(jax.random.key(1), (rows, *x_shape))
  y = jnp.arange(rows) % classes
  none = jnp.zeros(rows, jnp.int32)
  return Batch(x, y, none, jnp.ones((rows, classes), bool), Place(none, none), none, jnp.ones(rows, bool))


class Bench:
  """A net, some rows and a rule: what each test steps."""

  def __init__(self, net, x_shape, rule=SMALL, noise=0.0, alpha=0.3, scale=None):
    _, self.called, self.tensors = shapes(net, x_shape)
    self.net, self.batch, self.rule, self.alpha = net, batch_of(x_shape), rule, alpha
    self.params = jax.jit(net.init)(jax.random.key(0), self.batch.x, self.batch.task)["params"]
    theta = jax.jit(lambda key: init_theta(key, self.tensors, rule, scale))(jax.random.key(2))
    random = np.random.default_rng(0)
    self.theta = jax.tree.map(lambda leaf: leaf + noise * random.normal(size=leaf.shape).astype(np.float32), theta)
    self.tx = learned(self.theta, alpha, self.tensors, rule)

  @functools.cached_property
  def asked(self):
    """(gradient, activations, updates from a blank memory) of some params, the activations over live rows."""

    @jax.jit
    def asked(params, live):
      grads, acts = self.slopes(params, live)
      return grads, acts, self.tx.update(grads, self.tx.init(params), params, acts=acts)[0]

    return lambda params, live=self.batch.live: asked(params, live)

  def slopes(self, params, live=None):
    def loss(params):
      found = tapped(self.net, {"params": params}, self.batch.x, self.batch.task)
      acts = activations(found, self.called, {"params": params}, live)
      return cross_entropy(found.out.logits, self.batch), acts

    return jax.grad(loss, has_aux=True)(params)

  @functools.cached_property
  def step(self):
    @jax.jit
    def step(params, memory):
      grads, acts = self.slopes(params)
      updates, memory = self.tx.update(grads, memory, params, acts=acts)
      return optax.apply_updates(params, updates), memory, updates

    return step

  def run(self, steps):
    params, memory = self.params, self.tx.init(self.params)
    for _ in range(steps):
      params, memory, _ = self.step(params, memory)
    return params, memory


def test_sizes_of_what_goes_in_and_out():
  assert (Tensor("l", "kernel", 9, 10, 4).inputs, Tensor("l", "kernel", 9, 10, 4).outputs) == (191, 90)
  _, _, tensors = shapes(MLP(2, 5, (64, 64, 64, 16)), (28, 28, 1))
  assert (tensors["first/kernel"].inputs, tensors["first/kernel"].outputs) == (2353, 784)
  assert (tensors["first/bias"].inputs, tensors["first/bias"].outputs) == (4, 1)
  theta = jax.eval_shape(lambda key: init_theta(key, tensors, Rule(), 1.0), jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == 1_230_428
  static = jax.eval_shape(lambda key: init_theta(key, tensors, STATIC, 1.0), jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(static)) == (784 + 3 * 64) + 4 + 8


def test_sizes_of_convolutions_and_normalisations():
  _, _, tensors = shapes(CNN(2, 3, channels=(10, 4), hidden=(6,)), (8, 8, 1))
  flat = tensors["hidden_1/kernel"]  # a matrix [3 * 3 * 10, 4]
  assert (flat.inputs, flat.outputs, flat.neurons, flat.window) == (191, 90, 4, 9)
  _, _, tensors = shapes(Normalised(), (6, 6, 10))
  assert (tensors["conv/kernel"].inputs, tensors["conv/kernel"].outputs) == (191, 90)
  assert [tensors[f"norm/{leaf}"].inputs for leaf in ("scale", "bias")] == [4, 4]
  assert "head/kernel" not in tensors


@functools.cache
def noisy():
  return Bench(MLP(2, 3, (5,)), (2, 2, 1), noise=0.5)


@pytest.mark.parametrize(
  ("net", "rule"),
  [(MLP(2, 3, (16,)), SMALL), (MLP(2, 3, (16, 8)), STATIC), (Normalised(), SMALL)],
  ids=["lstm", "static", "conv"],
)
def test_it_begins_as_plain_sgd(net, rule):
  """Bit for bit, over 20 steps: at its start scale * tanh(1) is exactly 1."""
  bench = Bench(net, (6, 6, 1), rule)
  sgd = optax.sgd(bench.alpha)

  @jax.jit
  def plain(params, state):
    updates, state = sgd.update(bench.slopes(params)[0], state)
    return optax.apply_updates(params, updates), state

  params, state = bench.params, sgd.init(bench.params)
  for _ in range(20):
    params, state = plain(params, state)
  chex.assert_trees_all_equal(bench.run(20)[0], params)


def test_with_a_scale_of_one_it_begins_as_a_slower_sgd():
  slow = Bench(MLP(2, 3, (8,)), (6, 6, 1), scale=1.0)
  grads, _, updates = slow.asked(slow.params)
  shrunk = {"head": 1.0, "first": np.tanh(1)}
  wanted = {name: jax.tree.map(lambda g, by=by: -0.3 * by * g, grads[name]) for name, by in shrunk.items()}
  chex.assert_trees_all_close(updates, wanted, rtol=1e-5)


def test_a_permutation_of_neurons_permutes_the_updates():
  bench = Bench(MLP(2, 3, (7,)), (2, 2, 1), noise=0.3)
  order = np.random.default_rng(1).permutation(7)

  def permuted(params):
    first, head = params["first"], params["head"]
    head = {**head, "kernel": head["kernel"][order]}
    return {"first": {"kernel": first["kernel"][:, order], "bias": first["bias"][order]}, "head": head}

  params, memory = bench.run(2)
  other = {name: state[:, :, order] for name, state in memory.items()}
  after, states, _ = bench.step(params, memory)
  after_other, states_other, _ = bench.step(permuted(params), other)
  assert not np.allclose(after["first"]["kernel"], after_other["first"]["kernel"])
  chex.assert_trees_all_close(after_other, permuted(after), atol=1e-6)
  chex.assert_trees_all_close(states_other, {name: s[:, :, order] for name, s in states.items()}, atol=1e-6)


def test_a_permutation_of_channels_permutes_the_updates():
  """Of a convolution and of the normalisation behind it, whose groups stay together."""
  bench, order = Bench(Normalised(), (4, 4, 2), noise=0.3), np.array([3, 2, 0, 1])

  def permuted(params):
    conv, norm, head = (params[name] for name in ("conv", "norm", "head"))
    norm = {leaf: own[order] for leaf, own in norm.items()}
    return {
      "conv": {"kernel": conv["kernel"][..., order]},
      "norm": norm,
      "head": {**head, "kernel": head["kernel"][order]},
    }

  params, memory = bench.run(2)
  after, states, _ = bench.step(params, memory)
  mixed = {name: state[:, :, order] for name, state in memory.items()}
  after_other, states_other, _ = bench.step(permuted(params), mixed)
  assert not np.allclose(after["conv"]["kernel"], after_other["conv"]["kernel"])
  chex.assert_trees_all_close(after_other, permuted(after), atol=1e-5)
  chex.assert_trees_all_close(states_other, {name: s[:, :, order] for name, s in states.items()}, atol=1e-5)


def test_neurons_share_weights_but_no_state():
  """Two equal neurons get equal multipliers; once their states differ, others. A theta fits any number of neurons."""
  bench = noisy()
  alike = lambda leaf: leaf.at[..., 1].set(leaf[..., 0])  # noqa: E731
  grads, acts, _ = bench.asked(bench.params)
  params, grads = ({**tree, "first": jax.tree.map(alike, tree["first"])} for tree in (bench.params, grads))
  acts = {**acts, "first": {**acts["first"], "mid": alike(acts["first"]["mid"]), "post": alike(acts["first"]["post"])}}
  memory = bench.tx.init(params)
  it = rules.Learned(bench.theta, 0.3, bench.tensors, bench.rule, False)
  multipliers = jax.jit(it.multipliers)
  deltas, _ = multipliers(grads, memory, params, acts)
  for name in ("first/kernel", "first/bias"):
    np.testing.assert_allclose(deltas[name][..., 0], deltas[name][..., 1], atol=1e-6)
    assert np.abs(deltas[name][..., 0] - deltas[name][..., 2]).max() > 2e-5
    memory[name] = memory[name].at[:, :, 1].add(0.5)
  deltas, _ = multipliers(grads, memory, params, acts)
  for name in ("first/kernel", "first/bias"):
    assert np.abs(deltas[name][..., 0] - deltas[name][..., 1]).max() > 2e-5
  wide = shapes(MLP(2, 3, (50,)), (2, 2, 1))[2]
  chex.assert_trees_all_equal_shapes(
    bench.theta, jax.eval_shape(lambda key: init_theta(key, wide, SMALL), jax.random.key(0))
  )


def test_activations_are_means_of_live_rows():
  """Dense: past the ReLU; convolution: before its normalisation; normalisation: what is normalised, then what comes."""
  bench = noisy()
  live = jnp.arange(12) < 4
  acts = bench.asked(bench.params, live)[1]["first"]
  x = bench.batch.x[:4].reshape(4, -1)
  z = x @ bench.params["first"]["kernel"]
  for name, wanted in {"pre": x, "mid": z, "post": nn.relu(z)}.items():
    np.testing.assert_allclose(acts[name], wanted.mean(axis=0), atol=1e-6)
  bench = Bench(Normalised(), (6, 6, 2))
  params = {**bench.params, "norm": {"scale": jnp.full(4, 2.0), "bias": jnp.full(4, 3.0)}}
  acts = bench.asked(params)[1]
  np.testing.assert_allclose(acts["norm"]["post"], 2 * acts["norm"]["mid"] + 3, atol=1e-5)
  np.testing.assert_array_equal(acts["conv"]["post"], acts["conv"]["mid"])
  np.testing.assert_allclose(acts["norm"]["pre"], acts["conv"]["post"], atol=1e-6)
  assert acts["conv"]["pre"].shape == (2,)


def test_blocks_are_of_unit_size_and_zeros_stay_zeros():
  tensor = Tensor("l", "kernel", 1, 3, 4)
  acts = {"pre": jnp.zeros(3), "mid": jnp.ones(4), "post": jnp.arange(4.0)}
  w = jax.random.normal(jax.random.key(0), (3, 4)) * 1e-3
  blocks = rules.blocks_of(tensor, w, jnp.zeros((3, 4)), acts, Rule())
  sizes = [float(jnp.square(block).mean()) for block in blocks]
  np.testing.assert_allclose(sizes, [1, 0, 0, 1], atol=0.02)
  np.testing.assert_array_equal(rules.blocks_of(tensor, w, w, acts, RAW)[0], w.T)


def test_literal_relu_cells_and_tanh_cells():
  """Of one neuron by hand, one layer's gates all at zero but the new value: c = sigmoid(0) act(z), h = .5 act(c)."""
  own = {name: jnp.zeros((1, 4)) for name in ("weights", "gradients", "pre", "post")}
  own |= {"stacked": jnp.zeros((2, 1, 4)), "recurrent": jnp.zeros((3, 1, 4))}
  own["gates"] = jnp.zeros((3, 4)).at[:, 2].set(3.0)
  blocks = (jnp.zeros((1, 1)),) * 4
  for cell, c in (("tanh", 0.5 * np.tanh(3)), ("relu", 1.5)):
    given, state = rules.lstm(own, jnp.zeros((2, 3, 1, 1)), blocks, cell)
    np.testing.assert_allclose(state[1].ravel(), c, rtol=1e-5)
    np.testing.assert_allclose(given, 0.5 * (np.tanh(c) if cell == "tanh" else c), rtol=1e-5)
  assert float(rules.largest_cell({"a": -7 * jnp.ones((2, 3, 1, 1))})) == 7
  assert float(rules.largest_cell({})) == 0


def test_a_file_of_another_form_or_shape_is_refused(tmp_path):
  tensors = shapes(MLP(2, 3, (5,)), (2, 2, 1))[2]
  theta = jax.jit(lambda key: init_theta(key, tensors, SMALL))(jax.random.key(0))
  artifacts.write(tmp_path, {"theta": rules.part(theta, SMALL)})
  leaves = artifacts.read(tmp_path / "theta.npz")
  chex.assert_trees_all_equal(rules.filled(tensors, SMALL, leaves, "f"), theta)
  with pytest.raises(ConfigError, match="holds a rule of the form 'lstm_tanh_rms', but 'static' is asked for"):
    rules.filled(tensors, STATIC, leaves, "f")
  wide = shapes(MLP(2, 3, (5,)), (3, 2, 1))[2]
  with pytest.raises(ConfigError, match=r"'bias'\] has the shape \(4,\), but \(6,\) is needed"):
    rules.filled(wide, SMALL, leaves, "f")


@pytest.mark.parametrize("names", [(), ("a",), ("",), ("['first']['kernel']",), ("['a']['b']['c']",), ("it's",)])
def test_a_file_without_a_rule_is_refused(names):
  """An empty one, arrays of one's own, and a network, whatever its layers are called."""
  tensors = shapes(MLP(2, 3, (5,)), (2, 2, 1))[2]
  with pytest.raises(ConfigError, match=r"^f holds no rule of any form: a trained one is parts/seed_N/theta.npz in"):
    rules.filled(tensors, SMALL, dict.fromkeys(names, np.ones(2)), "f")


@pytest.mark.parametrize(
  ("trained", "asked", "words"),
  [
    ((5, 4), (5,), "4 parameter tensors .* has 2, and hidden_1/bias is in the file alone"),
    ((5,), (5, 4), "2 parameter tensors .* has 4, and hidden_1/bias is not in the file"),
  ],
)
def test_a_file_of_another_net_is_refused(trained, asked, words):
  """Whose other tensors would fit."""
  theirs, own = (shapes(MLP(2, 3, hidden), (2, 2, 1))[2] for hidden in (trained, asked))
  leaves = {f"['static']['{name}']['bias']": np.ones(one.outputs, np.float32) for name, one in theirs.items()}
  leaves |= {f"['static']['{name}']['scale']": np.ones((), np.float32) for name in theirs}
  assert rules.filled(theirs, STATIC, leaves, "f").keys() == theirs.keys()
  with pytest.raises(ConfigError, match=f"^f holds the rule of a net of {words}: set config.net to the net that"):
    rules.filled(own, STATIC, leaves, "f")


def test_what_the_rule_has_no_form_for_is_refused():
  class Grouped(nn.Module):
    @nn.compact
    def __call__(self, x, slot):
      return Outputs(*(nn.Conv(4, (3, 3), feature_group_count=2, name="conv")(x).mean(axis=(1, 2)),) * 2, slot)

  class Own(nn.Module):
    @nn.compact
    def __call__(self, x, slot):
      return Outputs(*(x.mean(axis=(1, 2)) * self.param("gain", nn.initializers.ones, (2,)),) * 2, slot)

  with pytest.raises(ConfigError, match="no form for conv/bias of shape .*a convolution in groups"):
    shapes(Grouped(), (4, 4, 2))
  with pytest.raises(ConfigError, match="no form for gain of shape .*no layer that taps can read"):
    shapes(Own(), (4, 4, 2))


def test_heads_take_plain_sgd():
  bench = noisy()
  grads, _, updates = bench.asked(bench.params)
  chex.assert_trees_all_equal(updates["head"], jax.tree.map(lambda g: -0.3 * g, grads["head"]))
  moved, plain = (flatten_dict(tree["first"]) for tree in (updates, grads))
  assert all(np.abs(moved[name] + 0.3 * plain[name]).max() > 1e-4 for name in plain)
  assert layers(bench.net, {"params": bench.params}, bench.batch.x, bench.batch.task).keys() == {"first", "head"}
