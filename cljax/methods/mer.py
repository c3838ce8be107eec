"""Meta-experience replay (Riemer et al. 2019, https://arxiv.org/abs/1810.11910, Algorithm 1).

A step makes s batches of the current rows and k - 1 rows of the memory each, and goes through every batch example by
example, the current rows last, by plain SGD at rate alpha. Reptile draws what comes of it back twice, so that gradients
of different examples are taught to agree:

  within a batch:  theta <- theta_0 + beta (theta_k - theta_0)
  across batches:  theta <- theta_0 + gamma (theta_s - theta_0)

The paper takes one row a step; several current rows are one example here, of their mean loss.
"""

from typing import Annotated, Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import at_least, declared
from cljax.errors import ConfigError
from cljax.ops.losses import rows
from cljax.ops.trees import amount, parameters
from cljax.pieces import replay as reservoirs
from cljax.pieces.learner import Trained, supervised
from cljax.pieces.replay import Replay, memory_bytes
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Phase, Spec, View


@flax.struct.dataclass
class State(Trained):
  """The network, and the rows that stay."""

  memory: Any = None


def drawn_back(start: Any, end: Any, share: Array | float) -> Any:
  """start + share (end - start), of two trees."""
  return jax.tree.map(lambda before, after: before + share * (after - before), start, end)


@declared("method", given=3)
def mer(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: Annotated[int, at_least(1, "current rows a step; the paper's is 1")] = 1,
  epochs: Annotated[int, at_least(1, "passes over each task")] = 1,
  replay: Replay = Replay(replay=25, capacity=1000),
  reptile_batches: Annotated[int, at_least(1, "s, among which the replayed rows of a step are shared out")] = 5,
  beta: Annotated[Array | float, at_least(0, "of what a batch learns, within batches")] = 0.1,
  gamma: Annotated[Array | float, at_least(0, "of what a step learns, across batches")] = 1.0,
) -> Method:
  """Replay example by example, drawn back by Reptile within batches and across them.

  Raises:
    ConfigError: replayed rows that the batches cannot share equally.
  """
  total, capacity = replay
  if capacity and total % reptile_batches:
    raise ConfigError(
      f"config.method.replay={total} does not share out among config.method.reptile_batches={reptile_batches}: set "
      f"config.method.replay={-(-total // reptile_batches) * reptile_batches}"
    )
  each = total // reptile_batches if capacity else 0
  learner = supervised(net, tx, spec, current=batch_size)

  def init(key: Key) -> State:
    return State(**learner.init(key), memory=reservoirs.empty(capacity))

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    current = rows(batch, 0, batch_size)
    shape = reptile_batches, each, 1
    old = jax.tree.map(lambda leaf: leaf[batch_size:].reshape(*shape, *leaf.shape[1:]), batch) if each else None
    keys = jax.random.split(key, (reptile_batches, each + 1))

    def alone(state: State, given: tuple[Key, Batch]) -> tuple[State, None]:
      return learner.step(At(given[0], clock, view), state, given[1])[0], None

    def within(state: State, given: tuple[Key, Batch | None]) -> tuple[State, Info]:
      own, replayed = given
      before = state.params
      if replayed is not None:
        state, _ = jax.lax.scan(alone, state, (own[:-1], replayed))
      state, info = learner.step(At(own[-1], clock, view), state, current)
      return state.replace(params=drawn_back(before, state.params, beta)), info

    after, infos = jax.lax.scan(within, state, (keys, old))
    info = jax.tree.map(lambda leaf: leaf[0], infos)  # of the current rows before anything but one batch was learnt
    return after.replace(params=drawn_back(state.params, after.params, gamma)), info

  def report(state: State) -> dict[str, Array]:
    held = amount(memory_bytes(spec, capacity))
    return {
      "parameters": parameters(state.params),
      "memory_bytes": held,
      "seen": state.memory.seen.sum(dtype=jnp.int32),
    }

  drawn = reservoirs.reservoir(each, capacity, draws=reptile_batches)  # each batch draws for itself
  phase = Phase("fit", batch_size, step, epochs=epochs, plan=drawn)
  return Method(init, (phase,), learner.apply, report)
