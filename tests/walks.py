"""Methods taken through tasks by hand, and a plain net in float64 numpy to compare their steps with."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.data.sample import fetch, view_at
from cljax.types import Clock, Method, Phase, Place
from tests import toys

B, C, T = 10, 4, 3  # rows a step, classes, tasks


@functools.cache
def stream(heads: int = T):
  """(spec, arrays, the view of each task) of the ragged stream."""
  spec, data = toys.stream(heads=heads)
  view = jax.jit(view_at, static_argnums=2)
  return spec, data, [view(data, jnp.int32(t), heads) for t in range(T)]


@functools.cache
def batches(t: int, steps: int, heads: int = T):
  """[steps, B, ...] batches of task t, as they would be fetched."""
  _, data, views = stream(heads)
  rows = data.tasks.train.idx[t, np.arange(steps * B).reshape(steps, B) % data.tasks.train.count[t]]
  return jax.jit(jax.vmap(fetch, (None, 0)))(views[t], Place(jnp.full(rows.shape, t), jnp.asarray(rows)))


class Walk:
  """A method phase by phase: `enter`, all steps as one epoch, `tick` and `exit`, each phase compiled once."""

  def __init__(self, method: Method, steps: int, heads: int = T):
    self.method, self.steps, self.heads = method, steps, heads
    self.apply = jax.jit(method.apply)
    self.phases = [jax.jit(functools.partial(self.phase, phase)) for phase in method.phases]

  def phase(self, phase: Phase, state, view, batches):
    def clock(k):
      return Clock(*map(jnp.int32, (0, k, self.steps, k, self.steps, T * self.steps)))

    def step(state, given):
      k, batch = given
      return phase.step(jax.random.key(1), state, batch, clock(k), view)

    state = phase.enter(jax.random.fold_in(jax.random.key(2), view.t), state, view, clock(0))
    state, _ = jax.lax.scan(step, state, (jnp.arange(self.steps), batches))
    for edge in (phase.tick, phase.exit):
      state = edge(jax.random.key(3), state, view, clock(0))
    return state

  def states(self, key: int = 3):
    """[the state before task 1], then for each task the states after each of its phases."""
    found: list[list[Any]] = [[jax.jit(self.method.init)(jax.random.key(key))]]
    for t in range(T):
      found.append([])
      for phase in self.phases:
        before = (found[-1] or found[-2])[-1]
        found[-1].append(phase(before, stream(self.heads)[2][t], batches(t, self.steps, self.heads)))
    return found

  def logits(self, state, t: int):
    """Of task t's rows."""
    batch = batches(t, 2, self.heads)
    return np.asarray(self.apply(state, batch.x.reshape(-1, 4, 4, 1), jnp.full(2 * B, t)).logits)

  def check_old_logits_keep_their_bits(self):
    """Each task's answers after its own end and after every later phase; the states of the walk."""
    states = self.states()
    for t in range(T):
      then = self.logits(states[t + 1][-1], t)
      for later in states[t + 2 :]:
        for state in later:
          np.testing.assert_array_equal(self.logits(state, t), then)
    return states


def double(tree):
  return jax.tree.map(lambda leaf: np.array(leaf, np.float64), tree)


def columns(w, tasks):
  """[B, C] the columns of the heads of each row's task."""
  heads = w["head"]["bias"].size // C
  return np.minimum(tasks, heads - 1)[:, None] * C + np.arange(C)


def answers(w, x, tasks, gates=1.0):
  """[B, C] logits of an MLP with one hidden ReLU layer in float64; `gates` [W] multiply its hidden units."""
  z = np.asarray(x, np.float64).reshape(len(x), -1) @ w["first"]["kernel"] + w["first"]["bias"]
  whole = (np.maximum(z, 0) * gates) @ w["head"]["kernel"] + w["head"]["bias"]
  return np.take_along_axis(whole, columns(w, tasks), axis=1)


def pulled_back(w, x, tasks, d, gates=1.0):
  """(gradient, gradient by the gates) of a loss whose derivative by the logits is d [B, C]."""
  x = np.asarray(x, np.float64).reshape(len(x), -1)
  z = x @ w["first"]["kernel"] + w["first"]["bias"]
  whole = np.zeros((len(x), w["head"]["bias"].size))
  np.put_along_axis(whole, columns(w, tasks), d, axis=1)
  below = whole @ w["head"]["kernel"].T
  inner = below * gates * (z > 0)
  head = {"kernel": (np.maximum(z, 0) * gates).T @ whole, "bias": whole.sum(axis=0)}
  by_gate = (below * np.maximum(z, 0)).sum(axis=0)
  return {"first": {"kernel": x.T @ inner, "bias": inner.sum(axis=0)}, "head": head}, by_gate


def slopes(logits, y):
  """The derivative of the mean cross-entropy by the logits."""
  share = np.exp(logits - logits.max(axis=1, keepdims=True))
  return (share / share.sum(axis=1, keepdims=True) - np.eye(C)[np.asarray(y)]) / max(len(y), 1)


def gradients(w, x, y, t: int, gates=1.0):
  """(gradient of the mean cross-entropy, its gradient by the gates) on rows of task t."""
  tasks = np.full(len(x), t)
  return pulled_back(w, x, tasks, slopes(answers(w, x, tasks, gates), y), gates)
