"""The shared bottom: fully connected ReLU layers under the heads."""

import flax.linen as nn

from cljax.errors import ConfigError
from cljax.nets.heads import Heads, initializer
from cljax.types import Array, Outputs


class MLP(nn.Module):
  """x [B, ...] -> ReLU layers of the widths `hidden` -> one head for each slot."""

  heads: int
  classes: int
  hidden: tuple[int, ...] = (256, 256)
  kernel_init: str = "he"  # of the hidden layers: he or glorot; heads are Glorot, biases zero

  def setup(self):
    if not self.hidden:
      raise ConfigError("config.net.hidden=() has no layer; give at least one width")
    for l, width in enumerate(self.hidden):
      name = "first" if l == 0 else f"hidden_{l}"
      setattr(self, name, nn.Dense(width, kernel_init=initializer(self.kernel_init)))
    self.head = Heads(self.heads, self.classes)

  def __call__(self, x: Array, slot: Array) -> Outputs:
    return self.after_first(self.first(x.reshape(x.shape[0], -1)), slot)

  def after_first(self, z: Array, slot: Array) -> Outputs:
    """The same from the first layer's pre-activations z [B, H] on."""
    features = nn.relu(z)
    for l in range(1, len(self.hidden)):
      features = nn.relu(getattr(self, f"hidden_{l}")(features))
    return Outputs(self.head(features, slot), features, slot)
