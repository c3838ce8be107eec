"""Algorithm 1 of Collier et al. 2020 against a plain float64 implementation, and what its parts must leave alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import linen as nn

from cljax import fit
from cljax.data.sample import view_at
from cljax.errors import ConfigError
from cljax.methods.er import er
from cljax.methods.routing import routing
from cljax.nets import MLP, RoutedMLP
from cljax.ops import gating
from cljax.types import NONE, Array, Batch, Clock, Outputs, Spec, View, as_it_is
from tests import toys
from tests.routing_reference import Paper, assert_follows_the_paper
from tests.routing_steps import (
  BATCH,
  CAPACITY,
  COUNTS,
  DATA,
  LR,
  NET,
  REPLAY,
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
  step,
  task_key,
  train,
)


@pytest.fixture(scope="module")
def schedule():
  return make_schedule()


@pytest.fixture(scope="module")
def usual(schedule):
  """States and infos of the usual method, after each step."""
  return train(fresh(), schedule)


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
    return fit.fit_chunk(phase, n, task_key(t), state, view_at(data, t), clock, count)[0]

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


# Co-training alone: with a rate of 0 for steps 1 and 2 nothing else moves.


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


# Routes.


def current_rows(schedule):
  """The schedule of a plan that adds no column."""
  return schedule._replace(batch=jax.tree.map(lambda leaf: leaf[:, :BATCH], schedule.batch))


def test_disjoint_routes_isolate_tasks(schedule, applied):
  """Own experts, own heads, no replay and no co-training: later tasks leave the logits of the first bitwise alone."""
  _, apply, x = applied
  router = np.array([[prefer(0, 1), prefer(2, 3), prefer(2, 4)]] * L)
  start = fresh(router=router, capacity=0)
  states, _ = train(start, current_rows(schedule), rates={"cotrain_lr": 0}, capacity=0)
  after_first, last, slot = at(states, STEPS[0] - 1), at(states, -1), np.zeros(6, np.int64)
  chex.assert_trees_all_equal(apply(last, x, slot), apply(after_first, x, slot))
  assert (np.asarray(apply(last, x, slot + 1).logits) != apply(after_first, x, slot + 1).logits).all()


def test_capacity_zero_is_no_replay(schedule):
  """What comes of the memory's columns being dead; and the plan has none."""
  live = schedule.batch.live.copy()
  live[:, BATCH:] = False
  with_dead, _ = train(fresh(), schedule.with_batch(live=live))
  without, _ = train(fresh(capacity=0), current_rows(schedule), capacity=0)
  for part in ("params", "router", "skipped"):
    chex.assert_trees_all_close(getattr(without, part), getattr(with_dead, part), atol=1e-5)
  assert method(capacity=0).phases[0].plan is as_it_is


@pytest.fixture(scope="module")
def applied():
  subject = method(gate_scale=1.5)
  return subject, jax.jit(subject.apply), jnp.asarray(DATA.test_bank.x[:6], jnp.float32) / 255


def test_rows_of_a_mixed_batch_take_their_own_route(applied, usual):
  """Row by row as if its task were alone, with gates scaled."""
  _, apply, x = applied
  state = at(usual[0], -1)
  slot = np.array([0, 1, 2, 2, 1, 0])
  mixed = apply(state, x, slot)
  paper = Paper(state)
  gates = 1.5 * paper.routed_gates(slot)
  for i, t in enumerate(slot):
    alone = apply(state, x, np.full(6, t))
    chex.assert_trees_all_close(mixed.logits[i], alone.logits[i], atol=1e-6)
    h = np.asarray(x[i], np.float64).ravel()
    for l in range(L):
      h = sum(gates[l, i, e] * np.maximum(h @ paper.W[l][:, e] + paper.b[l][e], 0) for e in range(E))
    np.testing.assert_allclose(mixed.logits[i], h @ paper.V[:, t] + paper.c[t], atol=1e-5)


def test_replayed_rows_move_their_own_heads_only(schedule, usual):
  """A batch of tasks 0 and 2 leaves head 1 and row 1 of R as they are."""
  task = np.full_like(schedule.batch.task, 2)
  task[:, BATCH:] = 0
  before = at(usual[0], -1)
  after = step(before, schedule.with_batch(task=task), -1)
  moved = by_head(before.params["head"]["kernel"] != after.params["head"]["kernel"]).any(axis=(0, 2))
  np.testing.assert_array_equal(moved, [True, False, True])
  np.testing.assert_array_equal((before.router != np.asarray(after.router)).any(axis=(0, 2)), [True, False, True])


def test_with_equal_experts_routes_do_not_matter(applied):
  _, apply, x = applied
  state, slot = fresh(), np.array([0, 1, 2, 2, 1, 0])

  def copy_first(leaf):
    one = leaf.reshape(-1, E, 3)[:, :1]
    return jnp.broadcast_to(one, (one.shape[0], E, 3)).reshape(leaf.shape)

  params = {name: state.params[name] for name in state.params}
  params |= {name: jax.tree.map(copy_first, params[name]) for name in NET.layers}
  outputs = [apply(fresh(router=router, params=params), x, slot).logits for router in (state.router, ROUTES, -ROUTES)]
  chex.assert_trees_all_close(outputs[0], outputs[1], outputs[2], atol=1e-5)


def test_experts_may_change_places(applied):
  """Permuted together with the columns of R they answer the same."""
  _, apply, x = applied
  state, slot, order = fresh(), np.array([0, 1, 2, 2, 1, 0]), np.array([3, 0, 4, 1, 2])
  params = {name: state.params[name] for name in state.params}
  params |= {
    name: jax.tree.map(lambda leaf: leaf.reshape(-1, E, 3)[:, order].reshape(leaf.shape), params[name])
    for name in NET.layers
  }
  permuted = state.replace(params=params, router=state.router[:, :, order])
  chex.assert_trees_all_close(apply(permuted, x, slot), apply(state, x, slot), atol=1e-5)
  assert (
    np.asarray(apply(permuted.replace(router=state.router), x, slot).logits) != apply(state, x, slot).logits
  ).any()


# Ablations.


def test_without_cotraining_is_a_rate_of_zero(schedule):
  off, _ = train(fresh(), schedule, cotrain=False)
  zero, _ = train(fresh(), schedule, rates={"cotrain_lr": 0})
  chex.assert_trees_all_close((off.params, off.router), (zero.params, zero.router), atol=1e-6)
  chex.assert_trees_all_equal((off.memory, off.used), (zero.memory, zero.used))
  assert not off.skipped.any()


def test_one_expert_is_the_shared_bottom(schedule):
  """E = 1, k = 1 with the parameters of an MLP, over the same plan: the same as replay on the MLP."""
  mlp = MLP(SPEC.heads, SPEC.C, hidden=(4, 4))
  plain = er(mlp, optax.sgd(LR), SPEC, batch_size=BATCH, replay=REPLAY, capacity=CAPACITY)
  net = RoutedMLP(SPEC.heads, SPEC.C, widths=(4, 4), experts=1)
  shared = jax.jit(plain.init)(jax.random.key(0))
  zeros = jnp.zeros((L, T, 1))
  start = fresh(params=shared.params, router=zeros + 0.3, used=zeros > 0).replace(noise=zeros)

  @jax.jit
  def one(state, now):
    key = jax.random.wrap_key_data(now.key)
    return plain.phases[0].step(key, state, now.batch, now.clock, View(None, None, now.t))

  expected, seen = train(shared, schedule, one=one)
  found, info = train(start, schedule, net=net, k=1, sample="noisy_topk")
  chex.assert_trees_all_close(found.params, expected.params, atol=1e-5)
  chex.assert_trees_all_close(info, seen, atol=1e-5)
  np.testing.assert_array_equal(found.skipped[-1], STEPS)
  np.testing.assert_array_equal(found.router[-1], start.router)


@pytest.mark.parametrize("rates,options", [({}, {"k": 1}), ({"router_lr": 0}, {"sample": "noisy_topk"})], ids=str)
def test_the_router_rests(schedule, rates, options):
  """With k = 1 the softmax of one logit has no gradient; a rate of 0 freezes the random router, and its noise."""
  start = fresh(noise="sample" in options)
  states, _ = train(start, schedule, rates=rates, **options)
  for i in range(sum(STEPS)):
    chex.assert_trees_all_equal((states.router[i], states.noise[i]), (start.router, start.noise))
  assert (states.params["first"]["kernel"][-1] != start.params["first"]["kernel"]).any()


# Reports and refusals.


def test_report(usual):
  """Keys and shapes; what it counts."""
  state = at(usual[0], -1)
  report = jax.tree.map(np.asarray, jax.jit(method().report)(state))
  assert set(report) == {"parameters", "memory_bytes", "routing", "used", "unused", "skipped"}
  chex.assert_shape([report["routing"], report["used"]], (L, T, E))
  weights = E * (17 * 3 + 4 * 3) + T * (4 * 4)
  assert report["parameters"] == weights + L * T * E and report["memory_bytes"] == CAPACITY * (16 + 8)
  np.testing.assert_allclose(report["routing"], Paper(state).routed_gates(range(T)), atol=1e-6)
  np.testing.assert_array_equal(report["used"], state.used)
  np.testing.assert_array_equal(report["unused"], (~np.asarray(state.used).any(axis=1)).sum(axis=1))
  np.testing.assert_array_equal(report["skipped"], state.skipped)
  noisy = jax.jit(lambda state: method(sample="noisy_topk").report(state)["parameters"])
  assert noisy(fresh(noise=True)) == weights + 2 * L * T * E


def test_info_is_about_the_current_rows(schedule, usual):
  """Loss and accuracy of step 1, before it moves anything."""
  states, infos = usual
  i = sum(STEPS) - 1
  paper = Paper(at(states, i - 1))
  rows = [w for w in range(BATCH) if schedule.batch.live[i, w]]
  assert len(rows) == 4
  places = [(2, int(schedule.plan.place.row[i, w])) for w in rows]
  x, y, task = paper.read(places)
  loss, *_ = paper.gradients(x, y, task, paper.routed_gates(task))
  np.testing.assert_allclose(infos["loss"][i], loss, atol=1e-5)
  logits = jax.jit(method().apply)(at(states, i - 1), x.astype(np.float32), task).logits
  np.testing.assert_allclose(infos["accuracy"][i], (np.argmax(logits, axis=1) == y).mean(), atol=1e-6)
  assert set(infos) == {"loss", "accuracy"}


@pytest.mark.parametrize(
  "changes,words",
  [
    ({"sample": "noisy_topkk"}, "config.method.sample='noisy_topkk'.*Did you mean noisy_topk"),
    ({"draw": "row"}, "config.method.draw='row'.*step, example"),
    ({"new_rows": "tie"}, "config.method.new_rows='tie'.*Did you mean ties"),
    ({"update": "unions"}, "config.method.update='unions'.*Did you mean union"),
    ({"auxiliary": "loads"}, "config.method.auxiliary='loads'.*Did you mean load"),
    ({"cotrain_rows": "all"}, "config.method.cotrain_rows='all'.*union, current"),
    ({"exhausted": "route"}, "config.method.exhausted='route'.*Did you mean routed"),
    ({"k": 6}, "config.method.k=6 must lie in 1..5"),
    ({"k": 0}, "config.method.k=0 is too small; the least is 1"),
    ({"k": (2, -1)}, r"config.method.k=\(2, -1\) is too small; the least is 1"),
    ({"k": (2, 9)}, "config.method.k=9 must lie in 1..5"),
    ({"k": 2**31 - 1}, "config.method.k=2147483647 must lie in 1..5"),
    ({"k": 2**40}, "config.method.k=1099511627776 is too large"),
    ({"k": ()}, r"config.method.k=\(\) holds 0 values"),
    ({"k": 2.0}, "config.method.k=2.0 must be a whole number or several of them"),
    ({"k": "two"}, "config.method.k='two' must be a whole number or several of them"),
    ({"k": (2, 2, 2)}, r"config.method.k=\(2, 2, 2\) has 3 numbers for 2 layers"),
    ({"auxiliary": "load", "sample": "gumbel_topk"}, "config.method.auxiliary='load' needs the noise of.*gumbel_topk"),
    (
      {"auxiliary": "both", "sample": "noisy_topk", "noise": 0.0},
      "config.method.auxiliary='both' divides by the noise",
    ),
    ({"lr": -0.1}, "config.optimizer.lr=-0.1 is too small; the least is 0"),
    ({"lr": float("nan")}, "config.optimizer.lr=nan is not a finite number"),
    ({"router_lr": -1}, "config.method.router_lr=-1 is too small; the least is 0"),
    ({"cotrain_lr": float("inf")}, "config.method.cotrain_lr=inf is not a finite number"),
    ({"noise": float("nan")}, "config.method.noise=nan is not a finite number"),
    ({"noise": -1.0}, "config.method.noise=-1.0 is too small; the least is 0"),
    ({"temperature": 0}, "config.method.temperature=0 is too small; it must be above 0"),
    ({"temperature": float("inf")}, "config.method.temperature=inf is not a finite number"),
    ({"temperature_min": 0.0}, "config.method.temperature_min=0.0 is too small; it must be above 0"),
    ({"gate_scale": 0.0}, "config.method.gate_scale=0.0 is too small; it must be above 0"),
    ({"router_init": -1}, "config.method.router_init=-1 is too small; the least is 0"),
    ({"auxiliary_weight": 1e300}, "config.method.auxiliary_weight=1e\\+300 is too large"),
    ({"cotrain": "yes"}, "config.method.cotrain='yes' must be true or false"),
    ({"exhausted": 3}, "config.method.exhausted=3 must be a word"),
    ({"guard": {"name": "ewcc"}}, "config.method.guard.name='ewcc'.*Did you mean ewc"),
    ({"guard": {"name": "ewc", "strength": -1}}, "config.method.guard.strength=-1 is too small"),
    ({"replay": 13}, "config.method.capacity=12 is smaller than one replay batch of config.method.replay=13"),
    ({"net": toys.mlp(SPEC)}, "config.net.name='routed_mlp'"),
  ],
  ids=str,
)
def test_what_routing_cannot_do_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    method(**changes)
