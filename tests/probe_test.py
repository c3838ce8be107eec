"""Linear probes against an optimum found otherwise, and that what does not count changes no bit."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.ops import probe

N, D, C, COUNT = 60, 3, 3, 50
LIVE = np.array([True, True, True, False])  # of the classes
L2 = 1e-4


@functools.cache
def overlapping(seed=0):
  """Classes that no line parts, on features of very different sizes: (x [N, D], y [N])."""
  random = np.random.default_rng(seed)
  y = random.integers(0, C, N)
  x = random.normal(size=(C, D))[y] + random.normal(size=(N, D))
  return (x * [1, 100, 0.01] + [0, 5, -3]).astype(np.float32), y.astype(np.int32)


def parted(seed=1, rows=200, features=20, classes=4):
  """Classes far apart: (x, y)."""
  random = np.random.default_rng(seed)
  y = random.integers(0, classes, rows)
  means = 2 * np.random.default_rng(7).normal(size=(classes, features))
  return (means[y] + random.normal(size=(rows, features))).astype(np.float32), y.astype(np.int32)


newton = jax.jit(probe.newton)
adam = jax.jit(probe.adam)
PROBES = pytest.mark.parametrize("learn", [newton, functools.partial(adam, jax.random.key(3))], ids=["newton", "adam"])


def loss_and_slope(W, x, y):
  """In float64, of rows x [n, D + 1] that all count: ([], [D + 1, C])."""
  z = x @ W
  z = z - z.max(axis=1, keepdims=True)
  log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
  loss = -log_p[np.arange(len(y)), y].mean() + L2 / 2 * (W**2).sum()
  return loss, x.T @ (np.exp(log_p) - np.eye(W.shape[1])[y]) / len(y) + L2 * W


def standardised(x):
  x = x.astype(np.float64)
  return np.hstack([(x - x.mean(axis=0)) / x.std(axis=0), np.ones((len(x), 1))])


@functools.cache
def optimum():
  """(rows, y, W) in float64, by whole steps with the whole Hessian."""
  x, y = overlapping()
  rows, y = standardised(x[:COUNT]), y[:COUNT]
  W = np.zeros((D + 1, C))
  for _ in range(20):
    z = np.exp(rows @ W)
    p = z / z.sum(axis=1, keepdims=True)
    curvature = p[:, :, None] * (np.eye(C) - p[:, None])
    H = np.einsum("ni,nj,ncd->icjd", rows, rows, curvature).reshape(W.size, W.size) / len(y) + L2 * np.eye(W.size)
    W = W - np.linalg.solve(H, loss_and_slope(W, rows, y)[1].ravel()).reshape(W.shape)
  assert np.abs(loss_and_slope(W, rows, y)[1]).max() < 1e-12
  return rows, y, W


def weights(found, classes=C):
  return np.vstack([found.kernel, found.bias])[:, :classes].astype(np.float64)


def test_newton_finds_the_optimum():
  rows, y, W = optimum()
  found = newton(*overlapping(), COUNT, LIVE)
  np.testing.assert_allclose(weights(found), W, atol=1e-4)
  loss, slope = loss_and_slope(weights(found), rows, y)
  assert np.abs(slope).max() < 1e-5 and loss == pytest.approx(loss_and_slope(W, rows, y)[0], abs=1e-8)
  z = np.asarray(found.logits(overlapping()[0]))
  np.testing.assert_allclose(z[:COUNT, :C], rows @ W, atol=1e-3)
  assert (z[:, C] == -np.inf).all()


def test_no_step_raises_the_loss_and_many_do_no_harm():
  """On classes that are parted, too, where whole steps soon fall below what float32 tells apart."""
  x, y = parted()
  rows = standardised(x)
  losses = [loss_and_slope(weights(newton(x, y, 200, np.ones(4, bool), steps=n), 4), rows, y)[0] for n in range(13)]
  assert losses[0] == pytest.approx(np.log(4)) and losses[12] < 0.01
  assert (np.diff(losses) < 1e-8).all() and losses[1] < 0.3
  slope = loss_and_slope(weights(newton(x, y, 200, np.ones(4, bool), steps=40), 4), rows, y)[1]
  assert np.abs(slope).max() < 1e-5


def test_blocks_of_live_classes_are_factored():
  random = np.random.default_rng(0)
  x, curvature = random.normal(size=(20, 5)), random.random((20, 3))
  factors = probe.class_blocks(np.float32(x), np.float32(curvature), np.array([False, True, True]), 0.5)
  np.testing.assert_array_equal(factors[0], np.eye(5))
  for c in (1, 2):
    block = (x * curvature[:, c, None]).T @ x + 0.5 * np.eye(5)
    np.testing.assert_allclose(factors[c] @ factors[c].T, block, rtol=1e-4, atol=1e-4)


def test_a_bad_direction_is_not_taken(monkeypatch):
  """Uphill, far too long, or no number: the loss does not rise."""
  x, y = overlapping()
  own = probe.cg
  for spoil in (lambda d: -d, lambda d: 1e4 * d, lambda d: d * jnp.nan):
    monkeypatch.setattr(probe, "cg", lambda *args, spoil=spoil, **options: (spoil(own(*args, **options)[0]), None))
    found = weights(jax.jit(lambda: probe.newton(x[:COUNT], y[:COUNT], COUNT, np.ones(C, bool)))())
    assert loss_and_slope(found, *optimum()[:2])[0] <= np.log(C) + 1e-6 and np.isfinite(found).all()


@PROBES
def test_what_does_not_count_changes_no_bit(learn):
  """Rows beyond the count, whatever they hold; rows of a class that is not live, whatever their features."""
  x, y = overlapping()
  y = y.copy()
  y[[4, 9]] = 3
  found = learn(x, y, COUNT, LIVE)
  other, labels = x.copy(), y.copy()
  other[[4, 9]], other[COUNT:], labels[COUNT:] = np.nan, np.nan, 77
  chex.assert_trees_all_equal(learn(other, labels, COUNT, LIVE), found)
  assert not np.isnan(found.kernel).any() and (found.kernel[:, 3] == 0).all() and found.bias[3] == 0
  with pytest.raises(AssertionError):
    chex.assert_trees_all_equal(learn(x, y, COUNT - 3, LIVE), found)


def test_a_class_that_is_not_live_is_as_if_it_were_not_there():
  x, y = overlapping()
  without, between = newton(x, y, COUNT, LIVE[:C]), newton(x, y + (y > 0), COUNT, np.array([True, False, True, True]))
  np.testing.assert_allclose(np.delete(between.kernel, 1, axis=1), without.kernel, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(np.delete(between.bias, 1), without.bias, rtol=1e-4, atol=1e-6)


@PROBES
def test_perfect_features_give_all(learn):
  """Each class at a place of its own; a feature that never changes and one that is all zero do no harm."""
  y = (np.arange(40) % 4).astype(np.int32)
  x = np.hstack([np.eye(4)[y], np.full((40, 1), 7.3), np.zeros((40, 1))]).astype(np.float32)
  found = learn(x, y, 40, np.ones(4, bool))
  assert (np.asarray(found.logits(x)).argmax(axis=1) == y).all() and np.isfinite(found.kernel).all()


def test_adam_is_near_the_optimum():
  x, y = parted(rows=400)
  test, right = parted(seed=2, rows=1000)
  both = newton(x, y, 400, np.ones(4, bool)), adam(jax.random.key(0), x, y, 400, np.ones(4, bool))
  scores = [(np.asarray(found.logits(test)).argmax(axis=1) == right).mean() for found in both]
  assert min(scores) > 0.97 and abs(scores[0] - scores[1]) <= 0.01
  fits = [-np.asarray(jax.nn.log_softmax(found.logits(x)))[np.arange(400), y].mean() for found in both]
  assert max(fits) < 0.01  # not by luck of a start


def test_adam_is_told_by_its_key():
  x, y = overlapping()
  one, again, other = (adam(jax.random.key(k), x, y, COUNT, LIVE) for k in (0, 0, 1))
  chex.assert_trees_all_equal(one, again)
  assert np.abs(one.kernel - other.kernel).max() > 1e-3


@PROBES
def test_many_at_once(learn):
  """Under vmap, each with a count and classes of its own, as one after the other by lax.map."""
  x, y = (np.stack(both) for both in zip(overlapping(0), overlapping(1), strict=True))
  counts, live = np.array([COUNT, 41]), np.array([[True, True, True, False], [True, True, False, False]])
  together = jax.jit(jax.vmap(learn))(x, y, counts, live)
  in_turn = jax.jit(lambda *args: jax.lax.map(lambda one: learn(*one), args))(x, y, counts, live)
  chex.assert_trees_all_close(together, in_turn, rtol=1e-3, atol=1e-4)
