"""The bare scans: the algorithms written out by hand over rows that are warped already, without live masks or metrics.

They say how fast the library could be, and, as they share no line with it, whether it computes the right thing. Their
gradients with respect to the first layer's weights W are written by hand: a step only needs the derivative with respect
to that layer's pre-activation z = x W + b.

Blocked: inputs of the first layer are data, so K steps can share its products. With X [R, D] the rows of the block in
order, `Z = X W + b` and `G = X X^T + 1` before the block, and u_s the rate times dz of a row s that was learnt since,
row r now has the pre-activation `Z[r] - sum_s G[r, s] u_s`. After the block `W -= X^T U` and `b -= sum_s u_s`. This is
the same arithmetic as step by step, in another order.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.types import Array, Key


class Rows(NamedTuple):
  """Leaves [n, batch + replay, ...], current rows first."""

  x: Array  # [.., D] float32 or uint8
  y: Array  # int32
  task: Array  # int32, one task for all current rows of a step


class Setting(NamedTuple):
  """Static. `experts` 0 is the shared bottom."""

  lr: float
  batch: int
  experts: int = 0
  k: int = 0
  noise: float = 0.0  # of the Gumbel draws; 0 draws nothing
  cotrain: bool = False
  union: bool = False  # one step on current and replayed rows together


class Weights(NamedTuple):
  """What a bare scan trains; the router and `used` are of size 0 for the shared bottom."""

  kernel: Array  # [D, H] of the first layer
  bias: Array  # [H]
  upper: Any  # (kernel and bias of the second layer, heads [h, T, C], their biases [T, C])
  router: Array  # [2, T, E] logits; [2, T, 0] for the shared bottom
  used: Array  # [2, T, E] bool


def pixels(x: Array) -> Array:
  """Pictures as float32 in [0, 1]."""
  return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def largest(logits: Array, k: int) -> Array:
  """[..., E] bool: those with fewer than k larger ones."""
  return (logits[..., None, :] > logits[..., :, None]).sum(axis=-1) < k


def gates_of(setting: Setting, router: Array, task: Array, drawn: Array | float) -> Array:
  """[2, B, E]: a softmax over the k largest logits of each row's task, with noise in the choice only."""
  kept = largest(router + drawn, setting.k)[:, task]
  return jax.nn.softmax(jnp.where(kept, router[:, task], -jnp.inf), axis=-1)


def mixed(outputs: Array, gates: Array) -> Array:
  """[B, E * h] -> [B, h], experts weighted by [B, E]."""
  return (outputs.reshape(*gates.shape, -1) * gates[..., None]).sum(axis=1)


def logits_of(setting: Setting, upper: Any, z: Array, task: Array, gates: Any) -> Array:
  """[B, C] from the first layer's pre-activation z [B, H]."""
  kernel, bias, heads, head_bias = upper
  features = jax.nn.relu(z)
  features = mixed(features, gates[0]) if setting.experts else features
  features = jax.nn.relu(features @ kernel + bias)
  features = mixed(features, gates[1]) if setting.experts else features
  T, C = head_bias.shape
  every = (features @ heads.reshape(-1, T * C)).reshape(-1, T, C) + head_bias
  return jnp.take_along_axis(every, task[:, None, None], axis=1)[:, 0]


def cross_entropy(logits: Array, y: Array) -> Array:
  """[] mean over the rows of logits [B, C]."""
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()


def learn(setting: Setting, weights: Weights, z: Array, y: Array, task: Array, drawn: Any) -> tuple[Weights, Array]:
  """One SGD step on all but the first layer, and `lr * dz` for that one."""

  def loss(upper, router, z):
    gates = gates_of(setting, router, task, drawn) if setting.experts else None
    return cross_entropy(logits_of(setting, upper, z, task, gates), y)

  upper, router, dz = jax.grad(loss, (0, 1, 2))(weights.upper, weights.router, z)
  upper = jax.tree.map(lambda w, g: w - setting.lr * g, weights.upper, upper)
  return weights._replace(upper=upper, router=weights.router - setting.lr * router), setting.lr * dz


def cotrain(setting: Setting, weights: Weights, z: Array, y: Array, task: Array) -> tuple[Weights, Array]:
  """The same with the experts that no task uses, at equal weight; nothing where a layer has none."""
  t = task[0]  # of the current rows
  weights = weights._replace(used=weights.used.at[:, t].set(largest(weights.router[:, t], setting.k)))
  free = ~weights.used.any(axis=1)
  gates = (free / jnp.maximum(free.sum(axis=-1, keepdims=True), 1))[:, None] * jnp.ones((1, len(y), 1))

  def train(upper, z):
    grads, dz = jax.grad(lambda upper, z: cross_entropy(logits_of(setting, upper, z, task, gates), y), (0, 1))(upper, z)
    return jax.tree.map(lambda w, g: w - setting.lr * g, upper, grads), setting.lr * dz

  run = free.any(axis=-1).all()
  upper, u = jax.lax.cond(run, train, lambda upper, z: (upper, jnp.zeros_like(z)), weights.upper, z)
  return weights._replace(upper=upper), u


def draws(setting: Setting, key: Key, shape: tuple[int, ...]) -> Any:
  """Noise of the two draws of a step."""
  return setting.noise * jax.random.gumbel(key, (2, *shape)) if setting.noise else (0.0, 0.0)


def parts(setting: Setting, rows: int) -> list[slice]:
  """The rows of each routed SGD step, one after the other."""
  return [slice(0, rows)] if setting.union else [slice(0, setting.batch), slice(setting.batch, rows)]


def plain_step(setting: Setting, weights: Weights, rows: Rows, key: Key) -> Weights:
  """One step; rows without their leading axis."""
  x, drawn = pixels(rows.x), draws(setting, key, weights.router.shape)

  def moved(weights, x, u):
    return weights._replace(kernel=weights.kernel - x.T @ u, bias=weights.bias - u.sum(axis=0))

  for part, noise in zip(parts(setting, len(x)), drawn, strict=False):
    z = x[part] @ weights.kernel + weights.bias
    weights, u = learn(setting, weights, z, rows.y[part], rows.task[part], noise)
    weights = moved(weights, x[part], u)
  if setting.cotrain:
    weights, u = cotrain(setting, weights, x @ weights.kernel + weights.bias, rows.y, rows.task)
    weights = moved(weights, x, u)
  return weights


def blocked_steps(setting: Setting, weights: Weights, rows: Rows, keys: Key) -> Weights:
  """The steps of one block, written out; rows [K, W, ...]."""
  K, W = rows.y.shape
  x = pixels(rows.x).reshape(K * W, -1)
  Z, G = x @ weights.kernel + weights.bias, x @ x.T + 1
  done: list[Array] = []  # u of each earlier step, [W, H]
  for k in range(K):
    here = slice(k * W, (k + 1) * W)
    drawn = draws(setting, keys[k], weights.router.shape)
    z = Z[here] - G[here, : k * W] @ jnp.concatenate(done) if k else Z[here]
    own: list[Array] = []
    G_here = G[here, here]
    for part, noise in zip(parts(setting, W), drawn, strict=False):
      now = z[part] - G_here[part, : part.start] @ jnp.concatenate(own) if own else z[part]
      weights, u = learn(setting, weights, now, rows.y[k, part], rows.task[k, part], noise)
      own.append(u)
    total = jnp.concatenate(own)
    if setting.cotrain:
      weights, u = cotrain(setting, weights, z - G_here @ total, rows.y[k], rows.task[k])
      total += u
    done.append(total)
  U = jnp.concatenate(done)
  return weights._replace(kernel=weights.kernel - x.T @ U, bias=weights.bias - U.sum(axis=0))


def scan(
  setting: Setting, block: int, weights: Weights, pool: Rows, index: Array, key: Key, start: Array | int = 0
) -> Weights:
  """All steps of a task.

  Args:
    setting, block: static; `block` steps at once, 1 is plain.
    pool: every row there is, leaves [P, ...].
    index: [n, W] rows of each step, n a multiple of `block`.
    start: steps before, for the draws.
  """

  def body(weights, inputs):
    where, positions = inputs
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(positions)
    rows = jax.tree.map(lambda leaf: leaf[where], pool)
    if block > 1:
      return blocked_steps(setting, weights, rows, keys), None
    return plain_step(setting, weights, jax.tree.map(lambda leaf: leaf[0], rows), keys[0]), None

  n = len(index)
  inputs = (index.reshape(n // block, block, -1), (start + jnp.arange(n)).reshape(-1, block))
  return jax.lax.scan(body, weights, inputs)[0]
