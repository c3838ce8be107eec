"""A mixture of subnetworks on a stream that does not tell where tasks begin (Kulkarni, 3.1).

Each batch is looked at before it is learnt from. One that fires is held back; a few in a row are the onset of a task:
the task before is consolidated from a window of its recent rows, and the rows held back decide where the new one goes.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.data.sample import fetch, shuffle
from cljax.methods.subnetwork.mixture import Learner, Mixture
from cljax.methods.subnetwork.saliency import mean_score, slopes
from cljax.ops import onset, recent, trees
from cljax.ops.losses import mean_live
from cljax.pieces.replay import memory_bytes
from cljax.types import Array, Batch, Clock, Info, Key, Phase, Place, Spec, View

PARTS = 256  # of the stream, for the record of the loss
WATCHED = ("scores", "last", "loss")


@flax.struct.dataclass
class Watching:
  """What finding boundaries needs, beside the learner."""

  detector: onset.Detector
  window: recent.Window  # rows that the slot in training has learnt from
  held: recent.Held  # batches not learnt from yet
  pending: Array  # [] bool, an onset was noticed and is not decided yet
  rows: Array  # [S] int32, of the window that a slot was consolidated from
  turns: Array  # [] int32, onsets decided
  decided: Array  # [R] int32, the step of each decision, -1 for none
  slots: Array  # [R] int32, the slot that it began
  fired: Array  # [] int32, batches that fired
  seen: Array  # [P] batches in each P-th part of the stream
  loss: Array  # [P] sum of their losses
  score: Array  # [P] the largest of what was watched


@flax.struct.dataclass
class State:
  learner: Learner  # the expert in training and the finished slots
  watching: Any  # Watching, or None where boundaries are given


class Watch(NamedTuple):
  """Hyperparameters of finding boundaries, as `subnetwork` documents them."""

  kind: str
  pseudo_labels: bool
  factor: Array | float
  quantile: Array | float
  history: int
  batches: int
  warmup: int
  decide_after: int
  window: int
  recurring_below: Array | float


def nothing_seen(watch: Watch, slots: int, batch_size: int) -> Watching:
  none = jnp.full(2 * slots, -1, jnp.int32)
  return Watching(
    onset.quiet(watch.history, watch.batches),
    recent.empty(watch.window),
    recent.nothing_held(watch.decide_after, batch_size),
    jnp.array(False),
    jnp.zeros(slots, jnp.int32),
    jnp.int32(0),
    none,
    none,
    jnp.int32(0),
    jnp.zeros(PARTS),
    jnp.zeros(PARTS),
    jnp.zeros(PARTS),
  )


def told(watching: Watching, spec: Spec) -> dict[str, Array]:
  """What is reported of the search for boundaries."""
  places = watching.window.place.row.size + watching.held.place.row.size
  return {
    "memory_bytes": jnp.int32(memory_bytes(spec, places)),
    "onset_step": watching.decided,
    "onset_slot": watching.slots,
    "fired": watching.fired,
    "trace_loss": watching.loss / jnp.maximum(watching.seen, 1),
    "trace_score": watching.score,
  }


def detected(
  mix: Mixture, net: nn.Module, watch: Watch, batch_size: int, score_rows: int, retrain: int
) -> tuple[Phase, ...]:
  """One loop over the whole stream, which notices where a task begins (3.1) and then does what `given` does."""
  hidden = mix.order[:-1]

  def look(learner: Learner, batch: Batch) -> tuple[Array, Info]:
    """(what is watched [], loss and accuracy) of a batch not learnt from yet, through what answers for the slot."""
    params = mix.function_of(learner, learner.slot)

    def each_loss(out, labels):
      return optax.softmax_cross_entropy_with_integer_labels(out.logits, labels)

    def losses(out):
      labels = out.logits.argmax(axis=-1) if watch.pseudo_labels else batch.y
      return jnp.where(batch.live, each_loss(out, labels), 0)

    slot = jnp.zeros(len(batch.y), jnp.int32)
    out, inputs, found = slopes(net, params, mix.seen(batch.x), slot, losses)
    info = {
      "loss": mean_live(each_loss(out, batch.y), batch.live),
      "accuracy": mean_live(out.logits.argmax(axis=-1) == batch.y, batch.live),
    }
    if watch.kind == "loss":
      return mean_live(losses(out), batch.live), info
    inside = None
    if watch.kind == "last":  # all weights until a task of this expert has a mask
      before = learner.subnets.done & (learner.subnets.expert_of == learner.subnets.expert_of[learner.slot])
      last = jnp.where(before, jnp.arange(len(before)), -1).max()
      inside = {name: mask | (last < 0) for name, mask in mix.mask_of(learner, last).items()}
    return mean_score(inputs, found, hidden, batch.live, inside), info

  def consolidate(key: Key, learner: Learner, window: recent.Window, view: View) -> Learner:
    """The subnetwork of the slot in training, from the window of its rows (3.2)."""
    size, row = window.place.row.shape[0], window.place.row
    latest = (window.count - 1 - jnp.arange(min(score_rows, size))) % size
    scored = fetch(view, Place(*(leaf[latest] for leaf in window.place)))
    kept, live = recent.picked(window, row % 10 == 0, min(score_rows, size))
    scored = scored._replace(live=jnp.arange(len(latest)) < window.count)
    learner = mix.choose_own(learner, scored, fetch(view, kept)._replace(live=live))
    rest, live = recent.picked(window, row % 10 != 0, size)
    rows = live.sum()

    def one(i, learner):
      position = i * batch_size + jnp.arange(batch_size)
      order = jax.random.fold_in(key, position[0] // jnp.maximum(rows, 1))
      at = shuffle(order, position % jnp.maximum(rows, 1), rows)
      return mix.learn(learner, fetch(view, Place(*(leaf[at] for leaf in rest))), True)[0]

    learner = jax.lax.fori_loop(0, jnp.where(rows > 0, retrain, 0), one, learner)
    return mix.finish(learner, scored)

  def consolidated(key: Key, state: State, view: View) -> State:
    learner, watching = state.learner, state.watching
    slot, rows = learner.slot, jnp.minimum(watching.window.count, watch.window)

    def do(learner):
      return consolidate(key, learner, watching.window, view), watching.rows.at[slot].set(rows)

    skips = learner.reused | learner.full
    learner, rows_of = jax.lax.cond(skips, lambda learner: (learner, watching.rows), do, learner)
    return State(learner, watching.replace(rows=rows_of))

  def turn(key: Key, state: State, view: View, clock: Clock) -> State:
    """The end of one task and the beginning of another, which the rows held back decide."""
    ending, beginning = jax.random.split(key)
    state = consolidated(ending, state, view)
    watching, done = state.watching, state.learner.subnets.done
    place = Place(*(leaf.reshape(-1) for leaf in watching.held.place))
    live = watching.held.live & (jnp.arange(watch.decide_after) < watching.held.count)[:, None]
    first = fetch(view, place)._replace(live=live.reshape(-1))
    expert_of, number = state.learner.subnets.expert_of, jnp.arange(len(done))
    later = done & (expert_of == expert_of[:, None]) & (number > number[:, None])
    reopens = (watching.rows < watch.window) & ~later.any(axis=1)
    learner = mix.decide(beginning, state.learner, first, watching.turns, reopens)
    watching = watching.replace(
      detector=onset.quiet(watch.history, watch.batches),
      window=recent.empty(watch.window),
      pending=jnp.array(False),
      turns=watching.turns + 1,
      decided=watching.decided.at[watching.turns].set(clock.total, mode="drop"),
      slots=watching.slots.at[watching.turns].set(learner.slot, mode="drop"),
    )
    return State(learner, watching)

  def release(state: State, view: View, count: Array) -> State:
    """Learns from the first `count` batches that are held, in order."""

    def one(i, state):
      place = Place(*(leaf[i] for leaf in state.watching.held.place))
      live = state.watching.held.live[i]
      learner, _ = mix.learn(state.learner, fetch(view, place)._replace(live=live), False)
      window = recent.enter(state.watching.window, place, live)
      return State(learner, state.watching.replace(window=window))

    state = jax.lax.fori_loop(0, count, one, state)
    left = jnp.where(count > 0, 0, state.watching.held.count).astype(jnp.int32)
    held = state.watching.held.replace(count=left)
    return state.replace(watching=state.watching.replace(held=held))

  def begin(key: Key, state: State, view: View, clock: Clock) -> State:
    subnets = state.learner.subnets
    subnets = subnets.replace(expert_of=subnets.expert_of.at[0].set(0))
    return state.replace(learner=state.learner.replace(subnets=subnets, slot=jnp.int32(0)))

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    learner, watching = state.learner, state.watching
    value, info = look(learner, batch)
    by_score = onset.watch(watching.detector, value, factor=watch.factor, quantile=watch.quantile, warmup=watch.warmup)
    by_loss = onset.watch_level(watching.detector, info["loss"], watch.recurring_below)
    detector, fires, noticed = trees.where(learner.reused, by_loss, by_score)
    fires, noticed = fires & ~learner.full, noticed & ~learner.full
    held = recent.hold(watching.held, batch.place, batch.live)
    pending = watching.pending | noticed
    deciding = pending & (held.count >= watch.decide_after)
    part = clock.step * PARTS // clock.steps
    watching = watching.replace(
      detector=detector,
      held=held,
      pending=pending,
      fired=watching.fired + fires,
      seen=watching.seen.at[part].add(1),
      loss=watching.loss.at[part].add(info["loss"]),
      score=watching.score.at[part].max(value),
    )
    state = jax.lax.cond(
      deciding, lambda state: turn(key, state, view, clock), lambda state: state, State(learner, watching)
    )
    state = release(state, view, jnp.where(deciding | ~(fires | pending), held.count, 0))
    return state, info | {"score": value, "fires": fires.astype(jnp.float32)}

  def end(key: Key, state: State, view: View, clock: Clock) -> State:
    deciding, ending = jax.random.split(key)
    state = jax.lax.cond(
      state.watching.pending, lambda state: turn(deciding, state, view, clock), lambda state: state, state
    )
    return consolidated(ending, release(state, view, state.watching.held.count), view)

  return (Phase("fit", batch_size, step, epochs=1, enter=begin, exit=end),)
