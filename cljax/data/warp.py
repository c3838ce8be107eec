"""What a task does to its pictures: records of arrays that are applied to a batch, so that no picture is copied.

A warp is a NamedTuple of arrays with `__call__(x [B, height, width, channels] float32) -> the same shape`. All tasks of
a stream use one record, whose leaves stack on a leading T; None is the identity. One that draws for each picture has
`at_rows(x, row [B])` in its place, which is told the pictures' bank rows: a picture is the same at every visit. A new
warp is a new record with a place in `RANKS`; in `MOVES` where it only moves pixels about; in `SCALES` where it shows
them on a scale of its own; in `COSTLY` where it takes long: it is applied once to a whole task, not for each batch.

`Dressed` is a task's own warp with what goes before it and after it: an augmentation, which is drawn anew at each visit
of a training step and is nothing elsewhere, and a normalisation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.types import Array, Key


class Permutation(NamedTuple):
  """A fixed permutation of the pixels (Kirkpatrick et al. 2017), whose channels stay together, or of a vector."""

  index: Array  # [height * width] int32: output pixel i is input pixel index[i]; of a vector [D]

  def __call__(self, x: Array) -> Array:
    flat = x.reshape(x.shape[0], len(self.index), -1)
    return jnp.take(flat, self.index, axis=1).reshape(x.shape)


class Rotation(NamedTuple):
  """A rotation about the picture's centre (Larochelle et al. 2007): bilinear, zeros from outside.

  Positive angles turn counter-clockwise, as in PIL and scipy. An angle of 0 is the identity, bit for bit.
  """

  degrees: Array  # [] float32

  def __call__(self, x: Array) -> Array:
    B, height, width, channels = x.shape
    angle = jnp.deg2rad(self.degrees)
    down, right = (height - 1) / 2, (width - 1) / 2
    row, column = jnp.meshgrid(jnp.arange(height) - down, jnp.arange(width) - right, indexing="ij")
    source_row = jnp.sin(angle) * column + jnp.cos(angle) * row + down
    source_column = jnp.cos(angle) * column - jnp.sin(angle) * row + right
    top, left = jnp.floor(source_row), jnp.floor(source_column)
    flat = x.reshape(B, height * width, channels)
    turned = jnp.zeros_like(flat)
    for i in (top, top + 1):
      for j in (left, left + 1):
        weight = (1 - jnp.abs(source_row - i)) * (1 - jnp.abs(source_column - j))
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        index = jnp.where(inside, i * width + j, 0).astype(jnp.int32).ravel()
        turned += jnp.where(inside, weight, 0).ravel()[:, None] * jnp.take(flat, index, axis=1)
    return turned.reshape(x.shape)


class Standardisation(NamedTuple):
  """Each channel shifted and scaled, to mean 0 and deviation 1 of the rows that it was made of."""

  mean: Array  # [channels] float32
  scale: Array  # [channels] float32, one over the deviation

  def __call__(self, x: Array) -> Array:
    return (x - self.mean) * self.scale


class NoisyChannels(NamedTuple):
  """Gaussian noise on pictures brought to [-.5, .5], which stay there, and their channels in another order.

  A mean and a deviation of 0 are no noise.
  """

  mean: Array  # [] float32
  deviation: Array  # [] float32
  order: Array  # [channels] int32: output channel i is input channel order[i]
  seed: Array  # [] int32, of this task and bank

  def at_rows(self, x: Array, row: Array) -> Array:
    key = jax.random.key(self.seed)
    noise = jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(key, one), x.shape[1:]))(row)
    noisy = jnp.clip(x - 0.5 + self.mean + self.deviation * noise, -0.5, 0.5)
    return jnp.take(noisy, self.order, axis=-1)


class Augmentation(NamedTuple):
  """A mirror image at even odds, and a piece of the picture's size out of the picture in a black frame."""

  flip: Array  # [] bool
  crop: Array  # [] int32 pixels of the frame on each side; 0 is none

  def __call__(self, key: Key, x: Array) -> Array:
    """One picture [height, width, channels] by the key of its visit."""
    mirrored = self.flip & jax.random.bernoulli(jax.random.fold_in(key, 0))
    moved = jax.random.randint(jax.random.fold_in(key, 1), (2,), -self.crop, self.crop + 1)
    for axis, by in enumerate(moved):
      size = x.shape[axis]
      place = jnp.arange(size) + by
      inside = ((place >= 0) & (place < size)).reshape((-1,) + (1,) * (x.ndim - 1 - axis))
      x = jnp.where(inside, jnp.take(x, jnp.clip(place, 0, size - 1), axis=axis), 0)
    return jnp.where(mirrored, x[:, ::-1], x)


class Dressed(NamedTuple):
  """A warp between an augmentation of training pictures and a normalisation; each may be None."""

  augment: Augmentation | None
  warp: Any
  normalise: Standardisation | None

  def at_rows(self, x: Array, row: Array) -> Array:
    x = through(self.warp, x, row)
    return x if self.normalise is None else self.normalise(x)

  def at_visit(self, x: Array, row: Array, key: Key) -> Array:
    """The same of pictures [B, ...] that a training step sees by the keys [B] of their visits."""
    augment: Any = self.augment
    return self.at_rows(x if augment is None else jax.vmap(augment)(key, x), row)


COSTLY = (Rotation, NoisyChannels)  # ten times a permutation
MOVES = (Permutation, Rotation)  # statistics for a normalisation are of the pictures before them
SCALES = (Standardisation, NoisyChannels)  # what they show is float32, whatever is stored
RANKS: dict[Any, Any] = {  # of the leaves, for one task
  Permutation: Permutation(1),
  Rotation: Rotation(0),
  Standardisation: Standardisation(1, 1),
  NoisyChannels: NoisyChannels(0, 0, 1, 0),
  Augmentation: Augmentation(0, 0),
}


def through(warp: Any, x: Array, row: Array) -> Array:
  """x [B, ...], the pictures of the bank rows `row` [B], by one warp for all."""
  if warp is None:
    return x
  return warp.at_rows(x, row) if hasattr(warp, "at_rows") else warp(x)


def is_costly(warp: Any) -> bool:
  """Whether pictures are better warped once than at each visit."""
  return isinstance(warp.warp if isinstance(warp, Dressed) else warp, COSTLY)


def is_drawn(warp: Any) -> bool:
  """Whether a training step sees a picture otherwise at each visit."""
  return isinstance(warp, Dressed) and warp.augment is not None
