"""The most confident expert: a network of experts without a gate, a comparator of Expert Gate (Aljundi et al. 2017).

Each task's expert goes on from the one before. A picture of no known task goes through all experts, and the one with
the highest probability for any of its own classes answers.
"""

import flax.struct
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.errors import ConfigError
from cljax.ops.losses import probabilities
from cljax.ops.trees import parameters
from cljax.pieces import experts as grown
from cljax.types import Array, Method, Outputs, Spec


@flax.struct.dataclass
class State:
  experts: grown.Experts


def confident(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: int = 64,
  epochs: int = 5,
  warmup_epochs: int = 1,
  parent: str = "previous",
  mode: str = "finetune",
  distill_weight: float = 1.0,
  distill_temperature: float = 2.0,
) -> Method:
  """Experts in a chain, chosen by their own confidence.

  Args:
    net, tx: of one expert, with one head; trained afresh for each task.
    batch_size, epochs, warmup_epochs, distill_weight, distill_temperature: see `pieces.experts.Training`.
    parent, mode: see `pieces.experts.chain`.

  Raises:
    ConfigError: an unknown choice, or tasks without heads of their own.
  """
  if spec.heads == 1:
    raise ConfigError("config.method.name='confident' compares experts of tasks: set config.stream.scenario='task'")
  training = grown.Training(batch_size, epochs, warmup_epochs, distill_weight, distill_temperature)
  growing = grown.growing(net, tx, spec, training)
  phases = growing.phases(grown.chain(parent, mode))

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    if slot is not None:
      return growing.apply(state.experts, x, slot)
    each = probabilities(growing.apply_all(state.experts, x), state.experts.classes[: spec.T, None])
    sure = jnp.where(state.experts.finished[: spec.T, None], each.max(axis=-1), -1)
    slot = jnp.where(sure.max(axis=0) > 0, sure.argmax(axis=0), -1).astype(jnp.int32)
    return growing.apply(state.experts, x, slot)

  def report(state: State) -> dict[str, Array]:
    experts = state.experts
    return {
      "parameters": parameters(experts.store),
      "memory_bytes": jnp.int32(0),
      "parent": experts.parent,
      "mode": experts.mode,
    }

  return Method(lambda key: State(growing.init(key)), phases, apply, report, infers=True, told=True)
