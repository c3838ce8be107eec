"""The table of nets: `config.net.name` picks one here; each takes `heads` and `classes` beside its own fields."""

from cljax.nets.cnn import CNN
from cljax.nets.mlp import MLP
from cljax.nets.own import headed
from cljax.nets.resnet import NormedCNN, ResNet
from cljax.nets.routed import RoutedMLP
from cljax.nets.stack import Stack

__all__ = ["NETS", "headed"]

NETS = {
  "cnn": CNN,
  "mlp": MLP,
  "normed_cnn": NormedCNN,
  "resnet": ResNet,
  "routed_mlp": RoutedMLP,
  "stack": Stack,
}
