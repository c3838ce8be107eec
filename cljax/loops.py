"""The only loops over the stream: a chunk of training steps, a mean over a split, an evaluation.

Nothing here knows a method, a disk or a device. Each function is one XLA computation for one seed; `mesh.py` maps it
over seeds, `run.py` compiles it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.data.sample import current, fetch, held_pictures, some_rows, split_batch
from cljax.data.warp import is_drawn
from cljax.keys import ENTER, EXIT, ORDER, PLAN, STEP, TICK, VISIT, use
from cljax.ops.tracing import traced
from cljax.types import (
  NONE,
  Array,
  Bank,
  Batch,
  Clock,
  Info,
  Key,
  Method,
  Outputs,
  Phase,
  Plan,
  Rows,
  State,
  Stream,
  View,
)


def clock_at(clock: Clock, k: Array) -> Clock:
  """The clock `k` steps later in the same phase of the same task."""
  later = clock.position + k
  return clock._replace(epoch=later // clock.steps, step=later % clock.steps, total=clock.total + k)


def rows_in(phase: Phase, view: View) -> Array:
  """[] rows of an epoch: those of task t, of all tasks so far (joint), or of the stream (boundaries hidden)."""
  count = view.tasks.train.count
  return count.sum() if phase.joint or view.t is None else count[view.t]


def plan_current(phase: Phase, n: int, key: Key, view: View, clock: Clock, stop: Array) -> Plan:
  """The current columns of the `n` steps from `clock` on; [n, batch]."""
  count = rows_in(phase, view)

  def one(k):
    now = clock_at(clock, k)
    i = now.step * phase.batch + jnp.arange(phase.batch)
    epoch_key = use(key, ORDER, now.epoch)
    place = current(view, phase.joint, epoch_key, i, count, ordered=view.t is None)
    return place, (i < count) & (k < stop)

  place, live = jax.vmap(one)(jnp.arange(n))
  return Plan(place, jnp.full(live.shape, NONE, jnp.int32), live)


def planned(phase: Phase, n: int, key: Key, state: State, view: View, clock: Clock, stop: Array) -> tuple[State, Plan]:
  """(state, plan): the places [n, rows of a step] of `n` steps from `clock` on, with what the phase adds to them."""
  positions = clock.position + jnp.arange(n)
  keys = jax.vmap(partial(use, key, PLAN))(positions)
  return phase.plan(keys, state, view, plan_current(phase, n, key, view, clock, stop))


def whole(batch: Batch, axis: int) -> Batch:
  """The batch as it is: no data axis to spread it over."""
  return batch


def fit_chunk(
  phase: Phase,
  n: int,
  key: Key,
  state: State,
  view: View,
  clock: Clock,
  stop: Array,
  spread: Callable[[Batch, int], Batch] = whole,
) -> tuple[State, Info]:
  """The compiled unit of training: plans `n` steps from `clock` on and takes the first `stop` of them.

  `n` is static and the same for all chunks, `stop` is a value: any run of steps within a phase of a task is a chunk, so
  ragged tasks, epoch edges and evaluation points cost no compilation and change no bit. The loop ends at `stop`, so
  dead steps do not exist (and reverse-mode derivatives of this function neither).

  Args:
    phase: static; with a `block`, `n` must be a multiple of its size.
    key: of this task and phase.
    clock: of the first step.
    stop: [] int32 in 0..n.
    spread: static; places the rows of a batch, which lie on the given axis, over devices.

  Returns:
    the state, and the Info as [n] arrays whose rows from `stop` on mean nothing.
  """
  if n < 1 or (phase.block and n % phase.block.size):
    raise ValueError(f"n={n} must be a positive multiple of the block's {phase.block.size if phase.block else 1} steps")
  state, plan = planned(phase, n, key, state, view, clock, stop)
  positions = clock.position + jnp.arange(n)
  keys = jax.vmap(partial(use, key, STEP))(positions)
  clocks = jax.vmap(partial(clock_at, clock))(jnp.arange(n))
  size, step = phase.block or (1, phase.step)
  visits = jax.vmap(partial(use, key, VISIT))(positions) if is_drawn(view.tasks.train.warp) else None
  if phase.joint:
    view = view._replace(pool=None)
  held = held_pictures(view, plan.held) if view.pool is not None else None
  columns = plan._replace(held=None)

  def take(state, k):
    """Steps k..k+size-1."""
    schedule = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, k, size), (columns, keys, clocks, visits))
    now, key_k, clock_k, visit = schedule
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1), now)
    seen = view if visit is None else view._replace(visit=jnp.repeat(visit, now.live.shape[1]))
    batch = fetch(seen, flat.place, flat.slot, held)._replace(slot=flat.slot, live=flat.live)
    if phase.block is None:
      seen = view if visit is None else view._replace(visit=visit[0])
      return step(key_k[0], state, spread(batch, 0), jax.tree.map(lambda leaf: leaf[0], clock_k), seen)
    batch = jax.tree.map(lambda leaf: leaf.reshape((size, -1) + leaf.shape[1:]), batch)
    return step(key_k, state, spread(batch, 1), clock_k, view)

  run, (_, shapes) = traced(take, state, jnp.int32(0))
  info = jax.tree.map(lambda leaf: jnp.zeros((n,) + leaf.shape[bool(phase.block) :], leaf.dtype), shapes)

  def body(b, carry):
    state, info = carry
    state, new = run(state, b * size)
    new = jax.tree.map(lambda leaf: leaf if phase.block else leaf[None], new)
    info = jax.tree.map(lambda all, leaf: jax.lax.dynamic_update_slice_in_dim(all, leaf, b * size, 0), info, new)
    return state, info

  return jax.lax.fori_loop(0, (stop + size - 1) // size, body, (state, info))


def edge(phase: Phase, name: str, key: Key, state: State, view: View, clock: Clock) -> State:
  """`enter`, `tick` or `exit` of a phase, with its key of this position."""
  purpose = {"enter": ENTER, "tick": TICK, "exit": EXIT}[name]
  return getattr(phase, name)(use(key, purpose, clock.position), state, view, clock)


def mean_over(
  fn: Callable[[Batch], Any],
  view: View,
  rows: Rows,
  task: Array | None = None,
  group: int = 100,
  summed: bool = False,
) -> Any:
  """The mean of a per-example function over one split of a task, in batches of `group` rows.

  Args:
    fn: Batch -> tree of [group, ...]; a dead row may give anything finite or not. With `summed` it is the tree of the
      sums over a batch's live rows.
    rows: `view.tasks.valid` or `view.tasks.train`, leaves [T, ...].
    task: [] the task; by default `view.t`.

  Returns:
    the tree without its leading axis, float32; zeros where the split is empty.
  """
  task = view.t if task is None else task
  count = rows.count[task]

  def batch(g):
    i = g * group + jnp.arange(group)
    return some_rows(view, rows, task, i, i < count)

  def sum_live(g):
    now = batch(g)
    if summed:
      return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), fn(now))

    def of(leaf):
      live = now.live.reshape((-1,) + (1,) * (leaf.ndim - 1))
      return jnp.where(live, leaf, 0).astype(jnp.float32).sum(axis=0)

    return jax.tree.map(of, fn(now))

  sums, shapes = traced(sum_live, jnp.int32(0))

  def add(g, total):
    return jax.tree.map(jnp.add, total, sums(g))

  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  total = jax.lax.fori_loop(0, (count + group - 1) // group, add, zeros)
  return jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1), total)


def readout_mask(method: Method, readout: str, classes: Array, task: Array, now: Array, used: Array) -> Array:
  """[B, C] the logits that an answer may choose from.

  `task`: those of the task. `class`: the union of the tasks 0..now (before any training: of all tasks).
  `domain`: all. `inferred`: those of the slot used, or all where the method numbers its own slots.
  """
  if readout == "task":
    return jnp.broadcast_to(classes[task], used.shape + classes.shape[1:])
  if readout == "inferred" and not method.slots:
    return classes[used]
  if readout == "class":
    seen = (jnp.arange(len(classes)) <= now) | (now < 0)
    return jnp.broadcast_to((classes & seen[:, None]).any(axis=0), used.shape + classes.shape[1:])
  return jnp.ones(used.shape + classes.shape[1:], bool)


def split_of(stream: Stream, split: str) -> tuple[Bank, Rows]:
  """The bank and the rows of a split, `test` or `valid`."""
  return (stream.test_bank, stream.test) if split == "test" else (stream.bank, stream.tasks.valid)


class Question(NamedTuple):
  """What is asked about the rows of one task: the arguments of `evaluate` and of its like, in order."""

  method: Method
  readout: str  # `task` (apply gets the task's slot), `class` and `domain` (apply gets 0), `inferred` (apply gets None)
  group: int  # static, the most rows a batch; a short one is filled by wrapping round, and the copies are not counted
  split: str  # `test` or `valid`
  state: State
  stream: Stream
  task: Array  # [] the task asked about
  now: Array  # [] the last task trained, -1 before training
  slot: Array  # [] the slot of the task (the task itself unless the method numbers its own)
  x: Array | None = None  # [Nmax, ...] pictures of the rows, where a costly warp was applied ahead (`warped_rows`)

  def rows_at_once(self, most: int) -> int:
    """Rows a batch, of `most` in all: as many groups as `group` asks for, evenly filled. Where the task is inferred
    `group` itself, as an answer may depend on the rows beside it."""
    if self.readout == "inferred":
      return self.group
    groups = -(-most // self.group)
    return -(-most // max(groups, 1)) or 1

  def answers(self, batch: Batch) -> Outputs:
    """What the method answers to rows of the task."""
    n = len(batch.live)
    given = {"task": jnp.full(n, self.slot, jnp.int32), "inferred": None}.get(self.readout, jnp.zeros(n, jnp.int32))
    return self.method.apply(self.state, batch.x, given)

  def count_right(self, right_of: Callable[[Batch, Outputs], Array]) -> dict[str, Array]:
    """The counts of `evaluate`, where right_of(batch, outputs) tells of [group] rows which are right."""
    bank, rows = split_of(self.stream, self.split)
    count, group = rows.count[self.task], self.rows_at_once(rows.idx.shape[-1])
    slots = self.method.slots or len(self.stream.tasks.classes)

    def add(g, totals):
      i = g * group + jnp.arange(group)
      live = i < count
      i = i % jnp.maximum(count, 1)
      batch = split_batch(bank, self.stream.tasks, rows, self.task, i, live)
      batch = batch if self.x is None else batch._replace(x=self.x[i])
      out = self.answers(batch)
      right = live & (out.task >= 0) & right_of(batch, out)
      strict = right & (out.task == self.slot)
      used = jnp.where(live & (out.task >= 0), out.task, slots)  # no slot counts nowhere
      return {
        "right": totals["right"] + right.sum(dtype=jnp.int32),
        "strict": totals["strict"] + strict.sum(dtype=jnp.int32),
        "confusion": totals["confusion"].at[used].add(1, mode="drop"),
      }

    zero = jnp.int32(0)
    totals = {"right": zero, "strict": zero, "confusion": jnp.zeros(slots, jnp.int32)}
    return jax.lax.fori_loop(0, (count + group - 1) // group, add, totals)


def evaluate(*asked: Any) -> dict[str, Array]:
  """Counts right answers on the rows of one task, in integers.

  Args:
    asked: the fields of a `Question`.

  Returns:
    `right` [], `strict` [] (right answers through the right slot), `confusion` [slots] (rows by slot used); int32.
  """
  it = Question(*asked)
  tasks, labels = it.stream.tasks, split_of(it.stream, it.split)[0].y

  def right_of(batch, out):
    mask = readout_mask(it.method, it.readout, tasks.classes, it.task, it.now, out.task)
    answer = jnp.where(mask, out.logits, -jnp.inf).argmax(axis=-1)
    unmap = tasks.label_unmap[out.task if it.readout == "inferred" and not it.method.slots else it.task]
    label = unmap[answer] if unmap.ndim == 1 else jnp.take_along_axis(unmap, answer[:, None], axis=1)[:, 0]
    return label == labels[batch.place.row]

  return it.count_right(right_of)
