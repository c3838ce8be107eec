"""Routing under a guard: what it pulls and what keeps its bits, against numpy in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.config import complete, default
from cljax.data.sample import view_at
from cljax.pieces.guards.penalties import Path, Penalty
from cljax.recipe import recipe
from cljax.types import keep
from tests.routing_reference import Guarded, Paper, assert_follows_the_paper
from tests.routing_steps import (
  COUNTS,
  DATA,
  LR,
  RATES,
  ROUTED,
  ROUTES,
  SPEC,
  STEPS,
  STILL,
  E,
  L,
  T,
  at,
  by_head,
  fresh,
  make_schedule,
  method,
  moved_experts,
  prefer,
  program,
  step,
  task_key,
  train,
  train_as_usual,
)

GUARDS = pytest.mark.parametrize("guard", ["ewc", "si"])
NOISY = {"sample": "noisy_topk", "draw": "example"}
FACTOR = {"ewc": 1, "si": 2}  # of the pull strength * importance * (w - anchor)


@pytest.fixture(scope="module")
def schedule():
  return make_schedule()


@pytest.fixture(scope="module")
def free():
  """States after each step without a guard, step by step."""
  return train_as_usual()[0]


def past_of(guard, importance, anchor):
  zeros = jax.tree.map(np.zeros_like, anchor)
  return Penalty(importance, anchor, np.float32(0)) if guard == "ewc" else Path(importance, anchor, anchor, zeros)


def first(guard):
  """The first state under a guard."""
  state = fresh()
  return state.replace(past=past_of(guard, jax.tree.map(np.zeros_like, state.theta), state.theta))


def pulled(guard, **changes):
  """(a first state that is pulled everywhere, its importance, its anchor)."""
  state, random = fresh(**changes), np.random.default_rng(0)
  importance = jax.tree.map(lambda leaf: np.abs(random.normal(size=leaf.shape)).astype(np.float32), state.theta)
  anchor = jax.tree.map(lambda w: np.float32(w + 0.3 * random.normal(size=w.shape)), state.theta)
  return state.replace(past=past_of(guard, importance, anchor)), importance, anchor


@functools.cache
def edges(guard):
  """(state, t) -> state at the begin and the end of a task."""
  phase = method(guard={"name": guard}).phases[0]

  def edge(name):
    move = jax.jit(lambda data, state, t: getattr(phase, name)(task_key(t), state, view_at(data, t), None))
    return functools.partial(move, DATA)

  return edge("enter"), edge("exit")


def walk(schedule, guard, strength):
  """The states after each step, and the past after each task, with its edges."""
  enter, leave = edges(guard)
  state, states, pasts = first(guard), [], []
  for i, t in enumerate(schedule.t):
    begins, ends = i == sum(STEPS[:t]), i + 1 == sum(STEPS[: t + 1])
    state = enter(state, t) if begins else state
    state = step(state, schedule, i, rates={"strength": strength}, guard=guard)
    states.append(state)
    if ends:
      state = leave(state, t)
      pasts.append(state.past)
  return states, pasts


def without_past(state):
  return state.replace(past=None, memory=None)


@GUARDS
def test_a_strength_of_zero_is_no_guard(schedule, free, guard):
  """As a number in the config it is the very same method; a number that is swept gives the bits of single steps."""
  off = method(guard={"name": guard, "strength": 0.0})
  assert off.phases[0].block.size == method().phases[0].block.size > 1
  assert off.phases[0].exit is keep
  assert jax.eval_shape(off.init, jax.random.key(0)).past is None
  states, pasts = walk(schedule, guard, 0)
  for i, state in enumerate(states):
    chex.assert_trees_all_equal(without_past(state), without_past(at(free, i)))
  importance = pasts[-1].fisher if guard == "ewc" else pasts[-1].importance
  assert all(np.any(leaf) for leaf in jax.tree.leaves(importance) if leaf.size)


@GUARDS
def test_the_first_task_is_free(schedule, free, guard):
  """Bit for bit; from the second on the past pulls."""
  states, _ = walk(schedule, guard, 5)
  for i in range(STEPS[0]):
    chex.assert_trees_all_equal(without_past(states[i]), without_past(at(free, i)))
  assert (states[STEPS[0] + 1].params["first"]["kernel"] != at(free, STEPS[0] + 1).params["first"]["kernel"]).any()


def test_gates_are_drawn_as_without_a_guard(schedule):
  """By the same keys, for the current rows and for the replayed."""
  state, i = fresh(noise=True), STEPS[0] + 1
  past = past_of("si", jax.tree.map(np.zeros_like, state.theta), state.theta)
  after = step(state.replace(past=past), schedule, i, guard="si", **NOISY)
  chex.assert_trees_all_equal(without_past(after), without_past(step(state, schedule, i, **NOISY)))


@GUARDS
def test_guarded_steps_equal_their_formula(schedule, guard):
  """All three steps of SGD, the past of SI included: the loss's own gradient times the movement."""
  state, importance, anchor = pulled(guard, router=[[prefer(0, 1), prefer(2, 3), prefer(2, 4)]] * L)
  states, infos = train(state, schedule, rates={"strength": 0.4}, guard=guard)
  paper = Guarded(state, importance, anchor, FACTOR[guard] * 0.4)
  assert_follows_the_paper(schedule, states, infos, paper)
  assert 0 < paper.skipped.sum() < sum(STEPS)
  if guard == "si":
    path = Paper(state.moved(at(states, -1).past.path, None)).theta
    for found, expected in zip(path, paper.path, strict=True):
      np.testing.assert_allclose(found, expected, atol=1e-5)
      assert np.abs(expected).max() > 1e-4


def test_the_fisher_is_taken_through_the_gates_of_evaluation():
  """The mean of squared per-example gradients, of experts, heads and R."""
  state = first("ewc").replace(router=jnp.asarray(ROUTES, jnp.float32))
  after = edges("ewc")[1](state, 1)
  chex.assert_trees_all_equal(after.theta, state.theta)
  places = [(1, int(row)) for row in DATA.tasks.train.idx[1, : COUNTS[1]]]
  paper = Guarded(state, state.past.fisher, state.past.anchor, 0)
  found = Paper(state.moved(after.past.fisher, None)).theta
  for fisher, expected in zip(found, paper.fisher(places), strict=True):
    np.testing.assert_allclose(fisher, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("guard,options", [("ewc", {}), ("si", NOISY), ("ewc", ROUTED)], ids=["ewc", "si", "routed"])
def test_cotraining_holds_what_it_may_not_move(schedule, guard, options):
  """Used experts, R and what has no rate keep their bits, whatever the guard pulls; the rest is pulled."""
  used = jnp.asarray(ROUTES > 0).at[:, 1:].set(False)
  state, importance, anchor = pulled(guard, router=ROUTES, used=used, noise=options is NOISY)
  importance["router"] = np.full_like(importance["router"], np.inf)
  state, i = state.replace(past=past_of(guard, importance, anchor)), STEPS[0] + 1
  after = step(state, schedule, i, rates={**STILL, "strength": 0.4}, guard=guard, **options)
  chex.assert_trees_all_equal((after.router, after.noise), (state.router, state.noise))
  assert moved_experts(state, after) == [{2, 3}, {2, 4}]
  moved = by_head(state.params["head"]["kernel"] != after.params["head"]["kernel"]).any(axis=(0, 2))
  np.testing.assert_array_equal(moved, [options is not ROUTED] * T)
  still = step(state, schedule, i, rates={**STILL, "strength": 0.4, "cotrain_lr": 0}, guard=guard, **options)
  chex.assert_trees_all_equal(still.theta, state.theta)


def test_exhausted_layers_are_held(schedule):
  """Layer 0 has no unused expert and takes its route: nothing of it moves, though the guard pulls."""
  state, _, _ = pulled("ewc", router=ROUTES, used=jnp.zeros((L, T, E), bool).at[0, 2].set(True))
  after = step(state, schedule, STEPS[0], rates={**STILL, "strength": 0.4}, guard="ewc", **ROUTED)
  assert moved_experts(state, after) == [set(), {2, 4}]
  chex.assert_trees_all_equal(after.router, state.router)


@GUARDS
def test_nothing_is_pulled_without_a_live_row(schedule, guard):
  dead = schedule.with_batch(live=np.zeros_like(schedule.batch.live))
  state, _, _ = pulled(guard, router=ROUTES)
  after = step(state, dead, STEPS[0], guard=guard)
  chex.assert_trees_all_equal(after.replace(used=state.used), state)


@GUARDS
def test_its_state_is_a_fixed_point(schedule, guard):
  """Its past is as long as theta, before and after a step."""
  like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), first(guard))
  found = jax.eval_shape(method(guard={"name": guard}).init, jax.random.key(0))
  chex.assert_trees_all_equal_shapes_and_dtypes(found, like)
  rates = {name: np.float32(value) for name, value in RATES.items()}
  after = jax.eval_shape(program(guard=guard), found, at(schedule, 0), rates)[0]
  chex.assert_trees_all_equal_shapes_and_dtypes(after, like)
  assert not any(leaf.weak_type for leaf in jax.tree.leaves((found, after)))


def test_blocks_are_off_and_that_is_said(monkeypatch):
  said = []
  monkeypatch.setattr("absl.logging.log_first_n", lambda level, text, n: said.append(text))
  assert method(guard={"name": "ewc"}, block=1).phases[0].block is None and not said
  assert method(guard={"name": "ewc"}).phases[0].block is None and "blocks of steps are off" in said[0]


def test_a_config_says_it():
  """Guard and method by name, the strength as a number that a sweep may vary."""
  config = default()
  config.net.name, config.method.name = "routed_mlp", "routing"
  config.method.guard = {"name": "ewc"}
  subject = recipe(complete(config), SPEC)({"lr": LR, "guard_strength": 3.0})
  assert isinstance(jax.eval_shape(subject.init, jax.random.key(0)).past, Penalty)
  assert subject.phases[0].block is None
