"""DER and DER++ against plain numpy in float64, through the memory that the plan decides."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.data.sample import fetch
from cljax.loops import fit_chunk, planned
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.pieces.optimizers import sgd
from cljax.pieces.replay import memory_bytes
from cljax.types import Clock, Place
from tests.walks import B, C, T, answers, double, pulled_back, slopes, stream

RATE, R, M, N = 0.2, 4, 12, 6  # N steps of each of two tasks
ALPHA, BETA = 0.7, 0.4
METHOD = {"batch_size": B, "replay": R, "capacity": M, "block": 1}


@functools.cache
def chunk(name):
  """(init, (state, t) -> (plan, state after) of N steps) of a method whose weights are traced."""
  spec = stream()[0]

  def method(weights):
    return METHODS[name](MLP(T, C, (8,)), sgd(RATE), spec, **METHOD, **weights)

  @jax.jit
  def run(state, weights, t, view):
    own, key = method(weights), jax.random.fold_in(jax.random.key(7), t)
    clock = Clock(*(jnp.int32(n) for n in (0, 0, 3, 0)))
    _, plan = planned(own.phases[0], N, key, state, view, clock, jnp.int32(N))
    return plan, fit_chunk(own.phases[0], N, key, state, view, clock, jnp.int32(N))[0]

  return method({}), run


def two_tasks(name, **weights):
  """[(plan, state) after each of two tasks], the first state before them."""
  method, run = chunk(name)
  state, found = jax.jit(method.init)(jax.random.key(3)), []
  start = state
  for t in range(2):
    plan, state = run(state, {key: jnp.float32(value) for key, value in weights.items()}, jnp.int32(t), stream()[2][t])
    found.append((jax.device_get(plan), state))
  return start, found


def follow(w, stored, plan, t, beta):
  """N steps in numpy: weights, and the logits of each place of the memory; how many rows were replayed."""
  replayed = 0
  for k in range(N):
    place, slot, live = (jax.tree.map(lambda leaf, k=k: leaf[k], leaf) for leaf in (plan.place, plan.slot, plan.live))
    batch = jax.jit(fetch)(stream()[2][t], Place(*map(jnp.asarray, place)))
    x, y = np.asarray(batch.x), np.asarray(batch.y)
    out, d = answers(w, x, place.task), np.zeros((len(x), C))
    now, first, second = (
      np.flatnonzero(live[own]) + own.start for own in (slice(0, B), slice(B, B + R), slice(B + R, 99))
    )
    d[now] = slopes(out[now], y[now])
    d[first] = ALPHA * 2 * (out[first] - stored[slot[first]]) / C / max(len(first), 1)
    d[second] = beta * slopes(out[second], y[second])
    gradient, _ = pulled_back(w, x, place.task, d)
    w = jax.tree.map(lambda w, g: w - RATE * g, w, gradient)
    written = now[slot[now] < M]
    stored[slot[written]] = out[written]
    replayed += len(first)
  return w, stored, replayed


@pytest.mark.parametrize(("name", "weights"), [("der", {"alpha": ALPHA}), ("derpp", {"alpha": ALPHA, "beta": BETA})])
def test_steps_and_stored_logits_are_those_of_a_plain_implementation(name, weights):
  start, found = two_tasks(name, **weights)
  w, stored, count = double(start.params), np.zeros((M, C)), 0
  for t, (plan, state) in enumerate(found):
    assert plan.place.row.shape == (N, B + R * len(weights))
    w, stored, replayed = follow(w, stored, plan, t, weights.get("beta", 0))
    chex.assert_trees_all_close(double(state.params), w, atol=1e-5)
    np.testing.assert_allclose(state.logits, stored, atol=1e-5)
    count += replayed
  tasks = found[-1][1].memory.place.task
  assert count == R * (2 * N - 1) and 0 < (np.asarray(tasks) == 0).sum() < M


def test_the_two_draws_are_independent():
  plan, _ = two_tasks("derpp", alpha=ALPHA, beta=BETA)[1][1]
  one, other = plan.slot[:, B : B + R], plan.slot[:, B + R :]
  assert (np.sort(one) != np.sort(other)).any(axis=1).all()
  np.testing.assert_array_equal(two_tasks("der", alpha=ALPHA)[1][1][0].slot[:, : B + R], plan.slot[:, : B + R])


def test_without_a_beta_it_is_der_and_without_an_alpha_replay_of_labels():
  der, plus = (
    two_tasks(name, **weights)[1][1][1]
    for name, weights in (("der", {"alpha": ALPHA}), ("derpp", {"alpha": ALPHA, "beta": 0.0}))
  )
  chex.assert_trees_all_close(der.params, plus.params, atol=1e-6)


def test_stored_rows_are_charged_and_logits_lie_in_the_state():
  method = chunk("der")[0]
  state = jax.eval_shape(method.init, jax.random.key(0))
  report = jax.jit(method.report)(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))
  assert report["memory_bytes"] == memory_bytes(stream()[0], M) and state.logits.shape == (M, C)
