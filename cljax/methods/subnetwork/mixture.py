"""A mixture of experts whose tasks own frozen subnetworks: what one expert in training and the finished slots can do.

This is the part of subnetwork selection (Kulkarni) that does not depend on how the boundaries of tasks are known.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.errors import choose
from cljax.methods.subnetwork.saliency import KINDS, dense_scores, kernels
from cljax.methods.subnetwork.subnets import Subnets, book, by_layer, masked
from cljax.ops import masks, trees
from cljax.ops.infer import RULES, Known, infer
from cljax.ops.losses import mean_live, moments
from cljax.ops.masking import Layers, largest, most, select
from cljax.ops.slots import by_slot, over_live
from cljax.ops.trees import parameters, put, take
from cljax.types import Array, Batch, Info, Key, Outputs, Spec


@flax.struct.dataclass
class Learner:
  params: Any  # of the expert in training, whole
  opt_state: Any
  subnets: Subnets
  frozen: Layers  # bool, weights of the expert in training that belong to a finished slot
  sees: Layers  # bool, those of them that the slot in training uses
  own: Layers  # bool, the mask of the slot in training
  slot: Array  # [] int32, in training
  reused: Array  # [] bool, the task was known: nothing is trained
  full: Array  # [] bool, a new expert or slot was needed and there was none
  overlap: Array  # [R, S] of each task's first rows with each slot, NaN where it was not asked
  deviation: Array  # [R, S]
  typical: dict[str, Array]  # [S, 2, ...] mean and variance of a finished slot's `looks` over rows of its task


class Rules(NamedTuple):
  """Hyperparameters, as `methods.subnetwork` documents them."""

  experts: int
  slots: int
  decisions: int  # that are noted
  centred: bool
  score: str
  select: str
  fractions: Sequence[float]
  above: Array | float
  keep_accuracy: Array | float
  recurring_below: Array | float
  overlap_from: Array | float
  deviation_up_to: Array | float
  capacity_hidden: Array | float
  capacity_output: Array | float
  forward_from: str
  bias: str
  infer: str


class Mixture(NamedTuple):
  order: tuple[str, ...]  # the dense layers from first to last
  seen: Callable[[Array], Array]  # pictures as the net sees them
  judge: Callable[[Any, Batch], tuple[Array, Array]]  # params -> (loss, accuracy)
  function_of: Callable[[Learner, Array], Any]
  mask_of: Callable[[Learner, Array], Layers]
  init: Callable[[Key], Learner]
  decide: Callable[[Key, Learner, Batch, Array, Array], Learner]
  learn: Callable[[Learner, Batch, bool], tuple[Learner, Info]]
  choose_own: Callable[[Learner, Batch, Batch], Learner]
  finish: Callable[[Learner, Batch], Learner]
  answer: Callable[[Learner, Array, Array | None], Outputs]
  report: Callable[[Learner], dict[str, Array]]


class Home(NamedTuple):
  """Where a new task goes."""

  known: Array  # [] bool, a finished slot is that task
  shared: Array  # [] bool, an expert with a similar task has room
  full: Array  # [] bool, a new expert or slot is needed and there is none
  slot: Array  # [] int32
  expert: Array  # [] int32, the last one where it is full


def home(subnets: Subnets, losses: Array, fit: Array, share: Array, rules: Rules) -> Home:
  """A known task first, then the most similar task whose expert has room, else a new expert (3.3, 3.4).

  Args:
    losses: [S] of the new task through each finished slot.
    fit: [S] its overlap with each similar task, -1 for the others.
    share: [E, layers] what would be frozen of each expert.
  """
  done, expert_of = subnets.done, subnets.expert_of
  losses = jnp.where(done, losses, jnp.inf)
  known = losses.min() <= rules.recurring_below
  limits = jnp.array([rules.capacity_hidden] * (share.shape[1] - 1) + [rules.capacity_output])
  room = (share <= limits).all(axis=1)
  good = done & (fit >= 0) & room[expert_of]
  free = (expert_of >= 0).sum()
  expert = jnp.where(good.any(), expert_of[jnp.where(good, fit, -1).argmax()], expert_of.max() + 1)
  full = ~known & ((expert >= rules.experts) | (free >= rules.slots))
  slot = jnp.where(known, losses.argmin(), free).astype(jnp.int32)
  expert = jnp.where(known, expert_of[slot], jnp.minimum(expert, rules.experts - 1)).astype(jnp.int32)
  return Home(known, good.any(), full, slot, expert)


def mixture(net: nn.Module, tx: optax.GradientTransformation, spec: Spec, rules: Rules) -> Mixture:
  """The functions of such a mixture.

  Raises:
    ConfigError: an unknown choice, or shares that do not fit the net.
  """
  choose("config.method.score", rules.score, KINDS)
  choose("config.method.forward_from", rules.forward_from, ("all_frozen", "similar"))
  choose("config.method.bias", rules.bias, ("first", "per_task"))
  choose("config.method.infer", rules.infer, (*RULES, "oracle"))
  net, E, S, R = net.clone(parent=None), rules.experts, rules.slots, rules.decisions

  def seen(x: Array) -> Array:
    return (x - 0.5) / 0.5 if rules.centred else x

  def run(params: Any, x: Array) -> Any:
    return net.apply({"params": params}, seen(x), jnp.zeros(len(x), jnp.int32))

  def looks(params: Any, x: Array) -> dict[str, Array]:
    return {"features": run(params, x).features, "pictures": seen(x).reshape(len(x), -1)}

  def fresh(key: Key) -> Any:
    return net.init(key, jnp.zeros((1, *spec.x_shape)), jnp.zeros(1, jnp.int32))["params"]

  own_biases = rules.bias == "per_task"
  pages = book(fresh, E, S, lambda name, l, size: most(rules.select, rules.fractions, l, size), own_biases)
  order, counts = pages.order, pages.room

  def each_loss(logits: Array, y: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)

  def judge(params: Any, batch: Batch) -> tuple[Array, Array]:
    """(loss, accuracy) over the live rows, all classes competing."""
    logits = run(params, batch.x).logits
    right = mean_live(logits.argmax(axis=-1) == batch.y, batch.live)
    return mean_live(each_loss(logits, batch.y), batch.live), right

  def scores_of(params: Any, x: Array, y: Array | None, live: Array) -> Layers:
    """Scores of all weights over the live rows; their own answers are the labels where none are given."""

    def losses(out):
      labels = out.logits.argmax(axis=-1) if y is None else y
      return jnp.where(live, each_loss(out.logits, labels), 0)

    found = dense_scores(net, params, seen(x), jnp.zeros(len(x), jnp.int32), losses, rules.score)
    share = live.sum() / len(live)
    return {name: leaf / jnp.where(share > 0, share, 1) for name, leaf in found.items()}

  def z_of(params: Any, batch: Batch) -> Layers:
    return {name: masks.normalised(leaf) for name, leaf in scores_of(params, batch.x, batch.y, batch.live).items()}

  def function_of(state: Learner, s: Array) -> Any:
    """A slot's weights: its frozen subnetwork, or the whole net while it is in training."""
    return trees.where(state.subnets.done[s], pages.net_of(state.subnets, s), state.params)

  def init(key: Key) -> Learner:
    subnets = pages.init(key)
    params, off = take(subnets.store, jnp.int32(0)), jnp.array(False)
    none = pages.joined(subnets, subnets.done)
    unasked = jnp.full((R, S), jnp.nan, jnp.float32)
    slot, found = jnp.int32(-1), looks(params, jnp.zeros((1, *spec.x_shape)))
    typical = {name: jnp.zeros((S, 2, leaf.shape[1])) for name, leaf in found.items()}
    return Learner(params, tx.init(params), subnets, none, none, none, slot, off, off, unasked, unasked, typical)

  def decide(key: Key, state: Learner, batch: Batch, turn: Array, reopens: Array) -> Learner:
    """A known task, a shared expert or a new one (3.3, 3.4).

    Args:
      batch: the first rows of the task.
      turn: [] number of this decision.
      reopens: [S] bool, slots that go on learning when they are recognised.
    """
    subnets = state.subnets
    done = asked = subnets.done
    losses = over_live(lambda s: judge(pages.net_of(subnets, s), batch)[0], done)
    overlap, deviation, share = pages.compare(subnets, lambda params: z_of(params, batch), lambda z: largest(z, counts))
    similar = (overlap >= rules.overlap_from) & (deviation <= rules.deviation_up_to)
    known, shared, full, slot, expert = home(subnets, losses, jnp.where(similar, overlap, -1), share, rules)
    params = trees.where(known | shared, take(subnets.store, expert), fresh(key))
    opened = jnp.where(known | full, subnets.expert_of, subnets.expert_of.at[slot].set(expert, mode="drop"))
    again = known & reopens[slot]
    done = done & ~(again & (jnp.arange(S) == slot))
    sees = done & (opened == expert)
    if rules.forward_from == "similar":
      sees &= similar
    writes = jnp.where(full | (known & ~again), S, slot)
    subnets = subnets.replace(expert_of=opened, done=done, sees=subnets.sees.at[writes].set(sees, mode="drop"))
    return state.replace(
      params=params,
      opt_state=tx.init(params),
      subnets=subnets,
      frozen=pages.joined(subnets, pages.of_expert(subnets, expert)),
      sees=pages.joined(subnets, sees),
      slot=jnp.where(full, -1, slot).astype(jnp.int32),
      reused=known & ~again,
      full=full,
      overlap=state.overlap.at[turn].set(jnp.where(asked, overlap, jnp.nan), mode="drop"),
      deviation=state.deviation.at[turn].set(jnp.where(asked, deviation, jnp.nan), mode="drop"),
    )

  def learn(state: Learner, batch: Batch, alone: bool) -> tuple[Learner, Info]:
    """A step on the whole net, or on the task's subnetwork `alone`. Frozen weights keep their bits; so do the biases of
    an expert that has finished a task, unless each task has its own."""
    inside = {name: state.own[name] | state.sees[name] for name in order}

    def loss(params):
      value, right = judge(masked(params, inside) if alone else params, batch)
      return value, {"loss": value, "accuracy": right}

    grads, info = jax.grad(loss, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    later = pages.of_expert(state.subnets, state.subnets.expert_of[state.slot]).any()
    held = {name: state.frozen[name] | ~state.own[name] if alone else state.frozen[name] for name in order}
    rest = later & ~own_biases
    held = by_layer(lambda leaf, mask: mask, lambda path, leaf: jnp.broadcast_to(rest, leaf.shape), state.params, held)
    rests = state.reused | state.full | ~batch.live.any()
    params = trees.where(rests, state.params, masks.step_free(state.params, updates, held))
    return state.replace(params=params, opt_state=trees.where(rests, state.opt_state, opt_state)), info

  def choose_own(state: Learner, scored: Batch, kept: Batch) -> Learner:
    """The task's own subnetwork (3.2).

    Args:
      scored: the rows that score the weights.
      kept: the rows that judge a choice.
    """
    scores = scores_of(state.params, scored.x, scored.y, scored.live)

    def accuracy_of(own):
      return judge(masked(state.params, {name: own[name] | state.sees[name] for name in order}), kept)[1]

    means = jnp.array([scores[name].mean() for name in order])
    weights = kernels(state.params)  # where all gradients have underflown to zero, size ranks instead
    z = {name: jnp.where(means[l] > 0, scores[name], jnp.abs(weights[name])) for l, name in enumerate(order)}
    z = {name: masks.normalised(leaf) for name, leaf in z.items()}
    needed = rules.keep_accuracy * judge(state.params, kept)[1]
    own = select(rules.select, z, counts, above=rules.above, accuracy_of=accuracy_of, needed=needed)
    subnets = pages.write(state.subnets, state.slot, own, z, means)
    new = state.replace(subnets=subnets, own=own, opt_state=tx.init(state.params))
    return trees.where(state.reused | state.full, state, new)

  def finish(state: Learner, batch: Batch) -> Learner:
    """Freezes the slot's function, and keeps what is typical of the live rows of its task."""
    subnets = pages.freeze(state.subnets, state.slot, state.params)
    found = looks(pages.net_of(subnets, state.slot), batch.x)
    typical = put(state.typical, state.slot, {name: moments(leaf, batch.live) for name, leaf in found.items()})
    new = state.replace(subnets=subnets, typical=typical)
    return trees.where(state.reused | state.full, state, new)

  def answer(state: Learner, x: Array, slot: Array | None) -> Outputs:
    """Each row through its slot, or all through the one that the rows themselves point to (3.5)."""

    def summed(s):
      return sum(leaf.sum() for leaf in pages.stored(state.subnets, s).values())

    if slot is None:
      known = Known(
        live=state.subnets.done | (jnp.arange(S) == state.slot),
        done=state.subnets.done,
        net_of=lambda s: function_of(state, s),
        whole=lambda s: take(state.subnets.store, jnp.maximum(state.subnets.expert_of[s], 0)),
        logits=lambda params: run(params, x).logits,
        looks=lambda params: looks(params, x),
        typical=lambda s: take(state.typical, s),
        scores=lambda params: scores_of(params, x, None, jnp.ones(len(x), bool)),
        mask=lambda s: pages.mask_of(state.subnets, s),
        stored=summed,
        largest=lambda scores: largest(scores, counts),
      )
      slot = jnp.full(len(x), infer(rules.infer, known), jnp.int32)
    return by_slot(lambda s: run(function_of(state, s), x), S, slot)._replace(task=slot)

  def report(state: Learner) -> dict[str, Array]:
    share, sizes = pages.frozen_share(state.subnets), kernels(state.params)
    weights = jnp.array([sizes[name].size for name in order], jnp.float32)
    return {
      "parameters": parameters(state.subnets.store),
      "memory_bytes": jnp.int32(0),
      "mask_bytes": jnp.int32(sum(bits.nbytes for bits in state.subnets.bits.values())),
      "slot": state.slot,
      "expert": state.subnets.expert_of,
      "reused": state.reused,
      "frozen_share": share,  # [E, layers]
      "frozen_hidden": (share * weights)[:, :-1].sum(axis=1) / weights[:-1].sum(),  # [E] of all hidden weights
      "saturated": (state.subnets.done[:, None] & (state.subnets.means == 0)).any(axis=1),  # [S]
      "overlap": state.overlap,
      "deviation": state.deviation,
    }

  def mask_of(state: Learner, s: Array) -> Layers:
    return pages.mask_of(state.subnets, s)

  return Mixture(order, seen, judge, function_of, mask_of, init, decide, learn, choose_own, finish, answer, report)
