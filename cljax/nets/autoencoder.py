"""The undercomplete autoencoder of Expert Gate: one hidden ReLU layer between a target in (0, 1) and its copy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cljax.errors import choose
from cljax.nets.heads import initializer
from cljax.types import Array, Key

SPARSE = 15  # non-zero incoming weights of a unit under `sparse`


def sparse(key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
  """A kernel [D, F] with min(15, D) non-zero weights N(0, 1) into each unit: the authors' initialisation."""
  places, values = jax.random.split(key)
  rank = jnp.argsort(jax.random.uniform(places, shape), axis=0).argsort(axis=0)
  return jnp.where(rank < SPARSE, jax.random.normal(values, shape, dtype), 0)


KERNELS: dict[str, Any] = {"glorot": initializer("glorot"), "he": initializer("he"), "sparse": sparse}


class Autoencoder(nn.Module):
  """x [B, inputs] -> (logits [B, inputs], code [B, code]): code = ReLU(x We + be), logits = code Wd + bd.

  The reconstruction is sigmoid(logits); losses take the logits, so that saturated outputs keep their gradient.
  """

  inputs: int
  code: int = 100
  kernel_init: str = "glorot"  # a name of KERNELS

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    kernel_init = KERNELS[choose("kernel_init", self.kernel_init, KERNELS)]
    code = nn.relu(nn.Dense(self.code, kernel_init=kernel_init, name="encoder")(x))
    return nn.Dense(self.inputs, kernel_init=kernel_init, name="decoder")(code), code
