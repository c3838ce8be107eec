"""The shared bottom: fully connected ReLU layers under the heads."""

from typing import Annotated

import flax.linen as nn

from cljax.declared import Checked, at_least
from cljax.nets.heads import MOST_UNITS, Heads, KernelInit, initializer
from cljax.types import Array, Outputs


class MLP(Checked, nn.Module):
  """x [B, ...] -> ReLU layers of the widths `hidden` -> one head for each slot."""

  heads: int
  classes: int
  hidden: Annotated[tuple[int, ...], at_least(1, "widths of the layers", MOST_UNITS)] = (256, 256)
  kernel_init: KernelInit = "he"

  def setup(self):
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
