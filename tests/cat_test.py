"""CAT against plain numpy in float64; who is similar is changed and others keep their bits; without any it is HAT."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.data.sample import fetch
from cljax.methods import METHODS
from cljax.methods.cat.reading import read_off
from cljax.nets import MLP, Stack
from cljax.pieces.optimizers import sgd
from cljax.types import Place
from tests.tiers import at_release
from tests.walks import B, C, T, Walk, answers, batches, double, gradients, slopes, stream

RATE, STEPS, STEEP, SPARSE, WEIGHT, D = 0.2, 5, 30.0, 0.75, 0.7, 8
GATES = {"largest_slope": STEEP, "sparsity": SPARSE}


def method(net, tx, **keywords):
  return METHODS["cat"](net, tx, stream()[0], batch_size=B, **keywords)


@functools.cache
def compared():
  """(the walk, its states) of a method whose tasks are compared."""
  own = Walk(method(MLP(T, C, (D,)), sgd(RATE), **GATES), STEPS)
  return own, own.states()


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


def hidden(w, x):
  x = np.asarray(x, np.float64).reshape(len(x), -1)
  return x, x @ w["first"]["kernel"] + w["first"]["bias"]


def softmax(z):
  share = np.exp(z - z.max(axis=1, keepdims=True))
  return share / share.sum(axis=1, keepdims=True)


def valid(t):
  """The task's validation rows."""
  _, data, views = stream()
  rows = jnp.asarray(data.tasks.valid.idx[t, :8])
  return jax.jit(fetch)(views[t], Place(jnp.full(8, t), rows))


def seen_by(w, own, x, gates):
  """(logits, what their derivative needs) of what is read off the features behind `gates`, one [D] a similar task."""
  x, z = hidden(w, x)
  h = [np.maximum(z, 0) * a for a in gates]
  keys, values = [each @ own["keys"] for each in h], [each @ own["values"] for each in h]
  shares = softmax(np.stack([each @ own["query"] for each in keys], axis=1) / np.sqrt(D))
  seen = sum(shares[:, [k]] * values[k] for k in range(len(h)))
  return seen @ own["kernel"] + own["bias"], (x, z, h, keys, values, shares, seen)


def read_gradient(w, own, d, gates, given):
  """(gradient of the first layer, gradient of what is read off with) for the derivative d [B, C] by the logits."""
  x, z, h, keys, values, shares, seen = given
  by_seen = d @ own["kernel"].T
  by_share = np.stack([(by_seen * each).sum(axis=1) for each in values], axis=1)
  by_near = shares * (by_share - (shares * by_share).sum(axis=1, keepdims=True)) / np.sqrt(D)
  found = {"kernel": seen.T @ d, "bias": d.sum(axis=0), "query": 0.0, "keys": 0.0, "values": 0.0}
  below = 0.0
  for k, a in enumerate(gates):
    by_key, by_value = by_near[:, [k]] * own["query"], shares[:, [k]] * by_seen
    found["query"] = found["query"] + by_near[:, k] @ keys[k]
    found["keys"] = found["keys"] + h[k].T @ by_key
    found["values"] = found["values"] + h[k].T @ by_value
    below = below + (by_key @ own["keys"].T + by_value @ own["values"].T) * a * (z > 0)
  return {"kernel": x.T @ below, "bias": below.sum(axis=0)}, found


def follow(w, e, own, t, used, blocked, gates):
  """One task in numpy: (weights, embeddings [W], what is read off with); `gates` of the similar tasks."""
  w, own = jax.tree.map(np.copy, w), dict(own)
  served = np.repeat(np.arange(T) < t, C).astype(float)
  for k in range(STEPS):
    batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches(t, STEPS))
    s = 1 / STEEP + (STEEP - 1 / STEEP) * k / (STEPS - 1)
    slope, by_gate = gradients(w, batch.x, batch.y, t, sigmoid(s * e))
    if gates:
      logits, given = seen_by(w, own, batch.x, gates)
      first, found = read_gradient(w, own, WEIGHT * slopes(logits, batch.y), gates, given)
      own = {name: own[name] - RATE * found[name] for name in own}
      slope["first"] = {leaf: slope["first"][leaf] + first[leaf] for leaf in first}
    by_gate += SPARSE * (1 - used) / (1 - used).sum()
    q = by_gate * s * sigmoid(s * e) * sigmoid(-s * e)
    q *= STEEP / s * (np.cosh(np.clip(s * e, -50, 50)) + 1) / (np.cosh(e) + 1)
    for leaf in ("kernel", "bias"):
      w["first"][leaf] -= RATE * (1 - blocked) * slope["first"][leaf]
    w["head"]["kernel"] -= RATE * (1 - np.minimum(blocked[:, None], served)) * slope["head"]["kernel"]
    w["head"]["bias"] -= RATE * (1 - served) * slope["head"]["bias"]
    e = np.clip(e - RATE * q, -6, 6)
  return w, e, own


def right(logits, y):
  return (logits.argmax(axis=1) == np.asarray(y)).mean()


def test_the_comparison_is_that_of_a_plain_implementation():
  """A readout of each task before, on features that stay, and a network from scratch; validation rows decide."""
  own, states = compared()
  begin = jax.jit(own.method.phases[0].enter)
  for t in range(T):
    before, after = states[t][-1], states[t + 1][0]
    begun = begin(jax.random.fold_in(jax.random.key(2), t), before, stream()[2][t], None).trials
    trials = {"scratch": double(begun.scratch), "readouts": double(begun.readouts)}
    w, gates = double(before.params), [sigmoid(STEEP * e) for e in double(before.embeddings["first"])[:t]]
    chex.assert_trees_all_equal(after.params, before.params)
    for k in range(STEPS if t else 0):
      batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches(t, STEPS))
      slope, _ = gradients(trials["scratch"], batch.x, batch.y, t)
      trials["scratch"] = jax.tree.map(lambda w, g: w - RATE * g, trials["scratch"], slope)
      for one, gate in enumerate(gates):
        h = np.maximum(hidden(w, batch.x)[1], 0) * gate
        d = slopes(h @ trials["readouts"]["kernel"][one] + trials["readouts"]["bias"][one], batch.y)
        trials["readouts"]["kernel"][one] -= RATE * h.T @ d
        trials["readouts"]["bias"][one] -= RATE * d.sum(axis=0)
    chex.assert_trees_all_close(double(after.trials.scratch), trials["scratch"], atol=1e-5)
    chex.assert_trees_all_close(double(after.trials.readouts), trials["readouts"], atol=1e-5)
    rows = valid(t)
    scratch = right(answers(trials["scratch"], rows.x, np.full(8, t)), rows.y)
    h = [np.maximum(hidden(w, rows.x)[1], 0) * gate for gate in gates]
    scores = [right(h[k] @ trials["readouts"]["kernel"][k] + trials["readouts"]["bias"][k], rows.y) for k in range(t)]
    np.testing.assert_array_equal(after.similar[t, :t], [score > scratch for score in scores])
    assert not after.similar[t, t:].any()
  compare, nothing = jax.jit(own.method.phases[0].exit), jax.tree.map(jnp.zeros_like, after.trials)
  for trials, right_of in ((after.trials.replace(scratch=nothing.scratch), scores), (nothing, [0, 0])):
    found = compare(jax.random.key(0), after.replace(trials=trials), stream()[2][t], None).similar
    blind = (np.asarray(rows.y) == 0).mean()  # a network of zeros answers with the first class
    np.testing.assert_array_equal(found[t], [*(score > blind for score in right_of), False])
    assert found[t].any() == (trials is not nothing)


def test_steps_and_a_task_s_end_are_those_of_a_plain_implementation():
  """With all tasks before for similar: none is held, and each is read off."""
  own = Walk(method(MLP(T, C, (D,)), sgd(RATE), similar_tasks="all", transfer_weight=WEIGHT, **GATES), STEPS)
  found = own.states()
  w, e, used = double(found[0][0].params), double(found[0][0].embeddings["first"]), np.zeros(D)
  for t in range(T):
    reader = {name: leaf[t] for name, leaf in double(found[0][0].transfer).items()}
    gates = [sigmoid(STEEP * e[k]) for k in range(t)]
    w, e[t], reader = follow(w, e[t], reader, t, used, np.zeros(D), gates)
    used = np.maximum(used, sigmoid(STEEP * e[t]))
    (after,) = found[t + 1]
    chex.assert_trees_all_close(double(after.params), w, atol=1e-5)
    chex.assert_trees_all_close(double(after.embeddings["first"]), e, atol=1e-5)
    chex.assert_trees_all_close({name: leaf[t] for name, leaf in double(after.transfer).items()}, reader, atol=1e-5)
    np.testing.assert_allclose(after.used["first"], used, atol=1e-4)
    np.testing.assert_array_equal(after.similar[t], np.arange(T) < t)
    rows = valid(t)
    plain = answers(w, rows.x, np.full(8, t), sigmoid(STEEP * e[t]))
    read = seen_by(w, reader, rows.x, gates)[0] if t else None
    assert bool(after.by_transfer[t]) == bool(t and right(read, rows.y) > right(plain, rows.y))
    for by_transfer, wanted in ((False, plain), (True, read)) if t else ():
      state = after.replace(by_transfer=jnp.full(T, by_transfer))
      np.testing.assert_allclose(own.apply(state, rows.x, jnp.full(8, t)).logits, wanted, atol=1e-4)


@pytest.mark.parametrize(
  ("net", "tx"),
  [
    (MLP(T, C, (12,)), optax.adamw(0.05, weight_decay=0.1)),
    *at_release((Stack(T, C, (5, 6), pools=(1, 2), hidden=(9,), dropout=0.2, weight_scale=0.4), optax.sgd(0.1, 0.9))),
  ],
)
def test_tasks_that_are_not_similar_keep_their_bits(net, tx):
  """Under hard masks: the third task is similar to the first and changes it, and leaves the second alone."""
  fit = method(net, tx, masks="hard").phases[1]
  similar = jnp.zeros((T, T), bool).at[2, 0].set(True)

  def enter(key, state, view, clock):
    return fit.enter(key, state.replace(similar=similar), view, clock)

  own = Walk(method(net, tx, masks="hard")._replace(phases=(fit._replace(enter=enter),)), STEPS)
  states = [state.replace(by_transfer=jnp.zeros(T, bool)) for (state,) in own.states()]
  np.testing.assert_array_equal(own.logits(states[1], 0), own.logits(states[2], 0))
  np.testing.assert_array_equal(own.logits(states[2], 1), own.logits(states[3], 1))
  assert (own.logits(states[2], 0) != own.logits(states[3], 0)).any()


def test_without_similar_tasks_it_is_hard_attention():
  """Bit for bit, and nothing is compared."""
  keywords = {"batch_size": B, **GATES}
  one, other = (
    Walk(METHODS[name](MLP(T, C, (D,)), sgd(RATE), stream()[0], **keywords, **own), STEPS)
    for name, own in (("cat", {"similar_tasks": "none"}), ("hat", {}))
  )
  for (mine,), (theirs,) in zip(one.states(), other.states(), strict=True):
    for name in ("params", "embeddings", "used"):
      chex.assert_trees_all_equal(getattr(mine, name), getattr(theirs, name))
  np.testing.assert_array_equal(one.logits(mine, 1), other.logits(theirs, 1))
  assert not one.method.needs_valid and mine.transfer is None


def test_what_is_read_off_features_is_a_softmax_over_similar_tasks():
  """Of the first and the third here; of none it is the bias, with a gradient that is a number."""
  random = np.random.default_rng(0)
  own = {name: random.normal(size=shape) for name, shape in SHAPES.items()}
  features = random.normal(size=(T, B, D))
  near = np.stack([features[k] @ own["keys"] @ own["query"] for k in (0, 2)], axis=1) / np.sqrt(D)
  seen = sum(softmax(near)[:, [i]] * (features[k] @ own["values"]) for i, k in enumerate((0, 2)))
  given = jax.tree.map(jnp.float32, own), jnp.float32(features)
  read = jax.jit(read_off)
  wanted = seen @ own["kernel"] + own["bias"]
  np.testing.assert_allclose(read(*given, jnp.array([True, False, True])), wanted, rtol=1e-4, atol=1e-4)
  none = jnp.zeros(T, bool)
  np.testing.assert_allclose(read(*given, none), np.tile(own["bias"], (B, 1)), rtol=1e-6)
  slope = jax.jit(jax.grad(lambda own, features: read_off(own, features, none).sum(), (0, 1)))(*given)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


SHAPES = {"query": (D,), "keys": (D, D), "values": (D, D), "kernel": (D, C), "bias": (C,)}
