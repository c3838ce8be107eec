"""Subnetworks of several experts: who owns which weight, packed to bits, and what a subnetwork computes.

A slot is a task that the method has numbered by itself. Its function is its own mask together with earlier ones of its
expert that it sees, all or the similar ones, which are frozen: later tasks never change it.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.methods.subnetwork.saliency import scores
from cljax.ops import masks
from cljax.ops.masking import Layers
from cljax.ops.slots import over_live
from cljax.ops.trees import put, take
from cljax.types import Array


@flax.struct.dataclass
class Subnets:
  """The experts, and the finished and free slots."""

  store: Any  # [E, ...] the experts
  bits: Layers  # [S, bytes] uint8, the packed mask of each slot
  scores: Layers  # [S, most] float16, normalised scores of a mask's entries in flat order
  means: Array  # [S, layers] what the scores were divided by
  sees: Array  # [S, S] bool, the earlier slots whose weights each one uses beside its own
  biases: Layers | None  # by path, [S, ...]: each slot's own; None where an expert has one set
  expert_of: Array  # [S] int32, -1 for a free slot
  done: Array  # [S] bool, frozen for ever


def by_layer(kernel: Callable, other: Callable, params: Any, layers: Layers) -> Any:
  """`kernel(leaf, layers[path])` of each kernel of these layers and `other(path, leaf)` of the other leaves."""

  def one(path, leaf):
    name = "/".join(str(key.key) for key in path)
    layer = name.removesuffix("/kernel")
    return kernel(leaf, layers[layer]) if name.endswith("/kernel") and layer in layers else other(name, leaf)

  return jax.tree_util.tree_map_with_path(one, params)


def masked(params: Any, layers: Layers) -> Any:
  """A copy with zeros outside the layers' masks; biases stay."""
  return by_layer(lambda leaf, mask: jnp.where(mask, leaf, 0), lambda path, leaf: leaf, params, layers)


def kernels(params: Any, layers: Collection[str]) -> Layers:
  """The kernels of these layers."""
  found: Layers = {}
  by_layer(lambda leaf, name: found.setdefault(name, leaf), lambda path, leaf: leaf, params, {n: n for n in layers})
  return {name: found[name] for name in layers}


def others(params: Any, layers: Collection[str]) -> Layers:
  """The leaves that are no kernel of these layers, by path."""
  found: Layers = {}
  by_layer(lambda leaf, mask: leaf, found.setdefault, params, dict.fromkeys(layers))
  return found


def layer_order(names: Collection[str]) -> tuple[str, ...]:
  """`first`, the hidden layers by number, `head`: the names that nets give them."""
  return tuple(sorted(names, key=lambda name: (name == "head", name != "first", len(name), name)))


class Layout(NamedTuple):
  """What subnetworks are made of, and the functions on them."""

  slots: int
  shapes: Mapping[str, tuple[int, ...]]  # of the kernels that have masks, by layer from first to last
  most: Mapping[str, int]  # the most weights of a mask in each
  biases: Mapping[str, tuple[int, ...]] | None  # by path, of what each slot has a copy of; None: an expert has one set

  @property
  def order(self) -> tuple[str, ...]:
    """The layers that have masks, from first to last."""
    return tuple(self.shapes)

  def empty(self, store: Any) -> Subnets:
    """These experts, and free slots only."""
    S = self.slots
    return Subnets(
      store,
      {name: jnp.zeros((S, -(-math.prod(shape) // 8)), jnp.uint8) for name, shape in self.shapes.items()},
      {name: jnp.zeros((S, self.most[name]), jnp.float16) for name in self.shapes},
      jnp.zeros((S, len(self.shapes))),
      jnp.zeros((S, S), bool),
      None if self.biases is None else {path: jnp.zeros((S, *shape)) for path, shape in self.biases.items()},
      jnp.full(S, -1, jnp.int32),
      jnp.zeros(S, bool),
    )

  def of_expert(self, subnets: Subnets, expert: Array) -> Array:
    """[S] bool, the finished slots of an expert []."""
    return subnets.done & (subnets.expert_of == expert)

  def union(self, subnets: Subnets, chosen: Array) -> Layers:
    """The weights that belong to any of the chosen slots [S] bool."""
    packed = {name: jnp.where(chosen[:, None], bits, 0) for name, bits in subnets.bits.items()}
    return {
      name: masks.unpack(jnp.bitwise_or.reduce(packed[name], axis=0), shape) for name, shape in self.shapes.items()
    }

  def function(self, subnets: Subnets, s: Array) -> Any:
    """The weights of slot s's expert with zeros outside what the slot uses."""
    expert = take(subnets.store, jnp.maximum(subnets.expert_of[s], 0))
    params = masked(expert, self.union(subnets, subnets.sees[s] | (jnp.arange(self.slots) == s)))
    if subnets.biases is None:
      return params
    own = take(subnets.biases, s)
    return by_layer(lambda leaf, mask: leaf, lambda path, leaf: own[path], params, dict.fromkeys(self.shapes))

  def mask(self, subnets: Subnets, s: Array) -> Layers:
    """The own mask of slot s."""
    return {name: masks.unpack(subnets.bits[name][s], shape) for name, shape in self.shapes.items()}

  def places(self, mask: Array, name: str) -> Array:
    """[most] the flat places of a layer's mask, the layer's size where there are fewer."""
    return jnp.flatnonzero(mask, size=self.most[name], fill_value=math.prod(self.shapes[name]))

  def write(self, subnets: Subnets, s: Array, mask: Layers, z: Layers, means: Array) -> Subnets:
    """Slot s gets a mask with normalised scores z, which were divided by their means [layers]."""

    def kept(name):
      values = z[name].reshape(-1).at[self.places(mask[name], name)].get(mode="fill", fill_value=0)
      return jnp.minimum(values, jnp.finfo(jnp.float16).max).astype(jnp.float16)

    return subnets.replace(
      bits={name: subnets.bits[name].at[s].set(masks.pack(mask[name])) for name in self.shapes},
      scores={name: subnets.scores[name].at[s].set(kept(name)) for name in self.shapes},
      means=subnets.means.at[s].set(means),
    )

  def freeze(self, subnets: Subnets, s: Array, params: Any) -> Subnets:
    """Slot s is finished with these params of its expert."""
    store = put(subnets.store, subnets.expert_of[s], params)
    own = None if subnets.biases is None else put(subnets.biases, s, others(params, self.shapes))
    return subnets.replace(store=store, biases=own, done=subnets.done.at[s].set(True))

  def normalised_scores(self, subnets: Subnets, name: str, s: Array) -> tuple[Array, Array]:
    """(mask, stored normalised scores with zeros outside) of slot s in one layer."""
    mask = masks.unpack(subnets.bits[name][s], self.shapes[name])
    values = jnp.zeros(mask.size).at[self.places(mask, name)]
    return mask, values.set(subnets.scores[name][s].astype(jnp.float32), mode="drop").reshape(mask.shape)

  def stored_scores(self, subnets: Subnets, s: Array) -> Layers:
    """The scores on slot s's mask when it was chosen, zeros elsewhere."""
    means = subnets.means[s]
    return {name: means[l] * self.normalised_scores(subnets, name, s)[1] for l, name in enumerate(self.shapes)}

  def compare(
    self, subnets: Subnets, score: Callable[[Any], Layers], choose_mask: Callable[[Layers], Layers]
  ) -> tuple[Array, Array, Array]:
    """(overlap [S], deviation [S], share [E, layers]) of a new task with the finished slots, each on its own expert.

    Args:
      score: an expert's params -> the new task's normalised scores there.
      choose_mask: these -> the mask that they would give.

    Returns:
      means over the hidden layers of `masks.overlap` and `masks.deviation`, and what would be frozen of each layer.
    """
    experts = jnp.arange(len(jax.tree.leaves(subnets.store)[0]))
    z = over_live(lambda e: score(take(subnets.store, e)), experts <= subnets.expert_of.max())
    new = jax.vmap(choose_mask)(z)

    def with_slot(s):
      e, found = subnets.expert_of[s], []
      for name in self.order[:-1]:
        old, values = self.normalised_scores(subnets, name, s)
        mine = new[name][e]
        found.append((masks.overlap(mine, old), masks.deviation(z[name][e], values, mine & old)))
      return jnp.array(found).mean(axis=0)

    def share_after(e):
      held = self.union(subnets, self.of_expert(subnets, e))
      return jnp.array([(held[name] | new[name][e]).mean() for name in self.shapes])

    shared = over_live(with_slot, subnets.done)
    return shared[:, 0], shared[:, 1], jax.vmap(share_after)(experts)

  def frozen_share(self, subnets: Subnets) -> Array:
    """[E, layers] how much of each expert's layers belongs to finished slots."""

    def share(e):
      held = self.union(subnets, self.of_expert(subnets, e))
      return jnp.array([held[name].mean() for name in self.shapes])

    return jax.vmap(share)(jnp.arange(len(jax.tree.leaves(subnets.store)[0])))


def layout(
  params: Any, layers: Collection[str], slots: int, most: Callable[[str, int, int], int], own_biases: bool = False
) -> Layout:
  """The layout of `slots` subnetworks in experts whose params have these shapes.

  Args:
    layers: that have masks.
    most: (layer, its number, its weights) -> the most weights of a mask there.
    own_biases: each slot keeps biases of its own.
  """
  found = kernels(params, layer_order(layers))
  shapes = {name: leaf.shape for name, leaf in found.items()}
  room = {name: most(name, l, math.prod(shape)) for l, (name, shape) in enumerate(shapes.items())}
  biases = {path: leaf.shape for path, leaf in others(params, layers).items()} if own_biases else None
  return Layout(slots, shapes, room, biases)


def layout_of(subnets: Subnets) -> Layout:
  """The layout of these subnetworks, to look into those of a finished run."""

  def most(name, l, size):
    return subnets.scores[name].shape[1]

  return layout(take(subnets.store, 0), subnets.bits, len(subnets.done), most, subnets.biases is not None)


def deviations(net: nn.Module, subnets: Subnets, x: Array, y: Array | None = None) -> Array:
  """[S, layers] sum over a slot's mask of (its stored score - |dL/dw| of the rows x), through its subnetwork: the
  paper's Table 1. NaN for slots without a mask.

  Args:
    x: [B, ...] as the net sees it.
    y: [B] labels; None takes each subnetwork's own answers.
  """
  own = layout_of(subnets)

  def losses(out):
    labels = out.logits.argmax(axis=-1) if y is None else y
    return optax.softmax_cross_entropy_with_integer_labels(out.logits, labels)

  def one(s):
    found = scores(net, own.function(subnets, s), x, jnp.zeros(len(x), jnp.int32), losses)
    mask, stored = own.mask(subnets, s), own.stored_scores(subnets, s)
    return jnp.array([jnp.where(mask[name], stored[name] - found[name], 0).sum() for name in own.order])

  return jnp.where(subnets.done[:, None], over_live(one, subnets.done), jnp.nan)
