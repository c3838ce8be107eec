"""Meta-experience replay against plain numpy in float64, one step at a time."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.errors import ConfigError
from cljax.loops import planned
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.pieces.optimizers import sgd
from cljax.types import Clock
from tests.walks import C, T, batches, double, gradients, stream

RATE, CURRENT, EACH, S = 0.2, 2, 3, 2
BETA, GAMMA = 0.3, 0.6
START = Clock(*map(jnp.int32, (0, 0, 1, 0)))


def method(**keywords):
  own = {"batch_size": CURRENT, "replay": EACH * S, "reptile_batches": S, "beta": BETA, "gamma": GAMMA, **keywords}
  return METHODS["mer"](MLP(T, C, (8,)), sgd(RATE), stream()[0], **own)


def given(live):
  """A batch of current rows of task 1, then rows of task 0, `live` of these."""
  now, then = (jax.tree.map(lambda leaf: leaf[0], batches(t, 1)) for t in (1, 0))
  width = EACH * S
  both = jax.tree.map(lambda a, b: jnp.concatenate([a[:CURRENT], b[:width]]), now, then)
  return both._replace(live=jnp.concatenate([jnp.ones(CURRENT, bool), jnp.arange(width) < live]))


def stepped(it, batch):
  """(params before, params after, info) of one step."""
  clock = Clock(*map(jnp.int32, (0, 0, 1, 0)))

  @jax.jit
  def run(key):
    state = it.init(key)
    after, info = it.phases[0].step(key, state, batch, clock, stream()[2][1])
    return state.params, after.params, info

  return run(jax.random.key(3))


def follow(w, batch, live):
  """The algorithm, a row at a time."""
  start = jax.tree.map(np.copy, w)
  x, y = np.asarray(batch.x), np.asarray(batch.y)
  for i in range(S):
    before = jax.tree.map(np.copy, w)
    for j in range(EACH):
      row = CURRENT + i * EACH + j
      if row - CURRENT < live:
        slope, _ = gradients(w, x[row : row + 1], y[row : row + 1], 0)
        w = jax.tree.map(lambda a, g: a - RATE * g, w, slope)
    slope, _ = gradients(w, x[:CURRENT], y[:CURRENT], 1)
    w = jax.tree.map(lambda a, g: a - RATE * g, w, slope)
    w = jax.tree.map(lambda a, b: a + BETA * (b - a), before, w)
  return jax.tree.map(lambda a, b: a + GAMMA * (b - a), start, w)


@pytest.mark.parametrize("live", [EACH * S, 4, 0])
def test_a_step_is_that_of_a_plain_implementation(live):
  """With a full memory, one that holds fewer rows, and an empty one."""
  batch = given(live)
  before, after, _ = stepped(method(), batch)
  chex.assert_trees_all_close(double(after), follow(double(before), batch, live), atol=1e-5)


def test_without_a_memory_and_drawn_back_by_nothing_it_is_fine_tuning():
  batch = jax.tree.map(lambda leaf: leaf[:CURRENT], given(0))
  _, after, info = stepped(method(capacity=0, reptile_batches=1, beta=1.0, gamma=1.0), batch)
  plain = METHODS["finetune"](MLP(T, C, (8,)), sgd(RATE), stream()[0], batch_size=CURRENT)
  _, expected, told = stepped(plain, batch)
  chex.assert_trees_all_close(after, expected, atol=1e-6)
  assert float(info["loss"]) == pytest.approx(float(told["loss"]), abs=1e-6)


def test_a_share_of_nothing_learns_nothing():
  before, after, _ = stepped(method(beta=0.0), given(4))
  chex.assert_trees_all_equal(before, after)


def test_rows_that_cannot_be_shared_out_are_refused():
  with pytest.raises(
    ConfigError, match="config.method.replay=7 does not share out among config.method.reptile_batches=2"
  ):
    method(replay=7)


def test_each_batch_draws_its_rows_for_itself():
  """Of three stored rows every batch replays three, and two batches of four of many rows seldom the same."""
  it, view = method(replay=EACH * S, capacity=30), stream()[2][0]
  _, plan = jax.jit(lambda state: planned(it.phases[0], 8, jax.random.key(1), state, view, START, jnp.int32(8)))(
    it.init(jax.random.key(0))
  )
  live = np.asarray(plan.live[:, CURRENT:]).reshape(8, S, EACH)
  rows = np.asarray(plan.slot[:, CURRENT:]).reshape(8, S, EACH)
  assert not live[0].any() and (live[1].sum(axis=-1) == CURRENT).all()  # as many as are stored, in each batch
  assert (live[2:].all()) and not (np.sort(rows[2:, 0]) == np.sort(rows[2:, 1])).all()
