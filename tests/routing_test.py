"""Algorithm 1 of Collier et al. 2020 against a plain float64 implementation, and what its parts must leave alone.

Methods are stepped over one fixed schedule of three tasks (the engine's own orders, memory draws and keys), so that
variants differ in nothing but what is asked of them.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import linen as nn

from cljax import fit
from cljax.data.sample import fetch, view_at
from cljax.methods.er import er
from cljax.methods.routing import routing
from cljax.nets import MLP, RoutedMLP
from cljax.ops import replay as memories
from cljax.ops import select
from cljax.types import NONE, Array, Batch, Clock, ConfigError, Outputs, Plan, Spec, View, as_it_is
from tests import toys

BATCH, REPLAY, CAPACITY = 5, 4, 12
L, T, E, LR = 2, 3, 5, 0.3
COUNTS = (30, 28, 44)  # 6 + 6 + 9 steps, the last of the second and third task with dead rows
STEPS = (6, 6, 9)
SPEC, DATA = toys.stream(COUNTS)
NET = toys.routed(SPEC, E)


def method(net=NET, lr=LR, **changes):
  defaults = {"batch_size": BATCH, "epochs": 1, "replay": REPLAY, "capacity": CAPACITY, "k": 2, "sample": "none"}
  return routing(net, lr, SPEC, **{**defaults, **changes})


class Schedule(NamedTuple):
  """Steps one after the other, in numpy; leaves [21, ...]."""

  key: Array  # the key's words
  plan: Plan
  batch: Batch
  clock: Clock
  t: Array

  def with_batch(self, **fields):
    return self._replace(batch=self.batch._replace(**fields))


def at(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)


def task_key(t):
  return jax.random.fold_in(jax.random.key(7), t)


@pytest.fixture(scope="module")
def schedule():
  phase = method().phases[0]
  steps = jnp.arange(max(STEPS))

  @jax.jit
  def plan_task(data, state, t, count, total):
    view = view_at(data, t)
    clock = Clock(jnp.int32(0), jnp.int32(0), count, total)
    plan = fit.plan_current(phase, max(STEPS), task_key(t), view, clock, count)
    keys = jax.vmap(lambda k: fit.use(task_key(t), fit.PLAN, k))(steps)
    state, plan = phase.plan(keys, state, view, plan)
    batch = jax.vmap(lambda place: fetch(view, place))(plan.place)._replace(slot=plan.slot, live=plan.live)
    keys = jax.random.key_data(jax.vmap(lambda k: fit.use(task_key(t), fit.STEP, k))(steps))
    return state, Schedule(
      keys, plan, batch, jax.vmap(lambda k: fit.clock_at(clock, k))(steps), jnp.full_like(steps, t)
    )

  state, parts = fresh(), []
  for t, count in enumerate(STEPS):
    state, part = plan_task(DATA, state, t, count, sum(STEPS[:t]))
    parts.append(jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], part))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@functools.cache
def compiled_init():
  return jax.jit(method().init)(jax.random.key(0))


def fresh(router=None, capacity=CAPACITY, noise=False, **changes):
  """The first state of every method here, up to what it carries; the logits of R as given."""
  state = compiled_init().replace(memory=memories.empty(capacity), **changes)
  state = state.replace(noise=jnp.zeros((L, T, E))) if noise else state
  return state if router is None else state.replace(router=jnp.asarray(router, jnp.float32))


RATES = {"lr": LR, "cotrain_lr": LR, "router_lr": LR, "gate_scale": 1.0, "noise": 1.0, "auxiliary_weight": 0.1}


@functools.cache
def program(net=NET, **options):
  """One step of a variant, compiled once for all rates."""

  def one(state, step, rates):
    subject = method(net, **options, **rates)
    key = jax.random.wrap_key_data(step.key)
    return subject.phases[0].step(key, state, step.batch, step.clock, View(None, None, step.t))

  return jax.jit(one)


def step(state, schedule, i, *, rates=(), **options):
  """The state after step i of the schedule alone."""
  rates = {name: np.float32(value) for name, value in {**RATES, **dict(rates)}.items()}
  return program(**options)(state, at(schedule, i), rates)[0]


def train(state, schedule, *, rates=(), one=None, **options):
  """The states and infos after each step, leaves [n, ...]; by `one(state, step)` if given."""
  rates = {name: np.float32(value) for name, value in {**RATES, **dict(rates)}.items()}
  one = one or (lambda state, now: program(**options)(state, now, rates))
  after = []
  for i in range(len(schedule.t)):
    state, info = one(state, at(schedule, i))
    after.append((state, info))
  return jax.tree.map(lambda *leaves: np.stack(leaves), *after)


def prefer(*experts):
  """[E] logits, larger the earlier an expert is named."""
  row = np.zeros(E)
  row[list(experts)] = 4 - 0.5 * np.arange(len(experts))
  return row


@pytest.fixture(scope="module")
def usual(schedule):
  """States and infos of the usual method, after each step."""
  return train(fresh(), schedule)


# The paper's Algorithm 1, written from its text: loops, float64 and gradients by hand.


def by_head(leaf):
  """The heads' kernel [D, T * C] or bias [T * C] as [..., T, C]."""
  return np.asarray(leaf).reshape(*np.shape(leaf)[:-1], T, -1)


class Paper:
  def __init__(self, state, k=(2, 2), lr=LR, cotrain_lr=LR, router_lr=LR, gate_scale=1.0, **options):
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float64), state.params)
    self.W = [params[name]["kernel"].reshape(-1, E, 3) for name in ("first", "hidden_1")]
    self.b = [params[name]["bias"].reshape(E, 3) for name in ("first", "hidden_1")]
    self.V, self.c = by_head(params["head"]["kernel"]), by_head(params["head"]["bias"])
    self.R, self.used = np.array(state.router, np.float64), np.zeros((L, T, E), bool)
    self.k, self.lr, self.cotrain_lr, self.router_lr, self.scale = k, lr, cotrain_lr, router_lr, gate_scale
    self.options, self.memory, self.skipped = options, {}, np.zeros(T, int)

  def kept(self, l, t):
    """Indices of the top k of R[l, t], ties to the lower."""
    return np.argsort(-self.R[l, t], kind="stable")[: self.k[l]]

  def routed_gates(self, task):
    gates = np.zeros((L, len(task), E))
    for l in range(L):
      for i, t in enumerate(task):
        gates[l, i, self.kept(l, t)] = scipy.special.softmax(self.R[l, t, self.kept(l, t)])
    return gates

  def gradients(self, x, y, task, gates):
    """Loss, and its gradients by W, b, V, c and the gates."""
    inputs, before = [x], []
    for l in range(L):
      before.append(np.stack([inputs[l] @ self.W[l][:, e] + self.b[l][e] for e in range(E)], axis=1))
      inputs.append(sum(gates[l][:, [e]] * np.maximum(before[l][:, e], 0) for e in range(E)))
    logits = np.stack([inputs[L][i] @ self.V[:, t] + self.c[t] for i, t in enumerate(task)])
    p = scipy.special.softmax(logits, axis=1)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    error = (p - np.eye(4)[y]) / len(y)
    dV, dc, down = np.zeros_like(self.V), np.zeros_like(self.c), np.zeros_like(inputs[L])
    for i, t in enumerate(task):
      dV[:, t] += np.outer(inputs[L][i], error[i])
      dc[t] += error[i]
      down[i] = self.V[:, t] @ error[i]
    dW, db, dgates = [None] * L, [None] * L, np.zeros_like(gates)
    for l in reversed(range(L)):
      dgates[l] = np.stack([(np.maximum(before[l][:, e], 0) * down).sum(axis=1) for e in range(E)], axis=1)
      dz = np.stack([gates[l][:, [e]] * down * (before[l][:, e] > 0) for e in range(E)], axis=1)
      dW[l] = np.stack([inputs[l].T @ dz[:, e] for e in range(E)], axis=1)
      db[l] = dz.sum(axis=0)
      down = sum(dz[:, e] @ self.W[l][:, e].T for e in range(E))
    return loss, dW, db, dV, dc, dgates

  def move(self, rates, heads, dW, db, dV, dc):
    for l in range(L):
      self.W[l] -= rates[l] * dW[l]
      self.b[l] -= rates[l] * db[l]
    self.V -= heads * dV
    self.c -= heads * dc

  def learn(self, x, y, task):
    """SGD through the routes, for experts, heads and R."""
    weights = self.routed_gates(task)
    loss, *grads, dgates = self.gradients(x, y, task, self.scale * weights)
    self.move([self.lr] * L, self.lr, *grads)
    for l in range(L):
      for i, t in enumerate(task):
        w, d = weights[l, i], self.scale * dgates[l, i]
        self.R[l, t] -= self.router_lr * w * (d - w @ d)
    return loss

  def cotrain(self, x, y, task, t):
    """SGD with all unused experts, R left alone."""
    unused = ~self.used.any(axis=1)
    none_left = ~unused.any(axis=1)
    if none_left.all() or (none_left.any() and self.options.get("exhausted") != "routed"):
      self.skipped[t] += 1
      return
    gates = self.scale * self.routed_gates(task)
    for l in range(L):
      if not none_left[l]:
        gates[l] = unused[l] / unused[l].sum()
    _, *grads, _ = self.gradients(x, y, task, gates)
    heads = self.cotrain_lr * self.options.get("cotrain_update_heads", True)
    self.move([self.cotrain_lr * (not none) for none in none_left], heads, *grads)

  def read(self, place):
    """Picture, label and task of (task, row) pairs, straight from the bank."""
    task = np.array([t for t, _ in place], int)
    pictures = [DATA.bank.x[row].reshape(-1)[DATA.tasks.train.warp.index[t]] / 255 for t, row in place]
    return np.array(pictures), DATA.bank.y[[row for _, row in place]], task

  def step(self, plan, t):
    pairs = list(zip(plan.place.task.tolist(), plan.place.row.tolist(), strict=True))
    current = [pairs[w] for w in range(BATCH) if plan.live[w]]
    replayed = [self.memory[int(plan.slot[w])] for w in range(BATCH, BATCH + REPLAY) if plan.live[w]]
    assert replayed == [pairs[w] for w in range(BATCH, BATCH + REPLAY) if plan.live[w]]
    if self.options.get("update") == "union":
      loss = self.learn(*self.read(current + replayed))
    else:
      loss = self.learn(*self.read(current))
      if replayed:
        self.learn(*self.read(replayed))
    for w in range(BATCH):
      if plan.slot[w] != NONE:
        self.memory[int(plan.slot[w])] = pairs[w]
    for row in range(t + 1) if self.options.get("refresh_all_seen") else [t]:
      for l in range(L):
        self.used[l, row] = np.isin(np.arange(E), self.kept(l, row))
    self.cotrain(*self.read(current if self.options.get("cotrain_rows") == "current" else current + replayed), t)
    return loss


def assert_follows_the_paper(schedule, states, infos, paper):
  """Step by step, to 1e-5."""
  for i, t in enumerate(schedule.t):
    loss = paper.step(at(schedule.plan, i), int(t))
    now = at(states, i)
    expected = {
      "first": {"kernel": paper.W[0].reshape(-1, E * 3), "bias": paper.b[0].ravel()},
      "hidden_1": {"kernel": paper.W[1].reshape(-1, E * 3), "bias": paper.b[1].ravel()},
      "head": {"kernel": paper.V.reshape(len(paper.V), -1), "bias": paper.c.ravel()},
    }
    chex.assert_trees_all_close(now.params, jax.tree.map(np.float32, expected), atol=1e-5)
    chex.assert_trees_all_close(now.router, np.float32(paper.R), atol=1e-5)
    np.testing.assert_array_equal(now.used, paper.used)
    np.testing.assert_array_equal(now.skipped, paper.skipped)
    np.testing.assert_allclose(infos["loss"][i], loss, atol=1e-5)


def test_it_is_algorithm_1(schedule, usual):
  """21 steps over three tasks: two updates, usage and co-training, some of it skipped."""
  states, infos = usual
  paper = Paper(fresh())
  assert_follows_the_paper(schedule, states, infos, paper)
  assert 0 < paper.skipped.sum() < 15
  assert len(paper.memory) == CAPACITY


UNION = {"update": "union", "cotrain_rows": "current"}
ROUTED = {"exhausted": "routed", "refresh_all_seen": True, "cotrain_update_heads": False}


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
    return fit.fit_chunk(phase, 2 * phase.block.size, task_key(t), state, view_at(data, t), clock, count)[0]

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
  np.testing.assert_array_equal(select.unused_gates(state.used.any(axis=1)), [[0, 0, 0.5, 0.5, 0]] * L)


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


def experts_of(params, name):
  """[E, ...] kernel columns and biases of a layer, by expert."""
  kernel = np.asarray(params[name]["kernel"]).reshape(-1, E, 3).swapaxes(0, 1)
  return np.concatenate([kernel.reshape(E, -1), np.asarray(params[name]["bias"]).reshape(E, 3)], axis=1)


def moved_experts(before, after):
  """For each layer the experts that changed a bit."""
  return [
    set(np.flatnonzero((experts_of(before.params, name) != experts_of(after.params, name)).any(axis=1)).tolist())
    for name in NET.layers
  ]


ROUTES = np.array([[prefer(0, 1), prefer(1, 4), prefer(2, 3)], [prefer(3, 0), prefer(3, 1), prefer(2, 4)]])
STILL = {"lr": 0, "router_lr": 0}


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
  state = jax.jit(subject.init)(jax.random.key(0))
  state = state.replace(
    params={"first": {"kernel": jnp.array([[1, 0.5, 0.25]]), "bias": jnp.zeros(3)}}, router=jnp.array([[[1.0, 0, 0]]])
  )
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


# Draws.


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


@pytest.mark.parametrize("sample", ["noisy_topk", "gumbel_topk", "gumbel_matrix"])
@pytest.mark.parametrize("draw", ["step", "example"])
def test_one_draw_a_step_or_one_a_row(schedule, sample, draw):
  """Rows of one task share their gates under `step` and not under `example`; layers and steps draw anew."""
  (gates,) = probe(schedule, sample=sample, draw=draw, cotrain=False, update="union").values()
  assert gates.shape == (2, L, BATCH + REPLAY, E)
  for task in range(T):
    mine = gates[:, :, task == TASKS]
    assert (mine == mine[:, :, :1]).all() == (draw == "step")
  assert (gates[:, :, 0] != gates[:, :, 1]).any()
  assert (gates[0] != gates[1]).any() and (gates[:, 0] != gates[:, 1]).any()
  if sample != "gumbel_matrix":
    np.testing.assert_allclose(gates.sum(axis=-1), 1, atol=1e-6)
    assert ((gates > 0).sum(axis=-1) == 2).all()


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


def test_gumbel_noise_has_its_scale(schedule):
  (gates,) = probe(schedule, noise=0, sample="gumbel_topk", draw="step", cotrain=False, update="union").values()
  np.testing.assert_allclose(gates, np.broadcast_to(np.float32([0.5, 0.5, 0, 0, 0]), gates.shape), atol=1e-6)


def test_noise_is_learned_or_not_there(schedule):
  """N starts at 0 and moves in the rows of seen tasks; fixed noise and other samplers do not carry it."""
  start = jax.jit(method(sample="noisy_topk").init)(jax.random.key(0))
  assert start.noise.shape == (L, T, E) and not start.noise.any()
  states, _ = train(start, schedule, sample="noisy_topk")
  for t in range(T):
    noise = states.noise[sum(STEPS[: t + 1]) - 1]
    assert noise[:, : t + 1].any(axis=(0, 2)).all() and not noise[:, t + 1 :].any()
  for name in select.SAMPLERS:
    shapes = jax.eval_shape(method(sample=name, learned_noise=name != "noisy_topk").init, jax.random.key(0))
    assert shapes.noise.shape == (0, T, E)


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
      draws = [jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, l), t), (E,)) for t in range(T)]
      noisy = router[l] + jnp.stack(draws)
      importance += select.importance_loss(select.top_k_gates(noisy, 2)[task], ones)
      load += select.load_loss(router[l][task], noisy[task], jnp.ones((len(task), E)), 2, ones)
    return importance, load

  gradients = jax.jit(jax.jacrev(losses))(start.router)
  options = {"sample": "noisy_topk", "cotrain": False, "update": "union", "learned_noise": False}
  rates = {"router_lr": 1, "auxiliary_weight": 0.1}
  for name, expected in {"importance": gradients[0], "load": gradients[1], "both": sum(gradients)}.items():
    after = step(start, schedule, i, rates=rates, auxiliary=name, **options)
    plain = step(start, schedule, i, rates={**rates, "auxiliary_weight": 0}, auxiliary=name, **options)
    chex.assert_trees_all_close(after.router, plain.router - 0.1 * expected, atol=1e-5)
    assert np.abs(after.router - plain.router).max() > 1e-4
    chex.assert_trees_all_close(after.params, plain.params, atol=1e-6)


# New rows, reports, refusals.


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
  for scale in (0.01, 2.0):
    router = jax.jit(lambda key, scale=scale: method(net, router_init=scale).init(key).router)(jax.random.key(0))
    np.testing.assert_allclose(np.std(router), scale, rtol=0.1)


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
  assert method(sample="noisy_topk").report(fresh(noise=True))["parameters"] == weights + 2 * L * T * E


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
    ({"k": 0}, "config.method.k=0 must lie in 1..5"),
    ({"k": (2, -1)}, "config.method.k=-1 must lie in 1..5"),
    ({"k": (2, 2, 2)}, r"config.method.k=\(2, 2, 2\) has 3 numbers for 2 layers"),
    ({"auxiliary": "load", "sample": "gumbel_topk"}, "config.method.auxiliary='load' needs the noise of.*gumbel_topk"),
    (
      {"auxiliary": "both", "sample": "noisy_topk", "noise": 0.0},
      "config.method.auxiliary='both' divides by the noise",
    ),
    ({"replay": 13}, "config.method.capacity=12 is smaller than one replay batch of config.method.replay=13"),
    ({"net": toys.mlp(SPEC)}, "config.net.name='routed_mlp'"),
  ],
  ids=str,
)
def test_what_routing_cannot_do_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    method(**changes)
