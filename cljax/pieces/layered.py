"""Networks whose convolutions are, layer by layer, shared by all tasks or a task's own.

Every task has fully connected layers, heads and a full set of convolutions of its own, and what its transfer needs. A
configuration [G] says which groups of consecutive layers it takes from the shared tensors instead. The task in training
has a work slot; at its end its configuration is committed: what it shares stays as it is now, and shared tensors that
it does not take are rolled back to what they were before it. Old tasks read the shared tensors as they are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from cljax.ops.slots import by_slot, over_live
from cljax.ops.trees import put, take, where
from cljax.pieces.sharing import Shape, Sharing, plain
from cljax.types import Array, Key, Outputs, Spec


@flax.struct.dataclass
class Layers:
  """The tensors of all tasks."""

  shared: Any  # a tuple over layers, what all tasks hold together
  work: Any  # of the task in training: "layers" and "own", tuples over layers, and "top"
  store: Any  # [T, ...] the same of every task; before its turn what it will begin with
  backup: Any  # the shared tensors before the task in training
  configs: Array  # [T, G] bool, which groups each task shares, once it is committed
  committed: Array  # [T] bool


def params_of(layers: Layers) -> dict[str, Any]:
  """What a step moves."""
  return {"shared": layers.shared, "work": layers.work}


class Layered(NamedTuple):
  """The functions of such networks; `params` is {"shared", "work"}, what a step moves."""

  net: Any  # a `Stack` with one head
  sharing: Sharing
  spec: Spec
  groups: tuple[tuple[int, ...], ...]  # layers of each group, from the lowest on
  rolls_back: bool = True
  chooses: bool = True  # False: every task shares all layers and has none of its own

  def activations(self, batch: int) -> list[int]:
    """Numbers that the layers of each group give for so many rows, before pooling."""
    side, sides = self.spec.x_shape[0] * self.spec.x_shape[1], []
    for pool, width in zip(self.net.each("pools"), self.net.channels, strict=True):
      sides.append(side * width * batch)
      side = -(-side // pool**2)
    return [sum(sides[l] for l in layers) for layers in self.groups]

  def init(self, key: Key) -> Layers:
    """Before the first task: every slot holds what its task will begin with."""
    shared_key, own_key = jax.random.split(key)
    T, shapes = self.spec.T, shapes_of(self.net, self.spec)
    keys = jax.random.split(shared_key, len(shapes))
    shared = tuple(self.sharing.shared(keys[l], shape, l) for l, shape in enumerate(shapes))
    store = over_live(lambda t: self.fresh(jax.random.fold_in(own_key, t)), jnp.ones(T, bool))
    configs = jnp.zeros((T, len(self.groups)), bool)
    return Layers(shared, take(store, jnp.int32(0)), store, shared, configs, jnp.zeros(T, bool))

  def fresh(self, key: Key) -> dict[str, Any]:
    """The work slot of a new task."""
    top_key, layers_key, own_key = jax.random.split(key, 3)
    layer, shapes = plain(self.net), shapes_of(self.net, self.spec)
    layer_keys, own_keys = (jax.random.split(each, len(shapes)) for each in (layers_key, own_key))
    x, slot = jnp.zeros((1, *self.spec.x_shape)), jnp.zeros(1, jnp.int32)
    top = self.net.init(top_key, x, slot)["params"]
    return {
      "layers": tuple(layer(layer_keys[l], shape, l) if self.chooses else {} for l, shape in enumerate(shapes)),
      "own": tuple(self.sharing.own(own_keys[l], shape, l) for l, shape in enumerate(shapes)),
      "top": {name: tree for name, tree in top.items() if not name.startswith("layer_")},
    }

  def begin(self, layers: Layers, t: Array) -> Layers:
    """Task t starts: its slot becomes the work slot, and the shared tensors are remembered."""
    return layers.replace(work=take(layers.store, t), backup=layers.shared)

  def commit(self, layers: Layers, t: Array, config: Array) -> Layers:
    """Task t ends with a configuration [G]."""
    chex.assert_rank(config, 1)
    chex.assert_type(config, bool)
    shared = layers.shared
    if self.rolls_back:
      own = [config[g] for g in self.group_of]
      shared = tuple(where(kept, now, then) for kept, now, then in zip(own, shared, layers.backup, strict=True))
    return layers.replace(
      shared=shared,
      store=put(layers.store, t, layers.work),
      configs=layers.configs.at[t].set(config),
      committed=layers.committed.at[t].set(True),
    )

  @property
  def group_of(self) -> list[int]:
    """The group of each layer."""
    return [g for g, layers in enumerate(self.groups) for _ in layers]

  def sides(self, params: Any) -> list[tuple[Any, Any]]:
    """(weights from the shared tensors, the task's own) of each layer; made once, whatever configurations ask."""
    work = params["work"]
    made = [self.sharing.weights(shared, own) for shared, own in zip(params["shared"], work["own"], strict=True)]
    return list(zip(made, work["layers"] if self.chooses else made, strict=True))

  def layer(self, l: int, weights: Any, x: Array, added: Array | None) -> Array:
    """One convolution with its pooling."""
    return self.net.apply({"params": {f"layer_{l}": weights}}, l, x, added, method="layer")

  def mixed(self, params: Any, x: Array, shares: Array) -> Array:
    """[B, D] with each group's layers as a mixture: `shares` [G] of the shared one, the rest of the task's own."""
    outputs: list[Array] = []
    for l, sides in enumerate(self.sides(params)):
      share, source = shares[self.group_of[l]], self.net.skip(l)
      shared, own = (self.net.apply({"params": {f"layer_{l}": each}}, l, x, method="convolve") for each in sides)
      added = outputs[source] if source >= 0 else None
      x = self.net.apply({}, l, share * shared + (1 - share) * own, added, method="pooled")
      outputs.append(x)
    return x.reshape(x.shape[0], -1)

  def features(self, params: Any, x: Array, config: Array) -> Array:
    """[B, D] what a configuration [G] makes of x [B, ...], by one pass through the layers."""
    outputs: list[Array] = []
    for l, (shared, own) in enumerate(self.sides(params)):
      source = self.net.skip(l)
      weights = where(config[self.group_of[l]], shared, own)
      x = self.layer(l, weights, x, outputs[source] if source >= 0 else None)
      outputs.append(x)
    return x.reshape(x.shape[0], -1)

  def held(self, params: Any, shared: Array) -> Array:
    """[] what the sharing itself adds to the loss; shared [G], how much of each group is shared."""
    own = zip(self.group_of, params["work"]["own"], strict=True)
    return sum((shared[g] * self.sharing.loss(each) for g, each in own), jnp.float32(0))

  def tree(self, params: Any, x: Array) -> Array:
    """[K, B, D] what all configurations make of x [B, ...]: those that agree on the lower groups share their passes.

    Each group runs with both sets of weights on what all prefixes gave, and both results lie one behind the other on
    the batch axis, so that the slowest bit of a configuration's number is that of the group by itself.
    """
    sides, B = self.sides(params), x.shape[0]
    outputs: dict[int, Array] = {}
    for layers in self.groups:
      ends = [self.branch(layers, [sides[l][side] for l in layers], x, outputs) for side in (0, 1)]
      outputs |= {l: jnp.concatenate([end[l] for end in ends]) for l in layers}
      x = outputs[layers[-1]]
    return x.reshape(-1, B, x.size // x.shape[0])

  def branch(self, layers: Sequence[int], weights: Sequence[Any], x: Array, outputs: Any) -> dict[int, Array]:
    """The outputs of one group's layers with one set of weights, on x [P * B, ...] of P prefixes."""
    found: dict[int, Array] = {}
    rows = x.shape[0]
    for l, own in zip(layers, weights, strict=True):
      added, source = None, self.net.skip(l)
      if source in found:
        added = found[source]
      elif source >= 0:
        earlier = outputs[source]  # of fewer prefixes: every later bit repeats them
        added = jnp.tile(earlier, (rows // earlier.shape[0],) + (1,) * (earlier.ndim - 1))
      x = found[l] = self.layer(l, own, x, added)
    return found

  def top(self, work: Any, features: Array, key: Key | None = None) -> Outputs:
    """From features [B, D] on, with dropout where there is a key."""
    slot = jnp.zeros(features.shape[0], jnp.int32)
    rngs = None if key is None else {"dropout": key}
    return self.net.apply({"params": work["top"]}, features, slot, key is not None, method="top", rngs=rngs)

  def apply(self, layers: Layers, now: Array, config: Array, x: Array, slot: Array) -> Outputs:
    """Each row of x [B, ...] through the network of its slot [B].

    Args:
      now: [] the task in training, whose work slot and `config` [G] answer for it; -1 where there is none.
    """

    def run(s: Array) -> Outputs:
      in_training = s == now
      work = where(in_training, layers.work, take(layers.store, s))
      own = jnp.where(in_training, config, layers.configs[s])
      return self.top(work, self.features({"shared": layers.shared, "work": work}, x, own))

    out: Outputs = by_slot(run, self.spec.T, slot)
    return out._replace(task=slot)

  def parameters(self, layers: Layers) -> Array:
    """[] int32 live numbers: what is shared by some task, and what each task so far needs beside it."""
    shared, own, layer, top = (
      np.array([size(each) for each in trees])
      for trees in (layers.shared, layers.work["own"], layers.work["layers"], [layers.work["top"]])
    )
    config = layers.configs[:, np.array(self.group_of)] & layers.committed[:, None]  # [T, L]
    unshared = ~layers.configs[:, np.array(self.group_of)] & layers.committed[:, None]
    each = (config * own).sum() + (unshared * layer).sum() + layers.committed.sum() * top.sum()
    return ((config.any(axis=0) * shared).sum() + each).astype(jnp.int32)


def shapes_of(net: Any, spec: Spec) -> list[Shape]:
  """Of the kernels of a `Stack`."""
  incoming = (spec.x_shape[-1], *net.channels)
  return [Shape(k, c, o) for k, c, o in zip(net.each("windows"), incoming, net.channels, strict=False)]


def size(tree: Any) -> int:
  """Numbers in a tree of arrays."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
