"""How often EM finds the only configuration that can learn, over orders of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.ops.posterior import configurations
from cljax.types import Clock, Place
from tests import toys
from tests.lasem_test import ROWS, data, em_of
from tests.rows import fetch

PRESETS = {
  "paper": {},
  "release": {"likelihood": "mean", "prior": "posteriors"},
  "product, mean of posteriors": {"prior": "posteriors"},
  "amortised": {"m_step": "best", "e_every": 8},
}
ORDERS, STEPS, BATCHES = 12, 96, 3


def only(state, right):
  """The same, with units that are silent for good in every tensor but those of configuration `right` [2] bool."""

  def speaks(layer, where):
    return {"kernel": jnp.where(where, layer["kernel"], 0), "bias": jnp.where(where, layer["bias"], -10)}

  layers = state.layers
  shared = tuple(speaks(one, right[l]) for l, one in enumerate(layers.shared))
  own = tuple(speaks(one, ~right[l]) for l, one in enumerate(layers.work["layers"]))
  return state.replace(layers=layers.replace(shared=shared, work=layers.work | {"layers": own}))


def found(preset):
  """How often the task would commit the right configuration, of each [4], in `ORDERS` orders of its batches."""
  em, state = em_of(lr=0.2, **PRESETS[preset])
  _, view, _ = data()
  rows = toys.stream()[1].tasks.train.idx[1, : ROWS * BATCHES]
  table = jnp.asarray(configurations(2))

  def learn(c, key):
    def step(state, k):
      epoch, batch = k // BATCHES, k % BATCHES
      order = jax.random.permutation(jax.random.fold_in(key, epoch), jnp.asarray(rows))
      place = Place(jnp.ones(ROWS, jnp.int32), jax.lax.dynamic_slice_in_dim(order, batch * ROWS, ROWS))
      clock = Clock(epoch, batch, jnp.int32(BATCHES), k)
      return em.step(jax.random.fold_in(key, k), state, fetch(view, place), clock, view)

    return em.best(jax.lax.scan(step, only(state, table[c]), jnp.arange(STEPS, dtype=jnp.int32))[0]) == c

  keys = jax.random.split(jax.random.key(7), ORDERS)
  cases = (jnp.repeat(jnp.arange(4), ORDERS), jnp.tile(keys, 4))
  return (
    np.asarray(jax.jit(lambda cases: jax.lax.map(lambda case: learn(*case), cases))(cases)).reshape(4, ORDERS).sum(1)
  )


@pytest.mark.parametrize("preset", PRESETS)
def test_how_often_the_right_configuration_is_found(preset):
  """Sums of posteriors find it; counts keep what the first batches happened to prefer, no better than chance."""
  times = found(preset)
  if "posteriors" in PRESETS[preset].values():
    assert times.min() >= ORDERS - 2 and times.sum() >= 4 * ORDERS - 3, times
  else:
    assert times.sum() < 2 * ORDERS, times
