"""Frozen feature functions phi: pictures [B, height, width, channels] -> [B, d], the input of gates.

A gate takes a name of `FEATURES` or any such function.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from cljax.declared import one_of
from cljax.errors import ConfigError, choose
from cljax.types import Array

FeatureFn = Callable[[Array], Array]


def flatten(x: Array) -> Array:
  """The pixels as they are."""
  return x.reshape(x.shape[0], -1)


def halves(x: Array) -> Array:
  """Means of 2 x 2 pixels; a last odd row or column is left out."""
  B, height, width, channels = x.shape
  x = x[:, : height // 2 * 2, : width // 2 * 2]
  return x.reshape(B, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4)).reshape(B, -1)


def border(x: Array) -> Array:
  """The outermost ring of pixels only: a control that shows what padding gives away."""
  return jnp.concatenate([flatten(x[:, :1]), flatten(x[:, -1:]), flatten(x[:, 1:-1, :1]), flatten(x[:, 1:-1, -1:])], 1)


FEATURES: dict[str, FeatureFn] = {"flatten": flatten, "halves": halves, "border": border}
Phi = Annotated[str | FeatureFn, one_of(tuple(FEATURES), "frozen features, or a function of pictures that gives them")]


def feature_function(phi: str | FeatureFn, x_shape: tuple[int, ...]) -> tuple[FeatureFn, int]:
  """(phi, d), tried on pictures of `x_shape`.

  Raises:
    ConfigError: an unknown name, or a function that does not give [B, d]; both shapes are named.
  """
  found = FEATURES[choose("config.method.phi", phi, FEATURES)] if isinstance(phi, str) else phi
  shape = jax.eval_shape(found, jax.ShapeDtypeStruct((2, *x_shape), jnp.float32)).shape
  if len(shape) != 2 or shape[0] != 2 or not shape[1]:
    raise ConfigError(f"the feature function phi={phi} makes {shape} of pictures {(2, *x_shape)}; [2, d] is needed")
  return found, shape[1]
