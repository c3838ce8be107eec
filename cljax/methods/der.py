"""Dark experience replay (Buzzega et al. 2020, https://arxiv.org/abs/2004.07211): past rows with past answers.

A reservoir keeps each row with the logits z that the network gave it when it came, before that step. DER holds the
network's logits h to them, DER++ also replays labels, of rows that are drawn anew:

  loss = CE(current) + alpha mean over a draw of |h(x) - z|^2 / C + beta CE(another draw)

The mean over the C logits is that of the authors' code; the paper's |h(x) - z|^2 is C times as much. Each row is
answered by its own task's head. All rows of a step go through the network together.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import flax.struct
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import at_least, declared
from cljax.nets.modes import in_training
from cljax.ops.losses import accuracy, cross_entropy, mean_live, rows
from cljax.ops.trees import amount, parameters
from cljax.pieces import replay as reservoirs
from cljax.pieces.descent import descend
from cljax.pieces.guards import NO_GUARD, Guarded
from cljax.pieces.learner import Fit, Trained, supervised
from cljax.pieces.replay import Replay
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Phase, Spec, View

Alpha = Annotated[Array | float, at_least(0, "alpha, of the mean squared distance from stored logits")]


@flax.struct.dataclass
class State(Trained):
  """The network, and what it replays."""

  memory: Any = None  # place [M] and seen []
  logits: Any = None  # [M, C] float32, what the network answered when a row came


def replaying(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  fit: Fit,
  replay: Replay,
  alpha: Array | float,
  beta: Array | float | None,
  guard: Mapping[str, Any],
) -> Method:
  """DER, and with a beta DER++; a memory of capacity 0 is fine-tuning.

  Raises:
    ConfigError: 0 < capacity < replay.
  """
  learner, B, R = supervised(net, tx, spec, fit.batch_size, guard), fit.batch_size, replay.replay
  plain = not replay.capacity

  def init(key: Key) -> State:
    logits = jnp.zeros((replay.capacity, spec.C))
    return State(**learner.init(key), memory=reservoirs.empty(replay.capacity), logits=logits)

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    at = At(key, clock, view)
    if plain:
      return learner.step(at, state, batch, alike=True)
    current, then = rows(batch, 0, B), rows(batch, B, B + R)

    def loss(params: Any, batch: Batch) -> tuple[Array, Any]:
      out, moved = in_training(net, params, state.collections, batch.x, batch.task, key, batch.live)
      far = ((out.logits[B : B + R] - state.logits[then.slot]) ** 2).mean(axis=-1)
      value = cross_entropy(out.logits[:B], current) + alpha * mean_live(far, then.live)
      if beta is not None:
        value += beta * cross_entropy(out.logits[B + R :], rows(batch, B + R))
      info = {"loss": value, "accuracy": accuracy(out.logits[:B], current)}
      return value, (info, moved, out.logits[:B])

    params, opt_state, past, (info, collections, answers) = descend(
      tx,
      loss,
      state.params,
      state.opt_state,
      batch,
      at,
      of_others=learner.gradient(state, at),  # rows without stored logits
      guard=learner.guard(state.collections),
      past=state.past,
    )
    logits = state.logits.at[current.slot].set(answers, mode="drop")
    moved = {"params": params, "opt_state": opt_state, "past": past, "collections": collections}
    return state.replace(**moved, logits=logits), info

  def report(state: State) -> dict[str, Array]:
    held = reservoirs.memory_bytes(spec, replay.capacity) + learner.memory_bytes  # logits are of the state
    return {"parameters": parameters(state.params), "memory_bytes": amount(held), "seen": state.memory.seen}

  phase = Phase(
    "fit",
    B,
    step,
    epochs=fit.epochs,
    plan=reservoirs.reservoir(R, replay.capacity, 1 if beta is None else 2),
    block=learner.block(step, B, fit.block) if plain else None,
    enter=learner.edge("enter"),
    exit=learner.edge("exit"),
  )
  return Method(init, (phase,), learner.apply, report, needs_boundaries=learner.bound)


@declared("method", given=3)
def der(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  replay: Replay = Replay(),
  alpha: Alpha = 0.5,
  guard: Guarded = NO_GUARD,
) -> Method:
  """Replay of logits; a memory of capacity 0 is fine-tuning.

  Raises:
    ConfigError: 0 < capacity < replay.
  """
  return replaying(net, tx, spec, fit, replay, alpha, None, guard)


@declared("method", given=3)
def derpp(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  replay: Replay = Replay(),
  alpha: Alpha = 0.5,
  beta: Annotated[Array | float, at_least(0, "of the cross-entropy of as many rows that are drawn beside these")] = 0.5,
  guard: Guarded = NO_GUARD,
) -> Method:
  """DER++: replay of logits, and of labels of other rows; a memory of capacity 0 is fine-tuning.

  Raises:
    ConfigError: 0 < capacity < replay.
  """
  return replaying(net, tx, spec, fit, replay, alpha, beta, guard)
