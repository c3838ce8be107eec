"""Shared kernels through masks, and what tasks add: both forms' penalties, steps and parameters, and the clusters."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.data.sample import fetch, view_at
from cljax.errors import ConfigError
from cljax.methods.apd import Additive, Decomposition, added, apd, decomposed
from cljax.nets import Stack
from cljax.pieces.layered import Layered
from cljax.pieces.optimizers import sgd
from cljax.pieces.sharing import Shape
from cljax.pieces.transfer import Decay, grouped
from cljax.types import Clock, Place, Spec
from launch.config_files import load_config
from tests import toys

CLOCK = Clock(*(jnp.int32(n) for n in (0, 0, 8, 0)))
RATE = 0.1
NET = {"channels": (3, 3), "pools": (1, 2), "hidden": (5,), "dropout": 0.0, "weight_scale": 0.3, "bias": 0.1}


def additive(spec, net=NET, decay=0.0, **how):
  """The functions of the method, of steps by plain gradients."""
  net = Stack(heads=1, classes=spec.C, **net)
  how = Decomposition(**how)
  sharing, groups = decomposed(net, how.form == "original"), grouped((), net.depth)
  nets = Layered(net, sharing, spec, groups, rolls_back=False, chooses=False)
  return Additive(nets, sgd(RATE), how, Decay(decay), 5)


@functools.cache
def start(form):
  """(key, view) -> the state as a task begins, of which no two tensors are alike."""
  method = additive(toys.stream()[0], form=form)

  def run(key, view):
    state = method.init(key)
    store = moved(state.layers.store)
    return method.enter(key, state.replace(layers=state.layers.replace(store=store)), view, CLOCK)

  return jax.jit(run)


def begun(t=1, decay=0.0, form="simple", **how):
  """(the method in task t, its state, a batch, the view)."""
  spec, stream = toys.stream()
  view = view_at(jax.device_put(stream), jnp.int32(t), spec.heads)
  batch = fetch(view, Place(jnp.full(6, t, jnp.int32), jnp.asarray(stream.tasks.train.idx[t, :6])))
  return additive(spec, decay=decay, form=form, **how), start(form)(jax.random.key(0), view), batch, view


@jax.jit
def moved(params):
  """As if steps had been taken: all tensors elsewhere, each by other numbers."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(3), len(leaves))
  return jax.tree.unflatten(
    tree, [leaf + 0.2 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
  )


def stepping(method):
  """(drift, state, batch, view) -> state after a step."""

  def step(drift, state, batch, view):
    own = method._replace(how=method.how._replace(drift=drift))
    return own.step(jax.random.key(2), state, batch, CLOCK, view)[0]

  return jax.jit(step)


def exact(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("original", [False, True])
def test_a_kernel_is_the_shared_one_through_a_mask_and_what_the_task_adds(original):
  """The mask has an entry for each of the kernel's, or one for each of the channels that it gives."""
  way, shape = decomposed(Stack(1, 2, channels=(5,), bias=0.2), original), Shape(3, 2, 5)
  shared, own = (make(jax.random.key(i), shape, 0) for i, make in enumerate((way.shared, way.own)))
  own["added"] = own["added"] + 0.25
  assert own["mask"].shape == ((5,) if original else shape.kernel)
  assert sorted(own) == (["added", "bias", "mask"] if original else ["added", "mask"])
  assert sorted(shared) == (["kernel"] if original else ["bias", "kernel"])
  at = (2, 1, 0, 3)
  mask = float(own["mask"][3] if original else own["mask"][at])
  expected = float(shared["kernel"][at]) / (1 + np.exp(-mask)) + float(own["added"][at])
  made = way.weights(shared, own)
  np.testing.assert_allclose(made["kernel"][at], expected, rtol=1e-5)
  np.testing.assert_allclose(made["bias"], 0.2)


@pytest.mark.parametrize("t", [0, 1])
def test_the_simple_penalty(t):
  """Averages over layers and over shared tensors of averages over entries; nothing for drift in the first task."""
  method, state, _, _ = begun(t, sparsity=0.3, drift=7.0)
  params = moved(method.params(state.layers))
  now, then, work = exact((params["shared"], state.layers.backup, params["work"]))
  sizes = [np.abs(own["added"]).mean() for own in work["own"]]
  moves = [((a[name] - b[name]) ** 2).mean() / 2 for a, b in zip(now, then, strict=True) for name in ("kernel", "bias")]
  expected = 0.3 * np.mean(sizes) + (7 * np.mean(moves) if t else 0)
  np.testing.assert_allclose(jax.jit(method.simple_penalty)(params, state, jnp.int32(t)), expected, rtol=1e-5)


@pytest.mark.parametrize("t", [0, 2])
def test_the_original_penalty(t):
  """Sums over tasks so far and over all entries; a tau is counted by what it adds to that of its cluster."""
  method, state, _, _ = begun(t, form="original", sparsity=0.3, drift=7.0)
  state = state.replace(common=moved(state.common))
  params = moved(method.params(state.layers))
  now, then, store = exact((params["shared"], state.layers.backup, state.layers.store))
  old, before, common, own = exact((params["old"], state.before, state.common, params["work"]["own"]))
  sizes = sum(np.abs(each["added"]).sum() for each in own)
  moves = 0.0
  for l in range(2):
    for i in range(t):
      gate = 1 / (1 + np.exp(-store["own"][l]["mask"][i]))
      theta_then = then[l]["kernel"] * gate + before[l][i]
      moves += ((theta_then - now[l]["kernel"] * gate - old[l][i]) ** 2).sum()
      sizes += np.abs(old[l][i] - common[l][i]).sum()
  found = jax.jit(method.original_penalty)(params, state, jnp.int32(t))
  np.testing.assert_allclose(found, 0.3 * sizes + 7 * moves, rtol=1e-5)


@pytest.mark.parametrize("form", ["simple", "original"])
def test_a_step_is_down_the_loss_at_the_rate_of_the_lifetime(form):
  """Of the shared tensors, the task's own, and in the original form of what old tasks add."""
  method, state, batch, view = begun(1, decay=0.2, form=form, sparsity=0.1, drift=0.5)
  layers = state.layers.replace(shared=moved(state.layers.shared))
  state, penalty = state.replace(layers=layers), getattr(method, f"{form}_penalty")

  def loss(params):
    kernels = [
      {
        "kernel": shared["kernel"] * jax.nn.sigmoid(own["mask"]) + own["added"],
        "bias": (own if form == "original" else shared)["bias"],
      }
      for shared, own in zip(params["shared"], params["work"]["own"], strict=True)
    ]
    net = {f"layer_{l}": each for l, each in enumerate(kernels)} | params["work"]["top"]
    logits = method.nets.net.apply({"params": net}, batch.x, jnp.zeros(6, jnp.int32)).logits
    return -jax.nn.log_softmax(logits)[jnp.arange(6), batch.y].mean() + penalty(params, state, 1)

  @jax.jit
  def expected(params):
    return jax.tree.map(lambda p, g: p - RATE / (1 + 0.2 * 5) * g, params, jax.grad(loss)(params))

  after, _ = jax.jit(method.step)(jax.random.key(2), state, batch, CLOCK, view)
  chex.assert_trees_all_close(method.params(after.layers), expected(method.params(layers)), atol=2e-6)


@pytest.mark.parametrize("form", ["simple", "original"])
def test_the_first_task_is_not_held_back(form):
  """Two steps, since nothing has moved before the first: drift changes nothing in task 0, and something in task 1."""
  step, same = stepping(begun(form=form)[0]), []
  for t in (0, 1):
    method, first, batch, view = begun(t, form=form)
    ends = [step(d, step(d, first, batch, view), batch, view) for d in (jnp.float32(0), jnp.float32(0.5))]
    flat = [np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(method.params(end.layers))]) for end in ends]
    same.append(np.abs(flat[0] - flat[1]).max())
  assert same[0] == 0 and same[1] > 1e-6


def test_old_tasks_keep_their_kernels_where_drift_forces_them():
  """In the original form what task 0 adds makes up for how the shared kernels moved."""

  method, first, batch, view = begun(1, form="original", sparsity=0.0)
  step, far = stepping(method), []

  @jax.jit
  def kernels(layers):
    own = jax.tree.map(lambda leaf: leaf[0], layers.store["own"])
    return [method.nets.sharing.weights(*each)["kernel"] for each in zip(layers.shared, own, strict=True)]

  def apart(some, others):
    return max(np.abs(np.asarray(a) - b).max() for a, b in zip(jax.tree.leaves(some), others, strict=True))

  for drift in (0.0, 2.0):
    state = first
    for _ in range(25):
      state = step(jnp.float32(drift), state, batch, view)
    far.append(apart(kernels(first.layers), kernels(state.layers)))
  went = apart(first.layers.shared, jax.tree.leaves(state.layers.shared))
  assert far[0] > 0.01 and far[1] < far[0] / 5 and went > 4 * far[1]


def test_what_the_old_add_may_make_up_for_it_to_the_last():
  """Where each old tau loses what its mask lets through of the move, drift is 0, and no other tau gives that."""
  method, state, _, _ = begun(2, form="original", sparsity=0.0, drift=3.0)
  params = method.params(state.layers)
  move = jax.tree.map(lambda leaf: 0.25 * jnp.sign(leaf), params["shared"])
  gates = [jax.nn.sigmoid(own["mask"])[:, None, None, None] for own in state.layers.store["own"]]
  old = tuple(tau - each["kernel"] * gate for tau, each, gate in zip(params["old"], move, gates, strict=True))
  shared = jax.tree.map(jnp.add, params["shared"], move)
  penalty = jax.jit(method.original_penalty)
  np.testing.assert_allclose(penalty(params | {"shared": shared, "old": old}, state, 2), 0, atol=1e-8)
  assert penalty(params | {"shared": shared}, state, 2) > 1


def test_a_task_of_the_original_form_begins_with_what_is_shared():
  method, state, _, _ = begun(1, form="original")
  chex.assert_trees_all_equal(added(state.layers.work), tuple(each["kernel"] for each in state.layers.shared))
  chex.assert_trees_all_equal(state.before, added(state.layers.store))


def test_tasks_that_add_nearly_the_same_hold_it_once():
  """At the end of the second of three tasks; their two taus become the mean, which each layer counts once."""
  how = {"form": "original", "consolidate_every": 2, "clusters": 1, "gap": 0.02, "sparsity": 0.5}
  method, state, _, view = begun(1, **how)
  tau = tuple(jnp.stack([jnp.full(v.shape[1:], 0.7), v[1], v[2]]) for v in added(state.layers.store))
  near = tuple(jnp.full_like(v[0], 0.71).at[0, 0, 0, 0].set(9.0) for v in tau)
  own = tuple(own | {"added": v} for own, v in zip(state.layers.store["own"], tau, strict=True))
  work = tuple(own | {"added": v} for own, v in zip(state.layers.work["own"], near, strict=True))
  store, work = state.layers.store | {"own": own}, state.layers.work | {"own": work}
  committed = jnp.array([True, False, False])
  layers = state.layers.replace(
    store=store, work=work, committed=committed, configs=committed[:, None] | jnp.zeros(2, bool)
  )
  leave, report = jax.jit(method.leave), jax.jit(method.report)
  after = leave(jax.random.key(0), state.replace(layers=layers), view, CLOCK)
  for l, value in enumerate(added(after.layers.store)):
    np.testing.assert_allclose(value[:2].reshape(2, -1)[:, 1:], 0.705, rtol=1e-6)
    np.testing.assert_allclose(value[:2].reshape(2, -1)[:, 0], [0.7, 9.0])  # too far from one another
    np.testing.assert_array_equal(value[2], tau[l][2])
    np.testing.assert_allclose(after.common[l][:2].reshape(2, -1)[:, 1:], 0.705, rtol=1e-6)
    assert (after.common[l][:2, 0, 0, 0, 0] == 0).all() and (after.common[l][2] == 0).all()
    np.testing.assert_array_equal(after.cluster[l], [0, 0, method.most])
  sizes = [v[0].size for v in tau]
  told = report(after)
  assert told["parameters"] == method.nets.parameters(after.layers) + sum(sizes)
  np.testing.assert_allclose(told["added"], [2 / sum(sizes), 2 / sum(sizes), 0], rtol=1e-6)
  plain = begun(1, **{**how, "consolidate_every": 0})[0]
  assert jax.jit(plain.leave)(jax.random.key(0), state.replace(layers=layers), view, CLOCK).common[0].sum() == 0


TABLE = load_config("configs/papers/lasem/table1.py")
COUNTS = {  # stream -> (side, classes), kernels, biases, what stands above
  "cifar100_10": ((32, 10), 65_376, 192, 262_858),
  "office_home": ((128, 13), 1_612_480, 832, 1_066_125),
  "stl10": ((96, 3), 286_560, 448, 264_387),
}


@pytest.mark.parametrize("stream", COUNTS)
def test_parameters_of_the_paper_s_networks(stream):
  """Simple: kernels and biases shared, two kernels a task; original: kernels shared, tau, channel masks and biases."""
  (side, C), kernels, biases, above = COUNTS[stream]
  for method, shared, own in (
    ("apd", kernels + biases, 2 * kernels + above),
    ("apd_original", kernels, kernels + 2 * biases + above),
  ):
    config = TABLE.get_config(f"stream={stream},method={method}")
    net = {key: value for key, value in config.net.to_dict().items() if key != "name"}
    made = additive(Spec((side, side, 3), 10, C, 10), net, form=config.method.form)
    layers = jax.eval_shape(made.init, jax.random.key(0)).layers
    committed = np.arange(10) < 3
    layers = layers.replace(configs=np.repeat(committed[:, None], made.nets.net.depth, 1), committed=committed)
    assert int(made.nets.parameters(layers)) == shared + 3 * own


def test_clusters_are_for_the_original_form():
  spec, _ = toys.stream()
  words = r"config\.method\.consolidate_every=2 goes with config\.method\.form='original'; set it to 0"
  with pytest.raises(ConfigError, match=words):
    apd(toys.stack(spec), sgd(0.1), spec, consolidate_every=2)
