"""Linear probes: how well frozen features tell classes apart, by softmax regression on them.

The first `count` of the rows that a probe learns from are live, and of those the ones whose class is; nothing else
about the rows changes a bit of it.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import cho_solve
from jax.scipy.sparse.linalg import cg

from cljax.types import Array, Key


class Probe(NamedTuple):
  """One linear layer on standardised features."""

  mean: Array  # [D]
  scale: Array  # [D] 0: the feature says nothing
  kernel: Array  # [D, C]
  bias: Array  # [C]
  classes: Array  # [C] bool, those that it knows

  def logits(self, x: Array) -> Array:
    """[B, C] of features [B, D]; -inf for classes that it does not know."""
    return masked((x - self.mean) * self.scale @ self.kernel + self.bias, self.classes)


def masked(logits: Array, classes: Array) -> Array:
  """Logits [..., C] with -inf where a class is not live."""
  chex.assert_type([logits, classes], [float, bool])
  return jnp.where(classes, logits, -jnp.inf)


def misfit(logits: Array, target: Array) -> Array:
  """[] the sum of -target log softmax(logits) over rows and classes [N, C]; where the target is 0 nothing counts."""
  chex.assert_equal_shape([logits, target])
  return -jnp.where(target > 0, target * jax.nn.log_softmax(logits), 0).sum()


def targets(y: Array, live: Array, classes: Array) -> Array:
  """[N, C] 1 / (live rows) at the label of each of them, 0 elsewhere; rows of a class that is not live are none."""
  chex.assert_type([y, live, classes], [int, bool, bool])
  hot = jax.nn.one_hot(y, len(classes)) * (live[:, None] & classes)
  return hot / jnp.maximum(hot.sum(), 1)


def newton(x: Array, y: Array, count: Array, classes: Array, *, l2: float = 1e-4, steps: Array | int = 12) -> Probe:
  """The optimum, by damped Newton steps from zero; nothing is drawn.

  The loss is the mean cross-entropy + l2 / 2 |W|^2 over weights and biases, of features standardised by the live rows.
  A step's direction solves H d = -slope by conjugate gradients, preconditioned with the blocks of H that belong to one
  class each: C blocks of (D + 1)^2 numbers in place of the ((D + 1) C)^2 of H. Of the lengths 1, 1/2, ... and 0 it
  takes the one with the least loss, so no step raises it, whatever the direction.

  Args:
    x: [N, D] float; y: [N] int; count: [] live rows; classes: [C] bool, those that compete.
  """
  chex.assert_rank([x, y, count, classes], [2, 1, 0, 1])
  chex.assert_equal_shape_prefix([x, y], 1)
  target = targets(y, jnp.arange(len(x)) < count, classes)
  weight = target.sum(axis=1, keepdims=True)
  mean, scale = standards(x, weight)
  x = jnp.where(weight > 0, (x - mean) * scale, 0)
  x = jnp.concatenate([x, (weight > 0).astype(x.dtype)], axis=1)
  lengths = jnp.append(0.5 ** jnp.arange(12), 0)

  def step(_: Array, W: Array) -> Array:
    z = x @ W
    p = jax.nn.softmax(masked(z, classes))
    slope = x.T @ (weight * p - target) + l2 * W
    blocks = class_blocks(x, weight * p * (1 - p), classes, l2)

    def hessian(v: Array) -> Array:
      u = x @ v
      return x.T @ (weight * p * (u - (p * u).sum(axis=1, keepdims=True))) + l2 * v

    def precondition(v: Array) -> Array:
      return jax.vmap(lambda factor, b: cho_solve((factor, True), b))(blocks, v.T).T

    d, _ = cg(hessian, -slope, tol=1e-4, maxiter=20, M=precondition)
    d = jnp.where(jnp.isfinite(d), d, 0)
    dz = x @ d

    def loss(length: Array) -> Array:
      return misfit(masked(z + length * dz, classes), target) + l2 / 2 * ((W + length * d) ** 2).sum()

    losses = jax.vmap(loss)(lengths)
    return W + lengths[jnp.where(jnp.isnan(losses), jnp.inf, losses).argmin()] * d

  W = jax.lax.fori_loop(0, steps, step, jnp.zeros((x.shape[1], len(classes)), x.dtype))
  return Probe(mean, scale, W[:-1], W[-1], classes)


def standards(x: Array, weight: Array) -> tuple[Array, Array]:
  """([D] mean, [D] 1 / standard deviation, or 0 for a constant) of rows [N, D] by their weights [N, 1]."""
  chex.assert_rank([x, weight], 2)
  mean = jnp.where(weight > 0, weight * x, 0).sum(axis=0)
  deviation = jnp.sqrt(jnp.where(weight > 0, weight * (x - mean) ** 2, 0).sum(axis=0))
  varies = deviation > 1e-5 * jnp.abs(mean)  # below that it is rounding
  return mean, jnp.where(varies, 1 / jnp.where(varies, deviation, 1), 0)


def class_blocks(x: Array, curvature: Array, classes: Array, l2: float) -> Array:
  """[C, D, D] Cholesky factors of x^T diag(curvature[:, c]) x + l2 for each live class, else of 1.

  One class after the other: on a CPU one product of matrices is three times faster than a batch of them, and classes
  that are not live cost nothing. A millionth of the trace keeps a block definite in float32.

  Args:
    x: [N, D]; curvature: [N, C] at least 0.
  """
  chex.assert_rank([x, curvature, classes], [2, 2, 1])
  x, curvature, one = jnp.asarray(x), jnp.asarray(curvature), jnp.eye(x.shape[1], dtype=x.dtype)
  order = jnp.argsort(~jnp.asarray(classes))  # the live ones first

  def add(k: Array, factors: Array) -> Array:
    c = order[k]
    block = (x * curvature[:, c, None]).T @ x
    return factors.at[c].set(jnp.linalg.cholesky(block + (l2 + 1e-6 * jnp.trace(block)) * one))

  blank = jnp.broadcast_to(one, (len(classes), *one.shape))
  return jax.lax.fori_loop(0, classes.sum(), add, blank)


def adam(
  key: Key,
  x: Array,
  y: Array,
  count: Array,
  classes: Array,
  *,
  lr: float = 0.1,
  steps: int = 500,
  batch: int = 128,
) -> Probe:
  """By Adam from zero on the features as they are (Xiong, Ren and Urtasun 2019); the rows of a step are drawn.

  Args:
    x: [N, D] float; y: [N] int; count: [] live rows; classes: [C] bool, those that compete.
  """
  chex.assert_rank([x, y, count, classes], [2, 1, 0, 1])
  chex.assert_equal_shape_prefix([x, y], 1)
  x, y, tx, D = jnp.asarray(x), jnp.asarray(y), optax.adam(lr), x.shape[1]

  def loss(params: tuple[Array, Array], rows: Array) -> Array:
    kernel, bias = params
    target = targets(y[rows], rows < count, classes)
    return misfit(masked(jnp.where(target.sum(axis=1, keepdims=True) > 0, x[rows], 0) @ kernel + bias, classes), target)

  def step(k: Array, carry: tuple) -> tuple:
    params, state = carry
    rows = jax.random.randint(jax.random.fold_in(key, k), (batch,), 0, jnp.maximum(count, 1))
    moves, state = tx.update(jax.grad(loss)(params, rows), state)
    return optax.apply_updates(params, moves), state

  params = (jnp.zeros((D, len(classes)), x.dtype), jnp.zeros(len(classes), x.dtype))
  (kernel, bias), _ = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
  return Probe(jnp.zeros(D, x.dtype), jnp.ones(D, x.dtype), kernel, bias, classes)
