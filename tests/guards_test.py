"""EWC and SI against plain numpy in float64, and the law of guards."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.data.sample import fetch, view_at
from cljax.errors import ConfigError
from cljax.loops import edge
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.pieces.descent import descend
from cljax.pieces.guards import guarding, label_of
from cljax.pieces.optimizers import PlainSGD, sgd
from cljax.run import fit
from cljax.types import At, Batch, Clock, Guard, Place
from tests import toys

RATE, STEPS, B = 0.2, 5, 10


class Numpy:
  """One hidden ReLU layer, the head of a task, softmax: forward and backward in float64."""

  def __init__(self, params):
    self.w = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)

  def gradients(self, x, y, t, C=4):
    """The gradient of each row's own cross-entropy: trees of [B, ...]."""
    w, x, own = self.w, np.asarray(x, np.float64).reshape(len(x), -1), slice(t * C, t * C + C)
    z = x @ w["first"]["kernel"] + w["first"]["bias"]
    h = np.maximum(z, 0)
    logits = h @ w["head"]["kernel"][:, own] + w["head"]["bias"][own]
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    d = share / share.sum(axis=1, keepdims=True) - np.eye(C)[y]
    head = {name: np.zeros((len(x), *leaf.shape)) for name, leaf in w["head"].items()}
    head["kernel"][:, :, own], head["bias"][:, own] = h[:, :, None] * d[:, None], d
    below = (d @ w["head"]["kernel"][:, own].T) * (z > 0)
    return {"first": {"kernel": x[:, :, None] * below[:, None], "bias": below}, "head": head}


def mean(tree):
  return jax.tree.map(lambda leaf: leaf.mean(axis=0), tree)


@functools.cache
def setting():
  spec, data = toys.stream()
  return spec, data, [jax.jit(view_at, static_argnums=2)(data, jnp.int32(t), 3) for t in range(3)]


def batches(t):
  """Batches of task t, as they would be fetched."""
  spec, data, views = setting()
  rows = [data.tasks.train.idx[t, (np.arange(B) + 7 * k) % data.tasks.train.count[t]] for k in range(STEPS)]
  return [jax.jit(fetch)(views[t], Place(jnp.full(B, t), jnp.asarray(row))) for row in rows]


def all_rows(t):
  spec, data, views = setting()
  row = data.tasks.train.idx[t, : data.tasks.train.count[t]]
  return jax.jit(fetch)(views[t], Place(jnp.full(len(row), t), jnp.asarray(row)))


def trained(name, **guard):
  """(states after each task of a method under the guard, the states that numpy had to follow)."""
  spec, _, views = setting()
  method = METHODS[name](MLP(3, 4, (8,)), sgd(RATE), spec, guard={"name": name, **guard})
  phase, clock = method.phases[0], Clock(*(jnp.int32(0),) * 4)
  step = jax.jit(phase.step)
  edges = jax.jit(edge, static_argnums=(0, 1))
  state, found = jax.jit(method.init)(jax.random.key(3)), []
  start = state.params
  for t in range(3):
    if name == "si":
      state = edges(phase, "enter", jax.random.key(0), state, views[t], clock)
    for batch in batches(t):
      state, _ = step(jax.random.key(1), state, batch, clock, views[t])
    state = edges(phase, "exit", jax.random.key(t), state, views[t], clock)
    found.append(state)
  return start, found


def fisher_of(**guard):
  """Of the first task, for weights that are not trained."""
  spec, _, views = setting()
  method = METHODS["ewc"](MLP(3, 4, (8,)), sgd(RATE), spec, guard={"name": "ewc", **guard})

  @jax.jit
  def ended(key, view):
    return edge(method.phases[0], "exit", key, method.init(key), view, Clock(*(jnp.int32(0),) * 4))

  return ended(jax.random.key(3), views[0]).past.fisher


def zip_trees(fn, *trees):
  return jax.tree.map(fn, *trees)


def test_ewc_equals_its_formula():
  """The sum of the penalties of all tasks so far, each Fisher the mean of squared per-example gradients."""
  strength = 3.0
  start, found = trained("ewc", strength=strength)
  ours, tasks = Numpy(start), []
  for t in range(3):
    for batch in batches(t):
      pull = zip_trees(np.zeros_like, ours.w)
      for fisher, anchor in tasks:
        pull = zip_trees(lambda p, F, w, a: p + strength * F * (w - a), pull, fisher, ours.w, anchor)
      gradient = mean(ours.gradients(batch.x, np.asarray(batch.y), t))
      ours.w = zip_trees(lambda w, g, p: w - RATE * (g + p), ours.w, gradient, pull)
    rows = all_rows(t)
    squares = zip_trees(np.square, ours.gradients(rows.x, np.asarray(rows.y), t))
    tasks.append((mean(squares), ours.w))
    chex.assert_trees_all_close(found[t].params, zip_trees(np.float32, ours.w), atol=1e-5)
    total = functools.reduce(lambda a, b: zip_trees(np.add, a, b), [fisher for fisher, _ in tasks])
    chex.assert_trees_all_close(found[t].past.fisher, zip_trees(np.float32, total), atol=1e-5)
  far = zip_trees(lambda w: w + 0.3, ours.w)
  exact = sum(
    float((F * (w - a) ** 2).sum())
    for fisher, anchor in tasks
    for F, w, a in zip(*map(jax.tree.leaves, (fisher, far, anchor)), strict=True)
  )
  guard = guarding({"name": "ewc", "strength": strength}, setting()[0])(lambda params, batch: None)
  value = guard.loss(found[-1].past, zip_trees(jnp.float32, far), None)
  np.testing.assert_allclose(value, strength / 2 * exact, rtol=1e-5)


@pytest.mark.parametrize("clipped", [False, True])
def test_si_equals_its_formula(clipped):
  strength, damping = 2.0, 0.05
  start, found = trained("si", strength=strength, damping=damping, clipped=clipped)
  ours, zeros = Numpy(start), zip_trees(lambda leaf: np.zeros(leaf.shape), start)
  omega, anchor = zeros, ours.w
  for t in range(3):
    begin, path = ours.w, zeros
    for batch in batches(t):
      gradient = mean(ours.gradients(batch.x, np.asarray(batch.y), t))
      before = ours.w
      ours.w = zip_trees(
        lambda w, g, o, a: w - RATE * (g + 2 * strength * o * (w - a)), before, gradient, omega, anchor
      )
      path = zip_trees(lambda p, g, old, new: p - g * (new - old), path, gradient, before, ours.w)
    own = zip_trees(lambda p, w, b: p / ((w - b) ** 2 + damping), path, ours.w, begin)
    omega = zip_trees(lambda o, new: o + (np.maximum(new, 0) if clipped else new), omega, own)
    anchor = ours.w
    chex.assert_trees_all_close(found[t].params, zip_trees(np.float32, ours.w), atol=1e-5)
    chex.assert_trees_all_close(found[t].past.importance, zip_trees(np.float32, omega), atol=1e-5)


def test_labels_of_the_model_follow_its_answers():
  """Drawn by the row's own key, among the row's classes, as often as the softmax says."""
  W = 4000
  logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.6, 0.3, 5.0])), (W, 4))
  classes = jnp.broadcast_to(jnp.array([True, True, True, False]), (W, 4))
  place = Place(jnp.zeros(W, jnp.int32), jnp.arange(W))
  batch = Batch(None, jnp.zeros(W, jnp.int32), None, classes, place, None, None)
  drawn = np.asarray(jax.jit(label_of)(logits, batch, jax.random.key(0)))
  np.testing.assert_allclose(np.bincount(drawn, minlength=4) / W, [0.1, 0.6, 0.3, 0], atol=0.03)
  again = batch._replace(place=Place(*(leaf[::-1] for leaf in place)))
  np.testing.assert_array_equal(label_of(logits, again, jax.random.key(0)), drawn[::-1])


def test_fisher_of_the_model_and_of_some_rows_is_another():
  fishers = [fisher_of(**more) for more in ({}, {"labels": "model"}, {"fisher_rows": 5}, {"fisher_rows": 999})]
  sizes = [float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(fisher))) for fisher in fishers]
  assert len({round(size, 6) for size in sizes[:3]}) == 3
  chex.assert_trees_all_equal(fishers[0], fishers[3])


def batch_of(live):
  slot = jnp.zeros(2, jnp.int32)
  return Batch(jnp.ones((2, 3)), slot, slot, jnp.ones((2, 4), bool), Place(slot, slot), slot, jnp.array(live))


def quadratic(params, batch):
  loss = sum((leaf**2).sum() for leaf in jax.tree.leaves(params)) / 2
  return loss, {"loss": loss}


def recording():
  """A guard whose past is what its hooks were given, in their order."""

  def loss(past, params, batch):
    return 10 * params["a"].sum()

  def project(at, past, gradient, ask):
    return jax.tree.map(lambda g, other: g + 100 * other, gradient, ask(batch_of([True, True])))

  def moved(past, before, gradient, after):
    return {"before": before, "gradient": gradient, "after": after}

  return Guard(loss=loss, project=project, moved=moved)


@functools.partial(jax.jit, static_argnames=("guard", "rests"))
def one_step(params, past, live, guard, rests=False, frozen=None):
  tx = optax.sgd(0.1, momentum=0.9)
  batch = batch_of([True, True])._replace(live=live)
  at = At(jax.random.key(0), None, None)
  return descend(tx, quadratic, params, tx.init(params), batch, at, guard=guard, past=past, rests=rests, frozen=frozen)


def test_the_order_of_a_guard_is_loss_projection_told():
  params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
  past = {"before": params, "gradient": params, "after": params}
  guard = recording()
  after, _, past, info = one_step(params, past, jnp.array([True, False]), guard)
  whole = {"a": params["a"] + 10 + 100 * params["a"], "b": params["b"] * 101}
  chex.assert_trees_all_close(after, jax.tree.map(lambda w, g: w - 0.1 * g, params, whole), rtol=1e-6)
  chex.assert_trees_all_equal(past, {"before": params, "gradient": params, "after": after})  # without the pull
  assert float(info["loss"]) == 7


@pytest.mark.parametrize(("live", "rests"), [((False, False), False), ((True, True), True)])
def test_nothing_moves_where_no_row_is_live_or_the_step_rests(live, rests):
  params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
  past = {"before": params, "gradient": params, "after": params}
  after, state, told, info = one_step(params, past, jnp.array(live), recording(), rests=rests)
  chex.assert_trees_all_equal((after, told), (params, past))
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state))
  assert set(info) == {"loss"}


def test_frozen_entries_keep_their_bits_whatever_the_momentum():
  params = {"a": jnp.array([1.0, -0.0]), "b": {"c": jnp.array(3.0), "d": jnp.array(-0.0)}}
  frozen = {"a": jnp.array([False, True]), "b": True}
  after, *_ = one_step(params, None, jnp.array([True, True]), Guard(), frozen=frozen)
  assert after["a"][0] != 1
  for new, old in ((after["a"][1], params["a"][1]), (after["b"]["c"], 3.0), (after["b"]["d"], params["b"]["d"])):
    assert np.float32(new).tobytes() == np.float32(old).tobytes()


def test_strength_zero_is_no_guard_and_wrong_words_are_refused():
  spec, _ = toys.stream()
  for off in ({"name": "none"}, {"name": "ewc", "strength": 0}, {"name": "si", "strength": 0.0}, Guard()):
    assert guarding(off, spec) is None
  for wrong, word in (
    ({"name": "ewcc"}, "Did you mean ewc"),
    ({"name": "ewc", "strength": -1.0}, "config.method.guard.strength=-1"),
    ({"name": "ewc", "damping": 1.0}, "config.method.guard field='damping'"),
    ({"name": "ewc", "labels": "mine"}, "config.method.guard.labels='mine'"),
    ({"name": "si", "damping": 0.0}, "config.method.guard.damping=0"),
  ):
    with pytest.raises(ConfigError, match=word):
      guarding(wrong, spec)


def test_a_guarded_phase_has_no_blocks():
  spec, _ = toys.stream()
  tx = sgd(0.1)
  assert isinstance(tx, PlainSGD)
  for name in ("finetune", "er", "single"):
    free = METHODS[name](MLP(3, 4, (8,)), tx, spec)
    held = METHODS[name](MLP(3, 4, (8,)), tx, spec, guard={"name": "ewc"})
    assert free.phases[0].block is not None and held.phases[0].block is None


def test_a_sweep_whose_first_strength_is_zero_guards_the_others():
  """What is static about a method does not hang on its first row; a traced 0 is no guard, to rounding."""
  spec, data = toys.stream()
  net = MLP(3, 4, (8,))

  def guarded(hyper):
    return METHODS["ewc"](net, optax.adam(0.01), spec, epochs=4, guard={"name": "ewc", **hyper})

  state = fit(guarded, spec, data, seeds=(0, 0), hyper={"strength": [0.0, 5.0]}, quiet=True, evaluate_group=16).state
  free = fit(METHODS["finetune"](net, optax.adam(0.01), spec, epochs=4), spec, data, quiet=True, evaluate_group=16)
  chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[:1], state.params), free.state.params, atol=1e-6)
  assert (np.asarray(state.params["first"]["kernel"][0]) != np.asarray(state.params["first"]["kernel"][1])).any()
  assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.past.fisher))
