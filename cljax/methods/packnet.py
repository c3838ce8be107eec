"""PackNet (Mallya and Lazebnik 2018, https://arxiv.org/abs/1711.05769): tasks packed into one network by pruning.

A task trains all weights that no task owns; then of each layer the smallest of these are pruned to zero, and the rest,
which the task owns from now on, are trained again without them. A task computes with its own weights and those of all
tasks before it, which never change: its answers keep their bits, but for what the one set of a net's statistics moves.

Biases, the parameters of normalisations and all that is no kernel belong to the first task, as published. Heads are
each a task's own and are not pruned; one head for all tasks is a layer as the others are.
"""

from typing import Annotated, Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import at_least, declared
from cljax.nets.modes import at_rest
from cljax.ops.masks import keep_only, ranked
from cljax.ops.slots import by_slot
from cljax.ops.trees import parameters
from cljax.pieces.learner import Trained, supervised
from cljax.pieces.owners import FREE, first_owners, is_shared
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, StepFn, View, in_turn


@flax.struct.dataclass
class State(Trained):
  """The network, and whose its weights are."""

  owner: Any = None  # a tree like params of int8: the task that a weight belongs to, FREE of none; a leaf broadcasts
  finished: Any = None  # [] int32 tasks


def claimed(owner: Array, weights: Array, t: Array, share: Array | float) -> Array:
  """The owners of a layer once task t has all of its free weights but the `share` of least magnitude."""
  if not is_shared(owner, weights):
    return owner
  free = owner == FREE
  kept = free.sum() - jnp.round(share * free.sum())
  own = free & (ranked(jnp.where(free, jnp.abs(weights), -1)) < kept)
  return jnp.where(own, t, owner).astype(owner.dtype)


@declared("method", given=3)
def packnet(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: Annotated[int, at_least(1, "rows a step")] = 10,
  epochs: Annotated[int, at_least(1, "passes over each task before its pruning")] = 2,
  retrain_epochs: Annotated[int, at_least(0, "passes after it; published are half as many")] = 1,
  pruned_share: Annotated[
    Array | float, at_least(0, "of a layer's free weights that a task gives back; published are .5 and .75", 1)
  ] = 0.5,
) -> Method:
  """Train, prune, train again; the optimizer begins anew with each."""
  learner = supervised(net, tx, spec)

  def init(key: Key) -> State:
    own = learner.init(key)
    return State(**own, owner=first_owners(own["params"], spec), finished=jnp.int32(0))

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(opt_state=tx.init(state.params))

  def stepping(pruned: bool) -> StepFn:
    def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
      frozen = jax.tree.map(lambda owner: (owner != view.t) & (pruned | (owner != FREE)), state.owner)
      return learner.step(At(key, clock, view), state, batch, frozen=frozen, still=view.t > 0)

    return step

  def prune(key: Key, state: State, view: View, clock: Clock) -> State:
    owner = jax.tree.map(lambda owner, leaf: claimed(owner, leaf, view.t, pruned_share), state.owner, state.params)
    return state.replace(owner=owner, params=keep_only(state.params, jax.tree.map(lambda own: own != FREE, owner)))

  def finish(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(finished=view.t + 1)

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    def of_task(t: Array) -> Outputs:
      """Free weights are those of the task in training, which gives them back at its end."""
      seen = jax.tree.map(lambda own: (own <= t) & ((own != FREE) | (t >= state.finished)), state.owner)
      return at_rest(net, keep_only(state.params, seen), state.collections, x, slot)

    return by_slot(of_task, spec.T, slot)

  def report(state: State) -> dict[str, Array]:
    free = sum((owner == FREE).sum() for owner in jax.tree.leaves(state.owner))
    count = parameters(state.params)
    return {"parameters": count, "memory_bytes": jnp.int32(0), "free": free / count}

  again = retrain_epochs > 0
  pruning = prune if again else in_turn(prune, finish)
  fit = Phase("fit", batch_size, stepping(False), epochs=epochs, enter=enter, exit=pruning)
  retrain = Phase("retrain", batch_size, stepping(True), epochs=retrain_epochs, enter=enter, exit=finish)
  return Method(init, (fit, retrain) if again else (fit,), apply, report, told=True, needs_boundaries=True)
