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

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.declared import above, at_least, declared, free, one_of
from cljax.nets.modes import at_rest, in_training
from cljax.ops.masks import pack, top_with_ties, unpack
from cljax.ops.slots import by_slot
from cljax.ops.trees import parameters, where
from cljax.pieces.descent import descend
from cljax.pieces.learner import Trained, supervised
from cljax.pieces.owners import first_owners, is_shared
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View

ByPath = dict[str, Array]  # of the kernels that have masks


@flax.struct.dataclass
class State(Trained):
  """The network and its subnetworks; `opt_state` is of {"net": params, "scores": scores}."""

  scores: Any = None  # like the kernels
  bits: Any = None  # [T, bytes] uint8 by kernel: the packed masks of finished tasks, zeros of the others
  finished: Any = None  # [] int32 tasks

  def union(self) -> ByPath:
    """M, bool, of the finished tasks."""
    return {
      path: unpack(jnp.bitwise_or.reduce(bits, axis=0), self.scores[path].shape) for path, bits in self.bits.items()
    }


def kernels(params: Any, spec: Spec) -> ByPath:
  """The kernels that have masks."""
  owners = flatten_dict(first_owners(params, spec), sep="/")
  return {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if is_shared(owners[path], leaf)}


def drawn(key: Key, found: ByPath) -> ByPath:
  """Scores, uniform within 1 / sqrt(inputs) of 0."""
  scores = {}
  for k, (path, leaf) in enumerate(found.items()):
    most = (leaf.shape[-1] / leaf.size) ** 0.5
    scores[path] = jax.random.uniform(jax.random.fold_in(key, k), leaf.shape, minval=-most, maxval=most)
  return scores


def winners(ranks: ByPath, share: Array | float) -> ByPath:
  """The masks, bool, of the `share` of each kernel that ranks highest; of one weight at least."""
  return {path: top_with_ties(rank, jnp.maximum(jnp.round(share * rank.size), 1)) for path, rank in ranks.items()}


def within(params: Any, masks: ByPath) -> Any:
  """The params with their kernels times the masks."""
  return unflatten_dict(
    {path: leaf * masks[path] if path in masks else leaf for path, leaf in flatten_dict(params, sep="/").items()},
    sep="/",
  )


@declared("method", given=3)
def wsn(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: Annotated[int, at_least(1, "rows a step")] = 64,
  epochs: Annotated[int, at_least(1, "passes over each task")] = 5,
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

  def init(key: Key) -> State:
    own = learner.init(key)
    found = drawn(jax.random.fold_in(key, 1), kernels(own["params"], spec))
    own["opt_state"] = tx.init({"net": own["params"], "scores": found})
    bits = {path: jnp.zeros((spec.T, -(-leaf.size // 8)), jnp.uint8) for path, leaf in found.items()}
    return State(**own, scores=found, bits=bits, finished=jnp.int32(0))

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    found = state.scores if carry_scores else drawn(key, state.scores)
    return state.replace(scores=found, opt_state=tx.init({"net": state.params, "scores": found}))

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    def loss(moving: Any, batch: Batch) -> tuple[Array, Any]:
      ranked = ranks(moving["scores"])
      through = jax.tree.map(lambda rank: rank - jax.lax.stop_gradient(rank), ranked)  # 0, with a derivative of 1
      masks = jax.tree.map(jnp.add, winners(ranked, winning_share), through)
      params = within(moving["net"], masks)
      out, moved = in_training(net, params, state.collections, batch.x, batch.task, key, batch.live)
      value, info = learner.judged(out, batch)
      return value, (info, moved)

    owner = jax.tree.map(lambda owner: owner != view.t, first_owners(state.params, spec))
    held = unflatten_dict(flatten_dict(owner, sep="/") | state.union(), sep="/")
    moving, frozen = {"net": state.params, "scores": state.scores}, {"net": held, "scores": False}
    moving, opt_state, _, (info, collections) = descend(tx, loss, moving, state.opt_state, batch, frozen=frozen)
    kept = where(view.t > 0, state.collections, collections)
    return state.replace(params=moving["net"], scores=moving["scores"], opt_state=opt_state, collections=kept), info

  def leave(key: Key, state: State, view: View, clock: Clock) -> State:
    masks = winners(ranks(state.scores), winning_share)
    bits = {path: bits.at[view.t].set(pack(masks[path])) for path, bits in state.bits.items()}
    return state.replace(bits=bits, finished=view.t + 1)

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    now = winners(ranks(state.scores), winning_share)  # of the task in training, and of those to come

    def of_task(t: Array) -> Outputs:
      masks = {
        path: jnp.where(t < state.finished, unpack(state.bits[path][t], mask.shape), mask) for path, mask in now.items()
      }
      return at_rest(net, within(state.params, masks), state.collections, x, slot)

    return by_slot(of_task, spec.T, slot)

  def report(state: State) -> dict[str, Array]:
    used = sum(mask.sum() for mask in state.union().values()) / parameters(state.scores)
    return {"parameters": parameters(state.params), "memory_bytes": jnp.int32(0), "used": used}

  phase = Phase("fit", batch_size, step, epochs=epochs, enter=enter, exit=leave)
  return Method(init, (phase,), apply, report, needs_boundaries=True)
