"""Algorithm 1 of Collier et al. 2020 against a plain float64 implementation, and what its parts must leave alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen as nn

from cljax import loops
from cljax.data.sample import view_at
from cljax.methods.routing import routing
from cljax.ops import gating
from cljax.types import NONE, Array, Batch, Clock, Outputs, Spec, View
from tests.routing_reference import Paper, assert_follows_the_paper
from tests.routing_steps import (
  BATCH,
  CAPACITY,
  COUNTS,
  DATA,
  ROUTED,
  ROUTES,
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
  step,
  task_key,
  train,
  train_as_usual,
)


@pytest.fixture(scope="module")
def schedule():
  return make_schedule()


@pytest.fixture(scope="module")
def usual():
  return train_as_usual()


def test_it_is_algorithm_1(schedule, usual):
  """21 steps over three tasks: two updates, usage and co-training, some of it skipped."""
  states, infos = usual
  paper = Paper(fresh())
  assert_follows_the_paper(schedule, states, infos, paper)
  assert 0 < paper.skipped.sum() < 15
  assert len(paper.memory) == CAPACITY


UNION = {"update": "union", "cotrain_rows": "current"}


@pytest.mark.parametrize(
  "rates,options",
  [
    ({"router_lr": 3.0, "cotrain_lr": 0.1, "gate_scale": 2.0}, {"k": (1, 3)}),
    ({}, UNION),
    ({"router_lr": 20.0}, ROUTED),
  ],
  ids=["rates", "union", "routed"],
)
def test_its_options_are_what_they_say(schedule, rates, options):
  assert_follows_the_paper(
    schedule, *train(fresh(), schedule, rates=rates, **options), Paper(fresh(), **rates, **options)
  )


def test_the_engine_takes_these_steps(schedule, usual):
  """`fit_chunk` over the three tasks: the same plan, batches and keys, hence the same end and memory."""
  phase, state = method().phases[0], fresh()

  @jax.jit
  def run_task(data, state, t, count, total):
    clock = Clock(jnp.int32(0), jnp.int32(0), count, total)
    n = -(-max(STEPS) // phase.block.size) * phase.block.size
    return loops.fit_chunk(phase, n, task_key(t), state, view_at(data, t), clock, count)[0]

  for t, count in enumerate(STEPS):
    state = run_task(DATA, state, t, count, sum(STEPS[:t]))
  last = at(usual[0], -1)
  chex.assert_trees_all_close(state.replace(memory=last.memory), last, atol=1e-5)
  paper = Paper(fresh())
  for i, t in enumerate(schedule.t):
    paper.step(at(schedule.plan, i), int(t))
  stored = list(zip(*(np.asarray(leaf).tolist() for leaf in state.memory.place), strict=True))
  assert stored == [paper.memory[slot] for slot in range(CAPACITY)]
  assert state.memory.seen == sum(COUNTS)


def test_the_first_step_has_no_memory_yet(schedule, usual):
  """Only the current batch moves R; afterwards the memory holds this batch and nothing else."""
  assert not schedule.batch.live[0, BATCH:].any()
  paper = Paper(fresh())
  paper.learn(*paper.read(list(zip([0] * BATCH, schedule.plan.place.row[0, :BATCH], strict=True))))
  np.testing.assert_allclose(usual[0].router[0], paper.R, atol=1e-6)
  np.testing.assert_array_equal(schedule.plan.slot[0, :BATCH], np.arange(BATCH))


def test_unseen_tasks_are_left_alone(usual):
  """Rows of R and heads of tasks to come, bit for bit; and their usage."""
  start, states = fresh(), usual[0]
  for t in range(T - 1):
    end = at(states, sum(STEPS[: t + 1]) - 1)
    chex.assert_trees_all_equal(end.router[:, t + 1 :], start.router[:, t + 1 :])
    for name in ("kernel", "bias"):
      before, after = (np.moveaxis(by_head(state.params["head"][name]), -2, 0) for state in (start, end))
      np.testing.assert_array_equal(after[t + 1 :], before[t + 1 :])
      assert (after[: t + 1] != before[: t + 1]).any(axis=tuple(range(1, before.ndim))).all()
    assert not end.used[:, t + 1 :].any()
    assert (end.router[:, : t + 1] != start.router[:, : t + 1]).any(axis=(0, 2)).all()


def test_usage_by_hand(schedule):
  """R[0] = [3, 2, 1, 0, -1], R[1] = [0, 5, 0, 0, 4], k = 2: used {0, 1} and {1, 4}, unused {2, 3}."""
  state = fresh(router=[[[3, 2, 1, 0, -1], [0, 5, 0, 0, 4], [0, 0, 0, 9, 0]]] * L)
  for i in (0, STEPS[0]):
    state = step(state, schedule, i, rates=STILL)
  expected = np.zeros((L, T, E), bool)
  expected[:, 0, [0, 1]] = expected[:, 1, [1, 4]] = True
  np.testing.assert_array_equal(state.used, expected)
  report = jax.jit(method().report)(state)
  np.testing.assert_array_equal(report["unused"], [2, 2])
  gates = jax.jit(lambda used: gating.unused_gates(used.any(axis=1)))(state.used)
  np.testing.assert_array_equal(gates, [[0, 0, 0.5, 0.5, 0]] * L)


def test_usage_of_finished_tasks_stays_unless_refreshed(schedule):
  """Replay moves old rows of R: by default their usage is what it was at their last own step."""
  for options in ({}, ROUTED):
    states, _ = train(fresh(), schedule, rates={"cotrain_lr": 0, "router_lr": 40}, **options)
    order = np.argsort(-states.router, axis=-1, kind="stable")[..., :2]
    top = (order[..., None] == np.arange(E)).any(axis=-2)
    expected, moved = np.zeros((L, T, E), bool), False
    for i, t in enumerate(schedule.t):
      rows = slice(0 if options else t, t + 1)
      moved |= (top[i, :, :t] != expected[:, :t]).any()
      expected[:, rows] = top[i, :, rows]
      np.testing.assert_array_equal(states.used[i], expected)
    assert moved


@pytest.mark.parametrize("options", [{}, {"sample": "noisy_topk"}, ROUTED], ids=["usual", "noise", "heads"])
def test_cotraining_moves_unused_experts_and_heads_only(schedule, options):
  """R, its noise and used experts keep their bits; so do the heads if told to."""
  used = jnp.asarray(ROUTES > 0).at[:, 1:].set(False)
  before = fresh(router=ROUTES, noise="sample" in options, used=used)
  i = STEPS[0] + 1
  after = step(before, schedule, i, rates=STILL, **options)
  chex.assert_trees_all_equal(after.router, before.router)
  chex.assert_trees_all_equal(after.noise, before.noise)
  assert moved_experts(before, after) == [{2, 3}, {2, 4}]
  assert set(schedule.batch.task[i, schedule.batch.live[i]]) == {0, 1}
  moved = by_head(before.params["head"]["kernel"] != after.params["head"]["kernel"]).any(axis=(0, 2))
  np.testing.assert_array_equal(moved, [False] * 3 if options is ROUTED else [True, True, False])


def test_cotraining_on_current_rows_ignores_the_replayed(schedule):
  """Other replayed rows, the same result; with the union they count."""
  i, x = STEPS[0] + 1, schedule.batch.x.copy()
  x[:, BATCH:] += 1
  before = fresh(router=ROUTES)
  for options in ({}, UNION):
    one, two = (step(before, now, i, rates=STILL, **options) for now in (schedule, schedule.with_batch(x=x)))
    if options:
      chex.assert_trees_all_equal(one, two)
    else:
      assert (one.params["first"]["kernel"] != two.params["first"]["kernel"]).any()
    assert (one.params["first"]["kernel"] != before.params["first"]["kernel"]).any()


@pytest.mark.parametrize("rates", [STILL, {}], ids=["still", "usual"])
def test_nothing_moves_without_a_live_row(schedule, rates):
  """Steps 1, 2 and 5 are then the identity; row t of usage is read off R as ever."""
  dead = schedule.with_batch(live=np.zeros_like(schedule.batch.live))
  before = fresh(router=ROUTES)
  after = step(before, dead, STEPS[0], rates=rates)
  chex.assert_trees_all_equal(after.replace(used=before.used), before)


def test_cotraining_rests_where_all_experts_are_used(schedule):
  """Then it is the identity, counted as skipped in the task's row; one full layer is enough."""
  full = jnp.ones((L, T, E), bool)
  for used in (full, full.at[1].set(False)):
    before = fresh(router=ROUTES, used=used)
    after = step(before, schedule, STEPS[0], rates=STILL)
    chex.assert_trees_all_equal(after.replace(used=before.used, skipped=before.skipped), before)
    np.testing.assert_array_equal(after.skipped, [0, 1, 0])


def test_exhausted_layers_skip_and_are_counted(schedule):
  """Tasks 0 and 1 use two experts each, task 2 the fifth: from its first step on nothing is co-trained."""
  router = np.array([[prefer(0, 1), prefer(2, 3), prefer(2, 4)]] * L)
  states, _ = train(fresh(router=router), schedule)
  np.testing.assert_array_equal(states.skipped[-1], [0, 0, STEPS[2]])
  assert states.used[-1].any(axis=1).all()
  first = sum(STEPS[:2])
  expected = step(at(states, first - 1), schedule, first, cotrain=False)
  chex.assert_trees_all_close(at(states, first).params, expected.params, atol=1e-6)


def test_exhausted_layers_can_take_their_route(schedule):
  """Layer 1 has unused experts, layer 0 none: only those of layer 1 move. Without any, the step is skipped."""
  used = jnp.zeros((L, T, E), bool).at[0, 2].set(True)
  before = fresh(router=ROUTES, used=used)
  after = step(before, schedule, STEPS[0], rates=STILL, **ROUTED)
  assert moved_experts(before, after) == [set(), {2, 4}]
  assert after.skipped.sum() == 0
  chex.assert_trees_all_equal(after.router, before.router)
  before = fresh(router=ROUTES, used=used.at[1, 2].set(True))
  after = step(before, schedule, STEPS[0], rates=STILL, **ROUTED)
  assert moved_experts(before, after) == [set(), set()]
  np.testing.assert_array_equal(after.skipped, [0, 1, 0])


def test_without_cotraining_is_a_rate_of_zero(schedule):
  off, _ = train(fresh(), schedule, cotrain=False)
  zero, _ = train(fresh(), schedule, rates={"cotrain_lr": 0})
  chex.assert_trees_all_close((off.params, off.router), (zero.params, zero.router), atol=1e-6)
  chex.assert_trees_all_equal((off.memory, off.used), (zero.memory, zero.used))
  assert not off.skipped.any()


def test_noise_is_learned_or_not_there(schedule):
  """N starts at 0 and moves in the rows of seen tasks; fixed noise and other samplers do not carry it."""
  start = jax.jit(method(sample="noisy_topk").init)(jax.random.key(0))
  assert start.noise.shape == (L, T, E) and not start.noise.any()
  states, _ = train(start, schedule, sample="noisy_topk")
  for t in range(T):
    noise = states.noise[sum(STEPS[: t + 1]) - 1]
    assert noise[:, : t + 1].any(axis=(0, 2)).all() and not noise[:, t + 1 :].any()
  for name in gating.SAMPLERS:
    shapes = jax.eval_shape(method(sample=name, learned_noise=name != "noisy_topk").init, jax.random.key(0))
    assert shapes.noise.shape == (0, T, E)


@pytest.mark.parametrize("rates,options", [({}, {"k": (1, 3)}), ({"router_lr": 0}, {"sample": "noisy_topk"})], ids=str)
def test_the_router_rests(schedule, rates, options):
  """The softmax of one logit (k = 1, the first layer) has no gradient; a rate of 0 freezes the router and its noise."""
  start = fresh(noise="sample" in options)
  states, _ = train(start, schedule, rates=rates, **options)
  at_rest = slice(0, 1 if "k" in options else L)
  for i in range(sum(STEPS)):
    found = states.router[i, at_rest], states.noise[i]
    chex.assert_trees_all_equal(found, (start.router[at_rest], start.noise))
  assert (states.params["first"]["kernel"][-1] != start.params["first"]["kernel"]).any()


class Scalars(nn.Module):
  """Three experts relu(w x) of one number, and logits (out, 0): the loss of label 0 is log(1 + exp(-out))."""

  widths: tuple[int, ...] = (1,)
  experts: int = 3
  layers: tuple[str, ...] = ("first",)

  def setup(self):
    self.first = nn.Dense(3)

  def __call__(self, x: Array, slot: Array, gates: list[Array]) -> Outputs:
    return self.after_first(self.first(x), slot, gates)

  def after_first(self, z: Array, slot: Array, gates: list[Array]) -> Outputs:
    out = (gates[0] * nn.relu(z)).sum(axis=-1)
    return Outputs(jnp.stack([out, jnp.zeros_like(out)], axis=-1), out[:, None], slot)


def test_cotraining_step_by_hand():
  """x = 2, w = [1, .5, .25], expert 0 used: out = .75, and dL/dw = -sigmoid(-.75) * 2 / 2 for the two others."""
  spec = Spec((1,), 1, 2, 1)
  subject = routing(Scalars(), 0.0, spec, batch_size=1, capacity=0, k=1, sample="none", cotrain_lr=0.1)
  state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(subject.init, jax.random.key(0)))
  first = {"kernel": np.float32([[1, 0.5, 0.25]]), "bias": np.zeros(3, np.float32)}
  state = state.replace(params={"first": first}, router=np.float32([[[1, 0, 0]]]))
  zero, none = jnp.zeros(1, jnp.int32), jnp.full(1, NONE)
  batch = Batch(jnp.full((1, 1), 2.0), zero, zero, jnp.ones((1, 2), bool), None, none, jnp.ones(1, bool))
  clock = Clock(*[jnp.int32(0)] * 4)
  after, _ = jax.jit(subject.phases[0].step)(jax.random.key(0), state, batch, clock, View(None, None, jnp.int32(0)))
  step = 0.1 * scipy.special.expit(-0.75)
  kernel = after.params["first"]["kernel"][0]
  np.testing.assert_allclose(kernel, [1, 0.5 + step, 0.25 + step], atol=1e-7)
  assert kernel[0] == 1
  np.testing.assert_array_equal(after.used, [[[True, False, False]]])
