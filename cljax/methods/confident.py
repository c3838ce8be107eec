"""The most confident expert: a network of experts without a gate, a comparator of Expert Gate (Aljundi et al. 2017,
https://arxiv.org/abs/1611.06194, Table 2).

Each task's expert goes on from the one before. A picture of no known task goes through all experts, and the one with
the highest probability for any of its own classes answers.
"""

import flax.struct
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import declared
from cljax.errors import ConfigError
from cljax.ops.losses import probabilities
from cljax.ops.trees import parameters
from cljax.pieces.experts import Chain, Experts, Training, expert_learner
from cljax.types import Array, Key, Method, Outputs, Spec


@flax.struct.dataclass
class State:
  """The experts of all tasks."""

  experts: Experts


@declared("method", given=3)
def confident(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  training: Training = Training(),
  chain: Chain = Chain(),
) -> Method:
  """Experts in a chain, chosen by their own confidence.

  Args:
    net, tx: of one expert, with one head; trained afresh for each task.

  Raises:
    ConfigError: tasks without heads of their own.
  """
  if spec.heads == 1:
    raise ConfigError("config.method.name='confident' compares experts of tasks: set config.stream.scenario='task'")
  learner = expert_learner(net, tx, spec, training, chain.consolidates)

  def init(key: Key) -> State:
    return State(learner.init(key))

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    if slot is not None:
      return learner.apply(state.experts, x, slot)
    each = probabilities(learner.apply_all(state.experts, x), state.experts.classes[: spec.T, None])
    sure = jnp.where(state.experts.finished[: spec.T, None], each.max(axis=-1), -1)
    slot = jnp.where(sure.max(axis=0) > 0, sure.argmax(axis=0), -1).astype(jnp.int32)
    return learner.apply(state.experts, x, slot)

  def report(state: State) -> dict[str, Array]:
    experts = state.experts
    return {
      "parameters": parameters(experts.store),
      "memory_bytes": jnp.int32(0),
      "parent": experts.parent,
      "mode": experts.mode,
    }

  return Method(init, learner.phases(chain.decide), apply, report, infers=True, told=True, needs_boundaries=True)
