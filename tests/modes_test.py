"""Nets with dropout and BatchNorm: what is drawn, which rows the statistics are of, and where they are kept."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.loops import fit_chunk
from cljax.methods import METHODS
from cljax.nets.heads import Heads
from cljax.nets.modes import at_rest, begin, in_training
from cljax.ops.losses import cross_entropy
from cljax.types import Clock, Outputs, Place
from tests import toys
from tests.rows import fetch, view_at
from tests.tiers import at_release

MOMENTUM = 0.9


class Modal(nn.Module):
  """A dense layer, BatchNorm and dropout under the heads."""

  heads: int
  classes: int
  rate: float = 0.5

  @nn.compact
  def __call__(self, x: Any, slot: Any, train: bool = False) -> Outputs:
    x = nn.Dense(8, name="first")(x.reshape(x.shape[0], -1))
    x = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(x)
    x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
    return Outputs(Heads(self.heads, self.classes, name="head")(x, slot), x, slot)


def net():
  return Modal(3, 4)


@functools.cache
def new():
  return jax.jit(lambda key: begin(net(), key, (4, 4, 1)))(jax.random.key(0))


@functools.cache
def batch():
  spec, data = toys.stream()
  view = view_at(data, jnp.int32(0), 3)
  rows = data.tasks.train.idx[0, :10]
  return fetch(view, Place(jnp.zeros(10, jnp.int32), jnp.asarray(rows)))


@jax.jit
def answer(x, live, key):
  params, collections = new()
  return in_training(net(), params, collections, x, batch().task, key, live)


def test_all_collections_are_kept():
  params, collections = new()
  assert set(collections) == {"batch_stats"} and "BatchNorm_0" in params
  plain, none = begin(toys.mlp(toys.stream()[0]), jax.random.key(0), (4, 4, 1))
  assert none == {} and "head" in plain


def test_statistics_are_of_live_rows_only():
  params, collections = new()
  x, live = batch().x, jnp.arange(10) < 6
  _, moved = answer(x, live, jax.random.key(1))
  z = np.asarray(x.reshape(10, -1)[:6], np.float64) @ np.asarray(params["first"]["kernel"], np.float64)
  wanted = {"mean": (1 - MOMENTUM) * z.mean(axis=0), "var": MOMENTUM + (1 - MOMENTUM) * z.var(axis=0)}
  chex.assert_trees_all_close(moved["batch_stats"]["BatchNorm_0"], jax.tree.map(np.float32, wanted), atol=1e-5)
  spoiled = jnp.where((jnp.arange(10) < 6).reshape(-1, 1, 1, 1), x, 1e3)
  out, again = answer(spoiled, live, jax.random.key(1))
  chex.assert_trees_all_equal(again, moved)
  chex.assert_trees_all_equal(out.logits[:6], answer(x, live, jax.random.key(1))[0].logits[:6])


def test_without_a_live_row_no_statistic_moves():
  _, moved = answer(batch().x, jnp.zeros(10, bool), jax.random.key(1))
  chex.assert_trees_all_equal(moved, new()[1])


def test_dropout_is_drawn_by_the_key_and_not_at_rest():
  live = jnp.ones(10, bool)
  one, same, other = (answer(batch().x, live, jax.random.key(k))[0].features for k in (1, 1, 2))
  chex.assert_trees_all_equal(one, same)
  assert (np.asarray(one) != np.asarray(other)).any()
  params, collections = new()
  rest = jax.jit(lambda x: at_rest(net(), params, collections, x, batch().task))
  chex.assert_trees_all_equal(rest(batch().x), rest(batch().x))


class Fixed(Modal):
  """The same with BatchNorm's choice as a field of its own."""

  @nn.compact
  def __call__(self, x: Any, slot: Any, train: bool = False) -> Outputs:
    x = nn.Dense(8, name="first")(x.reshape(x.shape[0], -1))
    x = nn.BatchNorm(momentum=MOMENTUM)(x, use_running_average=not train)
    return Outputs(Heads(self.heads, self.classes, name="head")(x, slot), x, slot)


@pytest.mark.parametrize("module", [Modal(3, 4, rate=0.0), Fixed(3, 4)])
def test_statistics_that_stay_normalise_the_batch(module):
  """Whether they stay is traced: answers and gradients are those at rest, or those of a batch's own statistics."""
  params, collections = begin(module, jax.random.key(0), (4, 4, 1))
  collections = jax.tree.map(lambda leaf: leaf + 0.5, collections)
  x, live = batch().x, jnp.ones(10, bool)

  def total(answered):
    return lambda params: (lambda out, moved: ((out.logits**2).sum(), moved))(*answered(params))

  def training(params, **still):
    return in_training(module, params, collections, x, batch().task, jax.random.key(1), live, **still)

  wanted = {
    True: lambda params: (at_rest(module, params, collections, x, batch().task), collections),
    False: training,
  }
  own = jax.jit(lambda still: jax.value_and_grad(total(lambda p: training(p, still=still)), has_aux=True)(params))
  for still, answered in wanted.items():
    found = jax.jit(jax.value_and_grad(total(answered), has_aux=True))(params)
    chex.assert_trees_all_close(own(jnp.bool_(still)), found, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("name", ["packnet", "wsn", "supsup"])
def test_masked_methods_learn_a_later_task_as_they_answer_it(name):
  """By the statistics that the first task left: the loss of a step is that of what the state answered before it."""
  spec, data = toys.stream()
  method = METHODS[name](Modal(3, 4, rate=0.0), optax.sgd(0.1), spec, epochs=1)
  view, phase = view_at(data, jnp.int32(1), 3), method.phases[0]
  state = jax.jit(method.init)(jax.random.key(0)).replace(finished=jnp.int32(1))
  state = state.replace(collections=jax.tree.map(lambda leaf: leaf + 0.5, state.collections))
  rows = fetch(view, Place(jnp.ones(10, jnp.int32), jnp.asarray(data.tasks.train.idx[1, :10])))
  clock = Clock(*(jnp.int32(n) for n in (0, 0, 3, 0)))
  after, info = jax.jit(phase.step)(jax.random.key(1), state, rows, clock, view)
  logits = jax.jit(method.apply)(state, rows.x, rows.task).logits
  assert float(info["loss"]) == pytest.approx(float(cross_entropy(logits, rows)), rel=1e-5)
  chex.assert_trees_all_equal(after.collections, state.collections)


def method_of(name):
  spec, _ = toys.stream()
  keywords = {"er": {"replay": 4, "capacity": 12}, "lwf": {"batch_size": 10, "warmup_epochs": 0}}.get(name, {})
  return METHODS[name](net(), optax.adam(0.05), spec, **{"epochs": 2, **keywords})


@functools.cache
def run(name, cut):
  """(method, state before, state after six steps of the first task in chunks of `cut` steps)."""
  spec, data = toys.stream()
  method = method_of(name)
  phase, view = method.phases[0], view_at(data, jnp.int32(0), 3)
  chunk = jax.jit(fit_chunk, static_argnums=(0, 1))
  state = fresh = jax.jit(method.init)(jax.random.key(0))
  done = 0
  while done < 6:
    clock = Clock(*(jnp.int32(n) for n in (done // 3, done % 3, 3, done)))
    state, _ = chunk(phase, 6, jax.random.key(7), state, view, clock, jnp.int32(min(cut, 6 - done)))
    done += cut
  return method, fresh, state


MORE = at_release("ewc", "finetune", "joint", "single")


@pytest.mark.parametrize("name", ["er", "lwf", *MORE])
def test_methods_carry_them(name):
  """Any cutting gives the same bits, statistics move, and an answer at rest depends on them."""
  method, fresh, state = run(name, 6)
  chex.assert_trees_all_equal(run(name, 2)[-1], state)
  moved = np.asarray(state.collections["batch_stats"]["BatchNorm_0"]["mean"])
  assert (moved != np.asarray(fresh.collections["batch_stats"]["BatchNorm_0"]["mean"])).all()
  if name == "single":
    return  # its answers come from the stored networks: below
  apply = jax.jit(method.apply)
  shifted = jax.tree.map(lambda leaf: leaf + 1, state.collections)
  here, there = (apply(s, batch().x, batch().task).logits for s in (state, state.replace(collections=shifted)))
  assert (np.asarray(here) != np.asarray(there)).any()


def test_networks_of_their_own_keep_their_own_statistics():
  spec, data = toys.stream()
  method, _, state = run("single", 6)
  view, clock = view_at(data, jnp.int32(0), 3), Clock(*(jnp.int32(n) for n in (2, 0, 3, 6)))
  state = jax.jit(method.phases[0].exit)(jax.random.key(0), state, view, clock)
  stored = state.store_collections["batch_stats"]["BatchNorm_0"]["mean"]
  chex.assert_trees_all_equal(stored[0], state.collections["batch_stats"]["BatchNorm_0"]["mean"])
  assert not np.asarray(stored[1:]).any()
  answers = jax.jit(method.apply)(state, batch().x, jnp.arange(10) % 3)
  alone = jax.jit(method.apply)(state, batch().x, jnp.zeros(10, jnp.int32))
  chex.assert_trees_all_close(answers.logits[::3], alone.logits[::3], atol=1e-6)
