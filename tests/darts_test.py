"""Layers chosen by a softened mixture: its gradients, its two steps, and what it commits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cljax.methods.darts import Darts
from cljax.pieces.layered import params_of
from cljax.pieces.learner import Fit
from cljax.pieces.optimizers import sgd
from cljax.pieces.transfer import Decay
from cljax.types import Clock, Place
from tests import toys
from tests.rows import fetch, view_at
from tests.sharing_test import layered

CLOCK = Clock(*(jnp.int32(n) for n in (0, 0, 8, 0)))
RATE = 0.5


@functools.cache
def begun(on_valid=False, decay=0.0, name="hps", ahead=None):
  """(the method in task 1, its state, a batch, the view); no dropout."""
  spec, stream = toys.stream()
  stream = jax.device_put(stream)
  view = view_at(stream, jnp.int32(1), spec.heads)
  batch = fetch(view, Place(jnp.ones(6, jnp.int32), stream.tasks.train.idx[1, :6]))
  net = {"channels": (3, 3), "pools": (1, 2), "weight_scale": 0.3, "bias": 0.1}
  nets = layered(name, x_shape=spec.x_shape, T=spec.T, C=spec.C, **net)
  method = Darts(nets, sgd(RATE), Decay(decay), Fit(6, 5), on_valid, ahead)
  begin = jax.jit(lambda: method.enter(jax.random.key(1), method.init(jax.random.key(0)), view, CLOCK))
  return method, begin(), batch, view


def test_a_mixture_of_one_side_is_that_configuration():
  method, state, batch, _ = begun()
  params = params_of(state.layers)
  mixed, features = jax.jit(method.nets.mixed), jax.jit(method.nets.features)
  for shares in ((1.0, 0.0), (0.0, 1.0)):
    expected = features(params, batch.x, np.array(shares) == 1)
    np.testing.assert_allclose(mixed(params, batch.x, np.float32(shares)), expected, atol=1e-6)


def test_alpha_moves_first_then_the_weights_by_the_new_mixture():
  """Two steps of SGD by gradients of a plain loss; at the rate of the lifetime's epoch."""
  method, state, batch, view = begun(decay=0.2)
  params, rate = params_of(state.layers), RATE / (1 + 0.2 * 5)

  def plain(alpha, params):
    shares = jnp.exp(alpha[:, 1]) / jnp.exp(alpha).sum(axis=1)
    logits = method.nets.top(params["work"], method.nets.mixed(params, batch.x, shares)).logits
    return -jax.nn.log_softmax(logits)[jnp.arange(6), batch.y].mean()

  @jax.jit
  def by_hand():
    alpha = state.alpha - rate * jax.grad(plain)(state.alpha, params)
    return alpha, jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(plain, argnums=1)(alpha, params))

  alpha, expected = by_hand()
  after, _ = jax.jit(method.step)(jax.random.key(2), state, batch, CLOCK, view)
  np.testing.assert_allclose(after.alpha, alpha, atol=1e-6)
  chex.assert_trees_all_close(params_of(after.layers), expected, atol=1e-6)
  assert np.abs(alpha).max() > 1e-4


def test_alpha_may_be_moved_on_validation_rows():
  """In turn; other rows move it otherwise, and it rests where there is none."""
  method, state, batch, view = begun(on_valid=True)
  train, *_ = begun()
  step = jax.jit(method.step)
  moved = [step(jax.random.key(2), state, batch, CLOCK._replace(step=jnp.int32(k)), view)[0].alpha for k in (0, 1)]
  other = jax.jit(train.step)(jax.random.key(2), state, batch, CLOCK, view)[0].alpha
  assert len({np.asarray(alpha).tobytes() for alpha in (*moved, other)}) == 3
  rows = view.tasks.valid._replace(count=jnp.zeros_like(view.tasks.valid.count))
  blind = view._replace(tasks=view.tasks._replace(valid=rows))
  assert (step(jax.random.key(2), state, batch, CLOCK, blind)[0].alpha == 0).all()


def test_to_second_order_alpha_looks_through_a_step_of_the_weights():
  """Against the difference of DARTS's Equation 8; a step of no length is the first order."""
  method, state, batch, view = begun(on_valid=True, ahead=0.3)
  params, keys = params_of(state.layers), jax.random.split(jax.random.key(2))
  rows = method.alpha_batch(batch, CLOCK, view)
  by_alpha = jax.grad(lambda alpha, params, rows, key: method.loss(alpha, params, rows, key)[0])
  by_params = jax.grad(lambda params, rows, key: method.loss(state.alpha, params, rows, key)[0])

  @jax.jit
  def by_differences(scale):
    rate = 0.3 * scale
    after = jax.tree.map(lambda p, g: p - rate * g, params, by_params(params, batch, keys[1]))
    slopes = by_params(after, rows, keys[0])
    eps = 0.01 / jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(slopes)))
    up, down = (jax.tree.map(lambda p, s, e=e: p + e * s, params, slopes) for e in (eps, -eps))
    curved = (by_alpha(state.alpha, up, batch, keys[1]) - by_alpha(state.alpha, down, batch, keys[1])) / (2 * eps)
    return by_alpha(state.alpha, after, rows, keys[0]) - rate * curved

  found = jax.jit(lambda scale: method.steering(params, batch, keys, scale)(state.alpha, rows)[0])
  first = jax.jit(by_alpha)(state.alpha, params, rows, keys[0])
  for scale in (np.float32(1), np.float32(0.5)):
    expected = by_differences(scale)
    np.testing.assert_allclose(found(scale), expected, rtol=0.02, atol=2e-5)
    assert np.abs(expected - first).max() > 1e-3 * scale
  np.testing.assert_allclose(found(np.float32(0)), first, atol=1e-7)


def test_the_larger_side_is_committed_and_of_equals_the_own():
  method, state, _, view = begun(name="tf")
  state = state.replace(alpha=jnp.array([[0.1, 0.2], [0.3, 0.3]]))
  after = jax.jit(method.leave)(jax.random.key(0), state, view, CLOCK)
  np.testing.assert_array_equal(after.layers.configs[1], [True, False])
  np.testing.assert_allclose(after.alphas[1], state.alpha)
  assert int(after.now) == -1 and bool(after.layers.committed[1])
