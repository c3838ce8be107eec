"""Experience replay (Chaudhry et al. 2019, "On tiny episodic memories in continual learning",
https://arxiv.org/abs/1902.10486), by default with a reservoir.

After each batch of the current task an additional batch comes from the memory. In Collier et al. 2020 (Algorithm 1)
that is a second step of its own, drawn before the current batch is stored: `update="sequential"`, the default. The ER
paper takes one step on both together: `update="union"`.
"""

from typing import Annotated, Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import declared, one_of
from cljax.ops.losses import rows
from cljax.ops.trees import amount, parameters
from cljax.pieces.guards import NO_GUARD, Guarded
from cljax.pieces.learner import Fit, Trained, supervised
from cljax.pieces.memories import MEMORIES, memory_of
from cljax.pieces.replay import Replay, memory_bytes
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Phase, Spec, View, in_turn, keep


@flax.struct.dataclass
class State(Trained):
  """The network, and what it replays."""

  memory: Any = None  # place [M] and seen: [], [rings] or [classes]


@declared("method", given=3)
def er(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  replay: Replay = Replay(),
  update: Annotated[
    str,
    one_of(("sequential", "union"), "a step on the current rows, then one on the replayed; or one step on all"),
  ] = "sequential",
  memory: Annotated[
    str,
    one_of(MEMORIES, "rows that stay: any, equally likely; each task's last; as many of each class; picked at its end"),
  ] = "reservoir",
  guard: Guarded = NO_GUARD,
) -> Method:
  """Fine-tuning with replay; a memory of capacity 0 is fine-tuning.

  Raises:
    ConfigError: 0 < capacity < replay, or a capacity that the rings of the tasks cannot share equally.
  """
  stored = memory_of(memory, *replay, spec)
  learner = supervised(net, tx, spec, current=fit.batch_size, guard=guard)

  def init(key: Key) -> State:
    return State(**learner.init(key), memory=stored.empty())

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    if update == "union" or not replay.capacity:
      return learner.step(At(key, clock, view), state, batch)
    now, then = jax.random.split(key)
    current = rows(batch, 0, fit.batch_size)
    state, info = learner.step(At(now, clock, view), state, current, alike=True)
    state, _ = learner.step(At(then, clock, view), state, rows(batch, fit.batch_size))
    return state, info

  def report(state: State) -> dict[str, Array]:
    held, seen = memory_bytes(spec, replay.capacity) + learner.memory_bytes, state.memory.seen.sum(dtype=jnp.int32)
    return {"parameters": parameters(state.params), "memory_bytes": amount(held), "seen": seen}

  phase = Phase(
    "fit",
    fit.batch_size,
    step,
    epochs=fit.epochs,
    plan=stored.plan,
    block=learner.block(step, fit.batch_size + (replay.replay if replay.capacity else 0), fit.block),
    enter=learner.edge("enter"),
    exit=in_turn(learner.edge("exit"), stored.exit),
  )
  bound = learner.bound or stored.exit is not keep
  return Method(init, (phase,), learner.apply, report, needs_boundaries=bound)
