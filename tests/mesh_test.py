"""One function over the seed axis: the same results by every executor, with shared and own leaves in one tree."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.mesh import EXECUTORS, choose_executor, leaf_axes, make_mesh, over_seeds


class Pair(NamedTuple):
  shared: object
  own: object


AXES = (0, Pair(None, 0), None, 0)
ONE = make_mesh(1)


def function(key, pair, none, state):
  """Uses a key, a shared and an own leaf, an absent argument and a state with a nested tree."""
  assert none is None
  noise = jax.random.normal(key, (3,))
  return {"w": state["w"] @ pair.shared + pair.own["b"] + noise, "n": state["n"] + 1}, pair.shared.sum() * state["n"]


def arguments(S):
  random = np.random.default_rng(0)
  keys = jax.vmap(jax.random.key)(jnp.arange(S))
  shared = jnp.asarray(random.normal(size=(3, 3)), jnp.float32)
  pair = Pair(shared, {"b": jnp.asarray(random.normal(size=(S, 3)), jnp.float32)})
  return keys, pair, None, {"w": jnp.ones((S, 3)), "n": jnp.arange(S)}


@functools.cache
def results(executor, S):
  return jax.jit(over_seeds(function, AXES, executor, ONE))(*arguments(S))


@pytest.mark.parametrize("S", [1, 3])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_seed_gets_its_own_result(executor, S):
  """A leading [S] on every result, each entry what the function gives for that seed by itself."""
  found = results(executor, S)
  keys, pair, _, state = arguments(S)
  for s in range(S):
    own = {name: leaf[s] for name, leaf in state.items()}
    alone = jax.jit(function)(keys[s], Pair(pair.shared, {"b": pair.own["b"][s]}), None, own)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf, s=s: leaf[s], found), alone, atol=1e-5)
  assert {leaf.shape[0] for leaf in jax.tree.leaves(found)} == {S}


@pytest.mark.parametrize("executor", ["map", "each"])
def test_a_seed_alone_has_the_bits_of_that_seed_among_others(executor):
  def first(tree):
    return jax.tree.map(lambda leaf: leaf[:1], tree)

  keys, pair, _, state = arguments(3)
  alone = jax.jit(over_seeds(function, AXES, executor, ONE))(
    first(keys), pair._replace(own=first(pair.own)), None, first(state)
  )
  chex.assert_trees_all_equal(first(results(executor, 3)), alone)


def test_results_may_be_keys_and_booleans():
  def fn(seed):
    return jax.random.key(seed), seed > 0

  for executor in EXECUTORS:
    keys, positive = jax.jit(over_seeds(fn, (0,), executor, ONE))(jnp.arange(2))
    np.testing.assert_array_equal(
      jax.random.key_data(keys), jax.random.key_data(jax.vmap(jax.random.key)(jnp.arange(2)))
    )
    assert positive.tolist() == [False, True]


def test_only_vmap_batches():
  """By `map` and `each` a branch on the seed's own state stays a branch: vmap makes a select of it."""

  def fn(n):
    return jax.lax.cond(n > 0, jnp.sin, jnp.cos, n.astype(jnp.float32))

  programs = {name: str(jax.make_jaxpr(over_seeds(fn, (0,), name, ONE))(jnp.arange(2))) for name in EXECUTORS}
  assert "cond[" in programs["map"] and "cond[" in programs["each"]
  assert "cond[" not in programs["vmap"] and "select_n" in programs["vmap"]
  assert programs["each"].count("cond[") == 2


def test_axes_are_a_prefix_of_the_arguments():
  keys, pair, none, state = arguments(2)
  assert leaf_axes(AXES, (keys, pair, none, state)) == [0, None, 0, 0, 0]
  assert leaf_axes((None, 0), ({"a": 1, "b": (2, 3)}, Pair(1, None))) == [None, None, None, 0]


def test_auto_takes_the_platform_and_the_method_into_account(monkeypatch):
  """`map` on CPU and where steps branch; `vmap` on accelerators; what is asked for otherwise stands."""
  assert [choose_executor("auto", branches) for branches in (False, True)] == ["map", "map"]
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert [choose_executor("auto", branches) for branches in (False, True)] == ["vmap", "map"]
  assert [choose_executor(name, False) for name in EXECUTORS] == list(EXECUTORS)
