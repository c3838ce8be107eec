"""Winning subnetworks (Kang et al. 2022, https://proceedings.mlr.press/v162/kang22b.html): masks learnt with weights.

Every weight of a kernel has a score, and a task computes with the share c of each layer that scores highest, its mask
m. Weights and scores are learnt together, the scores by the straight-through derivative of m. Weights in M, the union
of the masks of earlier tasks, may be in m too, and stay as they are:

  w <- w - rate dL/dw (1 - M),  s <- s - rate dL/dm

At a task's end its mask is kept, a bit a weight, and its answers keep their bits, whatever the optimizer. Heads are
each a task's own and have no masks; one head for all tasks is a layer as the others are. What is no kernel is learnt in
the first task and then stays, as does the one set of a net's statistics.
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.declared import above, declared, free, one_of
from cljax.nets.modes import at_rest, in_training
from cljax.ops.slots import by_slot
from cljax.ops.trees import parameters
from cljax.pieces.descent import descend
from cljax.pieces.learner import Passes, supervised
from cljax.pieces.owners import first_owners
from cljax.pieces.scores import ByPath, Scored, drawn, kernels, no_masks, straight_through, winners, within
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@declared("method", given=3)
def wsn(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  passes: Passes = Passes(),
  winning_share: Annotated[Array | float, above(0, "c, of each layer; published are .03 to .7", 1)] = 0.5,
  carry_scores: Annotated[
    bool, free("from task to task, as in the paper's algorithm; else each draws them anew")
  ] = True,
  scored_by: Annotated[
    str, one_of(("size", "value"), "what of a score counts; its size in the authors' code")
  ] = "size",
) -> Method:
  """Weights and masks together; the optimizer begins anew with each task."""
  learner = supervised(net, tx, spec)

  def ranks(scores: ByPath) -> ByPath:
    return jax.tree.map(jnp.abs, scores) if scored_by == "size" else scores

  def init(key: Key) -> Scored:
    own = learner.init(key)
    found = drawn(jax.random.fold_in(key, 1), kernels(own["params"], spec))
    own["opt_state"] = tx.init({"net": own["params"], "scores": found})
    return Scored(**own, scores=found, bits=no_masks(found, spec.T), finished=jnp.int32(0))

  def enter(key: Key, state: Scored, view: View, clock: Clock) -> Scored:
    found = state.scores if carry_scores else drawn(key, state.scores)
    return state.replace(scores=found, opt_state=tx.init({"net": state.params, "scores": found}))

  def step(key: Key, state: Scored, batch: Batch, clock: Clock, view: View) -> tuple[Scored, Info]:
    def loss(moving: Any, batch: Batch) -> tuple[Array, Any]:
      ranked = ranks(moving["scores"])
      params = within(moving["net"], straight_through(winners(ranked, winning_share), ranked))
      given = net, params, state.collections, batch.x, batch.task, key, batch.live
      out, moved = in_training(*given, still=view.t > 0)
      value, info = learner.judged(out, batch)
      return value, (info, moved)

    owner = jax.tree.map(lambda owner: owner != view.t, first_owners(state.params, spec))
    held = unflatten_dict(flatten_dict(owner, sep="/") | state.union(), sep="/")
    moving, frozen = {"net": state.params, "scores": state.scores}, {"net": held, "scores": False}
    moving, opt_state, _, (info, collections) = descend(tx, loss, moving, state.opt_state, batch, frozen=frozen)
    after = {"params": moving["net"], "scores": moving["scores"], "opt_state": opt_state, "collections": collections}
    return state.replace(**after), info

  def leave(key: Key, state: Scored, view: View, clock: Clock) -> Scored:
    return state.ended(view.t, winners(ranks(state.scores), winning_share))

  def apply(state: Scored, x: Array, slot: Array) -> Outputs:
    now = winners(ranks(state.scores), winning_share)
    return by_slot(lambda t: at_rest(net, state.params_of(t, now), state.collections, x, slot), spec.T, slot)

  def report(state: Scored) -> dict[str, Array]:
    used = sum(mask.sum() for mask in state.union().values()) / parameters(state.scores)
    return {"parameters": parameters(state.params), "memory_bytes": jnp.int32(0), "used": used}

  phase = Phase("fit", passes.batch_size, step, epochs=passes.epochs, enter=enter, exit=leave)
  return Method(init, (phase,), apply, report, told=True, needs_boundaries=True)
