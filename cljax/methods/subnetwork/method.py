"""A mixture of experts by subnetwork selection and masking (Kulkarni, "Continual Learning with Mixture of Experts using
subnetwork selection and masking", https://github.com/HARSHALK2598/Continual-Learning-with-Mixture-of-Experts), with the
boundaries of tasks given or detected.

For each task: a known one is recognised by the loss of its own subnetwork and reused (3.3); else the gradient scores
of its first rows on each expert are compared with those of its tasks, and an expert with a constructive overlap and
room is shared, or a new one opened (3.4). The expert trains while the subnetworks of its earlier tasks stay frozen.
Then the scores of the weights choose the task's own subnetwork (3.2), which is trained again by itself and frozen. At
test time the subnetwork that fits the batch best is taken (3.5): no label is needed.

Where the stream does not tell its boundaries, one loop does the same: batches whose score is far above the recent ones
are held back, and a few of them in a row are the onset of a task (3.1). The one before is then consolidated from a
window of recent rows, and the rows held back decide where the new one goes.

The paper leaves much open, and its code more. Here the update is held back and not the gradient (Adam's momentum would
move the weights); a task's function is its own mask together with all that was frozen before it, so that it stays the
same for ever; and the paper's least loss at test time, which needs labels, is the least entropy by default.
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.data.sample import fetch
from cljax.declared import declared, free, one_of
from cljax.errors import ConfigError
from cljax.methods.subnetwork.keywords import Onsets, Room, Selection, Sharing, Training
from cljax.methods.subnetwork.mixture import Mixture, mixture
from cljax.methods.subnetwork.watching import HiddenBoundaries, State
from cljax.ops.infer import RULES
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Place, Spec, View


@declared("method", given=3)
def subnetwork(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  training: Training = Training(),
  room: Room = Room(),
  centred: Annotated[bool, free("the net sees (x - .5) / .5, else x")] = True,
  selection: Selection = Selection(),
  sharing: Sharing = Sharing(),
  infer: Annotated[
    str,
    one_of((*RULES, "oracle"), "how the task is found from a batch, see `ops.infer`; oracle: it has to be given"),
  ] = "entropy",
  onsets: Onsets = Onsets(),
) -> Method:
  """Experts that share their weights among tasks by frozen subnetworks.

  The net has layers under one head over all classes.

  Raises:
    ConfigError: fewer shares than the net has layers, a stream with several heads, or a decision before an onset
      can have been noticed.
  """
  if spec.heads != 1 or not hasattr(net, "heads") or hasattr(net, "experts"):
    raise ConfigError(
      "config.method.name='subnetwork' needs dense layers under one head over all classes: set "
      "config.stream.name='subsets' and config.net.name='mlp'"
    )
  if onsets.decide_after < onsets.onset_batches:
    raise ConfigError(
      f"config.method.decide_after={onsets.decide_after}: at least config.method.onset_batches={onsets.onset_batches}"
    )
  room = room._replace(slots=room.slots or (spec.T if spec.boundaries else 2 * spec.T))
  decisions = spec.T if spec.boundaries else 2 * room.slots
  mix = mixture(net, tx, spec, room, decisions, selection, sharing, centred, infer)
  hidden = None if spec.boundaries else HiddenBoundaries(mix, training, selection, onsets)
  phases = hidden.phases() if hidden else GivenBoundaries(mix, training, selection).phases()

  def init(key: Key) -> State:
    return State(mix.init(key), hidden.init() if hidden else None)

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    return mix.answer(state.learner, x, slot)

  def report(state: State) -> dict[str, Array]:
    return mix.report(state.learner) | (hidden.report(state.watching) if hidden else {})

  def faults(state: State) -> dict[str, Array]:
    crowded = (state.learner.subnets.expert_of >= 0).all()
    return {"method.experts": state.learner.full & ~crowded, "method.slots": state.learner.full & crowded}

  return Method(init, phases, apply, report, faults, slots=room.slots, infers=infer != "oracle", branches=True)


class GivenBoundaries(NamedTuple):
  """Decides (3.3, 3.4), trains, selects the subnetwork (3.2), trains it alone, freezes it."""

  mixture: Mixture
  training: Training
  selection: Selection

  def phases(self) -> tuple[Phase, ...]:
    """The whole expert, then the subnetwork alone where it is trained again."""
    batch_size, epochs, retrain = *self.training, self.selection.retrain
    leave = self.select if retrain else self.select_and_freeze
    fit = Phase("fit", batch_size, partial(self.step, False), epochs=epochs, enter=self.decide, exit=leave)
    alone = Phase("retrain", batch_size, partial(self.step, True), steps=retrain, exit=self.freeze)
    return (fit, alone) if retrain else (fit,)

  def first_rows(self, view: View, wanted: Array | None = None) -> Batch:
    """The first `score_rows` rows of the task, of those that are wanted [Nmax]."""
    idx, size = view.tasks.train.idx[view.t], view.tasks.train.idx.shape[-1]
    live = jnp.arange(size) < view.tasks.train.count[view.t]
    live = live if wanted is None else wanted & live
    at = jnp.flatnonzero(live, size=min(self.selection.score_rows, size), fill_value=size)
    batch = fetch(view, Place(jnp.full_like(at, view.t), idx[jnp.minimum(at, size - 1)]))
    return batch._replace(live=at < size)

  def decide(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The edge that finds the task's slot and expert."""
    none = jnp.zeros_like(state.learner.subnets.done)
    return state.replace(learner=self.mixture.decide(key, state.learner, self.first_rows(view), view.t, none))

  def step(self, alone: bool, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """A step of the whole expert, or of the subnetwork `alone`."""
    learner, info = self.mixture.learn(state.learner, batch, alone)
    return state.replace(learner=learner), info

  def select(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The edge that selects the task's own weights; every tenth row judges the choice."""
    judged = self.first_rows(view, view.tasks.train.idx[view.t] % 10 == 0)
    return state.replace(learner=self.mixture.select(state.learner, self.first_rows(view), judged))

  def freeze(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The edge that freezes them."""
    return state.replace(learner=self.mixture.freeze(state.learner, self.first_rows(view)))

  def select_and_freeze(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Both at once, where nothing is trained again."""
    return self.freeze(key, self.select(key, state, view, clock), view, clock)
