"""What routing draws: gates, their noise and temperature, the balancing losses of a draw, and rows that begin."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.methods.routing.gates import Gates
from cljax.methods.routing.keywords import Balancing, Routing, Sampling
from cljax.nets import RoutedMLP
from cljax.ops import gating
from cljax.types import Batch, Clock, View
from tests.routing_steps import (
  BATCH,
  REPLAY,
  ROUTES,
  SPEC,
  STEPS,
  STILL,
  E,
  L,
  T,
  at,
  fresh,
  make_schedule,
  method,
  step,
)


@pytest.fixture(scope="module")
def schedule():
  return make_schedule()


class Probe(RoutedMLP):
  """A routed net that tells which gates it got, by the number of rows."""

  def after_first(self, z, slot, gates):
    jax.debug.callback(lambda *gates: PROBED.setdefault(len(gates[0]), []).append(np.stack(gates)), *gates)
    return super().after_first(z, slot, gates)


PROBED: dict[int, list[np.ndarray]] = {}


PROBE = Probe(SPEC.heads, SPEC.C, (3, 3), E)
TASKS = np.array([0, 1, 0, 1, 2, 0, 0, 1, 2])  # of the 5 current and the 4 replayed rows


def probe(schedule, steps=2, noise=1.0, **options):
  """{rows: [steps, L, rows, E]} gates of some steps of batches of `TASKS`, with a router of zeros."""
  state = fresh(router=np.zeros((L, T, E)))
  schedule = schedule.with_batch(task=np.tile(TASKS, (len(schedule.t), 1)).astype(np.int32))
  jax.effects_barrier()
  PROBED.clear()
  for i in range(6, 6 + steps):
    step(state, schedule, i, rates={**STILL, "noise": noise}, net=PROBE, learned_noise=False, **options)
    jax.effects_barrier()
  return {rows: np.stack(found) for rows, found in PROBED.items()}


SAMPLES, DRAWS = ("noisy_topk", "gumbel_topk", "gumbel_matrix"), ("step", "example")


def gates_of(k=2, auxiliary="none", **sampling):
  sampling = Sampling(**{"learned_noise": False, **sampling})
  return Gates((k,) * L, T, E, Routing(), sampling, Balancing(auxiliary))


@pytest.fixture(scope="module")
def drawn():
  """{(sample, draw): [2, L, rows, E]} gates of two keys for rows of `TASKS`, with a router of zeros."""

  @jax.jit
  def all_of_them(keys):
    zeros, task, place = jnp.zeros((L, T, E)), jnp.asarray(TASKS), jnp.arange(len(TASKS))
    batch, clock = Batch(None, None, task, None, None, None, place >= 0), Clock(*[jnp.int32(0)] * 4)

    def one(gates, key):
      noise = gates.noise(jnp.broadcast_to(key, task.shape), task, place)
      return jnp.stack(gates.drawn(noise, zeros, zeros, batch, clock)[0])

    both = [(sample, draw) for sample in SAMPLES for draw in DRAWS]
    return {it: jax.vmap(partial(one, gates_of(sample=it[0], draw=it[1])))(keys) for it in both}

  return jax.tree.map(np.asarray, all_of_them(jax.random.split(jax.random.key(3))))


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("draw", DRAWS)
def test_one_draw_a_step_or_one_a_row(drawn, sample, draw):
  """Rows of one task share their gates under `step` and not under `example`; layers and keys draw anew."""
  assert_drawn(drawn[sample, draw], sample, draw)


def assert_drawn(gates, sample, draw):
  assert gates.shape == (2, L, BATCH + REPLAY, E)
  for task in range(T):
    mine = gates[:, :, task == TASKS]
    assert (mine == mine[:, :, :1]).all() == (draw == "step")
  assert (gates[:, :, 0] != gates[:, :, 1]).any()
  assert (gates[0] != gates[1]).any() and (gates[:, 0] != gates[:, 1]).any()
  if sample != "gumbel_matrix":
    np.testing.assert_allclose(gates.sum(axis=-1), 1, atol=1e-6)
    assert ((gates > 0).sum(axis=-1) == 2).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_steps_draw_as_told(schedule, draw):
  """What the net gets in a step, by the step's key; a scale of 0 is no noise."""
  options = {"sample": "gumbel_topk", "draw": draw, "cotrain": False, "update": "union"}
  (gates,) = probe(schedule, **options).values()
  assert_drawn(gates, "gumbel_topk", draw)
  (gates,) = probe(schedule, noise=0, **options).values()
  np.testing.assert_allclose(gates, np.broadcast_to(np.float32([0.5, 0.5, 0, 0, 0]), gates.shape), atol=1e-6)


def test_the_memory_has_its_own_draw(schedule):
  """Steps 1 and 2 draw one after the other; co-training gets equal weights, whatever the noise."""
  found = probe(schedule, sample="noisy_topk")
  current, replayed, cotrained = (found[rows] for rows in (BATCH, REPLAY, BATCH + REPLAY))
  assert (current[:, :, [0]] != replayed[:, :, [0]]).any(axis=(1, 2, 3)).all()  # both of task 0
  third = np.float32([0, 0, 1 / 3, 1 / 3, 1 / 3])
  np.testing.assert_allclose(cotrained, np.broadcast_to(third, cotrained.shape), atol=1e-6)
  still = probe(schedule, noise=0, sample="noisy_topk")
  half = np.float32([0.5, 0.5, 0, 0, 0])  # ties of the zero router go to the lower index
  np.testing.assert_allclose(still[BATCH], np.broadcast_to(half, current.shape), atol=1e-6)


def test_temperature_falls_with_the_steps_of_the_stream(schedule):
  """max(temperature_min, temperature / sqrt(steps + 1)): seen in R's gradient, which is that of the soft sample."""
  start = fresh()

  @jax.jit
  def router_after(temperature, total):
    subject = method(sample="gumbel_matrix", temperature=temperature, cotrain=False, update="union", router_lr=50.0)
    now = at(schedule, 8)
    clock, key = now.clock._replace(total=total), jax.random.wrap_key_data(now.key)
    return subject.phases[0].step(key, start, now.batch, clock, View(None, None, now.t))[0].router

  chex.assert_trees_all_close(router_after(50.0, 24), router_after(10.0, 0), atol=1e-6)
  chex.assert_trees_all_close(router_after(50.0, 10**6), router_after(0.1, 0), atol=1e-6)  # at the least
  hot, cold = (np.abs(router_after(temperature, 0) - start.router).max() for temperature in (50.0, 1.0))
  assert cold > 5 * hot > 0


# Balancing losses.


def test_balancing_losses_move_the_router_by_their_gradient(schedule):
  """R's step gains rate * weight * gradient of CV^2 over the live rows of the very draw; the experts' does not."""
  start, i = fresh(router=ROUTES / 4), STEPS[0] + STEPS[1] - 1
  live = schedule.batch.live[i]
  assert 0 < live.sum() < len(live)
  key = jax.random.split(jax.random.wrap_key_data(schedule.key[i]))[0]

  def losses(router):
    task, ones = schedule.batch.task[i][live], jnp.ones(live.sum(), bool)
    importance = load = 0.0
    for l in range(L):
      own = jax.random.fold_in(key, l)
      noisy = router[l] + jax.vmap(lambda t, own=own: jax.random.normal(jax.random.fold_in(own, t), (E,)))(
        jnp.arange(T)
      )
      importance += gating.importance_loss(gating.top_k_gates(noisy, 2)[task], ones)
      load += gating.load_loss(router[l][task], noisy[task], jnp.ones((len(task), E)), 2, ones)
    return importance, load

  def drawn(router):
    batch = at(schedule.batch, i)
    noise = gates_of().noise(jnp.broadcast_to(key, batch.task.shape), batch.task, jnp.arange(len(batch.task)))
    every = [gates_of(auxiliary=name) for name in ("importance", "load", "both", "none")]
    return [gates.drawn(noise, router, router, batch, at(schedule.clock, i))[1] for gates in every]

  (importance, load), found = jax.jit(lambda router: (jax.jacrev(losses)(router), jax.jacrev(drawn)(router)))(
    start.router
  )
  expected = [importance, load, importance + load, 0 * load]
  chex.assert_trees_all_close(found, [0.1 * each for each in expected], atol=1e-6)
  options = {"sample": "noisy_topk", "cotrain": False, "update": "union", "learned_noise": False, "auxiliary": "both"}
  rates = {"router_lr": 1, "auxiliary_weight": 0.1}
  after = step(start, schedule, i, rates=rates, **options)
  plain = step(start, schedule, i, rates={**rates, "auxiliary_weight": 0}, **options)
  chex.assert_trees_all_close(after.router, plain.router - 0.1 * (importance + load), atol=1e-5)
  assert np.abs(after.router - plain.router).max() > 1e-4
  chex.assert_trees_all_close(after.params, plain.params, atol=1e-6)


# New rows.


def test_new_rows():
  """As initialised, the mean of the earlier rows, or equal up to a random order; other rows stay."""
  state = fresh(router=np.random.default_rng(0).normal(size=(L, T, E)))
  clock = Clock(*[jnp.int32(0)] * 4)

  def enter_with(name):
    enter = method(new_rows=name).phases[0].enter
    return jax.jit(lambda key, state, t: enter(key, state, View(None, None, t), clock))

  enter = {name: enter_with(name) for name in ("noise", "mean", "ties")}
  key = jax.random.key(0)
  chex.assert_trees_all_equal(enter["noise"](key, state, 1), state)
  chex.assert_trees_all_equal(enter["mean"](key, state, 0), state)
  for t in (1, 2):
    after = enter["mean"](key, state, t)
    expected = np.asarray(state.router).copy()
    expected[:, t] = expected[:, :t].mean(axis=1)
    chex.assert_trees_all_close(after, state.replace(router=expected), atol=1e-6)
  orders = set()
  for t in range(T):
    for seed in range(4):
      after = enter["ties"](jax.random.key(seed), state, t)
      new = np.asarray(after.router[:, t])
      assert new.min() >= 0 and new.max() <= 1e-6 and len(np.unique(new)) == L * E
      chex.assert_trees_all_equal(after.replace(router=after.router.at[:, t].set(state.router[:, t])), state)
      orders |= {tuple(np.argsort(row)) for row in new}
  assert len(orders) > 6


def test_the_first_router_has_the_scale_asked_for():
  net = RoutedMLP(SPEC.heads, SPEC.C, widths=(1, 1), experts=400)
  first = jax.jit(lambda key, scale: method(net, router_init=scale).init(key).router)
  for scale in (0.01, 2.0):
    np.testing.assert_allclose(np.std(first(jax.random.key(0), scale)), scale, rtol=0.1)
