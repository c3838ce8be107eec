"""Hard attention to units: gates that a task learns, and what the gradient of its embeddings is taken for."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.declared import above, at_least, one_of
from cljax.ops.masks import EPSILON
from cljax.pieces.descent import GradientFn, LossFn
from cljax.types import Array, Clock, Key

ByLayer = Mapping[str, Array]
ACTIVE = 6.0  # embeddings stay where a sigmoid of slope 1 is active
LARGEST = 50.0  # |s e| inside a cosh


def clipped(embeddings: ByLayer) -> dict[str, Array]:
  """Embeddings within the active range."""
  return {name: jnp.clip(e, -ACTIVE, ACTIVE) for name, e in embeddings.items()}


class Attention(NamedTuple):
  """How a task chooses its units."""

  largest_slope: Annotated[Array | float, above(0, "s_max: the slope of an epoch's last batch, and at rest", 1e6)] = (
    400.0
  )
  sparsity: Annotated[Array | float, at_least(0, "c: the weight of the share of free units that a task opens")] = 0.75
  masks: Annotated[str, one_of(("soft", "hard"), "gates at rest: sigma(s_max e) as published, or 1 where e > 0")] = (
    "soft"
  )

  def slope(self, clock: Clock) -> Array:
    """s = 1 / s_max + (s_max - 1 / s_max) (b - 1) / (B - 1) of batch b of B; s_max where there is one."""
    along = jnp.where(clock.steps > 1, clock.step / jnp.maximum(clock.steps - 1, 1), 1.0)
    return 1 / self.largest_slope + (self.largest_slope - 1 / self.largest_slope) * along

  def at_rest(self, embeddings: ByLayer) -> dict[str, Array]:
    """The gates of embeddings [..., W] by layer."""
    if self.masks == "hard":
      return {name: jnp.float32(e > 0) for name, e in embeddings.items()}
    return {name: jax.nn.sigmoid(self.largest_slope * e) for name, e in embeddings.items()}

  def of_slots(self, embeddings: ByLayer, slot: Array) -> dict[str, Array]:
    """The gates at rest of each row's own slot [B], of embeddings [T, W] by layer."""
    return self.at_rest({name: e[slot] for name, e in embeddings.items()})

  def regulariser(self, gates: ByLayer, used: ByLayer) -> Array:
    """c sum a (1 - a^{<t}) / sum (1 - a^{<t}) over all units: the share of what is free that the gates open."""
    free = {name: 1 - held for name, held in used.items()}
    opened = sum((gates[name] * free[name]).sum() for name in free)
    return self.sparsity * opened / jnp.maximum(sum(each.sum() for each in free.values()), EPSILON)

  def compensated(self, s: Array, gradient: Array, e: Array) -> Array:
    """What an embedding's gradient is taken for, of the gradient by its gate a = sigma(s e).

    The published s_max / s (cosh(s e) + 1) / (cosh(e) + 1) times s sigma'(s e) is s_max sigma'(e), which keeps its
    digits where the gate is 1; beyond |s e| = 50, where the first cosh is cut off, it fades.
    """
    fades = (jnp.cosh(jnp.clip(s * e, -LARGEST, LARGEST)) + 1) / (jnp.cosh(s * e) + 1)
    return self.largest_slope * jax.nn.sigmoid(e) * jax.nn.sigmoid(-e) * fades * gradient

  def asked(self, s: Array, judge: LossFn, held: Any) -> tuple[LossFn, GradientFn]:
    """(loss, gradient) of a loss `judge`, by params of which "net" is held and "gates" are the embeddings.

    Args:
      s: the slope of the gates.
      judge: gets the gates in place of the embeddings.
      held: a tree like the net's params in 0..1.
    """

    def opened(params: Any) -> dict[str, Any]:
      return params | {"gates": {name: jax.nn.sigmoid(s * e) for name, e in params["gates"].items()}}

    def loss(params: Any, batch: Any) -> tuple[Array, Any]:
      return judge(opened(params), batch)

    def gradient(params: Any, batch: Any) -> tuple[Any, Any]:
      whole, told = jax.grad(judge, has_aux=True)(opened(params), batch)
      net = jax.tree.map(lambda g, held: (1 - held) * g, whole["net"], held)
      gates = jax.tree.map(partial(self.compensated, s), whole["gates"], params["gates"])
      return whole | {"net": net, "gates": gates}, told

    return loss, gradient


def drawn(key: Key, widths: Mapping[str, int], tasks: int) -> dict[str, Array]:
  """[T, W] the first embeddings by layer, from a normal distribution of deviation 1."""
  found = {}
  for l, (name, width) in enumerate(widths.items()):
    found[name] = jax.random.normal(jax.random.fold_in(key, l), (tasks, width))
  return clipped(found)
