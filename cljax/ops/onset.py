"""Noticing that a new task has begun: a score that stays far above what it was.

A batch fires when its score exceeds `factor` times a quantile of recent scores; `needed` firing batches in a row are an
onset. Scores of firing batches, and of the latest `needed` ones, stay out of the history: a batch that is half new
would raise the bar and hide the onset that it belongs to.
"""

import chex
import flax.struct
import jax.numpy as jnp

from cljax.types import Array


@flax.struct.dataclass
class Detector:
  """What a search for onsets has seen."""

  history: Array  # [W] scores, NaN where there is none yet
  waiting: Array  # [m] the latest scores that did not fire, oldest first, NaN where there is none
  count: Array  # [] int32 scores that ever entered the history
  age: Array  # [] int32 batches since the last reset
  row: Array  # [] int32 firing batches in a row


def quiet(window: int, needed: int) -> Detector:
  """A detector that has seen nothing."""
  none = jnp.full(needed, jnp.nan, jnp.float32)
  return Detector(jnp.full(window, jnp.nan, jnp.float32), none, jnp.int32(0), jnp.int32(0), jnp.int32(0))


def watch(
  detector: Detector, score: Array, *, factor: Array | float, quantile: Array | float, warmup: int
) -> tuple[Detector, Array, Array]:
  """One batch's score.

  Args:
    score: [] at least 0; one that is not finite fires.
    factor, quantile: of the bar, factor * quantile(history).
    warmup: batches after a reset in which nothing fires.

  Returns:
    the detector, whether this batch fires [], and whether it completes an onset [].
  """
  chex.assert_rank([detector.history, detector.waiting, score], [1, 1, 0])
  chex.assert_type(score, float)
  needed = detector.waiting.shape[0]
  ready = (detector.age >= warmup) & (detector.count > 0)
  bar = factor * jnp.nanquantile(detector.history, quantile)
  fires = ready & ~(score <= bar)
  row = jnp.where(fires, detector.row + 1, 0).astype(jnp.int32)
  oldest = detector.waiting[0]
  enters = ~fires & ~jnp.isnan(oldest)
  at = detector.count % detector.history.shape[0]
  history = jnp.where(enters, detector.history.at[at].set(oldest), detector.history)
  pushed = jnp.concatenate([detector.waiting[1:], score[None].astype(jnp.float32)])
  waiting = jnp.where(fires, detector.waiting, pushed)
  count = detector.count + enters
  new = Detector(history, waiting, count.astype(jnp.int32), detector.age + 1, row)
  return new, fires, row >= needed


def watch_level(detector: Detector, score: Array, limit: Array | float) -> tuple[Detector, Array, Array]:
  """The same for a score with a known bar, without history or warm-up: a batch fires above `limit`."""
  chex.assert_rank([score, limit], 0)
  chex.assert_type(score, float)
  fires = ~(score <= limit)
  row = jnp.where(fires, detector.row + 1, 0).astype(jnp.int32)
  return detector.replace(row=row), fires, row >= detector.waiting.shape[0]
