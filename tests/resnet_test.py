"""Residual nets: counts of the paper, shapes, shortcuts, what is normalised together, and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.errors import ConfigError
from cljax.nets import NormedCNN, ResNet
from cljax.nets.resnet import groups_of, shortcut
from cljax.nets.taps import layers, tapped

SLOT = jnp.zeros(2, jnp.int32)


def shapes(net, side=32):
  x = jnp.zeros((2, side, side, 3))
  return jax.eval_shape(net.init, jax.random.key(0), x, SLOT)["params"], x


def body(params):
  return sum(math.prod(leaf.shape) for name, tree in params.items() if name != "head" for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("depth", "millions"), [(32, 0.46), (14, 0.17), (8, 0.075)])
def test_the_counts_of_the_paper_s_nets(depth, millions):
  """Convolutions 9 * in * out, two numbers a channel for each normalisation, nothing for shortcuts."""
  n = (depth - 2) // 6
  wide = [(3, 16)] + [(16, 16)] * 2 * n + [(16, 32)] + [(32, 32)] * (2 * n - 1) + [(32, 64)] + [(64, 64)] * (2 * n - 1)
  net = ResNet(heads=2, classes=5, depth=depth)
  params, x = shapes(net)
  assert body(params) == sum(9 * i * o + 2 * o for i, o in wide)
  assert abs(body(params) / 1e6 - millions) < 0.05 * millions + 0.005
  called = layers(net, {"params": params}, x, SLOT)
  assert len(called) == 2 * (depth - 1) + 1  # convolutions, their normalisations, the heads
  out = jax.eval_shape(net.apply, {"params": params}, x, SLOT)
  assert out.features.shape == (2, 64) and out.logits.shape == (2, 5)
  assert called["stage_2_0_a/conv"].output.shape == (2, 8, 8, 64)


def test_a_block_by_hand():
  """Depth 8 on few pixels, from its taps: relu(what the second normalisation gives + the shortcut)."""
  net = ResNet(heads=1, classes=2, depth=8, widths=(4, 6, 8), groups=4)
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

  @jax.jit
  def run(x):
    params = net.init(jax.random.key(0), x, SLOT)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape) / leaf.size, params)
    return params, tapped(net, {"params": params}, x, SLOT)

  params, found = run(x)
  inputs, outputs = found.inputs, found.outputs
  before = np.asarray(inputs["stage_1_0_a/conv"])
  kept = np.zeros((2, 4, 4, 6), np.float32)
  kept[..., :4] = before[:, ::2, ::2]
  after = np.maximum(np.asarray(outputs["stage_1_0_b/norm"]) + kept, 0)
  np.testing.assert_allclose(inputs["stage_2_0_a/conv"], after, atol=1e-6)
  z = np.asarray(outputs["stage_1_0_b/conv"])  # six channels, four groups at most: three groups of two
  grouped = z.reshape(2, 4, 4, 3, 2)
  mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
  normal = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(z.shape)
  own = params["stage_1_0_b"]["norm"]
  np.testing.assert_allclose(outputs["stage_1_0_b/norm"], normal * own["scale"] + own["bias"], atol=1e-4)
  last = np.maximum(np.asarray(outputs["stage_2_0_b/norm"]) + shortcut(inputs["stage_2_0_a/conv"], 8, 2), 0)
  np.testing.assert_allclose(found.out.features, last.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize(("channels", "most", "groups"), [(16, 8, 8), (6, 4, 3), (4, 8, 4), (7, 3, 1), (12, 8, 6)])
def test_groups(channels, most, groups):
  assert groups_of(channels, most) == groups


def test_the_plain_stack():
  params, x = shapes(net := NormedCNN(heads=2, classes=5))
  assert body(params) == sum(9 * i * o + 2 * o for i, o in ((3, 16), (16, 32), (32, 64)))
  called = layers(net, {"params": params}, x, SLOT)
  assert called["hidden_2/norm"].output.shape == (2, 4, 4, 64)
  assert jax.eval_shape(net.apply, {"params": params}, x, SLOT).features.shape == (2, 64)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"depth": 20 + 1}, "config.net.depth=21 must be 6n \\+ 2, for example 20 or 26"),
    ({"widths": (16, 8, 64)}, "none smaller than the one before"),
    ({"widths": (16, 32)}, "must be three numbers"),
    ({"groups": 0}, "config.net.groups=0 is too small"),
  ],
)
def test_refusals(fields, words):
  with pytest.raises(ConfigError, match=words):
    shapes(ResNet(heads=1, classes=2, **fields))
