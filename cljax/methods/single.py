"""One network for each task, all trained apart: no forgetting, no transfer, T times the parameters. It is a plain
baseline and belongs to no paper."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import declared
from cljax.ops.slots import apply_by_slot
from cljax.ops.trees import amount, parameters, put, take
from cljax.pieces.guards import NO_GUARD, Guarded
from cljax.pieces.learner import Fit, Trained, supervised
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State(Trained):
  """The network of the task in training, and those of all tasks."""

  store: Any = None  # [T, ...] the networks of all tasks, from their own random start
  store_collections: Any = flax.struct.field(default_factory=dict)  # [T, ...]


@declared("method", given=3)
def single(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  guard: Guarded = NO_GUARD,
) -> Method:
  """Trains the network of the current task only; a task's row is answered by its own network.

  The network in training is kept out of the stack, so that a step does not carry all T of them. A guard's past goes on
  from task to task: it draws each new network towards those before it.
  """
  learner = supervised(net, tx, spec, guard=guard)
  guard_enters, guard_leaves = learner.edge("enter"), learner.edge("exit")

  def init(key: Key) -> State:
    new = jax.vmap(lambda t: learner.init(jax.random.fold_in(key, t)))(jnp.arange(spec.T))
    first = take({name: new[name] for name in ("params", "collections", "past")}, jnp.int32(0))
    return State(opt_state=tx.init(first["params"]), **first, store=new["params"], store_collections=new["collections"])

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    params, collections = take((state.store, state.store_collections), view.t)
    state = state.replace(params=params, opt_state=tx.init(params), collections=collections)
    return guard_enters(key, state, view, clock)

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    return learner.step(At(key, clock, view), state, batch, alike=True)

  def leave(key: Key, state: State, view: View, clock: Clock) -> State:
    state = guard_leaves(key, state, view, clock)
    return state.replace(
      store=put(state.store, view.t, state.params),
      store_collections=put(state.store_collections, view.t, state.collections),
    )

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    def answer(own: Any, x: Array, slot: Array) -> Outputs:
      return learner.apply(state.replace(params=own[0], collections=own[1]), x, slot)

    return apply_by_slot(answer, (state.store, state.store_collections), x, slot)

  def report(state: State) -> dict[str, Array]:
    return {"parameters": parameters(state.store), "memory_bytes": amount(learner.memory_bytes)}

  together = learner.block(step, fit.batch_size, fit.block)
  phase = Phase("fit", fit.batch_size, step, epochs=fit.epochs, block=together, enter=enter, exit=leave)
  return Method(init, (phase,), apply, report, told=True, needs_boundaries=True)
