"""Training under a guard, beside a network written out in numpy's float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cljax.data.sample import fetch, view_at
from cljax.loops import edge
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.pieces.optimizers import sgd
from cljax.types import Clock, Place
from tests import toys

RATE, STEPS, B, C = 0.2, 5, 10, 4
zip_trees = jax.tree.map
START = Clock(*(jnp.int32(0),) * 4)


class Numpy:
  """One hidden ReLU layer, the head of a task, softmax: forward and backward in float64."""

  def __init__(self, params):
    self.w = zip_trees(lambda leaf: np.array(leaf, np.float64), params)

  def forward(self, x, t):
    """(x [B, D], what the hidden layer is given [B, F], logits [B, C] of task t)."""
    w, own = self.w, slice(t * C, t * C + C)
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    z = x @ w["first"]["kernel"] + w["first"]["bias"]
    return x, z, np.maximum(z, 0) @ w["head"]["kernel"][:, own] + w["head"]["bias"][own]

  def logits(self, x, t):
    return self.forward(x, t)[2]

  def backward(self, x, t, d):
    """The gradient for each row, trees of [B, ...], from the derivatives [B, C] by the logits."""
    w, own = self.w, slice(t * C, t * C + C)
    x, z, _ = self.forward(x, t)
    h = np.maximum(z, 0)
    head = {name: np.zeros((len(x), *leaf.shape)) for name, leaf in w["head"].items()}
    head["kernel"][:, :, own], head["bias"][:, own] = h[:, :, None] * d[:, None], d
    below = (d @ w["head"]["kernel"][:, own].T) * (z > 0)
    return {"first": {"kernel": x[:, :, None] * below[:, None], "bias": below}, "head": head}

  def gradients(self, x, y, t):
    """The gradient of each row's own cross-entropy: trees of [B, ...]."""
    return self.backward(x, t, softmax(self.logits(x, t)) - np.eye(C)[y])

  def step(self, gradient):
    self.w = zip_trees(lambda w, g: w - RATE * g, self.w, gradient)


def softmax(logits):
  share = np.exp(logits - logits.max(axis=1, keepdims=True))
  return share / share.sum(axis=1, keepdims=True)


def mean(tree):
  return zip_trees(lambda leaf: leaf.mean(axis=0), tree)


def flat(tree):
  """[D] of a tree, in the order of its leaves; [B, D] of one whose leaves are [B, ...] with `rows`."""
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def like(vector, tree):
  """A tree of the numbers [D]."""
  leaves, structure = jax.tree.flatten(tree)
  ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
  parts = np.split(vector, ends)
  return jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])


@functools.cache
def setting():
  spec, data = toys.stream()
  return spec, data, [jax.jit(view_at, static_argnums=2)(data, jnp.int32(t), 3) for t in range(3)]


@functools.cache
def fetching():
  return jax.jit(fetch)


def batches(t):
  """Batches of task t, as they would be fetched; leaves [STEPS, B, ...]."""
  spec, data, views = setting()
  rows = [data.tasks.train.idx[t, (np.arange(B) + 7 * k) % data.tasks.train.count[t]] for k in range(STEPS)]
  found = [fetching()(views[t], Place(jnp.full(B, t), jnp.asarray(row))) for row in rows]
  return zip_trees(lambda *leaves: jnp.stack(leaves), *found)


def steps_of(t):
  """(x, y) of each of the batches of task t."""
  found = batches(t)
  return [(np.asarray(x), np.asarray(y)) for x, y in zip(found.x, found.y, strict=True)]


def all_rows(t):
  spec, data, views = setting()
  row = data.tasks.train.idx[t, : data.tasks.train.count[t]]
  return fetching()(views[t], Place(jnp.full(len(row), t), jnp.asarray(row)))


def rows_of(t, place):
  """(x, y) of places of task t, as float64 and int."""
  batch = fetching()(setting()[2][2], Place(jnp.full(len(place), t), jnp.asarray(place)))
  return np.asarray(batch.x), np.asarray(batch.y)


def guarded(name, **guard):
  """The method of that name, or fine-tuning under the guard."""
  own = {"name": name, **guard}
  return METHODS["finetune"](MLP(3, 4, (8,)), sgd(RATE), setting()[0], guard=own)


@functools.cache
def trained(name, **guard):
  """(the first params, the state after each task) of fine-tuning under a guard, its edges included."""
  method = guarded(name, **guard)
  phase = method.phases[0]

  @jax.jit
  def learn(state, t, batches, view):
    state = edge(phase, "enter", jax.random.key(0), state, view, START)

    def one(state, batch):
      return phase.step(jax.random.key(1), state, batch, START, view)[0], None

    state = jax.lax.scan(one, state, batches)[0]
    return edge(phase, "exit", jax.random.fold_in(jax.random.key(2), t), state, view, START)

  state, found = jax.jit(method.init)(jax.random.key(3)), []
  start = state.params
  for t in range(3):
    state = learn(state, jnp.int32(t), batches(t), setting()[2][t])
    found.append(state)
  return start, found


def is_close(found, expected, atol=1e-5):
  """Trees of float32 and float64 agree, entry by entry."""
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(np.asarray(one, np.float64), other, atol=atol)
