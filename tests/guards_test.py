"""The law of guards, and what all of them have in common."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.pieces.descent import descend
from cljax.pieces.guards import guarding
from cljax.pieces.optimizers import PlainSGD, sgd
from cljax.run import fit
from cljax.types import At, Batch, Guard, Place
from tests import toys


def batch_of(live):
  slot = jnp.zeros(2, jnp.int32)
  return Batch(jnp.ones((2, 3)), slot, slot, jnp.ones((2, 4), bool), Place(slot, slot), slot, jnp.array(live))


def quadratic(params, batch):
  loss = sum((leaf**2).sum() for leaf in jax.tree.leaves(params)) / 2
  return loss, {"loss": loss}


def recording():
  """A guard whose past is what its hooks were given, in their order."""

  def loss(past, params, batch):
    return 10 * params["a"].sum()

  def project(at, past, gradient, ask):
    return jax.tree.map(lambda g, other: g + 100 * other, gradient, ask(batch_of([True, True])))

  def moved(past, before, gradient, after):
    return {"before": before, "gradient": gradient, "after": after}

  return Guard(loss=loss, project=project, moved=moved)


@functools.partial(jax.jit, static_argnames=("guard", "rests"))
def one_step(params, past, live, guard, rests=False, frozen=None):
  tx = optax.sgd(0.1, momentum=0.9)
  batch = batch_of([True, True])._replace(live=live)
  at = At(jax.random.key(0), None, None)
  return descend(tx, quadratic, params, tx.init(params), batch, at, guard=guard, past=past, rests=rests, frozen=frozen)


def test_the_order_of_a_guard_is_loss_projection_told():
  params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
  past = {"before": params, "gradient": params, "after": params}
  guard = recording()
  after, _, past, info = one_step(params, past, jnp.array([True, False]), guard)
  whole = {"a": params["a"] + 10 + 100 * params["a"], "b": params["b"] * 101}
  chex.assert_trees_all_close(after, jax.tree.map(lambda w, g: w - 0.1 * g, params, whole), rtol=1e-6)
  chex.assert_trees_all_equal(past, {"before": params, "gradient": params, "after": after})  # without the pull
  assert float(info["loss"]) == 7


@pytest.mark.parametrize(("live", "rests"), [((False, False), False), ((True, True), True)])
def test_nothing_moves_where_no_row_is_live_or_the_step_rests(live, rests):
  params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
  past = {"before": params, "gradient": params, "after": params}
  after, state, told, info = one_step(params, past, jnp.array(live), recording(), rests=rests)
  chex.assert_trees_all_equal((after, told), (params, past))
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state))
  assert set(info) == {"loss"}


def test_frozen_entries_keep_their_bits_whatever_the_momentum():
  params = {"a": jnp.array([1.0, -0.0]), "b": {"c": jnp.array(3.0), "d": jnp.array(-0.0)}}
  frozen = {"a": jnp.array([False, True]), "b": True}
  after, *_ = one_step(params, None, jnp.array([True, True]), Guard(), frozen=frozen)
  assert after["a"][0] != 1
  for new, old in ((after["a"][1], params["a"][1]), (after["b"]["c"], 3.0), (after["b"]["d"], params["b"]["d"])):
    assert np.float32(new).tobytes() == np.float32(old).tobytes()


def test_strength_zero_is_no_guard_and_wrong_words_are_refused():
  spec, _ = toys.stream()
  for off in ({"name": "none"}, {"name": "ewc", "strength": 0}, {"name": "si", "strength": 0.0}, Guard()):
    assert guarding(off, spec) is None
  for wrong, word in (
    ({"name": "ewcc"}, "Did you mean ewc"),
    ({"name": "ewc", "strength": -1.0}, "config.method.guard.strength=-1"),
    ({"name": "ewc", "damping": 1.0}, "config.method.guard field='damping'"),
    ({"name": "ewc", "labels": "mine"}, "config.method.guard.labels='mine'"),
    ({"name": "si", "damping": 0.0}, "config.method.guard.damping=0"),
  ):
    with pytest.raises(ConfigError, match=word):
      guarding(wrong, spec)


def test_a_guarded_phase_has_no_blocks():
  spec, _ = toys.stream()
  tx = sgd(0.1)
  assert isinstance(tx, PlainSGD)
  for name in ("finetune", "er", "single"):
    free = METHODS[name](MLP(3, 4, (8,)), tx, spec)
    held = METHODS[name](MLP(3, 4, (8,)), tx, spec, guard={"name": "ewc"})
    assert free.phases[0].block is not None and held.phases[0].block is None


def test_a_sweep_whose_first_strength_is_zero_guards_the_others():
  """What is static about a method does not hang on its first row; a traced 0 is no guard, to rounding."""
  spec, data = toys.stream()
  net = MLP(3, 4, (8,))

  def guarded(hyper):
    return METHODS["ewc"](net, optax.adam(0.01), spec, epochs=4, guard={"name": "ewc", **hyper})

  state = fit(guarded, spec, data, seeds=(0, 0), hyper={"strength": [0.0, 5.0]}, quiet=True, evaluate_group=16).state
  free = fit(METHODS["finetune"](net, optax.adam(0.01), spec, epochs=4), spec, data, quiet=True, evaluate_group=16)
  chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[:1], state.params), free.state.params, atol=1e-6)
  assert (np.asarray(state.params["first"]["kernel"][0]) != np.asarray(state.params["first"]["kernel"][1])).any()
  assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.past.fisher))
