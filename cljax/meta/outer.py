"""The outer loop: segments one after the other in one compiled scan, episodes begun anew inside it.

A segment ends an episode where its last loss passes the threshold, where the episode's steps are reached, or where a
number is not finite; then the update of theta is left out too. An episode of several new tasks goes on to the next one
instead, with the networks and the rule's memory as they are, but for numbers that are not finite. Where too many
episodes in a row end in their first segment, the next one lives to its last step whatever the threshold.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cljax.declared import above, at_least
from cljax.meta.curriculum import Curriculum
from cljax.meta.episodes import Episodes
from cljax.meta.unroll import Nets, Pair
from cljax.ops.trees import where
from cljax.pieces.rule import Rule, Theta, init_theta, largest_cell, learned
from cljax.types import Array, Key

SEGMENT, EPISODE = range(2)  # purposes of the seed's key


class Adam(NamedTuple):
  """How theta moves: Adam at a constant rate, then along a cosine; the gradient's norm is clipped."""

  lr: Annotated[float, above(0, "of Adam on theta")] = 1e-3
  clip: Annotated[float, at_least(0, "the most that the gradient's norm may be; 0 leaves it")] = 2.0
  constant: Annotated[float, at_least(0, "share of the training at the whole rate; 1 is all", 1)] = 0.4
  last: Annotated[float, at_least(0, "share of the rate that is left at the end", 1)] = 0.05

  def transform(self, moves: int) -> optax.GradientTransformation:
    """For so many moves of theta."""
    whole = round(self.constant * moves)
    cosine = optax.cosine_decay_schedule(self.lr, max(moves - whole, 1), self.last)
    rate = optax.join_schedules([optax.constant_schedule(self.lr), cosine], [whole])
    clip = [optax.clip_by_global_norm(self.clip)] if self.clip else []
    return optax.chain(*clip, optax.adam(rate if self.constant < 1 else self.lr))


class Place(NamedTuple):
  """Where the training stands; all []."""

  episode: Array  # int32
  task: Array  # int32, the new task, 1, 2, ...
  step: Array  # int32, inner steps in this task of this episode
  short: Array  # int32, episodes in a row that ended in their first segment
  skipped: Array  # int32, segments whose update was left out
  largest: Array  # float32, the largest |c| that any memory has held


def blank_place() -> Place:
  """Before the first segment."""
  zero = jnp.int32(0)
  return Place(zero, jnp.int32(1), zero, zero, zero, jnp.float32(0))


class Training(NamedTuple):
  """All that goes from segment to segment."""

  theta: Any  # what is trained: the rule's theta, or a network
  opt_state: Any
  nets: Any  # teacher, student and memory; () where a network is trained
  place: Place
  unit: Array  # [] of thresholds


class Outer(NamedTuple):
  """Segments of one configuration; every method is pure."""

  pair: Pair
  curriculum: Curriculum
  tx: optax.GradientTransformation
  head: str  # path of the net's heads
  tasks: int  # K, the old one among them
  classes: int  # C

  def begin(self, key: Key, theta: Theta, episodes: Episodes) -> Training:
    """Before the first segment."""
    place = blank_place()
    unit = self.loss_of_sgd(key, episodes) if self.curriculum.unit == "sgd" else jnp.ones(())
    return Training(theta, self.tx.init(theta), self.fresh(key, theta, episodes, place.episode), place, unit)

  def loss_of_sgd(self, key: Key, episodes: Episodes) -> Array:
    """[] L in the last tenth of the steps of an episode whose student takes plain SGD steps."""
    plain = Rule("static")
    pair, steps = self.pair._replace(rule=plain), self.curriculum.steps
    theta = init_theta(key, pair.tensors, plain)
    place = blank_place()

    def step(nets: Nets, number: Array) -> tuple[Nets, Array]:
      batch = jax.tree.map(lambda leaf: leaf[0], self.batches(key, episodes, place, number, 1))
      return pair.step(theta, nets, batch)

    begun = self._replace(pair=pair).fresh(key, theta, episodes, place.episode)
    return jax.lax.scan(step, begun, jnp.arange(steps))[1][-max(steps // 10, 1) :].mean()

  def fresh(self, key: Key, theta: Theta, episodes: Episodes, episode: Array) -> Nets:
    """The networks at the start of an episode."""
    params = episodes.start(episode_key(key, episode), self.head, self.classes)
    memory = learned(theta, 0.0, self.pair.tensors, self.pair.rule).init(params)
    return Nets(params, params, memory)

  def batches(self, key: Key, episodes: Episodes, place: Place, number: Array, length: int) -> Any:
    """[S, ...] the batches of a segment by its number."""
    classes = episodes.classes(episode_key(key, place.episode), (self.tasks, self.classes))
    keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, SEGMENT), number), length)
    size = (self.pair.inner.old_batch, self.pair.inner.new_batch)
    return jax.vmap(lambda key: episodes.batch(key, classes, place.task, size))(keys)

  def segment(
    self, key: Key, episodes: Episodes, length: int, state: Training, number: Array
  ) -> tuple[Training, dict[str, Array]]:
    """One segment of `length` inner steps, and what is told of it."""
    theta, opt_state, nets, place, unit = state
    batches = self.batches(key, episodes, place, number, length)
    by = self.pair.by_segment if self.pair.inner.update == "segment" else self.pair.by_step
    moved, moved_state, after, losses, norm = by(theta, opt_state, nets, batches, self.move)
    cell = largest_cell(after.memory)
    finite = jnp.isfinite(losses).all() & jnp.isfinite(norm) & jnp.isfinite(cell)
    theta, opt_state = where(finite, (moved, moved_state), (theta, opt_state))
    threshold = unit * self.curriculum.threshold_at(place.episode, place.task)
    over = losses[-1] > threshold
    there, goes_on, anew = self.follow(place, length, over, finite)
    largest = jnp.where(finite, jnp.maximum(place.largest, cell), place.largest)
    blank = self.fresh(key, theta, episodes, there.episode)
    told = {
      "loss": losses.mean(),
      "last": losses[-1],
      "threshold": threshold,
      "episode": place.episode,
      "task": place.task,
      "step": place.step + length,
      "restarts": anew | goes_on,
      "finite": finite,
      "patient": over & self.lives_on(place),
      "cell": cell,
      "norm": norm,
    }
    return Training(theta, opt_state, where(anew, blank, after), there._replace(largest=largest), unit), told

  def move(self, theta: Theta, opt_state: Any, slope: Theta) -> tuple[Theta, Any]:
    """Theta after one step of its optimizer."""
    updates, opt_state = self.tx.update(slope, opt_state, theta)
    return optax.apply_updates(theta, updates), opt_state

  def lives_on(self, place: Place) -> Array:
    """[] whether this episode lives to its last step, after too many that ended in their first segment."""
    return place.short >= self.curriculum.patience

  def follow(self, place: Place, length: int, over: Array, finite: Array) -> tuple[Place, Array, Array]:
    """(where the next segment stands, whether it is in the episode's next task, whether in a new episode).

    Args:
      over: [] bool, whether the last loss passed the threshold.
    """
    step, lives_on = place.step + length, self.lives_on(place)
    ends = (over & ~lives_on) | (step >= self.curriculum.steps) | ~finite
    goes_on = ends & finite & (place.task < self.tasks - 1)
    anew = ends & ~goes_on
    first = (place.step == 0) & (place.task == 1)
    short = jnp.where(first & over, place.short + 1, jnp.where(first, 0, place.short))
    found = place._replace(
      episode=place.episode + anew,
      task=jnp.where(anew, 1, place.task + goes_on),
      step=jnp.where(ends, 0, step),
      short=jnp.where(lives_on, jnp.where(anew, 0, place.short), short),
      skipped=place.skipped + ~finite,
    )
    return found, goes_on, anew


def compiled_segments(outer: Any, length: int, count: int) -> Callable[..., tuple[Training, dict[str, Array]]]:
  """(key, episodes, state, first number) -> (state after `count` segments, what is told of each [count])."""

  @jax.jit
  def run(key: Key, episodes: Episodes, state: Training, first: Array):
    return jax.lax.scan(
      lambda state, number: outer.segment(key, episodes, length, state, number), state, first + jnp.arange(count)
    )

  return run


def episode_key(key: Key, episode: Array) -> Key:
  """The key of an episode."""
  return jax.random.fold_in(jax.random.fold_in(key, EPISODE), episode)
