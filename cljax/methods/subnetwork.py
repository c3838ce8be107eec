"""A mixture of experts by subnetwork selection and masking (Kulkarni), with the boundaries of tasks given.

For each task: a known one is recognised by the loss of its own subnetwork and reused (3.3); else the gradient scores
of its first rows on each expert are compared with those of its tasks, and an expert with a constructive overlap and
room is shared, or a new one opened (3.4). The expert trains while the subnetworks of its earlier tasks stay frozen.
Then the scores of the weights choose the task's own subnetwork (3.2), which is trained again by itself and frozen. At
test time the subnetwork whose answers have the least entropy over a batch is taken (3.5): no label is needed.

The paper leaves much open, and its code more. Here the update is held back and not the gradient (Adam's momentum would
move the weights); a task's function is its own mask together with all that was frozen before it, so that it stays the
same for ever; and the paper's least loss at test time, which needs labels, is the least entropy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.data.sample import fetch
from cljax.ops import masks
from cljax.ops.early import choose as either
from cljax.ops.losses import mean_live
from cljax.ops.saliency import KINDS, dense_scores
from cljax.ops.slots import by_slot, over_live, parameters, take
from cljax.ops.subnets import Layers, Subnets, book, by_layer, masked
from cljax.types import Array, Batch, Clock, ConfigError, Info, Key, Method, Outputs, Phase, Place, Spec, View, choose

LADDER = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)  # shares of a layer that `accuracy` tries


@flax.struct.dataclass
class State:
  params: Any  # of the expert in training, whole
  opt_state: Any
  subnets: Subnets
  frozen: Layers  # bool, weights of the expert in training that belong to a finished slot
  own: Layers  # bool, the mask of the slot in training
  slot: Array  # [] int32, in training
  reused: Array  # [] bool, the task was known: nothing is trained
  full: Array  # [] bool, a new expert was needed and there was none
  overlap: Array  # [T, S] of each task's first rows with each slot, NaN where it was not asked
  deviation: Array  # [T, S]


def subnetwork(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: int = 32,
  epochs: int = 5,
  experts: int = 4,
  centred: bool = True,
  score: str = "grad",
  score_rows: int = 512,
  select: str = "topk",
  fractions: Sequence[float] = (0.0255, 0.04, 0.1),
  above: float = 3.0,
  keep_accuracy: float = 0.97,
  retrain: int = 230,
  recurring_below: float = 0.8,
  overlap_from: float = 0.25,
  deviation_up_to: float = 2.0,
  capacity_hidden: float = 0.6,
  capacity_output: float = 0.9,
) -> Method:
  """Experts that share their weights among tasks by frozen subnetworks.

  Args:
    net: dense layers under one head over all classes.
    batch_size, epochs: of training the whole expert on a task.
    experts: room for so many; needing more stops the run.
    centred: the net sees (x - .5) / .5, else x.
    score: of a weight, the mean over rows of `grad` |dL/dw|, `taylor` |w dL/dw|, `fisher` (dL/dw)^2.
    score_rows: the first rows of a task that are scored, and that decide which expert takes it.
    select: a layer's weights for a task: `topk`, the largest share `fractions` (a number a layer); `threshold`, scores
      over `above` times the layer's mean, at most half of it; `accuracy`, the smallest share of `LADDER` that keeps
      `keep_accuracy` of the whole net's accuracy on the task's rows.
    retrain: steps that train the chosen weights alone; 0 takes them as they are.
    recurring_below: nats; a task whose first rows have at most this loss through a known subnetwork is that task again.
    overlap_from, deviation_up_to: of the scores with some task of an expert, over its hidden layers, to share it.
    capacity_hidden, capacity_output: the most that may be frozen of a hidden and of the last layer to share it.

  Raises:
    ConfigError: an unknown choice, shares that do not fit the net, or a stream with several heads.
  """
  choose("config.method.select", select, ("topk", "threshold", "accuracy"))
  choose("config.method.score", score, KINDS)
  if spec.heads != 1 or not hasattr(net, "heads"):
    raise ConfigError(
      "config.method.name='subnetwork' needs dense layers under one head over all classes: set "
      "config.stream.name='subsets' and config.net.name='mlp'"
    )
  net, S, T, E = net.clone(parent=None), spec.T, spec.T, experts

  def seen(x: Array) -> Array:
    return (x - 0.5) / 0.5 if centred else x

  def run(params: Any, x: Array) -> Any:
    return net.apply({"params": params}, seen(x), jnp.zeros(len(x), jnp.int32))

  def fresh(key: Key) -> Any:
    return net.init(key, jnp.zeros((1, *spec.x_shape)), jnp.zeros(1, jnp.int32))["params"]

  def most(name: str, l: int, size: int) -> int:
    if select != "topk":
      return -(-size // 2)
    if l >= len(fractions) or not 0 < fractions[l] <= 1:
      raise ConfigError(f"config.method.fractions={tuple(fractions)}: a share in (0, 1] for each dense layer is needed")
    return max(1, round(fractions[l] * size))

  pages = book(fresh, E, S, most)
  order, sizes = pages.order, pages.sizes
  counts = {name: most(name, l, sizes[name]) for l, name in enumerate(order)}

  def each_loss(logits: Array, batch: Batch) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)

  def judge(params: Any, batch: Batch) -> tuple[Array, Array]:
    """(loss, accuracy) over the live rows, all classes competing."""
    logits = run(params, batch.x).logits
    return mean_live(each_loss(logits, batch), batch.live), mean_live(logits.argmax(axis=-1) == batch.y, batch.live)

  def scores_of(params: Any, batch: Batch) -> Layers:
    """Normalised scores of all weights on some rows."""

    def losses(out):
      return jnp.where(batch.live, each_loss(out.logits, batch), 0)

    found = dense_scores(net, params, seen(batch.x), jnp.zeros(len(batch.x), jnp.int32), losses, score)
    return {name: masks.normalised(found[name]) for name in order}

  def first_rows(view: View) -> Batch:
    place = jnp.arange(min(score_rows, view.tasks.train.idx.shape[-1]))
    batch = fetch(view, Place(jnp.full_like(place, view.t), view.tasks.train.idx[view.t, place]))
    return batch._replace(live=place < view.tasks.train.count[view.t])

  def largest(z: Layers) -> Layers:
    return {name: masks.top_mask(z[name], counts[name]) for name in order}

  def chosen(params: Any, z: Layers, frozen: Layers, batch: Batch) -> Layers:
    """The task's own subnetwork (3.2)."""
    if select == "topk":
      return largest(z)
    rank = {name: masks.ranked(z[name]) for name in order}
    if select == "threshold":
      return {name: (z[name] > above) & (rank[name] < counts[name]) for name in order}
    needed = keep_accuracy * judge(params, batch)[1]
    best = largest(z)
    for share in LADDER[::-1]:
      mask = {name: rank[name] < max(1, round(share * sizes[name])) for name in order}
      right = judge(masked(params, {name: mask[name] | frozen[name] for name in order}), batch)[1]
      best = either(right >= needed, mask, best)
    return best

  def init(key: Key) -> State:
    subnets = pages.init(key)
    params, off = take(subnets.store, jnp.int32(0)), jnp.array(False)
    none = pages.joined(subnets, subnets.done)
    unasked = jnp.full((T, S), jnp.nan, jnp.float32)
    return State(params, tx.init(params), subnets, none, none, jnp.int32(-1), off, off, unasked, unasked)

  def decide(key: Key, state: State, view: View, clock: Clock) -> State:
    """A known task, a shared expert or a new one (3.3, 3.4)."""
    batch, subnets = first_rows(view), state.subnets
    done, expert_of = subnets.done, subnets.expert_of
    losses = over_live(lambda s: judge(pages.net_of(subnets, s), batch)[0], done)
    losses = jnp.where(done, losses, jnp.inf)
    known = losses.min() <= recurring_below
    overlap, deviation, share = pages.compare(subnets, lambda params: scores_of(params, batch), largest)
    limits = jnp.array([capacity_hidden] * (len(order) - 1) + [capacity_output])
    room = (share <= limits).all(axis=1)
    good = done & (overlap >= overlap_from) & (deviation <= deviation_up_to) & room[expert_of]
    new = expert_of.max() + 1
    expert = jnp.where(good.any(), expert_of[jnp.where(good, overlap, -1).argmax()], new)
    full = ~known & (expert >= E)
    slot = jnp.where(known, losses.argmin(), (expert_of >= 0).sum()).astype(jnp.int32)
    expert = jnp.where(known, expert_of[slot], jnp.minimum(expert, E - 1)).astype(jnp.int32)
    params = either(known | good.any(), take(subnets.store, expert), fresh(key))
    opened = jnp.where(known | full, expert_of, expert_of.at[slot].set(expert))
    return state.replace(
      params=params,
      opt_state=tx.init(params),
      subnets=subnets.replace(expert_of=opened),
      frozen=pages.joined(subnets, pages.of_expert(subnets, expert)),
      slot=jnp.where(full, -1, slot).astype(jnp.int32),
      reused=known,
      full=full,
      overlap=state.overlap.at[view.t].set(jnp.where(done, overlap, jnp.nan)),
      deviation=state.deviation.at[view.t].set(jnp.where(done, deviation, jnp.nan)),
    )

  def stepping(alone: bool) -> Callable[..., tuple[State, Info]]:
    """A step on the whole net, or on the task's subnetwork `alone`. Frozen weights keep their bits; so do the biases of
    an expert that has finished a task."""

    def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
      inside = {name: state.own[name] | state.frozen[name] for name in order}

      def loss(params):
        value, right = judge(masked(params, inside) if alone else params, batch)
        return value, {"loss": value, "accuracy": right}

      grads, info = jax.grad(loss, has_aux=True)(state.params)
      updates, opt_state = tx.update(grads, state.opt_state, state.params)
      later = pages.of_expert(state.subnets, state.subnets.expert_of[state.slot]).any()
      held = {name: state.frozen[name] | ~state.own[name] if alone else state.frozen[name] for name in order}
      held = by_layer(lambda leaf, mask: mask, lambda leaf: jnp.broadcast_to(later, leaf.shape), state.params, held)
      params = masks.step_free(state.params, updates, held)
      rests = state.reused | state.full | ~batch.live.any()
      params = either(rests, state.params, params)
      return state.replace(params=params, opt_state=either(rests, state.opt_state, opt_state)), info

    return step

  def choose_own(key: Key, state: State, view: View, clock: Clock) -> State:
    batch = first_rows(view)
    z = scores_of(state.params, batch)
    own = chosen(state.params, z, state.frozen, batch)
    subnets = pages.write(state.subnets, state.slot, own, z)
    new = state.replace(subnets=subnets, own=own, opt_state=tx.init(state.params))
    return either(state.reused | state.full, state, new)

  def finish(key: Key, state: State, view: View, clock: Clock) -> State:
    new = state.replace(subnets=pages.freeze(state.subnets, state.slot, state.params))
    return either(state.reused | state.full, state, new)

  def choose_and_finish(key: Key, state: State, view: View, clock: Clock) -> State:
    return finish(key, choose_own(key, state, view, clock), view, clock)

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    subnets, done = state.subnets, state.subnets.done
    if slot is None:
      entropy = over_live(lambda s: mean_entropy(run(pages.net_of(subnets, s), x).logits), done)
      best = jnp.where(done, entropy, jnp.inf).argmin()
      slot = jnp.full(len(x), jnp.where(done.any(), best, -1), jnp.int32)
    return by_slot(lambda s: run(pages.net_of(subnets, s), x), S, slot)._replace(task=slot)

  def report(state: State) -> dict[str, Array]:
    def share(e):
      held = pages.joined(state.subnets, pages.of_expert(state.subnets, e))
      return jnp.array([held[name].mean() for name in order])

    return {
      "parameters": parameters(state.subnets.store),
      "memory_bytes": jnp.int32(0),
      "mask_bytes": jnp.int32(sum(bits.nbytes for bits in state.subnets.bits.values())),
      "slot": state.slot,
      "expert": state.subnets.expert_of,
      "reused": state.reused,
      "frozen_share": jax.vmap(share)(jnp.arange(E)),  # [E, layers]
      "overlap": state.overlap,
      "deviation": state.deviation,
    }

  def faults(state: State) -> dict[str, Array]:
    return {"method.experts": state.full}

  fit = Phase(
    "fit",
    batch_size,
    stepping(False),
    epochs=epochs,
    enter=decide,
    exit=choose_own if retrain else choose_and_finish,
  )
  alone = Phase("retrain", batch_size, stepping(True), steps=retrain, exit=finish)
  return Method(init, (fit, alone) if retrain else (fit,), apply, report, faults, slots=S, infers=True, branches=True)


def mean_entropy(logits: Array) -> Array:
  """[] mean over rows of the entropy of softmax(logits), nats."""
  log = jax.nn.log_softmax(logits, axis=-1)
  return -(jnp.exp(log) * log).sum(axis=-1).mean()
