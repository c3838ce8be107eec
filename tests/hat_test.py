"""HAT against plain numpy in float64; what it holds keeps its bits; gates, units and the rate by themselves."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cljax import artifacts
from cljax.data.sample import fetch
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.nets import CNN, MLP, NormedCNN, ResNet, Stack
from cljax.nets.modes import begin
from cljax.pieces.attention import Attention
from cljax.pieces.early import Best, Cooled, Cooling, cool
from cljax.pieces.optimizers import sgd
from cljax.pieces.units import units_of
from cljax.types import Clock, Outputs, Place, Spec
from tests import toys
from tests.modes_test import Modal
from tests.subjects import Subject, first
from tests.walks import B, C, T, Walk, answers, batches, double, gradients, stream

RATE, STEPS, STEEP, SPARSE = 0.2, 5, 30.0, 0.75


def walk(net, tx, heads=T, **keywords):
  return Walk(METHODS["hat"](net, tx, stream(heads)[0], batch_size=B, **keywords), STEPS, heads)


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


def follow(w, e, used, t, heads):
  """One task in numpy: (weights, embeddings [W])."""
  w = jax.tree.map(np.copy, w)
  for k in range(STEPS):
    batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches(t, STEPS, heads))
    s = 1 / STEEP + (STEEP - 1 / STEEP) * k / (STEPS - 1)
    slope, by_gate = gradients(w, batch.x, batch.y, t, sigmoid(s * e))
    by_gate += SPARSE * (1 - used) / (1 - used).sum()
    q = by_gate * s * sigmoid(s * e) * sigmoid(-s * e)
    q *= STEEP / s * (np.cosh(np.clip(s * e, -50, 50)) + 1) / (np.cosh(e) + 1)
    served = np.repeat(np.arange(heads) < t, C).astype(float)
    w["first"]["kernel"] -= RATE * (1 - used) * slope["first"]["kernel"]
    w["first"]["bias"] -= RATE * (1 - used) * slope["first"]["bias"]
    w["head"]["kernel"] -= RATE * (1 - np.minimum(used[:, None], served)) * slope["head"]["kernel"]
    w["head"]["bias"] -= RATE * (1 - served) * slope["head"]["bias"]
    e = np.clip(e - RATE * q, -6, 6)
  return w, e


@pytest.mark.parametrize(("heads", "masks"), [(T, "soft"), (1, "hard")])
def test_steps_and_a_task_s_end_are_those_of_a_plain_implementation(heads, masks):
  net = MLP(heads, C, (8,))
  found = walk(net, sgd(RATE), heads, largest_slope=STEEP, sparsity=SPARSE, masks=masks).states()
  w, e, used = double(found[0][0].params), double(found[0][0].embeddings["first"]), np.zeros(8)
  for t in range(T):
    w, e[t] = follow(w, e[t], used, t, heads)
    used = np.maximum(used, sigmoid(STEEP * e[t]) if masks == "soft" else e[t] > 0)
    (after,) = found[t + 1]
    chex.assert_trees_all_close(double(after.params), w, atol=1e-5)
    chex.assert_trees_all_close(double(after.embeddings["first"]), e, atol=1e-5)
    chex.assert_trees_all_close(double(after.used["first"]), used, atol=1e-4)
    np.testing.assert_allclose(after.read["head"], after.used["first"], atol=2e-6)
  assert 0.1 < used.mean() < 1 and np.abs(e).max() < 6


@pytest.mark.parametrize(
  ("net", "tx"),
  [
    (MLP(T, C, (12, 10)), optax.adamw(0.05, weight_decay=0.1)),
    (Stack(T, C, (5, 6), pools=(1, 2), hidden=(9,), dropout=0.2, weight_scale=0.4), optax.sgd(0.1, 0.9)),
    (NormedCNN(T, C, widths=(4, 6), groups=2), optax.adam(0.05)),
  ],
  ids=["mlp_adamw", "stack_momentum", "group_norm"],
)
def test_under_hard_masks_old_tasks_keep_their_bits(net, tx):
  states = walk(net, tx, masks="hard").check_old_logits_keep_their_bits()
  moved = jax.tree.map(
    lambda one, other: np.asarray(one) != np.asarray(other), states[1][0].params, states[3][0].params
  )
  assert all(leaf.any() for leaf in jax.tree.leaves(moved))


def test_under_soft_gates_weights_between_saturated_units_keep_their_bits():
  """And so do the embeddings of finished tasks."""
  states = walk(MLP(T, C, (16,)), optax.sgd(0.1, 0.9)).states()
  for t in (1, 2):
    one, other = (states[k][0] for k in (t, t + 1))
    whole = np.asarray(one.used["first"]) == 1
    same = np.asarray(one.params["first"]["kernel"]) == np.asarray(other.params["first"]["kernel"])
    assert whole.any() and same[:, whole].all() and not same[:, ~whole].all()
    np.testing.assert_array_equal(one.embeddings["first"][:t], other.embeddings["first"][:t])


def test_with_open_gates_and_no_regulariser_the_first_task_is_fine_tuned():
  """Bit for bit: at s_max an embedding of 6 is a gate of 1, whose own gradient is 0."""
  method = METHODS["hat"](MLP(T, C, (8,)), sgd(RATE), stream()[0], batch_size=B, sparsity=0.0)
  (phase,) = method.phases

  def enter(key, state, view, clock):
    return state.replace(embeddings={"first": jnp.full((T, 8), 6.0)})

  def step(key, state, batch, clock, view):
    return phase.step(key, state, batch, clock._replace(step=jnp.int32(0), steps=jnp.int32(1)), view)

  one = Walk(method._replace(phases=(phase._replace(enter=enter, step=step),)), STEPS).states()
  other = Walk(METHODS["finetune"](MLP(T, C, (8,)), sgd(RATE), stream()[0], block=1), STEPS).states()
  chex.assert_trees_all_equal(one[1][0].params, other[1][0].params)


def test_the_slope_goes_from_its_inverse_to_its_largest():
  slope = jax.jit(lambda step, steps: Attention().slope(Clock(0, step, steps, 0)))
  np.testing.assert_allclose([slope(0, 5), slope(2, 5), slope(4, 5)], [1 / 400, 200.00125, 400], rtol=1e-6)
  assert slope(0, 1) == 400


def test_an_embedding_s_gradient_is_compensated_to_the_last_digit_of_its_gate():
  """Where the gate is 1 in float32 its own derivative is 0; past |s e| = 50 the published clamp lets it fade."""
  given = jnp.array([0.05, 0.1, -0.1, 0.2])
  got = jax.jit(Attention().compensated)(jnp.float32(400), jnp.ones(4), given)
  np.testing.assert_allclose(got[:3], 400 * sigmoid(given[:3]) * sigmoid(-given[:3]), rtol=1e-5)
  assert 0 < got[3] < 1e-10


def test_from_its_network_and_embeddings_a_run_goes_on_as_if_it_had_not_ended(tmp_path):
  """To the bits of the whole run: what the known task attends to is held, and the gates of later ones are as drawn."""
  spec, data = toys.stream()

  def ends(method, **settings):
    found = {}
    it = Subject(toys.experiment(method, spec, data, seeds=(0,), **settings))
    it.run(after=lambda unit, carry: found.update({(unit.kind, unit.at.task): first(carry.state)}))
    return found

  def method(**keywords):
    return METHODS["hat"](toys.mlp(spec), optax.sgd(RATE, 0.9), spec, batch_size=B, largest_slope=3.0, **keywords)

  whole = ends(method())
  artifacts.write(tmp_path, {"start": whole["exit", 0].params, **method().parts(whole["exit", 0])})
  known = {"start_from": f"{tmp_path}/start.npz", "given_tasks": 1}
  again = ends(method(gates_from=f"{tmp_path}/embeddings.npz"), **known)
  assert ("chunk", 0) not in again and max(used.max() for used in again["exit", 0].used.values()) > 0.9
  for t in range(T):
    one, other = (found["exit", t] for found in (whole, again))
    for name in ("params", "embeddings", "used", "read"):
      chex.assert_trees_all_equal(getattr(one, name), getattr(other, name))


def test_embeddings_of_other_tasks_are_refused(tmp_path):
  spec, data = toys.stream()
  artifacts.write(tmp_path, {"embeddings": {"first": np.zeros((1, 8), np.float32)}})
  method = METHODS["hat"](MLP(T, C, (8,)), sgd(RATE), spec, gates_from=f"{tmp_path}/embeddings.npz")
  with pytest.raises(ConfigError, match=r"embeddings.npz: \['first'\] has the shape \(1, 8\), but \(3, 8\) is needed"):
    toys.experiment(method, spec, data)


# Units


@functools.cache
def held(name):
  """(what is held of each weight after one task, the gates of its units), for nets with half of their units in use."""
  spec = Spec((8, 8, 2), T, C, T)
  nets = {
    "cnn": CNN(T, C, channels=(4, 3), hidden=(6,)),
    "stack": Stack(T, C, channels=(4, 4), pools=(1, 2), skips=(-1, 0), hidden=(5,)),
    "resnet": ResNet(T, C, depth=8, widths=(4, 4, 6), groups=2),
  }
  units = units_of(nets[name], spec)
  gates = {name: jnp.float32(jnp.arange(width) % 2) for name, width in units.widths.items()}

  @jax.jit
  def found(key, t):
    params, collections = begin(nets[name], key, spec.x_shape)
    return units.between(params, units.read({"params": params, **collections}, gates), gates, t)

  return found(jax.random.key(0), jnp.int32(1)), gates


def test_a_weight_lies_between_the_units_that_it_joins():
  """Kernels as matrices over windows, and over what a convolution's map is flattened to: channels come last."""
  found, gates = held("cnn")
  window = np.tile(gates["first"], 9)
  np.testing.assert_array_equal(found["hidden_1"]["kernel"], np.outer(window, gates["hidden_1"]))
  np.testing.assert_array_equal(found["first"]["kernel"], np.tile(gates["first"], (18, 1)))
  flat = np.tile(gates["hidden_1"], 4)
  np.testing.assert_array_equal(found["hidden_2"]["kernel"], np.outer(flat, gates["hidden_2"]))
  first_head = np.repeat([1.0, 0, 0], C)
  np.testing.assert_array_equal(found["head"]["kernel"], np.outer(gates["hidden_2"], first_head))
  np.testing.assert_array_equal(found["head"]["bias"], first_head)


def test_where_layers_are_added_a_unit_is_read_if_any_is():
  stack, gates = held("stack")
  assert stack["layer_1"]["kernel"].shape == (3, 3, 4, 4)
  np.testing.assert_array_equal(stack["hidden_0"]["kernel"], np.outer(np.tile(gates["layer_1"], 16), gates["hidden_0"]))
  resnet, gates = held("resnet")
  np.testing.assert_array_equal(resnet["stage_1_0_a"]["norm"]["scale"], gates["stage_1_0_a/conv"])
  np.testing.assert_array_equal(
    resnet["head"]["kernel"], np.outer(jnp.arange(6) % 2, np.repeat([1.0, 0, 0], C)), err_msg="a mean over pixels"
  )


class Own(nn.Module):
  """Two layers with an average between them that loses the last bit, or a parameter that belongs to no layer."""

  heads: int = T
  classes: int = C
  shifted: bool = False

  @nn.compact
  def __call__(self, x, slot):
    x = nn.relu(nn.Dense(3, name="below")(x.reshape(len(x), -1))) * np.float32(1 / 41) * 41
    x = x + self.param("shift", nn.initializers.zeros, (3,)) if self.shifted else x
    return Outputs(nn.Dense(C, name="above")(x), x, slot)


def test_what_an_average_brings_is_1_to_the_last_bit():
  spec = stream()[0]
  units = units_of(Own(), spec)
  gates = {"below": jnp.array([0.0, 1.0, 0.5]), "above": jnp.ones(C)}
  read = jax.jit(lambda key: units.read({"params": begin(Own(), key, spec.x_shape)[0]}, gates))(jax.random.key(0))
  assert np.float32(1 / 41) * np.float32(41) < 1 and read["above"][1] == 1
  np.testing.assert_allclose(read["above"], gates["below"], atol=1e-6)


def test_parameters_without_units_are_refused():
  with pytest.raises(ConfigError, match="shift of shape"):
    units_of(Own(shifted=True), stream()[0])


# The rate


def test_a_rate_drops_where_the_loss_stays_and_training_ends_below_the_least():
  by = Cooling(patience=2, rate_drop=10.0, least_rate=0.05)
  cooled = Cooled(Best(0.0, jnp.float32(jnp.inf), jnp.int32(0), jnp.array(False), jnp.int32(0)), jnp.float32(1))
  after = jax.jit(functools.partial(cool, by=by))
  rates, stops = [], []
  cooled = cooled.replace(best=cooled.best.replace(params=jnp.float32(0)))
  for epoch, loss in enumerate([3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5, 0.5]):
    cooled = after(cooled, jnp.float32(epoch), jnp.float32(loss))
    rates.append(float(cooled.rate))
    stops.append(bool(cooled.best.stopped))
  np.testing.assert_allclose(rates, [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
  assert stops == [False] * 7 + [True] * 2 and cooled.best.params == 5 and cooled.best.loss == 1


def test_with_patience_the_best_epoch_is_kept_and_steps_rest():
  spec, data, (view, *_) = stream()
  own = walk(MLP(T, C, (8,)), sgd(RATE), patience=1, least_rate=1.0, rate_drop=2.0, largest_slope=STEEP)
  states = own.states()
  start, after = states[0][0], states[1][0]
  valid = jax.jit(fetch)(view, Place(jnp.zeros(8, jnp.int32), jnp.asarray(data.tasks.valid.idx[0, :8])))
  w, e = double(after.params), double(after.embeddings["first"][0])
  logits = answers(w, valid.x, np.zeros(8, int), sigmoid(STEEP * e))
  lost = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(8), np.asarray(valid.y)]
  wanted = lost.mean() + SPARSE * sigmoid(STEEP * e).mean()
  np.testing.assert_allclose(after.cooled.best.loss, wanted, rtol=1e-5)
  leave = jax.jit(own.method.phases[0].exit)
  worse = after.replace(params=jax.tree.map(jnp.zeros_like, after.params))
  chex.assert_trees_all_equal(leave(jax.random.key(0), worse, view, Clock(0, 0, 3, 0)).params, after.params)

  stopped = start.replace(cooled=start.cooled.replace(best=start.cooled.best.replace(stopped=jnp.array(True))))
  step = jax.jit(own.method.phases[0].step)
  clock, batch = Clock(*map(jnp.int32, (0, 1, 3, 1))), jax.tree.map(lambda leaf: leaf[0], batches(0, STEPS))
  rested, _ = step(jax.random.key(0), stopped, batch, clock, view)
  chex.assert_trees_all_equal(rested, stopped)
  half = start.replace(cooled=start.cooled.replace(rate=jnp.float32(0.5)))
  one, other = (step(jax.random.key(0), state, batch, clock, view)[0].params for state in (start, half))
  moved = [np.asarray(each["first"]["kernel"] - start.params["first"]["kernel"]) for each in (one, other)]
  np.testing.assert_allclose(moved[1], moved[0] / 2, atol=1e-7)


def test_with_patience_statistics_are_those_of_the_best_epoch_and_rest_with_it():
  """The statistics of BatchNorm belong to the weights that they were taken with."""
  own = walk(Modal(T, C, 0.0), sgd(RATE), patience=1, least_rate=1.0, rate_drop=2.0)
  view, phase, clock = stream()[2][0], own.method.phases[0], Clock(*map(jnp.int32, (0, 1, 3, 1)))
  start, batch = jax.jit(own.method.init)(jax.random.key(0)), jax.tree.map(lambda leaf: leaf[0], batches(0, STEPS))
  step = jax.jit(phase.step)
  moved, _ = step(jax.random.key(0), start, batch, clock, view)
  assert np.asarray(moved.collections["batch_stats"]["BatchNorm_0"]["mean"]).any()  # it was zeros
  left = jax.jit(phase.exit)(jax.random.key(0), moved, view, clock)  # no epoch was measured: the best is the start
  chex.assert_trees_all_equal((left.params, left.collections), (start.params, start.collections))
  stopped = moved.replace(cooled=moved.cooled.replace(best=moved.cooled.best.replace(stopped=jnp.array(True))))
  rested, _ = step(jax.random.key(0), stopped, batch, clock, view)
  chex.assert_trees_all_equal(rested.collections, stopped.collections)
  after = jax.jit(phase.tick)(jax.random.key(0), moved, view, clock)
  chex.assert_trees_all_equal(after.cooled.best.params["collections"], moved.collections)
