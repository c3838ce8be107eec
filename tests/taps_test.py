"""Taps: what layers are given and give, read, scaled and added to; the gradients of single examples from there."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cljax.errors import ConfigError
from cljax.nets import CNN, MLP, RoutedMLP
from cljax.nets.heads import Heads
from cljax.nets.taps import LEAVES, derivatives, layers, tapped
from cljax.types import Outputs

B, C = 6, 3
POWERS = {"absolute": jnp.abs, "squared": jnp.square}


class Grouped(nn.Module):
  """Convolutions of every kind that is known, both normalisations that are layers' own, and several heads."""

  heads: int
  classes: int

  @nn.compact
  def __call__(self, x, slot, train=False):
    x = nn.Conv(4, (3, 2), strides=(2, 1), name="stem")(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, name="batch")(x))
    x = nn.Conv(6, (2, 2), padding=((1, 0), (0, 2)), feature_group_count=2, kernel_dilation=(1, 2), name="middle")(x)
    x = nn.relu(nn.GroupNorm(2, name="group")(x))
    x = nn.Conv(4, 2, padding=1, use_bias=False, input_dilation=2, name="last")(x.reshape(x.shape[0], -1, 6))
    x = nn.LayerNorm(name="layer")(x).mean(axis=1)
    return Outputs(Heads(self.heads, self.classes, name="head")(x, slot), x, slot)


class Twice(nn.Module):
  """One layer, called twice."""

  @nn.compact
  def __call__(self, x, slot):
    layer = nn.Dense(x.shape[-1], name="same")
    return Outputs(layer(layer(x)), x, slot)


NETS = {
  "mlp": (MLP(heads=4, classes=C, hidden=(7, 4)), (5,)),
  "mlp_one_head": (MLP(heads=1, classes=C, hidden=(7, 4)), (5,)),
  "mlp_many_heads": (MLP(heads=30, classes=C, hidden=(5,)), (5,)),
  "cnn": (CNN(heads=4, classes=C, channels=(3, 4), hidden=(6,)), (5, 5, 2)),
  "grouped": (Grouped(heads=4, classes=C), (4, 5, 2)),
  "routed": (RoutedMLP(heads=4, classes=C, widths=(3, 2), experts=5), (5,)),
}


class Case:
  """A net with parameters none of which is 0 or 1, and rows that ask for different heads."""

  def __init__(self, name):
    self.net, shape = NETS[name]
    keys = jax.random.split(jax.random.key(7), 4)
    self.x, self.slot = jax.random.normal(keys[0], (B, *shape)), jnp.array([0, 1, 2, 2, 0, 5])
    self.y = jnp.arange(B) % C
    self.options = {}
    if name == "routed":
      self.options["gates"] = tuple(jax.random.uniform(keys[3], (B, 5)) for _ in range(2))
    init = jax.jit(lambda key: self.net.init(key, self.x, self.slot, **self.options))
    variables = init(keys[1])
    noise = np.abs(jax.random.normal(keys[2], (2_000,)))
    self.variables = jax.tree.map(
      lambda leaf: jnp.asarray(np.asarray(leaf) + np.float32(0.3) * noise[: leaf.size].reshape(leaf.shape)), variables
    )

  def losses(self, out):
    return optax.softmax_cross_entropy_with_integer_labels(out.logits, self.y[: len(out.logits)])


@functools.cache
def case(name):
  return Case(name)


@pytest.mark.parametrize("name", NETS)
def test_a_net_that_is_read_gives_the_same(name):
  it = case(name)
  given = (it.net, it.variables, it.x, it.slot)

  @jax.jit
  def three():
    return it.net.apply(*given[1:], **it.options), *(tapped(*given, all_heads=h, **it.options) for h in (False, True))

  plain, found, every = three()
  chex.assert_trees_all_equal(found.out, plain)
  chex.assert_trees_all_close(every.out, plain, atol=1e-5)
  np.testing.assert_array_equal(found.outputs["head"], plain.logits)
  np.testing.assert_array_equal(found.inputs["head"], plain.features)


@pytest.mark.parametrize("name", NETS)
def test_layers_are_named_in_the_order_of_their_calls_and_have_the_shapes_that_are_read(name):
  it = case(name)
  for every in (False, True):
    known = layers(it.net, it.variables, it.x, it.slot, all_heads=every, **it.options)
    found = jax.eval_shape(
      lambda every=every: tapped(it.net, it.variables, it.x, it.slot, all_heads=every, **it.options)
    )
    assert {n: layer.input.shape for n, layer in known.items()} == {n: leaf.shape for n, leaf in found.inputs.items()}
    assert {n: layer.output.shape for n, layer in known.items()} == {n: leaf.shape for n, leaf in found.outputs.items()}
  order = {
    "grouped": ["stem", "batch", "middle", "group", "last", "layer", "head"],
    "mlp_many_heads": ["first", "head"],
  }
  wanted = order.get(name) or ["first", "hidden_1", *(["hidden_2"] if name == "cnn" else []), "head"]
  assert list(known) == wanted
  assert known["head"].output.shape == (B, it.net.heads * C)


def test_by_hand():
  """Two layers of one unit and two heads: z = 2 x + 1, then 3 relu(z) and -relu(z) + 5."""
  net = MLP(heads=2, classes=1, hidden=(1,))
  one = jnp.ones((1, 1))
  first, head = {"kernel": 2 * one, "bias": one[0]}, {"kernel": jnp.array([[3.0, -1.0]]), "bias": jnp.array([0.0, 5.0])}
  x, slot = jnp.array([[1.0], [2.0]]), jnp.array([0, 1])

  def out(**taps):
    return tapped(net, {"params": {"first": first, "head": head}}, x, slot, **taps)

  np.testing.assert_array_equal(out().out.logits, [[9], [0]])
  np.testing.assert_array_equal(out(all_heads=True).outputs["head"], [[9, 2], [15, 0]])
  changed = out(scale={"first": 10.0}, add={"first": jnp.array([[1.0], [2.0]])})  # z = 31, 52
  np.testing.assert_array_equal(changed.outputs["first"], [[31], [52]])
  np.testing.assert_array_equal(changed.inputs["head"], [[31], [52]])
  np.testing.assert_array_equal(changed.out.logits, [[93], [-47]])
  changed = out(scale_in={"head": 0.5}, add_in={"head": 1.0})  # features 2.5, 3.5
  np.testing.assert_array_equal(changed.inputs["head"], [[2.5], [3.5]])
  np.testing.assert_array_equal(changed.out.logits, [[7.5], [1.5]])
  changed = out(add={"head": jnp.array([[1.0, 0.0], [1.0, -7.0]])}, all_heads=True)
  np.testing.assert_array_equal(changed.out.logits, [[10], [-7]])


@pytest.mark.parametrize("name", ["mlp", "grouped"])
def test_a_gate_on_a_layer_is_one_on_its_units(name):
  """Scaling what comes out by per-unit gates is scaling the layer's kernel and bias."""
  it = case(name)
  layer = {"mlp": "hidden_1", "grouped": "middle"}[name]
  params = it.variables["params"]
  gate = jnp.linspace(0.0, 2.0, params[layer]["bias"].size)
  scaled = params | {layer: {"kernel": params[layer]["kernel"] * gate, "bias": params[layer]["bias"] * gate}}

  @jax.jit
  def both():
    wanted = it.net.apply(it.variables | {"params": scaled}, it.x, it.slot)
    return tapped(it.net, it.variables, it.x, it.slot, scale={layer: gate}).out, wanted

  chex.assert_trees_all_close(*both(), atol=1e-5)


def test_under_vmap_and_grad():
  """Each row alone gives what the batch gives, and the derivative by an added number is what vjp gives."""
  it = case("grouped")

  @jax.jit
  def each():
    def one(x, slot):
      return tapped(it.net, it.variables, x[None], slot[None])

    return jax.vmap(one)(it.x, it.slot), tapped(it.net, it.variables, it.x, it.slot)

  alone, together = each()
  chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[:, 0], alone), together, atol=1e-5)

  @jax.jit
  def slopes(x):
    def below(shift):
      return tapped(it.net, it.variables, x, it.slot, add={"stem": shift}).out.logits

    stem = tapped(it.net, it.variables, x, it.slot).outputs["stem"]
    _, back = jax.vjp(below, jnp.zeros_like(stem))
    _, given = jax.vjp(
      lambda shift: tapped(it.net, it.variables, x, it.slot, add_in={"batch": shift}).out.logits, stem * 0
    )
    return back(jnp.ones((B, C)))[0], given(jnp.ones((B, C)))[0]

  chex.assert_trees_all_close(*slopes(it.x), atol=1e-5)


def test_training_moves_statistics_as_without_taps():
  it = case("grouped")
  options = {"train": True, "mutable": ["batch_stats"]}

  @jax.jit
  def both():
    wanted = it.net.apply(it.variables, it.x, it.slot, **options)
    return tapped(it.net, it.variables, it.x, it.slot, **options).out, wanted

  chex.assert_trees_all_equal(*both())


@pytest.mark.parametrize("name", NETS)
def test_sums_over_examples_equal_those_of_every_example_s_own_gradient(name):
  it = case(name)

  def one(params, x, slot, y, gates):
    options = {"gates": tuple(gate[None] for gate in gates)} if gates else {}
    logits = it.net.apply(it.variables | {"params": params}, x[None], slot[None], **options).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, y[None])[0]

  @jax.jit
  def both():
    gates = it.options.get("gates", ())
    each = jax.vmap(jax.grad(one), (None, 0, 0, 0, 0))(it.variables["params"], it.x, it.slot, it.y, gates)
    slopes = derivatives(it.net, it.variables, it.x, it.slot, it.losses, **it.options)
    wanted = {name: jax.tree.map(lambda g, power=power: power(g).sum(axis=0), each) for name, power in POWERS.items()}
    found = {name: {leaf: slopes.power_sums(leaf, power) for leaf in LEAVES} for name, power in POWERS.items()}
    return found, wanted

  found, wanted = both()
  for power, layers_of in wanted.items():
    expected = {leaf: {layer: leaves[leaf] for layer, leaves in layers_of.items() if leaf in leaves} for leaf in LEAVES}
    chex.assert_trees_all_close(found[power], expected, atol=1e-5, rtol=1e-4)


def test_a_head_that_no_row_asks_for_has_no_slope():
  it = case("mlp")
  found = jax.jit(lambda: derivatives(it.net, it.variables, it.x, it.slot, it.losses).slopes["head"])()
  asked = np.asarray(np.abs(found).reshape(B, 4, C).sum(axis=-1) > 0)
  np.testing.assert_array_equal(asked.argmax(axis=1), np.minimum(it.slot, 3))
  np.testing.assert_array_equal(asked.sum(axis=1), 1)


def test_refusals():
  it = case("mlp")
  with pytest.raises(ConfigError, match="layer='frist' is not known. Did you mean first"):
    tapped(it.net, it.variables, it.x, it.slot, add_in={"frist": 1.0})
  net = Twice()
  variables = {"params": {"same": {"kernel": jnp.eye(5), "bias": jnp.zeros(5)}}}
  with pytest.raises(ValueError, match="calls its layer same twice"):
    tapped(net, variables, it.x, it.slot)


@pytest.mark.parametrize("layer", [nn.Conv(2, (3, 3), padding="CIRCULAR"), nn.LayerNorm(feature_axes=(1, 2, 3))])
def test_what_no_gradient_is_known_of_is_said(layer):
  class One(nn.Module):
    @nn.compact
    def __call__(self, x, slot):
      return layer.clone(parent=self, name="own")(x)

  x, slot = jnp.ones((2, 4, 4, 1)), jnp.zeros(2, jnp.int32)
  variables = jax.eval_shape(One().init, jax.random.key(0), x, slot)
  leaf = "kernel" if isinstance(layer, nn.Conv) else "scale"
  with pytest.raises(ValueError, match="no gradient of single examples is known"):
    jax.eval_shape(
      lambda variables: derivatives(One(), variables, x, slot, lambda out: out.sum(axis=(1, 2, 3))).power_sum(
        "own", leaf, jnp.abs
      ),
      variables,
    )
