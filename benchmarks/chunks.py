"""The compiled chunk alone: the library's loop, whose end is a value, against a scan whose length is fixed.

Dead steps cost the loop nothing, but a compiler knows more about a scan; which is faster depends on the device.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import problem
from cljax import loops
from cljax.data.sample import fetch, view_at
from cljax.experiment import Experiment
from cljax.keys import PLAN, STEP, use
from cljax.mesh import leaf_axes
from cljax.types import Array, Clock, Info, Key, Phase, State, View


def full_scan(
  phase: Phase, n: int, key: Key, state: State, view: View, clock: Clock, stop: Array
) -> tuple[State, Info]:
  """What `loops.fit_chunk` computes where `stop` is n and the view has no pool, as one scan over n steps or blocks."""
  plan = loops.plan_current(phase, n, key, view, clock, stop)
  positions = clock.position + jnp.arange(n)
  state, plan = phase.plan(jax.vmap(partial(use, key, PLAN))(positions), state, view, plan)
  keys = jax.vmap(partial(use, key, STEP))(positions)
  clocks = jax.vmap(partial(loops.clock_at, clock))(jnp.arange(n))
  size, step = phase.block or (1, phase.step)

  def take(state, schedule):
    now, key_k, clock_k = schedule
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1), now)
    batch = fetch(view, flat.place)._replace(slot=flat.slot, live=flat.live)
    if phase.block is None:
      return step(key_k[0], state, batch, jax.tree.map(lambda leaf: leaf[0], clock_k), view)
    return step(
      key_k, state, jax.tree.map(lambda leaf: leaf.reshape((size, -1) + leaf.shape[1:]), batch), clock_k, view
    )

  schedule = jax.tree.map(
    lambda leaf: leaf.reshape((n // size, size) + leaf.shape[1:]), (plan._replace(held=None), keys, clocks)
  )
  state, info = jax.lax.scan(take, state, schedule)
  return state, jax.tree.map(lambda leaf: leaf.reshape((n,) + leaf.shape[2 if phase.block else 1 :]), info)


class Chunk:
  """A whole task as one compiled call for the first seed of an experiment, without edges or metrics on the host."""

  def __init__(self, experiment: Experiment, scan: bool):
    leaves, structure = jax.tree.flatten(experiment.stream)
    axes = leaf_axes(experiment.axes, experiment.stream)
    own = [leaf if axis is None else leaf[0] for leaf, axis in zip(leaves, axes, strict=True)]
    self.stream = jax.tree.unflatten(structure, own)
    self.method, self.spec = experiment.method, experiment.spec
    phase = self.method.phases[0]
    self.steps = int(experiment.timeline.phase_steps(0, 0)[0])
    self.views = [view_at(self.stream, jnp.int32(t), self.spec.heads) for t in (0, 1)]
    self.run = jax.jit(partial(full_scan if scan else loops.fit_chunk, phase, self.steps))
    self.evaluate = jax.jit(partial(loops.evaluate, self.method, experiment.readouts[0], 500, "test"))
    everywhere = jax.tree.leaves(self.stream)[0].sharding  # else the second task would compile anew
    self.state = jax.jit(self.method.init, out_shardings=everywhere)(jax.random.key(0))
    self.kept: Any = None

  def train(self, task: int) -> None:
    """Learns one task."""
    zero, n = jnp.int32(0), jnp.int32(self.steps)
    clock = Clock(zero, zero, n, jnp.int32(task * self.steps))
    key = jax.random.fold_in(jax.random.key(1), task)
    self.state, _ = jax.block_until_ready(self.run(key, self.state, self.views[task], clock, n))

  def keep(self) -> None:
    """Remembers what has been learnt so far."""
    self.kept = self.state

  def back(self) -> None:
    """Returns to what was kept."""
    self.state = self.kept

  def accuracy(self) -> float:
    """Mean over tasks 0 and 1."""
    counts = [self.evaluate(self.state, self.stream, *map(jnp.int32, (t, 1, t)))["right"] for t in (0, 1)]
    return float(sum(counts)) / 2 / problem.TEST_ROWS
