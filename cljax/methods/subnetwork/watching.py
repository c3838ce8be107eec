"""A mixture of subnetworks on a stream that does not tell where tasks begin (Kulkarni, 3.1).

Each batch is looked at before it is learnt from. One that fires is held back; a few in a row are the onset of a task:
the task before is consolidated from a window of its recent rows, and the rows held back decide where the new one goes.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from cljax.data.sample import fetch, shuffle
from cljax.methods.subnetwork.keywords import Onsets, Selection, Training
from cljax.methods.subnetwork.mixture import Mixture, MixtureState, each_loss
from cljax.methods.subnetwork.saliency import mean_score
from cljax.nets.taps import derivatives
from cljax.ops import onset, recent, trees
from cljax.ops.losses import mean_live
from cljax.ops.masking import Layers
from cljax.pieces.replay import memory_bytes
from cljax.types import Array, Batch, Clock, Info, Key, Phase, Place, View

PARTS = 256  # of the stream, for the record of the loss


@flax.struct.dataclass
class Watching:
  """What finding boundaries needs, beside the mixture."""

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
  """Of the method."""

  learner: MixtureState  # the expert in training and the finished slots
  watching: Any  # Watching, or None where boundaries are given


class HiddenBoundaries(NamedTuple):
  """One loop over the whole stream, which notices where a task begins and then does what `GivenBoundaries` does."""

  mixture: Mixture
  training: Training
  selection: Selection
  onsets: Onsets

  def phases(self) -> tuple[Phase, ...]:
    """The only one."""
    training = self.training
    return (Phase("fit", training.batch_size, self.step, training.epochs, enter=self.enter, exit=self.leave),)

  def init(self) -> Watching:
    """Nothing seen."""
    own, none = self.onsets, jnp.full(2 * self.mixture.layout.slots, -1, jnp.int32)
    return Watching(
      onset.quiet(own.onset_history, own.onset_batches),
      recent.empty(own.window),
      recent.nothing_held(own.decide_after, self.training.batch_size),
      jnp.array(False),
      jnp.zeros(self.mixture.layout.slots, jnp.int32),
      jnp.int32(0),
      none,
      none,
      jnp.int32(0),
      jnp.zeros(PARTS),
      jnp.zeros(PARTS),
      jnp.zeros(PARTS),
    )

  def report(self, watching: Watching) -> dict[str, Array]:
    """What is told of the search for boundaries."""
    places = watching.window.place.row.size + watching.held.place.row.size
    return {
      "memory_bytes": trees.amount(memory_bytes(self.mixture.spec, places)),
      "onset_step": watching.decided,
      "onset_slot": watching.slots,
      "fired": watching.fired,
      "trace_loss": watching.loss / jnp.maximum(watching.seen, 1),
      "trace_score": watching.score,
    }

  def measure(self, learner: MixtureState, batch: Batch) -> tuple[Array, Info]:
    """(what is watched [], loss and accuracy) of a batch not learnt from yet, through what answers for the slot."""

    def losses(out):
      labels = out.logits.argmax(axis=-1) if self.onsets.pseudo_labels else batch.y
      return jnp.where(batch.live, each_loss(out.logits, labels), 0)

    params, x = self.mixture.function(learner, learner.slot), self.mixture.rescaled(batch.x)
    found = derivatives(self.mixture.net, {"params": params}, x, jnp.zeros(len(x), jnp.int32), losses)
    out = found.out
    info = {
      "loss": mean_live(each_loss(out.logits, batch.y), batch.live),
      "accuracy": mean_live(out.logits.argmax(axis=-1) == batch.y, batch.live),
    }
    if self.onsets.watch == "loss":
      return mean_live(losses(out), batch.live), info
    inside = self.mask_before(learner) if self.onsets.watch == "last" else None
    return mean_score(found, self.mixture.layout.order[:-1], batch.live, inside), info

  def mask_before(self, learner: MixtureState) -> Layers:
    """The mask of the last finished task of the expert in training; all weights until there is one."""
    subnets = learner.subnets
    before = subnets.done & (subnets.expert_of == subnets.expert_of[learner.slot])
    last = jnp.where(before, jnp.arange(len(before)), -1).max()
    return {name: mask | (last < 0) for name, mask in self.mixture.layout.mask(subnets, last).items()}

  def consolidate(self, key: Key, learner: MixtureState, window: recent.Window, view: View) -> MixtureState:
    """The subnetwork of the slot in training, from the window of its rows (3.2)."""
    mixture, batch_size = self.mixture, self.training.batch_size
    size, row = window.place.row.shape[0], window.place.row
    score_rows = min(self.selection.score_rows, size)
    latest = (window.count - 1 - jnp.arange(score_rows)) % size
    scored = fetch(view, Place(*(leaf[latest] for leaf in window.place)))
    kept, live = recent.picked(window, row % 10 == 0, score_rows)
    scored = scored._replace(live=jnp.arange(len(latest)) < window.count)
    learner = mixture.select(learner, scored, fetch(view, kept)._replace(live=live))
    rest, live = recent.picked(window, row % 10 != 0, size)
    rows = live.sum()

    def one(i, learner):
      position = i * batch_size + jnp.arange(batch_size)
      order = jax.random.fold_in(key, position[0] // jnp.maximum(rows, 1))
      at = shuffle(order, position % jnp.maximum(rows, 1), rows)
      return mixture.learn(learner, fetch(view, Place(*(leaf[at] for leaf in rest))), True)[0]

    learner = jax.lax.fori_loop(0, jnp.where(rows > 0, self.selection.retrain, 0), one, learner)
    return mixture.freeze(learner, scored)

  def end_task(self, key: Key, state: State, view: View) -> State:
    """Consolidates the task in training, unless nothing was trained."""
    learner, watching = state.learner, state.watching
    slot, rows = learner.slot, jnp.minimum(watching.window.count, self.onsets.window)

    def do(learner):
      return self.consolidate(key, learner, watching.window, view), watching.rows.at[slot].set(rows)

    rests = learner.reused | learner.full
    learner, rows_of = jax.lax.cond(rests, lambda learner: (learner, watching.rows), do, learner)
    return State(learner, watching.replace(rows=rows_of))

  def change_task(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The end of one task and the beginning of another, which the rows held back decide."""
    ending, beginning = jax.random.split(key)
    state = self.end_task(ending, state, view)
    watching, subnets, own = state.watching, state.learner.subnets, self.onsets
    place = Place(*(leaf.reshape(-1) for leaf in watching.held.place))
    live = watching.held.live & (jnp.arange(own.decide_after) < watching.held.count)[:, None]
    first = fetch(view, place)._replace(live=live.reshape(-1))
    expert_of, number = subnets.expert_of, jnp.arange(len(subnets.done))
    later = subnets.done & (expert_of == expert_of[:, None]) & (number > number[:, None])
    reopens = (watching.rows < own.window) & ~later.any(axis=1)
    learner = self.mixture.decide(beginning, state.learner, first, watching.turns, reopens)
    watching = watching.replace(
      detector=onset.quiet(own.onset_history, own.onset_batches),
      window=recent.empty(own.window),
      pending=jnp.array(False),
      turns=watching.turns + 1,
      decided=watching.decided.at[watching.turns].set(clock.total, mode="drop"),
      slots=watching.slots.at[watching.turns].set(learner.slot, mode="drop"),
    )
    return State(learner, watching)

  def release(self, state: State, view: View, count: Array) -> State:
    """Learns from the first `count` batches that are held, in order."""

    def one(i, state):
      place = Place(*(leaf[i] for leaf in state.watching.held.place))
      live = state.watching.held.live[i]
      learner, _ = self.mixture.learn(state.learner, fetch(view, place)._replace(live=live), False)
      window = recent.push(state.watching.window, place, live)
      return State(learner, state.watching.replace(window=window))

    state = jax.lax.fori_loop(0, count, one, state)
    left = jnp.where(count > 0, 0, state.watching.held.count).astype(jnp.int32)
    held = state.watching.held.replace(count=left)
    return state.replace(watching=state.watching.replace(held=held))

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The stream begins with slot 0 on expert 0."""
    subnets = state.learner.subnets
    subnets = subnets.replace(expert_of=subnets.expert_of.at[0].set(0))
    return state.replace(learner=state.learner.replace(subnets=subnets, slot=jnp.int32(0)))

  def notice(
    self, learner: MixtureState, detector: onset.Detector, value: Array, loss: Array
  ) -> tuple[onset.Detector, Array, Array]:
    """(the detector, whether this batch fires [], whether it completes an onset []); a known task is watched by its
    loss, any other by what is watched."""
    own = self.onsets
    by_score = onset.watch(detector, value, factor=own.onset_factor, quantile=own.onset_quantile, warmup=own.warmup)
    by_loss = onset.watch_level(detector, loss, self.mixture.sharing.recurring_below)
    detector, fires, noticed = trees.where(learner.reused, by_loss, by_score)
    return detector, fires & ~learner.full, noticed & ~learner.full

  def step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """Looks at a batch, holds it back, and learns from what is held unless it fires or an onset is to be decided."""
    learner, watching = state.learner, state.watching
    value, info = self.measure(learner, batch)
    detector, fires, noticed = self.notice(learner, watching.detector, value, info["loss"])
    held = recent.hold(watching.held, batch.place, batch.live)
    pending = watching.pending | noticed
    deciding = pending & (held.count >= self.onsets.decide_after)
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
      deciding,
      lambda state: self.change_task(key, state, view, clock),
      lambda state: state,
      State(learner, watching),
    )
    state = self.release(state, view, jnp.where(deciding | ~(fires | pending), held.count, 0))
    return state, info | {"score": value, "fires": fires.astype(jnp.float32)}

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The stream ends: what is noticed is decided, what is held is learnt, and the last task is consolidated."""
    deciding, ending = jax.random.split(key)
    state = jax.lax.cond(
      state.watching.pending,
      lambda state: self.change_task(deciding, state, view, clock),
      lambda state: state,
      state,
    )
    return self.end_task(ending, self.release(state, view, state.watching.held.count), view)
