"""Places of the recent past, for a method that is not told where tasks begin: a window, and batches held back."""

import chex
import flax.struct
import jax.numpy as jnp

from cljax.types import NONE, Array, Place


@flax.struct.dataclass
class Window:
  """The places of the newest rows."""

  place: Place  # [W] a ring
  count: Array  # [] int32 rows that ever entered since it was emptied


def empty(size: int) -> Window:
  """A window of `size` places."""
  return Window(Place(jnp.zeros(size, jnp.int32), jnp.zeros(size, jnp.int32)), jnp.int32(0))


def push(window: Window, place: Place, live: Array) -> Window:
  """The window with the live rows [B] of a batch in place of the oldest ones."""
  chex.assert_rank([*place, live], 1)
  chex.assert_type([*place, live], [int, int, bool])
  size = window.place.row.shape[0]
  order = jnp.cumsum(live) - 1
  at = jnp.where(live, (window.count + order) % size, NONE)
  ring = Place(*(old.at[at].set(new, mode="drop") for old, new in zip(window.place, place, strict=True)))
  return Window(ring, (window.count + live.sum()).astype(jnp.int32))


def inside(window: Window) -> Array:
  """[W] bool: entries of the ring that hold a place."""
  chex.assert_rank(window.count, 0)
  return jnp.arange(window.place.row.shape[0]) < window.count


def picked(window: Window, wanted: Array, size: int) -> tuple[Place, Array]:
  """(places [size], live [size]): the first `size` entries of the ring that are wanted [W] and hold a place."""
  chex.assert_equal_shape([wanted, window.place.row])
  chex.assert_type(wanted, bool)
  ring = window.place.row.shape[0]
  at = jnp.flatnonzero(wanted & inside(window), size=size, fill_value=ring)
  return Place(*(leaf[jnp.minimum(at, ring - 1)] for leaf in window.place)), at < ring


@flax.struct.dataclass
class Held:
  """Batches that wait until it is decided which task they belong to."""

  place: Place  # [H, B] batches in the order in which they came
  live: Array  # [H, B]
  count: Array  # [] int32 batches that are held


def nothing_held(batches: int, rows: int) -> Held:
  """Room for so many batches of so many rows."""
  zeros = jnp.zeros((batches, rows), jnp.int32)
  return Held(Place(zeros, zeros), jnp.zeros((batches, rows), bool), jnp.int32(0))


def hold(held: Held, place: Place, live: Array) -> Held:
  """One more batch; there must be room for it."""
  chex.assert_shape([*place, live], held.live.shape[1:])
  at = held.count
  stored = Place(*(old.at[at].set(new) for old, new in zip(held.place, place, strict=True)))
  return Held(stored, held.live.at[at].set(live), at + 1)
