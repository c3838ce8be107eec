"""Memories, each with its compiled plan over a whole toy stream, and what every plan of theirs must say."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cljax.data.sample import view_at
from cljax.pieces.balanced import class_balanced, empty_balanced
from cljax.pieces.rings import empty_rings, ring
from cljax.types import NONE, Place, Plan
from tests.toys import stream

T, BATCH, REPLAY = 3, 4, 3
COUNTS, STEPS = (30, 23, 41), 12  # steps of a task, some of them dead


@flax.struct.dataclass
class State:
  memory: Any
  params: Any = ()


class Case:
  """A rule, an empty memory for it, and the compiled plan over the whole toy stream, task after task."""

  def __init__(self, plan, memory, boundaries=True, heads=None):
    self.spec, self.stream = stream(COUNTS, heads=heads, boundaries=boundaries)
    self.stream = jax.device_put(self.stream)
    self.memory, self.boundaries = memory(self.spec), boundaries
    self.compiled = jax.jit(plan(self.spec))

  def view(self, t):
    return view_at(self.stream, jnp.int32(t) if self.boundaries else None, self.spec.heads)

  def steps(self):
    """(task, keys [n], plan) of each task; the last batch of a task has dead rows, and the steps after it are dead."""
    start = 0
    for t, count in enumerate(COUNTS):
      i = np.arange(STEPS * BATCH).reshape(STEPS, BATCH)
      row = np.asarray(self.stream.tasks.train.idx)[t, np.minimum(i, count - 1)]
      task = np.full_like(row, t) if self.boundaries else (start + np.minimum(i, count - 1)).astype(np.int32)
      start += count
      plan = Plan(Place(task, row), np.full(row.shape, NONE), i < count)
      yield t, jax.random.split(jax.random.key(t), STEPS), plan

  def run(self, length=STEPS):
    """[(task, keys, given plan, plan)], and the memory afterwards; in chunks of `length` steps."""
    state, found = State(self.memory), []
    for t, keys, given in self.steps():
      plans = []
      for k in range(0, len(keys), length):
        part = jax.tree.map(lambda leaf, k=k: leaf[k : k + length], given)
        state, plan = self.compiled(keys[k : k + length], state, self.view(t), part)
        plans.append(jax.tree.map(np.asarray, plan))
      plan = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(plan._replace(held=None) for plan in plans))
      found.append((t, keys, given, plan._replace(held=plans[0].held)))
    return found, jax.tree.map(np.asarray, state.memory)


CASES = {
  "ring": lambda: Case(lambda spec: ring(REPLAY, 15, T), lambda spec: empty_rings(15, T)),
  "short_ring": lambda: Case(lambda spec: ring(REPLAY, 6, T), lambda spec: empty_rings(6, T)),  # 2 places, batches of 4
  "earlier": lambda: Case(lambda spec: ring(REPLAY, 15, T, earlier=True), lambda spec: empty_rings(15, T)),
  "fifo": lambda: Case(lambda spec: ring(REPLAY, 10), lambda spec: empty_rings(10), boundaries=False),
  "balanced": lambda: Case(lambda spec: class_balanced(spec, REPLAY, 17), lambda spec: empty_balanced(17, spec)),
  "one_head": lambda: Case(
    lambda spec: class_balanced(spec, REPLAY, 17), lambda spec: empty_balanced(17, spec), boundaries=False
  ),
}


@functools.cache
def case(name):
  return CASES[name]()


@functools.cache
def ran(name):
  return case(name).run()


def check_replayed(plan, k, memory, expected):
  """The replayed columns of step k are what stands in their slots, each once, and as many as there should be."""
  live = plan.live[k, BATCH:]
  assert live.sum() == expected
  slots = plan.slot[k, BATCH:][live]
  assert len(set(slots.tolist())) == expected
  for slot, task, row in zip(slots, plan.place.task[k, BATCH:][live], plan.place.row[k, BATCH:][live], strict=True):
    assert memory[slot] == (task, row)


def write(plan, k, memory):
  """What the slots of the current rows say is stored."""
  slots = plan.slot[k, :BATCH]
  assert (slots[~plan.live[k, :BATCH]] == NONE).all()
  kept = slots[slots != NONE]
  assert len(set(kept.tolist())) == len(kept)
  for w in np.flatnonzero(slots != NONE):
    memory[slots[w]] = (plan.place.task[k, w], plan.place.row[k, w])
