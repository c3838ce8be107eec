"""How layers come from shared tensors, what they hold, and networks made of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.errors import ConfigError
from cljax.nets import Stack
from cljax.ops.posterior import configurations
from cljax.pieces import sharing
from cljax.pieces.layered import Layered, shapes_of
from cljax.pieces.optimizers import rmsprop
from cljax.pieces.sharing import Shape
from cljax.pieces.transfer import Transfer, grouped, sharing_of
from cljax.types import Spec
from launch.config_files import load_config
from tests.tiers import at_release

TABLE = load_config("configs/papers/lasem/table1.py")
SHARINGS = ("hps", "tf", "df_cnn")


def layered(name, *, x_shape=(8, 8, 1), T=3, C=4, groups=(), rolls_back=True, **fields):
  net = Stack(
    heads=1, classes=C, **{"channels": (3, 3, 4), "pools": (1, 2, 1), "hidden": (5,), "dropout": 0.0} | fields
  )
  depth = net.depth
  spec, transfer = Spec(x_shape, T, C, T), Transfer(sharing=name, base_depths=(2,) * depth, base_middles=(3,) * depth)
  return Layered(net, sharing_of(transfer, net, shapes_of(net, spec)), spec, grouped(groups, depth), rolls_back)


def begun(nets, seed=0):
  """(state, params) before the first task, no two tensors alike."""
  layers = jax.jit(nets.init)(jax.random.key(seed))
  return layers, {"shared": layers.shared, "work": layers.work}


TWO = {"channels": (3, 4), "pools": (2, 1)}
SKIPPING = {
  "channels": (4, 4, 4, 4, 5, 5, 5),
  "pools": (2, 1, 1, 1, 2, 1, 1),
  "skips": (-1, -1, 0, 2, -1, -1, 4),
  "groups": (2, 1, 2, 2),
}
GROUPED = {**SKIPPING, "groups": (4, 3)}


@pytest.mark.parametrize(
  ("name", "fields"),
  [
    *((name, TWO) for name in SHARINGS),
    ("hps", SKIPPING),
    ("hps", GROUPED),
    *at_release(*((name, {}) for name in SHARINGS), ("df_cnn", GROUPED)),
  ],
  ids=["hps", "tf", "df_cnn", "skips", "groups", "hps_four", "tf_four", "df_cnn_four", "df_cnn_groups"],
)
def test_the_tree_is_each_configuration_by_itself(name, fields):
  """Skips may cross the border of a group; a bit is a group's, its layers together."""
  nets = layered(name, **fields)
  _, params = begun(nets)
  x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
  table = configurations(len(nets.groups))
  alone = jax.jit(lambda params, x: jax.lax.map(lambda c: nets.features(params, x, c), jnp.asarray(table)))(params, x)
  np.testing.assert_allclose(jax.jit(nets.tree)(params, x), alone, atol=1e-5)
  assert len(np.unique(np.asarray(alone).sum(axis=(1, 2)))) == len(table)  # no two configurations are one network


def test_hard_sharing_takes_the_shared_layer():
  nets = layered("hps")
  _, params = begun(nets)
  for (shared, own), kept, layer in zip(nets.sides(params), params["shared"], params["work"]["layers"], strict=True):
    chex.assert_trees_all_equal((shared, own), (kept, layer))


def test_tensor_factors_by_hand():
  """W = G where all four matrices are identities; each axis is multiplied by its own."""
  net, shape, random = Stack(1, 2), Shape(2, 3, 4), np.random.default_rng(0)
  tf = sharing.tf(net)
  core = random.normal(size=shape.kernel).astype(np.float32)
  own = {f"axis_{i}": np.eye(n, dtype=np.float32) for i, n in enumerate(shape.kernel)} | {"bias": np.arange(4.0)}
  np.testing.assert_allclose(tf.weights(core, own)["kernel"], core)
  assert tf.loss(own) == 0
  matrices = [random.normal(size=(n, n)).astype(np.float32) for n in shape.kernel]
  found = tf.weights(core, {f"axis_{i}": m for i, m in enumerate(matrices)} | {"bias": own["bias"]})
  expected = core.astype(np.float64)
  for axis, matrix in enumerate(matrices):
    expected = np.moveaxis(np.tensordot(expected, matrix, ([axis], [0])), -1, axis)
  np.testing.assert_allclose(found["kernel"], expected, rtol=1e-4, atol=1e-4)
  double = {f"axis_{i}": 2 * np.eye(n, dtype=np.float32) for i, n in enumerate(shape.kernel)}
  assert float(tf.loss(double)) == pytest.approx(0.1 * 3 * sum(np.sqrt(n) for n in shape.kernel))


def test_a_deconvolution_by_hand():
  """In one dimension [1, 10] by [1, 2, 3] with stride 2 is [2, 13, 20]; sides 2, 3, 6 give 3, 5, 11."""
  base = np.zeros((2, 2, 1), np.float32)
  base[0, :, 0] = 1, 10
  kernel = np.zeros((3, 3, 1, 1), np.float32)
  kernel[1, :, 0, 0] = 1, 2, 3
  np.testing.assert_allclose(sharing.deconvolved(base, kernel)[0, :, 0], [2, 13, 20])
  for side, window in ((2, 3), (3, 5), (6, 11)):
    found = jax.eval_shape(sharing.deconvolved, jnp.zeros((side, side, 4)), jnp.zeros((3, 3, 7, 4)))
    assert found.shape == (window, window, 7)
    assert sharing.bases([Shape(window, 1, 1)], (4,), (7,))[0].side == side


def test_deconvolved_kernels_are_linear_in_base_and_contraction():
  net, shape = Stack(1, 2, channels=(5,), pools=(1,)), Shape(3, 2, 5)
  df = sharing.df_cnn(net, sharing.bases([shape], (4,), (6,)))
  base, own = df.shared(jax.random.key(0), shape, 0), df.own(jax.random.key(1), shape, 0)
  own["deconvolution_bias"] = jnp.zeros(6)
  one = df.weights(base, own)["kernel"]
  assert one.shape == shape.kernel
  np.testing.assert_allclose(df.weights(3 * base, own)["kernel"], 3 * one, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(
    df.weights(base, {**own, "contraction": 3 * own["contraction"]})["kernel"], 3 * one, rtol=1e-4, atol=1e-6
  )


COUNTS = {  # net -> convolutions, what stands above; sharing -> shared, a task's own for it
  "cifar100_10": (65_568, 262_858, {"hps": (65_568, 0), "tf": (65_376, 16_657), "df_cnn": (432, 533_424)}),
  "office_home": (
    1_613_312,
    1_066_125,
    {"hps": (1_613_312, 0), "tf": (1_612_480, 337_041), "df_cnn": (1_952, 19_116_400)},
  ),
  "stl10": (287_008, 264_387, {"hps": (287_008, 0), "tf": (286_560, 70_197), "df_cnn": (1_104, 5_083_528)}),
}
PICTURES = {"cifar100_10": (32, 10), "office_home": (128, 13), "stl10": (96, 3)}


def numbers(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def of_config(arg, stream):
  config, (side, C) = TABLE.get_config(arg), PICTURES[stream]
  fields = {key: value for key, value in config.net.to_dict().items() if key != "name"}
  net = Stack(heads=1, classes=C, **fields)
  spec, groups = Spec((side, side, 3), 10, C, 10), grouped(tuple(config.method.get("groups", ())), net.depth)
  transfer = Transfer(config.method.sharing, (), tuple(config.method.base_depths), tuple(config.method.base_middles))
  nets = Layered(net, sharing_of(transfer, net, shapes_of(net, spec)), spec, groups)
  return nets, jax.eval_shape(nets.init, jax.random.key(0))


@pytest.mark.parametrize("stream", COUNTS)
def test_parameters_of_the_paper_s_networks(stream):
  convolutions, above, each = COUNTS[stream]
  for name, (shared, own) in each.items():
    _, layers = of_config(f"stream={stream},sharing={name}", stream)
    assert numbers(layers.shared) == shared and numbers(layers.work["own"]) == own
    assert numbers(layers.work["layers"]) == convolutions
    if (stream, name) != ("stl10", "tf"):  # whose single layer above is 128 wide
      assert numbers(layers.work["top"]) == above


def test_the_residual_net_in_groups():
  for groups, K in (("4g", 16), ("5g", 32), ("6g", 64), ("7g", 128)):
    nets, layers = of_config(f"net=resnet_{groups}", "cifar100_10")
    assert numbers(layers.shared) == 10_998_784 and numbers(layers.work["top"]) == 2_059_010
    rows = configurations(len(nets.groups))[:, nets.group_of]
    assert rows.shape == (K, 17) and len(np.unique(rows, axis=0)) == K
    assert [nets.net.skip(l) for l in (2, 4, 8, 12, 16)] == [0, 2, 6, 10, 14]


def test_live_parameters_are_counted_by_what_is_committed():
  nets = layered("tf")
  layers, _ = begun(nets)
  shared, own, layer = (
    [numbers(each) for each in trees] for trees in (layers.shared, layers.work["own"], layers.work["layers"])
  )
  top = numbers(layers.work["top"])
  assert nets.parameters(layers) == 0
  commit = jax.jit(nets.commit)
  layers = commit(layers, jnp.int32(0), jnp.array([True, False, False]))
  assert nets.parameters(layers) == shared[0] + own[0] + layer[1] + layer[2] + top
  layers = commit(layers, jnp.int32(1), jnp.array([True, True, False]))
  assert nets.parameters(layers) == sum(shared[:2]) + 2 * own[0] + own[1] + layer[1] + 2 * layer[2] + 2 * top


@pytest.mark.parametrize("rolls_back", [True, False])
def test_a_commit_keeps_what_it_shares_and_rolls_the_rest_back(rolls_back):
  nets = layered("hps", rolls_back=rolls_back)
  before, _ = begun(nets)
  started = nets.begin(before, jnp.int32(1))
  moved = started.replace(shared=jax.tree.map(lambda leaf: leaf + 1, started.shared))
  after = jax.jit(nets.commit)(moved, jnp.int32(1), jnp.array([True, False, False]))
  chex.assert_trees_all_equal(after.shared[0], moved.shared[0])
  chex.assert_trees_all_equal(after.shared[1:], (before if rolls_back else moved).shared[1:])
  chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1], after.store), moved.work)
  np.testing.assert_array_equal(after.committed, [False, True, False])


def test_a_first_step_of_the_paper_s_optimizer():
  """The mean square begins at 1: .5 at a rate of 1e-4 moves by -1e-4 * .5 / sqrt(.925)."""
  tx = rmsprop(1e-4, decay=0.9, eps=1e-10, initial_scale=1.0)
  update, _ = tx.update(jnp.array([0.5]), tx.init(jnp.zeros(1)))
  np.testing.assert_allclose(update, [-5.19875e-5], rtol=1e-5)
  assert isinstance(tx, optax.GradientTransformation)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: layered("hps", groups=(2, 2)), "config.method.groups=(2, 2) are 4 layers, and the net has 3 convolutions"),
    (lambda: layered("df_cnn", windows=(2,)), "config.net.windows: a DF-CNN makes kernels of odd sides, not 2"),
    (lambda: layered("hps", windows=(3, 3)), "config.net.windows=(3, 3) must have 1 entry or 3"),
    (lambda: layered("hps", skips=(-1, -1, 1)).net.skip(2), "config.net.skips: layer 2 cannot add layer 1"),
  ],
)
def test_what_does_not_fit_is_refused(make, words):
  with pytest.raises(ConfigError) as caught:
    make()
  assert words in str(caught.value)
