"""Task-wise brute force: every configuration is trained from the state at the task's start, and the best by validation
rows is kept (Lee et al. 2021, section 4.5).

One phase is all trials one after the other, so an epoch of it is an epoch of some trial, and its `tick` ends trials.
The first task is searched as any other. The score of a trial is its best accuracy on the validation rows over its
epochs; what is kept of the winner, the first of equals, is its end.
"""

from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp

from cljax.loops import mean_over
from cljax.methods.lasem.em import EM, State
from cljax.ops.losses import hits
from cljax.ops.trees import where
from cljax.pieces.layered import params_of
from cljax.types import Array, Batch, Clock, Key, View


@flax.struct.dataclass
class Trials:
  """The trials of the task in training, and the scores of all tasks."""

  trial: Array  # [] int32 the configuration that is being trained
  epochs: Array  # [] int32 epochs of it so far
  winner: Array  # [] int32 the best finished one
  best: Any  # its params
  valid: Array  # [T, K] best accuracy on validation rows of each trial; -1 before any
  blind: Array  # [] bool, always false: a field of older checkpoints


class Search(NamedTuple):
  """The edges of a phase that tries all configurations."""

  em: EM

  def init(self, key: Key) -> State:
    """Before the first task."""
    state = self.em.init(key)
    none, T, K = jnp.int32(0), self.em.nets.spec.T, len(self.em.table)
    valid = jnp.full((T, K), -1.0)
    return state.replace(search=Trials(none, none, none, params_of(state.layers), valid, jnp.array(False)))

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Task t starts with the first configuration."""
    state = self.em.enter(key, state, view, clock)
    trials, none = state.search, jnp.int32(0)
    trials = trials.replace(trial=none, epochs=none, winner=none, best=params_of(state.layers))
    return state.replace(search=trials, given=state.given.at[view.t].set(0))

  def accuracy(self, state: State, view: View) -> Array:
    """[] of the trial on the validation rows of task t."""
    params, config = params_of(state.layers), self.em.config(state)

    def right(batch: Batch) -> Array:
      logits = self.em.nets.top(params["work"], self.em.nets.features(params, batch.x, config)).logits
      return hits(logits, batch)

    return mean_over(right, view, view.tasks.valid)

  def tick(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """After an epoch: the trial is scored, and where it was its last the next one begins from the task's start."""
    trials, t = state.search, view.t
    k, done = trials.trial, trials.epochs + 1
    valid = trials.valid.at[t, k].max(self.accuracy(state, view))
    over = done == self.em.epochs
    earlier = jnp.where(jnp.arange(len(self.em.table)) < k, valid[t], -1).max()
    better = over & (valid[t, k] > earlier)
    trials = trials.replace(
      trial=jnp.where(over, jnp.minimum(k + 1, len(self.em.table) - 1), k),
      epochs=jnp.where(over, 0, done),
      winner=jnp.where(better, k, trials.winner),
      best=where(better, params_of(state.layers), trials.best),
      valid=valid,
    )
    return where(over, self.again(state, t), state).replace(search=trials, given=state.given.at[t].set(trials.trial))

  def again(self, state: State, t: Array) -> State:
    """Task t from its start."""
    layers = state.layers.replace(shared=state.layers.backup)
    layers = self.em.nets.begin(layers, t)
    return state.replace(layers=layers, opt_state=self.em.tx.init(params_of(layers)))

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The winner is committed."""
    best = state.search.best
    layers = state.layers.replace(shared=best["shared"], work=best["work"])
    state = state.replace(layers=layers, given=state.given.at[view.t].set(state.search.winner))
    return self.em.leave(key, state, view, clock)

  def report(self, state: State) -> dict[str, Array]:
    """What each task shares, and the scores of all its trials."""
    return self.em.report(state) | {"trial_valid": state.search.valid}
