"""Fine-tuning: one network trained on task after task, with nothing against forgetting but the guard it is given.

Without one it is the lower bound, a plain baseline; with the MLP of widths 256-256 it is the "shared bottom" of Collier
et al. 2020 (https://arxiv.org/abs/2009.04381). Penalty methods are this method under a guard (`pieces.guards`).
"""

from collections.abc import Callable, Mapping

import optax
from flax import linen as nn

from cljax.declared import declared
from cljax.errors import ConfigError
from cljax.ops.trees import amount, parameters
from cljax.pieces.guards import GUARDS, NO_GUARD, Guarded
from cljax.pieces.learner import Fit, Trained, supervised
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Phase, Spec, View


@declared("method", given=3)
def finetune(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  guard: Guarded = NO_GUARD,
) -> Method:
  """Plain training on each task in turn; the optimizer's state goes on from task to task."""
  learner = supervised(net, tx, spec, guard=guard)

  def init(key: Key) -> Trained:
    return Trained(**learner.init(key))

  def step(key: Key, state: Trained, batch: Batch, clock: Clock, view: View) -> tuple[Trained, Info]:
    return learner.step(At(key, clock, view), state, batch, alike=True)

  def report(state: Trained) -> dict[str, Array]:
    return {"parameters": parameters(state.params), "memory_bytes": amount(learner.memory_bytes)}

  phase = Phase(
    "fit",
    fit.batch_size,
    step,
    epochs=fit.epochs,
    block=learner.block(step, fit.batch_size, fit.block),
    enter=learner.edge("enter"),
    exit=learner.edge("exit"),
  )
  return Method(init, (phase,), learner.apply, report, needs_boundaries=learner.bound)


def under(guard: str) -> Callable[..., Method]:
  """Fine-tuning under a guard of that name, as a method of its own."""
  own = {"name": guard}

  @declared("method", given=3)
  def guarded(
    net: nn.Module, tx: optax.GradientTransformation, spec: Spec, *, fit: Fit = Fit(), guard: Guarded = own
  ) -> Method:
    if isinstance(guard, Mapping) and guard.get("name") != own["name"]:
      raise ConfigError(
        f"config.method.name={own['name']!r} is fine-tuning under {own['name']}, and config.method.guard.name="
        f"{guard.get('name')!r} is another: set config.method.name='finetune'"
      )
    return finetune(net, tx, spec, fit=fit, guard=guard)

  guarded.__doc__ = GUARDS[guard].__doc__
  return guarded
