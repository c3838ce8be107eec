"""Supermasks in superposition (Wortsman et al. 2020, https://arxiv.org/abs/2006.14769): a mask a task, fixed weights.

No weight is ever trained. Each kernel W holds +c and -c at random, c = sqrt(2 / inputs), and a task t learns scores s,
one a weight, whose mask M_t are those of 0 and more (or the share of each layer of largest size), by the
straight-through derivative:

  y = f(x, W * M_t),  s <- s - rate dL/dM

A finished task's mask is kept, a bit a weight, so that its answers keep their bits. Which of k tasks a batch is from is
found without a label: in the superposition of all masks the entropy H of the answers is lowered by giving more to the
right one.

  p(alpha) = f(x, W * sum_i alpha_i M_i),  alpha_i = 1 / k
  one-shot: the task is argmin_i dH(p(alpha)) / dalpha_i
  binary: the half of the tasks with the lower slopes stays, with equal alphas again, until there is one

Spare logits that no row is of compete in the loss and count in H; with few classes the slopes say little without them.

Heads are each a task's own and are trained, and in a superposition they are superposed as the masks are; one head for
all tasks is a layer as the others are. Biases and normalisations stay as they begin; of a net's statistics those of the
first task stay.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.declared import above, at_least, declared, one_of
from cljax.errors import ConfigError
from cljax.nets.heads import MOST_UNITS, own_head, with_head
from cljax.nets.modes import at_rest, in_training
from cljax.nets.own import check_heads
from cljax.ops.infer import entropy_slopes
from cljax.ops.masks import ranked
from cljax.ops.slots import by_slot
from cljax.ops.trees import parameters
from cljax.pieces.descent import descend
from cljax.pieces.learner import Passes, supervised
from cljax.pieces.owners import first_owners
from cljax.pieces.scores import ByPath, Scored, drawn, kernels, no_masks, straight_through, winners, within
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


def signed_constants(params: Any, found: ByPath) -> Any:
  """The params with kernels of +c and -c, as their signs are."""
  fixed = {}
  for path, leaf in found.items():
    size = (2 * leaf.shape[-1] / leaf.size) ** 0.5
    fixed[path] = jnp.where(leaf < 0, -size, size).astype(leaf.dtype)
  return unflatten_dict(flatten_dict(params, sep="/") | fixed, sep="/")


def narrowed(slopes: Callable[[Array], Array], live: Array, kind: str) -> Array:
  """[] int32 the task that is left of the live ones [T], -1 where none is.

  Args:
    slopes: live [T] -> [T] dH/dalpha in the superposition of those.
    kind: `oneshot`, the lowest slope; `binary`, the lower half again and again.
  """
  tasks = len(live)
  for _ in range(1 if kind == "oneshot" else (tasks - 1).bit_length()):
    staying = 1 if kind == "oneshot" else (live.sum() + 1) // 2
    live &= ranked(jnp.where(live, -slopes(live), -jnp.inf)) < staying
  return jnp.where(live.any(), live.argmax(), -1).astype(jnp.int32)


def slopes_at(net: nn.Module, spec: Spec, state: Scored, x: Array, live: Array) -> Array:
  """[T] dH/dalpha of the answers to x [B, ...] in the superposition of the live tasks [T]."""

  def function(t: Array) -> Any:
    """What task t computes with, its head in the place of the first."""
    params = within(state.params, state.mask(t))
    if spec.heads == 1:
      return params
    own = own_head(params["head"], t, spec.C)
    return params | {"head": with_head(params["head"], own, jnp.int32(0), spec.C)}

  def logits(params: Any) -> Array:
    return at_rest(net, params, state.collections, x, jnp.zeros(len(x), jnp.int32)).logits

  return entropy_slopes(function, logits, live)


def task_of(net: nn.Module, spec: Spec, state: Scored, x: Array, kind: str) -> Array:
  """[B] int32 the finished task that the rows x [B, ...] are taken for, all the same."""
  live = jnp.arange(spec.T) < state.finished
  return jnp.full(len(x), narrowed(partial(slopes_at, net, spec, state, x), live, kind))


def widened(net: nn.Module, spec: Spec, spare: int) -> tuple[nn.Module, Spec]:
  """(net, spec) with so many more logits a head.

  Raises:
    ConfigError: heads of tasks that are not known, or spare logits for a net without the field `classes`.
  """
  if spare and not hasattr(net, "classes"):
    raise ConfigError(
      f"config.method.spare_logits={spare} widens the net's heads, and this net has no field `classes`: set "
      "spare_logits=0, or put the part below its Outputs under the library's heads, cljax.headed(net, spec)"
    )
  spec = spec._replace(C=spec.C + spare)
  net = net.clone(classes=spec.C) if spare else net
  if spec.heads > 1:
    check_heads(net, spec)
  return net, spec


class Masking(NamedTuple):
  """What a task's scores make of its mask."""

  masked_by: Annotated[
    str, one_of(("sign", "share"), "what is in a mask: scores of 0 and more, or the `winning_share` by their size")
  ] = "sign"
  winning_share: Annotated[Array | float, above(0, "of each layer, where masks have a share", 1)] = 0.5

  def ranks(self, scores: ByPath) -> ByPath:
    """By which a mask is chosen, and through which its derivative goes."""
    return scores if self.masked_by == "sign" else jax.tree.map(jnp.abs, scores)

  def chosen(self, ranks: ByPath) -> ByPath:
    """The masks, bool."""
    if self.masked_by == "share":
      return winners(ranks, self.winning_share)
    return {path: rank >= 0 for path, rank in ranks.items()}


@declared("method", given=3)
def supsup(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  passes: Passes = Passes(batch_size=128),
  masking: Masking = Masking(),
  spare_logits: Annotated[
    int,
    at_least(0, "outputs beside the classes that no row is of, which tell tasks apart; published are 490", MOST_UNITS),
  ] = 0,
  infer: Annotated[
    str,
    one_of(("oracle", "oneshot", "binary"), "how the task is found from a batch; oracle: it has to be given"),
  ] = "oracle",
) -> Method:
  """Masks over a network at random; scores and the optimizer begin anew with each task.

  Raises:
    ConfigError: see `widened`.
  """
  C = spec.C
  net, spec = widened(net, spec, spare_logits)
  learner = supervised(net, tx, spec)

  def moving(params: Any, scores: ByPath) -> dict[str, Any]:
    return {"scores": scores} | ({"head": params["head"]} if spec.heads > 1 else {})

  def init(key: Key) -> Scored:
    own = learner.init(key)
    found = kernels(own["params"], spec)
    scores, own["params"] = drawn(jax.random.fold_in(key, 1), found), signed_constants(own["params"], found)
    own["opt_state"] = tx.init(moving(own["params"], scores))
    return Scored(**own, scores=scores, bits=no_masks(found, spec.T), finished=jnp.int32(0))

  def enter(key: Key, state: Scored, view: View, clock: Clock) -> Scored:
    scores = drawn(key, state.scores)
    return state.replace(scores=scores, opt_state=tx.init(moving(state.params, scores)))

  def step(key: Key, state: Scored, batch: Batch, clock: Clock, view: View) -> tuple[Scored, Info]:
    def loss(moved: Any, batch: Batch) -> tuple[Array, Any]:
      ranks = masking.ranks(moved["scores"])
      whole = state.params | {name: leaf for name, leaf in moved.items() if name == "head"}
      params = within(whole, straight_through(masking.chosen(ranks), ranks))
      given = net, params, state.collections, batch.x, batch.task, key, batch.live
      out, collections = in_training(*given, still=view.t > 0)
      competing = jnp.pad(batch.classes, ((0, 0), (0, spare_logits)), constant_values=True)
      value, info = learner.judged(out, batch._replace(classes=competing))
      return value, (info, collections)

    before = moving(state.params, state.scores)
    others = jax.tree.map(lambda owner: owner != view.t, first_owners(state.params, spec))
    frozen = {name: False if name == "scores" else others[name] for name in before}
    after, opt_state, _, (info, collections) = descend(tx, loss, before, state.opt_state, batch, frozen=frozen)
    params = state.params | {name: leaf for name, leaf in after.items() if name == "head"}
    return state.replace(params=params, scores=after["scores"], opt_state=opt_state, collections=collections), info

  def leave(key: Key, state: Scored, view: View, clock: Clock) -> Scored:
    return state.ended(view.t, masking.chosen(masking.ranks(state.scores)))

  def apply(state: Scored, x: Array, slot: Array | None) -> Outputs:
    now = masking.chosen(masking.ranks(state.scores))
    slot = task_of(net, spec, state, x, infer) if slot is None else slot
    out = by_slot(lambda t: at_rest(net, state.params_of(t, now), state.collections, x, slot), spec.T, slot)
    return out._replace(logits=out.logits[:, :C], task=slot)

  def report(state: Scored) -> dict[str, Array]:
    used = sum(mask.sum() for mask in state.union().values()) / parameters(state.scores)
    return {"parameters": parameters(state.params), "memory_bytes": jnp.int32(0), "used": used}

  phase = Phase("fit", passes.batch_size, step, epochs=passes.epochs, enter=enter, exit=leave)
  return Method(init, (phase,), apply, report, infers=infer != "oracle", told=True, needs_boundaries=True)
