"""The table of optimizers: each is optax's own, behind clipping and decay where these are asked for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.errors import ConfigError
from cljax.pieces.optimizers import OPTIMIZERS, PlainSGD

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([[0.5, 4.0]])}
GRADIENTS = [jax.tree.map(lambda w, n=n: jnp.sin(w * n) * 3, PARAMS) for n in (1, 2, 3)]


def steps(tx):
  params, state = PARAMS, tx.init(PARAMS)
  for gradient in GRADIENTS:
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params


SAME = {
  "sgd": ({}, optax.sgd(0.1)),
  "sgd with momentum": ({"momentum": 0.9, "nesterov": True}, optax.sgd(0.1, 0.9, True)),
  "sgd with decay": ({"weight_decay": 0.2}, optax.chain(optax.add_decayed_weights(0.2), optax.sgd(0.1))),
  "sgd clipped": ({"clip_norm": 0.5}, optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))),
  "adam": ({"b1": 0.5}, optax.adam(0.1, 0.5)),
  "adam with both": (
    {"clip_norm": 0.5, "weight_decay": 0.2},
    optax.chain(optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.2), optax.adam(0.1)),
  ),
  "adamw": ({"weight_decay": 0.3}, optax.adamw(0.1, weight_decay=0.3)),
  "adamw clipped": ({"clip_norm": 1.0}, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))),
  "lamb": ({"weight_decay": 0.1}, optax.lamb(0.1, weight_decay=0.1)),
  "lion": ({"b2": 0.9}, optax.lion(0.1, b2=0.9)),
  "adagrad": ({"eps": 1e-3}, optax.adagrad(0.1, eps=1e-3)),
  "rmsprop": ({"decay": 0.5}, optax.rmsprop(0.1, 0.5)),
}


@pytest.mark.parametrize("case", SAME)
def test_steps_are_those_of_optax(case):
  keywords, tx = SAME[case]
  chex.assert_trees_all_equal(steps(OPTIMIZERS[case.split()[0]](0.1, **keywords)), steps(tx))


def test_all_are_covered():
  assert {case.split()[0] for case in SAME} == set(OPTIMIZERS)


def test_plain_sgd_alone_says_its_rate():
  """So that steps may be taken in blocks: with clipping or decay they may not."""
  assert isinstance(OPTIMIZERS["sgd"](0.1), PlainSGD)
  for keywords in ({"momentum": 0.5}, {"clip_norm": 1.0}, {"weight_decay": 0.1}):
    assert not isinstance(OPTIMIZERS["sgd"](0.1, **keywords), PlainSGD)


def test_a_clipped_step_is_as_long_as_its_norm():
  moved = jax.tree.map(lambda a, b: a - b, PARAMS, steps(OPTIMIZERS["sgd"](1.0, clip_norm=0.01)))
  assert float(optax.tree.norm(moved)) <= 0.03 + 1e-6
  np.testing.assert_allclose(optax.tree.norm(GRADIENTS[0]) > 0.01, True)


@pytest.mark.parametrize(
  ("name", "keywords", "message"),
  [
    ("adam", {"eps": 0.0}, "optimizer.eps=0.0 is too small; it must be above 0"),
    ("adam", {"b2": 1.0}, "optimizer.b2=1.0 is too large"),
    ("sgd", {"clip_norm": -1.0}, "optimizer.clip_norm=-1.0 is too small"),
    ("lion", {"weight_decay": float("nan")}, "not a finite number"),
  ],
)
def test_wrong_values_are_refused(name, keywords, message):
  with pytest.raises(ConfigError, match=message):
    OPTIMIZERS[name](0.1, **keywords)
