"""What the routes of tasks keep apart, where they do not matter, and what a router may not do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.errors import ConfigError
from cljax.methods.er import er
from cljax.nets import MLP, RoutedMLP
from cljax.types import View, as_it_is
from tests import toys
from tests.routing_reference import Paper
from tests.routing_steps import (
  BATCH,
  CAPACITY,
  DATA,
  LR,
  NET,
  REPLAY,
  ROUTES,
  SPEC,
  STEPS,
  E,
  L,
  T,
  at,
  by_head,
  fresh,
  make_schedule,
  method,
  prefer,
  step,
  train,
  train_as_usual,
)


@pytest.fixture(scope="module")
def schedule():
  return make_schedule()


@pytest.fixture(scope="module")
def usual():
  return train_as_usual()


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
