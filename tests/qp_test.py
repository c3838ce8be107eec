"""The program of GEM's projection against scipy's, on problems that are random, degenerate, redundant or opposed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from cljax.ops.qp import nonnegative
from cljax.pieces.guards.projections import nearest

MOST = 100  # the program's rows; those that a problem has not are dead, and hold anything


def rows_of(kind, T, D, random):
  """(G [T, D], g [D])."""
  G, g = random.normal(size=(T, D)), random.normal(size=D)
  half = T // 2
  return (
    {
      "random": lambda: G,
      "alike": lambda: 0.1 * G + random.normal(size=D),  # no task goes against another
      "against": lambda: 0.3 * G - g,  # every task goes against the step
      "twice": lambda: np.concatenate([G[: T - half], G[:half]]),
      "opposed": lambda: np.concatenate([G[: T - half], -G[:half]]),  # what one task gains another loses
      "torn": lambda: np.concatenate([0.3 * G[: T - half] - g, g - 0.3 * G[:half]]),
      "nearly": lambda: G[random.integers(0, max(T // 4, 1), T)] + 1e-3 * random.normal(size=(T, D)),
      "few": lambda: random.integers(-3, 4, (T, max(T // 5, 1))) @ random.integers(-3, 4, (max(T // 5, 1), D)) * 1.0,
      "none": lambda: np.where(np.arange(T)[:, None] % 2, G, 0),  # a task that has learnt all there is
      "sizes": lambda: G * 10.0 ** random.uniform(-4, 4, (T, 1)),
      "same": lambda: np.tile(-g, (T, 1)),
    }[kind](),
    g,
  )


KINDS = ("random", "alike", "against", "twice", "opposed", "torn", "nearly", "few", "none", "sizes", "same")


@functools.cache
def program():
  return jax.jit(nonnegative)


def solved(G, g, dtype):
  """(g + G^T v, v) of the library, in `dtype`; dead rows hold what would break any live one."""
  T = len(G)
  G, g = np.asarray(G, dtype), np.asarray(g, dtype)
  P, q = np.full((MOST, MOST), 7, dtype), np.full(MOST, -1e3, dtype)
  P[:T, :T], q[:T] = G @ G.T, G @ g
  v = np.asarray(program()(jnp.asarray(P), jnp.asarray(q), jnp.arange(MOST) < T))
  assert v.dtype == dtype and (v >= 0).all() and not v[T:].any()
  return g + np.float64(G).T @ v[:T], v[:T]


def projected(G, g):
  """What scipy's non-negative least squares makes of it; rows of one length, as it has an absolute tolerance."""
  length = np.linalg.norm(G, axis=1, keepdims=True)
  G = G / np.where(length > 0, length, 1)
  return g + G.T @ nnls(G.T, -g, maxiter=10_000)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_exact(kind):
  """In float64, where rounding hides nothing: the method and not its precision."""
  random = np.random.default_rng(KINDS.index(kind))
  with jax.enable_x64(True):
    for T, D in ((1, 3), (2, 3), (6, 3), (20, 50), (20, 500), (100, 40), (100, 500)):
      G, g = rows_of(kind, T, D, random)
      found, v = solved(G, g, np.float64)
      size = np.linalg.norm(g)
      np.testing.assert_allclose(found, projected(G, g), atol=1e-9 * size)
      slope = G @ found / np.maximum(np.linalg.norm(G, axis=1), 1e-12)
      assert slope.min() > -1e-9 * size, "no task is hurt"
      assert np.abs(slope * v * np.linalg.norm(G, axis=1)).max() < 1e-8 * size**2, "who does not bind has no weight"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_as_good_as_its_precision(kind):
  """In float32, where the products G G^T have lost half of the digits of rows that are nearly dependent."""
  random = np.random.default_rng(KINDS.index(kind))
  for T, D, near, off in ((2, 500, 1e-5, 1e-5), (20, 500, 1e-5, 1e-5), (100, 2000, 2e-5, 1e-5), (100, 40, 0.05, 1e-3)):
    G, g = (np.float32(part) for part in rows_of(kind, T, D, random))
    found, _ = solved(G, g, np.float32)
    size = np.linalg.norm(g)
    expected = projected(np.float64(G), np.float64(g))
    if kind != "nearly":
      assert np.linalg.norm(found - expected) < near * size
    slope = G @ found / np.maximum(np.linalg.norm(G, axis=1), 1e-12)
    assert slope.min() > -(off if kind != "nearly" else 1e-3) * size


def test_numbers_that_are_none_end_it():
  for P, q in ((np.nan, 1.0), (1.0, np.nan), (np.nan, -1.0)):
    v = program()(jnp.full((MOST, MOST), P), jnp.full(MOST, q), jnp.arange(MOST) < 3)
    assert np.isnan(v[:3]).any()


def test_seeds_together_and_alone():
  """A lane that has ended waits for the others."""
  random = np.random.default_rng(0)
  G = random.normal(size=(3, 6, 8)).astype(np.float32)
  g = random.normal(size=(3, 8)).astype(np.float32)
  P, q, live = G @ G.swapaxes(1, 2), np.einsum("sij,sj->si", G, g), jnp.ones((3, 6), bool)
  alone = jax.jit(nonnegative)
  together = jax.jit(jax.vmap(nonnegative))(P, q, live)
  for s in range(3):
    np.testing.assert_allclose(together[s], alone(P[s], q[s], live[s]), atol=1e-5)


@pytest.mark.parametrize("bound", [False, True])
def test_the_margin(bound):
  """Added to the solution, or the least that each weight may be; against scipy's bounded search from there."""
  random = np.random.default_rng(1)
  G, g, margin = random.normal(size=(6, 30)), random.normal(size=30), 0.3
  live = np.array([True, True, True, True, False, False])
  own = G[live]
  if bound:  # v = margin + u
    v = margin + nnls(own.T, -(g + margin * own.sum(axis=0)))[0]
  else:
    v = margin + nnls(own.T, -g)[0]
  found, hurt = jax.jit(nearest, static_argnums=4)(np.float32(g), np.float32(G), live, margin, bound)
  np.testing.assert_allclose(found, g + own.T @ v, atol=1e-5)
  assert hurt == (own @ g < 0).any()
  assert not nearest(np.float32(own[0]), np.float32(G), np.arange(6) == 0, margin, bound)[1]
