"""The shared bottom: fully connected ReLU layers under the heads."""

import flax.linen as nn

from cljax.nets.heads import Heads, initializer
from cljax.types import Array, Outputs


class MLP(nn.Module):
  """x [B, ...] -> ReLU layers of the widths `hidden` -> one head for each slot."""

  heads: int
  classes: int
  hidden: tuple[int, ...] = (256, 256)
  kernel_init: str = "he"  # of the hidden layers: he or glorot; heads are Glorot, biases zero

  @nn.compact
  def __call__(self, x: Array, slot: Array) -> Outputs:
    features = x.reshape(x.shape[0], -1)
    for l, width in enumerate(self.hidden):
      layer = nn.Dense(width, kernel_init=initializer(self.kernel_init), name="first" if l == 0 else f"hidden_{l}")
      features = nn.relu(layer(features))
    return Outputs(Heads(self.heads, self.classes, name="head")(features, slot), features, slot)
