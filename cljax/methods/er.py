"""Experience replay with a reservoir (Chaudhry et al. 2019, "Continual learning with tiny episodic memories").

After each batch of the current task an additional batch comes from the memory. In Collier et al. 2020 (Algorithm 1)
that is a second step of its own, drawn before the current batch is stored: `update="sequential"`, the default. The ER
paper takes one step on both together: `update="union"`.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.errors import choose
from cljax.ops.losses import rows
from cljax.ops.trees import parameters
from cljax.pieces import replay as memories
from cljax.pieces.learner import supervised
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State:
  params: Any  # of the net
  opt_state: Any  # of the optimizer
  memory: memories.Memory  # place [M] and seen []


def er(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: int = 10,
  epochs: int = 1,
  replay: int = 10,
  capacity: int = 1000,
  update: str = "sequential",
  block: int = 0,
) -> Method:
  """Fine-tuning with replay.

  Args:
    batch_size: current rows a step.
    epochs: passes over each task.
    replay: memory rows a step; fewer while the memory holds fewer.
    capacity: rows of the memory, over all tasks; 0 is fine-tuning.
    update: `sequential`, a step on the current rows, then one on the replayed; or `union`, one step on all.
    block: steps that share a pass over the first layer's weights (`pieces.blocks`); 0 chooses, 1 is step by step.

  Raises:
    ConfigError: 0 < capacity < replay, or an unknown update.
  """
  choose("config.method.update", update, ("sequential", "union"))
  learner = supervised(net, tx, spec, current=batch_size)

  def init(key: Key) -> State:
    return State(*learner.init(key), memories.empty(capacity))

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    if update == "union" or not capacity:
      params, opt_state, info = learner.learn(state.params, state.opt_state, batch)
    else:
      current = rows(batch, 0, batch_size)
      params, opt_state, info = learner.learn(state.params, state.opt_state, current, alike=True)
      params, opt_state, _ = learner.learn(params, opt_state, rows(batch, batch_size))
    return state.replace(params=params, opt_state=opt_state), info

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return learner.apply(state.params, x, slot)

  def report(state: State) -> dict[str, Array]:
    held = jnp.int32(memories.memory_bytes(spec, capacity))
    return {"parameters": parameters(state.params), "memory_bytes": held, "seen": state.memory.seen}

  plan = memories.reservoir(replay, capacity)
  together = learner.block(step, batch_size + (replay if capacity else 0), block)
  phase = Phase("fit", batch_size, step, epochs=epochs, plan=plan, block=together)
  return Method(init, (phase,), apply, report)
