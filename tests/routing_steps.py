"""Routing stepped over one fixed schedule of three tasks: the engine's own orders, memory draws and keys.

So variants differ in nothing but what is asked of them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cljax import keys, loops
from cljax.data.sample import fetch, view_at
from cljax.methods.routing import routing
from cljax.pieces import replay as memories
from cljax.types import Array, Batch, Clock, Plan, View
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


@functools.cache
def make_schedule() -> Schedule:
  phase = method().phases[0]
  steps = jnp.arange(max(STEPS))

  @jax.jit
  def plan_task(data, state, t, count, total):
    view = view_at(data, t)
    clock = Clock(jnp.int32(0), jnp.int32(0), count, total)
    plan = loops.plan_current(phase, max(STEPS), task_key(t), view, clock, count)
    drawn = jax.vmap(lambda k: keys.use(task_key(t), keys.PLAN, k))(steps)
    state, plan = phase.plan(drawn, state, view, plan)
    batch = jax.vmap(lambda place: fetch(view, place))(plan.place)._replace(slot=plan.slot, live=plan.live)
    drawn = jax.random.key_data(jax.vmap(lambda k: keys.use(task_key(t), keys.STEP, k))(steps))
    return state, Schedule(
      drawn, plan, batch, jax.vmap(lambda k: loops.clock_at(clock, k))(steps), jnp.full_like(steps, t)
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


RATES = {
  "lr": LR,
  "cotrain_lr": LR,
  "router_lr": LR,
  "gate_scale": 1.0,
  "noise": 1.0,
  "auxiliary_weight": 0.1,
  "strength": 1.0,  # of the guard, where there is one
}


@functools.cache
def program(net=NET, guard="none", **options):
  """One step of a variant, compiled once for all rates."""

  def one(state, step, rates):
    own = {key: value for key, value in rates.items() if key != "strength"}
    if guard != "none":
      own["guard"] = {"name": guard, "strength": rates["strength"]}
    subject = method(net, **options, **own)
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


@functools.cache
def train_as_usual():
  """States and infos of the usual method, after each step."""
  return train(fresh(), make_schedule())


def prefer(*experts):
  """[E] logits, larger the earlier an expert is named."""
  row = np.zeros(E)
  row[list(experts)] = 4 - 0.5 * np.arange(len(experts))
  return row


ROUTES = np.array([[prefer(0, 1), prefer(1, 4), prefer(2, 3)], [prefer(3, 0), prefer(3, 1), prefer(2, 4)]])
STILL = {"lr": 0, "router_lr": 0}
ROUTED = {"exhausted": "routed", "refresh_all_seen": True, "cotrain_update_heads": False}


def by_head(leaf):
  """The heads' kernel [D, T * C] or bias [T * C] as [..., T, C]."""
  return np.asarray(leaf).reshape(*np.shape(leaf)[:-1], T, -1)


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
