"""Convolutions and pooling against `lax`: values, derivatives and theirs; in loops, in branches, as layers."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cljax.nets import CNN
from cljax.nets.conv import Conv, FlatConv
from cljax.nets.heads import Heads
from cljax.nets.taps import derivatives, layers, tapped
from cljax.ops import convolution as ops
from cljax.ops.convolution import Geometry, canonical, convolution, max_pool
from cljax.types import Outputs

NUMBERS = ("NHWC", "HWIO", "NHWC")
CASES = [  # size of the picture, of the window, strides, padding, dilation of the input, of the kernel
  *((size, k, s, "SAME", 1, 1) for size, (k, s) in itertools.product((7, 8), ((1, 2), (3, 1), (3, 2), (5, 2), (7, 1)))),
  (12, 11, 2, "SAME", 1, 1),
  (8, 3, 2, "VALID", 1, 1),
  (6, 3, 3, ((2, 0), (1, 4)), 1, 1),
  (6, 2, 2, ((-1, 3), (0, -2)), 1, 1),  # rows cut off
  (5, 3, 2, ((1, 2), (0, 1)), 3, 2),
  (4, 3, 1, ((1, 1), (2, 2)), (2, 1), (1, 2)),
]


def drawn(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def lax_convolution(x, kernel, strides, padding, input_dilation=1, kernel_dilation=1):
  steps = ((step, step) if isinstance(step, int) else step for step in (strides, input_dilation, kernel_dilation))
  s, a, b = steps
  return jax.lax.conv_general_dilated(x, kernel, s, padding, a, b, dimension_numbers=NUMBERS)


def orders(convolve, settings, x, kernel):
  """The values, the derivatives by both, and the derivatives of a function of these."""

  def one(x, kernel):
    return jnp.sin(convolve(x, kernel, *settings)).sum()

  def two(x, kernel):
    return sum((jnp.tanh(d) ** 2).sum() for d in jax.grad(one, (0, 1))(x, kernel))

  return convolve(x, kernel, *settings), jax.grad(one, (0, 1))(x, kernel), jax.grad(two, (0, 1))(x, kernel)


@pytest.mark.parametrize("part", range(2))  # half of the cases are one program
def test_values_and_derivatives_of_both_orders_are_those_of_lax(part):
  cases = CASES[part::2]
  given = [(drawn(i, 2, size, size + 1, 2), drawn(9, k, k, 2, 3)) for i, (size, k, *_) in enumerate(cases)]

  @jax.jit
  def both(given):
    return [
      [orders(f, settings, *one) for one, (_, _, *settings) in zip(given, cases, strict=True)]
      for f in (convolution, lax_convolution)
    ]

  ours, theirs = both(given)
  for case, one, other in zip(cases, ours, theirs, strict=True):
    chex.assert_trees_all_equal_shapes_and_dtypes(one, other)
    for mine, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
      np.testing.assert_allclose(mine, wanted, rtol=2e-5, atol=2e-5, err_msg=str(case))


def test_on_an_accelerator_it_is_lax(monkeypatch):
  """On an accelerator it is `lax`'s own, derivatives too; on a CPU no derivative permutes what a convolution takes."""
  x, kernel = jnp.ones((2, 5, 5, 2)), jnp.ones((3, 3, 2, 3))

  def numbers():
    traced = str(jax.make_jaxpr(jax.grad(lambda x, k: convolution(x, k, 2).sum(), (0, 1)))(x, kernel))
    return set(part.split(")")[0] for part in traced.split("dimension_numbers=ConvDimensionNumbers(")[1:])

  canonical_numbers = {"lhs_spec=(0, 3, 1, 2"}
  assert numbers() == canonical_numbers
  monkeypatch.setattr(ops.jax, "default_backend", lambda: "gpu")
  assert numbers() > canonical_numbers


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_any_dtype_of_floats_and_no_other(dtype):
  x, kernel = drawn(0, 2, 5, 5, 2, dtype=dtype), drawn(1, 3, 3, 2, 3, dtype=dtype)
  found = jax.jit(lambda: jax.value_and_grad(lambda x, k: convolution(x, k, 2).sum(), (0, 1))(x, kernel))()
  wanted = jax.jit(lambda: jax.value_and_grad(lambda x, k: lax_convolution(x, k, 2, "SAME").sum(), (0, 1))(x, kernel))()
  chex.assert_trees_all_equal_dtypes(found, wanted)
  chex.assert_trees_all_close(*(jax.tree.map(jnp.float32, one) for one in (found, wanted)), rtol=0.02, atol=0.05)
  with pytest.raises(AssertionError):
    convolution(x, kernel.astype(jnp.float32))
  with pytest.raises(AssertionError):
    convolution(x.astype(jnp.int32), kernel.astype(jnp.int32))
  with pytest.raises(ValueError, match="padding='SAME' of a dilated input"):
    convolution(x, kernel, input_dilation=2)


def test_the_precision_in_force_is_that_of_the_derivatives_too():
  x, kernel = jnp.ones((2, 5, 5, 2)), jnp.ones((3, 3, 2, 3))
  with jax.default_matmul_precision("highest"):
    _, back = jax.vjp(convolution, x, kernel)
    value = str(jax.make_jaxpr(convolution)(x, kernel))
  derivative = str(jax.make_jaxpr(back)(jnp.ones((2, 5, 5, 3))))
  assert value.count("Precision.HIGHEST") >= 1 and derivative.count("Precision.HIGHEST") >= 2
  assert "precision=None" not in value + derivative


def test_in_a_loop_in_a_branch_and_under_vmap():
  x, kernels = drawn(0, 4, 6, 6, 2), 0.3 * drawn(1, 2, 3, 3, 2, 2)

  def learnt(convolve, kernel):
    def step(i, kernel):
      def loss(kernel):
        return (convolve(convolve(x, kernel, 1, "SAME"), kernel, 2, "SAME") ** 2).mean()

      return kernel - 0.1 * jax.lax.cond(
        i % 2 == 0, jax.grad(loss), lambda kernel: 0.5 * jax.grad(loss)(kernel), kernel
      )

    return jax.lax.fori_loop(0, 3, step, kernel)

  @jax.jit
  def all_ways(kernels):
    each = [jax.lax.map(lambda kernel, f=f: learnt(f, kernel), kernels) for f in (convolution, lax_convolution)]
    return *each, jax.vmap(lambda kernel: learnt(convolution, kernel))(kernels)

  found, wanted, together = all_ways(kernels)
  assert np.abs(found - kernels).max() > 1e-3
  np.testing.assert_allclose(found, wanted, atol=1e-5)
  np.testing.assert_allclose(together, wanted, atol=1e-5)


def test_one_axis_of_space():
  x, kernel = drawn(0, 2, 7, 3), drawn(1, 3, 3, 4)
  found = convolution(x, kernel, 2, ((1, 1),))
  wanted = convolution(x[:, None], kernel[None], (1, 2), ((0, 0), (1, 1)))[:, 0]
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  assert canonical(Geometry((1,), ((0, 0),), (1,), (1,)), x, kernel).shape == (2, 5, 4)


def reduced(x, size):
  window = (1, size, size, 1)
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "SAME")


@pytest.mark.parametrize(
  ("shape", "size"), [((2, 6, 9, 3), 3), ((2, 43, 43, 2), 3), ((3, 5, 6, 2), 4), ((1, 3, 3, 2), 1)]
)
def test_pooling_is_that_of_lax(shape, size):
  x = -jnp.abs(drawn(0, *shape)) - 1  # zeros around would win

  @jax.jit
  def both(x):
    return [(f(x, size), jax.grad(lambda x, f=f: (f(x, size) ** 3).sum())(x)) for f in (max_pool, reduced)]

  found, wanted = both(x)
  chex.assert_trees_all_close(found, wanted, atol=1e-6)
  assert found[0].shape[1:3] == tuple(-(-n // size) for n in shape[1:3])


def test_pooling_by_hand():
  x = jnp.array([[1.0, 5, -3], [2, 5, -4], [7, 0, -1]]).reshape(1, 3, 3, 1)
  np.testing.assert_array_equal(max_pool(x, 2)[0, ..., 0], [[5, -3], [7, -1]])
  shared = jax.grad(lambda x: max_pool(x, 2).sum())(x)[0, ..., 0]
  np.testing.assert_array_equal(shared, [[0, 0.5, 1], [0, 0.5, 0], [1, 0, 1]])


class Net(nn.Module):
  """Both layers, pooling and several heads."""

  heads: int = 3
  classes: int = 3

  @nn.compact
  def __call__(self, x, slot):
    x = max_pool(nn.relu(Conv(4, (3, 3), name="first")(x)), 2)
    x = nn.relu(Conv(6, (2, 3), strides=(2, 1), padding="VALID", feature_group_count=2, name="grouped")(x))
    x = nn.relu(FlatConv(5, (3, 3), strides=(2, 2), name="flat")(x)).reshape(x.shape[0], -1)
    return Outputs(Heads(self.heads, self.classes, name="head")(x, slot), x, slot)


def test_taps_and_scores_of_single_examples_see_the_layers():
  net, x, slot, y = Net(), drawn(0, 4, 7, 8, 2), jnp.array([0, 1, 2, 1]), jnp.array([0, 1, 2, 0])
  params = jax.jit(net.init)(jax.random.key(1), x, slot)["params"]

  def each_loss(out, y):
    return optax.softmax_cross_entropy_with_integer_labels(out.logits, y)

  @jax.jit
  def both(params):
    def one(params, x, slot, y):
      return each_loss(net.apply({"params": params}, x[None], slot[None]), y[None])[0]

    alone = jax.vmap(jax.grad(one), (None, 0, 0, 0))(params, x, slot, y)
    found = derivatives(net, {"params": params}, x, slot, lambda out: each_loss(out, y))
    wanted = jax.tree.map(lambda g: jnp.abs(g).sum(axis=0), alone)
    return {leaf: found.power_sums(leaf, jnp.abs) for leaf in ("kernel", "bias")}, wanted

  found, wanted = both(params)
  for leaf, totals in found.items():
    chex.assert_trees_all_close(totals, {layer: leaves[leaf] for layer, leaves in wanted.items()}, rtol=1e-4, atol=1e-5)
  assert list(layers(net, {"params": params}, x, slot)) == ["first", "grouped", "flat", "head"]
  gate = jnp.array([0.0, 1, 2, 1])
  scaled = params | {"first": {name: leaf * gate for name, leaf in params["first"].items()}}
  chex.assert_trees_all_close(
    tapped(net, {"params": params}, x, slot, scale={"first": gate}).out,
    net.apply({"params": scaled}, x, slot),
    atol=1e-5,
  )


def test_a_flat_kernel_is_that_of_a_dense_layer_over_windows():
  """Begun with the same numbers, and its rows are (row, column, channel) of the window."""
  x, start = drawn(0, 2, 5, 5, 3), nn.initializers.he_normal()
  flat, bias = jax.tree.leaves(nn.Dense(4, kernel_init=start).init(jax.random.key(0), jnp.ones((1, 27))))[::-1]
  layer = FlatConv(4, (3, 3), kernel_init=start)
  chex.assert_trees_all_equal(layer.init(jax.random.key(0), x), {"params": {"kernel": flat, "bias": bias}})
  out = layer.apply({"params": {"kernel": flat, "bias": bias}}, x)
  np.testing.assert_allclose(out[:, 2, 3], x[:, 1:4, 2:5].reshape(2, -1) @ flat, atol=1e-5)


def test_the_net_of_the_table_has_the_leaves_it_had():
  net = CNN(heads=2, classes=3, channels=(3, 4), hidden=(6,))
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 9, 9, 2)), jnp.zeros(1, jnp.int32))["params"]
  assert {name: leaves["kernel"].shape for name, leaves in shapes.items()} == {
    "first": (18, 3),
    "hidden_1": (27, 4),
    "hidden_2": (36, 6),
    "head": (6, 6),
  }
