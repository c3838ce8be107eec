"""Subnetworks of several experts: who owns which weight, packed to bits, and what a subnetwork computes.

A slot is a task that the method has numbered by itself. Its function is its own mask together with earlier ones of its
expert that it sees, all or the similar ones, which are frozen: later tasks never change it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.methods.subnetwork.saliency import dense_scores, kernels
from cljax.ops import masks
from cljax.ops.masking import Layers
from cljax.ops.slots import over_live
from cljax.ops.trees import put, take
from cljax.types import Array, Key


@flax.struct.dataclass
class Subnets:
  store: Any  # [E, ...] the experts
  bits: Layers  # [S, bytes] uint8, the packed mask of each slot
  scores: Layers  # [S, most] float16, normalised scores of a mask's entries in flat order
  means: Array  # [S, layers] what the scores were divided by
  sees: Array  # [S, S] bool, the earlier slots whose weights each one uses beside its own
  biases: Layers | None  # by path, [S, ...]: each slot's own; None where an expert has one set
  expert_of: Array  # [S] int32, -1 for a free slot
  done: Array  # [S] bool, frozen for ever


class Book(NamedTuple):
  """The functions of a book of subnetworks."""

  order: tuple[str, ...]  # the dense layers from first to last
  room: Mapping[str, int]  # the most weights of a mask in each
  init: Callable[[Key], Subnets]
  of_expert: Callable[[Subnets, Array], Array]  # expert -> [S] bool, its finished slots
  joined: Callable[[Subnets, Array], Layers]  # slots [S] bool -> the weights that belong to any of them
  net_of: Callable[[Subnets, Array], Any]  # slot -> its expert's weights with zeros outside its function
  write: Callable[[Subnets, Array, Layers, Layers, Array], Subnets]  # (slot, mask, normalised scores, their means)
  mask_of: Callable[[Subnets, Array], Layers]  # slot -> its own mask
  stored: Callable[[Subnets, Array], Layers]  # slot -> the scores on its mask when it was chosen, zeros elsewhere
  freeze: Callable[[Subnets, Array, Any], Subnets]  # (slot, the expert's params): finished
  compare: Callable[[Subnets, Callable[[Any], Layers], Callable[[Layers], Layers]], tuple[Array, Array, Array]]
  frozen_share: Callable[[Subnets], Array]  # [E, layers]


def by_layer(kernel: Callable, other: Callable, params: Any, layers: Layers) -> Any:
  """`kernel(leaf, layers[path])` of each dense kernel and `other(path, leaf)` of the other leaves."""

  def one(path, leaf):
    name = "/".join(str(key.key) for key in path)
    layer = name.removesuffix("/kernel")
    return kernel(leaf, layers[layer]) if name.endswith("/kernel") and layer in layers else other(name, leaf)

  return jax.tree_util.tree_map_with_path(one, params)


def masked(params: Any, layers: Layers) -> Any:
  """A copy with zeros outside the layers' masks; biases stay."""
  return by_layer(lambda leaf, mask: jnp.where(mask, leaf, 0), lambda path, leaf: leaf, params, layers)


def others(params: Any, layers: Collection[str]) -> Layers:
  """The leaves that are no kernel of these layers, by path."""
  found: Layers = {}
  by_layer(lambda leaf, mask: leaf, found.setdefault, params, dict.fromkeys(layers))
  return found


def layer_order(shapes: Mapping[str, Any]) -> tuple[str, ...]:
  """`first`, the hidden layers by number, `head`: the names that nets give them."""
  return tuple(sorted(shapes, key=lambda name: (name == "head", name != "first", len(name), name)))


def book(
  fresh: Callable[[Key], Any],
  experts: int,
  slots: int,
  most: Callable[[str, int, int], int],
  own_biases: bool = False,
) -> Book:
  """A book of `slots` subnetworks in `experts` experts.

  Args:
    fresh: key -> the params of a new expert.
    most: (layer, its number, its weights) -> the most weights of a mask there.
    own_biases: each slot keeps biases of its own.
  """
  E, S = experts, slots
  shapes = {name: leaf.shape for name, leaf in kernels(jax.eval_shape(fresh, jax.random.key(0))).items()}
  order = layer_order(shapes)
  sizes = {name: shapes[name][0] * shapes[name][1] for name in order}
  room = {name: most(name, l, sizes[name]) for l, name in enumerate(order)}
  hidden = order[:-1]
  biases = others(jax.eval_shape(fresh, jax.random.key(0)), order)

  def init(key: Key) -> Subnets:
    return Subnets(
      jax.vmap(lambda e: fresh(jax.random.fold_in(key, e)))(jnp.arange(E)),
      {name: jnp.zeros((S, -(-sizes[name] // 8)), jnp.uint8) for name in order},
      {name: jnp.zeros((S, room[name]), jnp.float16) for name in order},
      jnp.zeros((S, len(order))),
      jnp.zeros((S, S), bool),
      {path: jnp.zeros((S, *leaf.shape)) for path, leaf in biases.items()} if own_biases else None,
      jnp.full(S, -1, jnp.int32),
      jnp.zeros(S, bool),
    )

  def joined(subnets: Subnets, chosen: Array) -> Layers:
    packed = {name: jnp.where(chosen[:, None], bits, 0) for name, bits in subnets.bits.items()}
    return {name: masks.unpack(jnp.bitwise_or.reduce(packed[name], axis=0), shapes[name]) for name in order}

  def of_expert(subnets: Subnets, expert: Array) -> Array:
    return subnets.done & (subnets.expert_of == expert)

  def net_of(subnets: Subnets, s: Array) -> Any:
    params = masked(
      take(subnets.store, jnp.maximum(subnets.expert_of[s], 0)), joined(subnets, subnets.sees[s] | (jnp.arange(S) == s))
    )
    if subnets.biases is None:
      return params
    own = take(subnets.biases, s)
    return by_layer(lambda leaf, mask: leaf, lambda path, leaf: own[path], params, dict.fromkeys(order))

  def mask_of(subnets: Subnets, s: Array) -> Layers:
    return {name: masks.unpack(subnets.bits[name][s], shapes[name]) for name in order}

  def write(subnets: Subnets, s: Array, mask: Layers, z: Layers, means: Array) -> Subnets:
    def kept(name):
      at = jnp.flatnonzero(mask[name], size=room[name], fill_value=sizes[name])
      values = z[name].reshape(-1).at[at].get(mode="fill", fill_value=0)
      return jnp.minimum(values, jnp.finfo(jnp.float16).max).astype(jnp.float16)

    return subnets.replace(
      bits={name: subnets.bits[name].at[s].set(masks.pack(mask[name])) for name in order},
      scores={name: subnets.scores[name].at[s].set(kept(name)) for name in order},
      means=subnets.means.at[s].set(means),
    )

  def freeze(subnets: Subnets, s: Array, params: Any) -> Subnets:
    store = put(subnets.store, subnets.expert_of[s], params)
    own = None if subnets.biases is None else put(subnets.biases, s, others(params, order))
    return subnets.replace(store=store, biases=own, done=subnets.done.at[s].set(True))

  def stored_z(subnets: Subnets, name: str, s: Array) -> tuple[Array, Array]:
    """(mask, normalised scores with zeros outside) of a slot in one layer."""
    mask = masks.unpack(subnets.bits[name][s], shapes[name])
    at = jnp.flatnonzero(mask, size=room[name], fill_value=sizes[name])
    values = jnp.zeros(sizes[name]).at[at].set(subnets.scores[name][s].astype(jnp.float32), mode="drop")
    return mask, values.reshape(shapes[name])

  def stored(subnets: Subnets, s: Array) -> Layers:
    return {name: subnets.means[s, l] * stored_z(subnets, name, s)[1] for l, name in enumerate(order)}

  def compare(subnets: Subnets, score: Callable[[Any], Layers], choose: Callable[[Layers], Layers]) -> Any:
    """(overlap [S], deviation [S], share [E, layers]) of a new task with the finished slots, each on its own expert.

    Args:
      score: an expert's params -> the new task's normalised scores there.
      choose: these -> the mask that they would give.

    Returns:
      means over the hidden layers of `masks.overlap` and `masks.deviation`, and what would be frozen of each layer.
    """
    z = over_live(lambda e: score(take(subnets.store, e)), jnp.arange(E) <= subnets.expert_of.max())
    new = jax.vmap(choose)(z)

    def with_slot(s):
      e, found = subnets.expert_of[s], []
      for name in hidden:
        old, values = stored_z(subnets, name, s)
        mine = new[name][e]
        found.append((masks.overlap(mine, old), masks.deviation(z[name][e], values, mine & old)))
      return jnp.array(found).mean(axis=0)

    def share_after(e):
      held = joined(subnets, of_expert(subnets, e))
      return jnp.array([(held[name] | new[name][e]).mean() for name in order])

    shared = over_live(with_slot, subnets.done)
    return shared[:, 0], shared[:, 1], jax.vmap(share_after)(jnp.arange(E))

  def frozen_share(subnets: Subnets) -> Array:
    def share(e):
      held = joined(subnets, of_expert(subnets, e))
      return jnp.array([held[name].mean() for name in order])

    return jax.vmap(share)(jnp.arange(E))

  return Book(order, room, init, of_expert, joined, net_of, write, mask_of, stored, freeze, compare, frozen_share)


def book_of(subnets: Subnets) -> Book:
  """The book that made these subnetworks, to look into those of a finished run."""
  experts, slots = (leaf.shape[0] for leaf in (jax.tree.leaves(subnets.store)[0], subnets.done))
  own_biases = subnets.biases is not None
  return book(
    lambda key: take(subnets.store, 0), experts, slots, lambda name, l, size: subnets.scores[name].shape[1], own_biases
  )


def deviations(net: nn.Module, subnets: Subnets, x: Array, y: Array | None = None) -> Array:
  """[S, layers] sum over a slot's mask of (its stored score - |dL/dw| of the rows x), through its subnetwork: the
  paper's Table 1. NaN for slots without a mask.

  Args:
    x: [B, ...] as the net sees it.
    y: [B] labels; None takes each subnetwork's own answers.
  """
  pages = book_of(subnets)

  def losses(out):
    labels = out.logits.argmax(axis=-1) if y is None else y
    return optax.softmax_cross_entropy_with_integer_labels(out.logits, labels)

  def one(s):
    found = dense_scores(net, pages.net_of(subnets, s), x, jnp.zeros(len(x), jnp.int32), losses)
    mask, stored = pages.mask_of(subnets, s), pages.stored(subnets, s)
    return jnp.array([jnp.where(mask[name], stored[name] - found[name], 0).sum() for name in pages.order])

  return jnp.where(subnets.done[:, None], over_live(one, subnets.done), jnp.nan)
