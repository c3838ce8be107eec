"""A mixture of experts whose tasks own frozen subnetworks: what one expert in training and the finished slots can do.

This is the part of subnetwork selection (Kulkarni) that does not depend on how the boundaries of tasks are known.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.errors import ConfigError
from cljax.methods.subnetwork.assignment import assign
from cljax.methods.subnetwork.keywords import Room, Selection, Sharing
from cljax.methods.subnetwork.saliency import scores
from cljax.methods.subnetwork.subnets import Layout, Subnets, by_layer, kernels, layout, masked
from cljax.nets.modes import begin
from cljax.nets.taps import at_path, layers
from cljax.ops import masking, masks, trees
from cljax.ops.infer import Known, infer
from cljax.ops.losses import mean_live, moments
from cljax.ops.masking import Layers
from cljax.ops.slots import by_slot, over_live
from cljax.ops.trees import amount, parameters, put, take
from cljax.pieces.descent import descend
from cljax.types import Array, Batch, Info, Key, Outputs, Spec


@flax.struct.dataclass
class MixtureState:
  """The expert in training, and the finished slots."""

  params: Any  # of the expert in training, whole
  opt_state: Any
  subnets: Subnets
  frozen: Layers  # bool, weights of the expert in training that belong to a finished slot
  sees: Layers  # bool, those of them that the slot in training uses
  own: Layers  # bool, the mask of the slot in training
  slot: Array  # [] int32, in training
  reused: Array  # [] bool, the task was known: nothing is trained
  full: Array  # [] bool, a new expert or slot was needed and there was none
  overlap: Array  # [R, S] of each task's first rows with each slot, NaN where it was not asked
  deviation: Array  # [R, S]
  typical: dict[str, Array]  # [S, 2, ...] mean and variance over rows of a finished slot's task, of `represent`


def each_loss(logits: Array, y: Array) -> Array:
  """[B] cross-entropy of each row, all classes competing."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, y)


class Mixture(NamedTuple):
  """The functions of such a mixture."""

  net: nn.Module
  tx: optax.GradientTransformation
  spec: Spec
  layout: Layout
  experts: int
  decisions: int  # that are noted
  selection: Selection
  sharing: Sharing
  centred: Array | bool
  infer: str

  def rescaled(self, x: Array) -> Array:
    """Pictures as the net sees them."""
    return (x - 0.5) / 0.5 if self.centred else x

  def run(self, params: Any, x: Array) -> Outputs:
    """What the net answers to x [B, ...]."""
    return self.net.apply({"params": params}, self.rescaled(x), jnp.zeros(len(x), jnp.int32))  # type: ignore[return-value]

  def represent(self, params: Any, x: Array) -> dict[str, Array]:
    """`features` [B, F] of the last hidden layer, and `pictures` [B, D] as they are."""
    return {"features": self.run(params, x).features, "pictures": self.rescaled(x).reshape(len(x), -1)}

  def measure(self, params: Any, batch: Batch) -> tuple[Array, Array]:
    """(loss, accuracy) over the live rows, all classes competing."""
    logits = self.run(params, batch.x).logits
    right = mean_live(logits.argmax(axis=-1) == batch.y, batch.live)
    return mean_live(each_loss(logits, batch.y), batch.live), right

  def score(self, params: Any, x: Array, y: Array | None, live: Array) -> Layers:
    """Scores of all weights over the live rows; their own answers are the labels where none are given."""

    def losses(out):
      labels = out.logits.argmax(axis=-1) if y is None else y
      return jnp.where(live, each_loss(out.logits, labels), 0)

    kind = self.selection.score
    found = scores(self.net, params, self.rescaled(x), jnp.zeros(len(x), jnp.int32), losses, kind)
    share = live.sum() / len(live)
    return {name: found[name] / jnp.where(share > 0, share, 1) for name in self.layout.order}

  def normalised_score(self, params: Any, batch: Batch) -> Layers:
    """z of all weights over the live rows of a batch."""
    found = self.score(params, batch.x, batch.y, batch.live)
    return {name: masks.normalised(leaf) for name, leaf in found.items()}

  def function(self, state: MixtureState, s: Array) -> Any:
    """The weights of slot s: its frozen subnetwork, or the whole net while it is in training."""
    return trees.where(state.subnets.done[s], self.layout.function(state.subnets, s), state.params)

  def init(self, key: Key) -> MixtureState:
    """Fresh experts and free slots."""
    store = jax.vmap(lambda e: self.fresh(jax.random.fold_in(key, e)))(jnp.arange(self.experts))
    subnets, S = self.layout.empty(store), self.layout.slots
    params, off = take(store, jnp.int32(0)), jnp.array(False)
    none = self.layout.union(subnets, subnets.done)
    unasked = jnp.full((self.decisions, S), jnp.nan, jnp.float32)
    found = self.represent(params, jnp.zeros((1, *self.spec.x_shape)))
    typical = {name: jnp.zeros((S, 2, leaf.shape[1])) for name, leaf in found.items()}
    slot, opt_state = jnp.int32(-1), self.tx.init(params)
    return MixtureState(params, opt_state, subnets, none, none, none, slot, off, off, unasked, unasked, typical)

  def fresh(self, key: Key) -> Any:
    """The params of a new expert."""
    return begin(self.net, key, self.spec.x_shape)[0]

  def decide(self, key: Key, state: MixtureState, batch: Batch, turn: Array, reopens: Array) -> MixtureState:
    """A known task, a shared expert or a new one (3.3, 3.4).

    Args:
      batch: the first rows of the task.
      turn: [] number of this decision.
      reopens: [S] bool, slots that go on learning when they are recognised.
    """
    layout, subnets, rules = self.layout, state.subnets, self.sharing
    done = asked = subnets.done
    losses = over_live(lambda s: self.measure(layout.function(subnets, s), batch)[0], done)
    overlap, deviation, share = layout.compare(
      subnets,
      lambda params: self.normalised_score(params, batch),
      lambda z: masking.largest(z, layout.most),
    )
    similar = (overlap >= rules.overlap_from) & (deviation <= rules.deviation_up_to)
    similarity = jnp.where(similar, overlap, -1)
    known, shared, full, slot, expert = assign(subnets, losses, similarity, share, self.experts, rules)
    params = trees.where(known | shared, take(subnets.store, expert), self.fresh(key))
    opened = jnp.where(known | full, subnets.expert_of, subnets.expert_of.at[slot].set(expert, mode="drop"))
    again = known & reopens[slot]
    done = done & ~(again & (jnp.arange(layout.slots) == slot))
    sees = done & (opened == expert)
    if rules.forward_from == "similar":
      sees &= similar
    writes = jnp.where(full | (known & ~again), layout.slots, slot)
    subnets = subnets.replace(expert_of=opened, done=done, sees=subnets.sees.at[writes].set(sees, mode="drop"))
    return state.replace(
      params=params,
      opt_state=self.tx.init(params),
      subnets=subnets,
      frozen=layout.union(subnets, layout.of_expert(subnets, expert)),
      sees=layout.union(subnets, sees),
      slot=jnp.where(full, -1, slot).astype(jnp.int32),
      reused=known & ~again,
      full=full,
      overlap=state.overlap.at[turn].set(jnp.where(asked, overlap, jnp.nan), mode="drop"),
      deviation=state.deviation.at[turn].set(jnp.where(asked, deviation, jnp.nan), mode="drop"),
    )

  def learn(self, state: MixtureState, batch: Batch, alone: bool) -> tuple[MixtureState, Info]:
    """A step on the whole net, or on the task's subnetwork `alone`. Frozen weights keep their bits; so do the biases of
    an expert that has finished a task, unless each task has its own."""
    subnets, layout = state.subnets, self.layout
    inside = {name: state.own[name] | state.sees[name] for name in layout.order}

    def loss(params, batch):
      value, right = self.measure(masked(params, inside) if alone else params, batch)
      return value, {"loss": value, "accuracy": right}

    outside = {name: state.frozen[name] | ~state.own[name] if alone else state.frozen[name] for name in layout.order}
    later = layout.of_expert(subnets, subnets.expert_of[state.slot]).any() & (layout.biases is None)
    frozen = by_layer(
      lambda leaf, mask: mask, lambda path, leaf: jnp.broadcast_to(later, leaf.shape), state.params, outside
    )
    params, opt_state, _, info = descend(
      self.tx, loss, state.params, state.opt_state, batch, frozen=frozen, rests=state.reused | state.full
    )
    return state.replace(params=params, opt_state=opt_state), info

  def select(self, state: MixtureState, scored: Batch, judged: Batch) -> MixtureState:
    """The task's own subnetwork (3.2).

    Args:
      scored: the rows that score the weights.
      judged: the rows that judge a choice.
    """
    found = self.score(state.params, scored.x, scored.y, scored.live)
    order, selection = self.layout.order, self.selection

    def accuracy_of(own):
      return self.measure(masked(state.params, {name: own[name] | state.sees[name] for name in order}), judged)[1]

    means = jnp.array([found[name].mean() for name in order])
    weights = kernels(state.params, order)  # where all gradients have underflown to zero, size ranks instead
    z = {name: jnp.where(means[l] > 0, found[name], jnp.abs(weights[name])) for l, name in enumerate(order)}
    z = {name: masks.normalised(leaf) for name, leaf in z.items()}
    own = masking.select_masks(
      selection.select,
      z,
      self.layout.most,
      above=selection.above,
      accuracy_of=accuracy_of,
      needed=selection.keep_accuracy * self.measure(state.params, judged)[1],
    )
    subnets = self.layout.write(state.subnets, state.slot, own, z, means)
    new = state.replace(subnets=subnets, own=own, opt_state=self.tx.init(state.params))
    return trees.where(state.reused | state.full, state, new)

  def freeze(self, state: MixtureState, batch: Batch) -> MixtureState:
    """Freezes the slot's function, and keeps what is typical of the live rows of its task."""
    subnets = self.layout.freeze(state.subnets, state.slot, state.params)
    found = self.represent(self.layout.function(subnets, state.slot), batch.x)
    typical = put(state.typical, state.slot, {name: moments(leaf, batch.live) for name, leaf in found.items()})
    new = state.replace(subnets=subnets, typical=typical)
    return trees.where(state.reused | state.full, state, new)

  def known(self, state: MixtureState, x: Array) -> Known:
    """What may be asked about the slots to find that of the rows x [B, ...]."""
    layout, subnets = self.layout, state.subnets
    return Known(
      live=subnets.done | (jnp.arange(layout.slots) == state.slot),
      done=subnets.done,
      function=lambda s: self.function(state, s),
      expert=lambda s: take(subnets.store, jnp.maximum(subnets.expert_of[s], 0)),
      logits=lambda params: self.run(params, x).logits,
      represent=lambda params: self.represent(params, x),
      typical=lambda s: take(state.typical, s),
      scores=lambda params: self.score(params, x, None, jnp.ones(len(x), bool)),
      mask=lambda s: layout.mask(subnets, s),
      stored=lambda s: sum(leaf.sum() for leaf in layout.stored_scores(subnets, s).values()),
      largest=lambda found: masking.largest(found, layout.most),
    )

  def answer(self, state: MixtureState, x: Array, slot: Array | None) -> Outputs:
    """Each row through its slot, or all through the one that the rows themselves point to (3.5)."""
    if slot is None:
      slot = jnp.full(len(x), infer(self.infer, self.known(state, x)), jnp.int32)
    out = by_slot(lambda s: self.run(self.function(state, s), x), self.layout.slots, slot)
    return out._replace(task=slot)

  def report(self, state: MixtureState) -> dict[str, Array]:
    """What is told of experts and slots after each task."""
    subnets, order = state.subnets, self.layout.order
    share, sizes = self.layout.frozen_share(subnets), kernels(state.params, order)
    weights = jnp.array([sizes[name].size for name in order], jnp.float32)
    return {
      "parameters": parameters(subnets.store),
      "memory_bytes": jnp.int32(0),
      "mask_bytes": amount(sum(bits.nbytes for bits in subnets.bits.values())),
      "slot": state.slot,
      "expert": subnets.expert_of,
      "reused": state.reused,
      "frozen_share": share,  # [E, layers]
      "frozen_hidden": (share * weights)[:, :-1].sum(axis=1) / weights[:-1].sum(),  # [E] of all hidden weights
      "saturated": (subnets.done[:, None] & (subnets.means == 0)).any(axis=1),  # [S]
      "overlap": state.overlap,
      "deviation": state.deviation,
    }


def mixture(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  room: Room,
  decisions: int,
  selection: Selection,
  sharing: Sharing,
  centred: bool,
  infer: str,
) -> Mixture:
  """Such a mixture, in which so many decisions are noted.

  Raises:
    ConfigError: fewer shares than the net has layers, or a net that keeps statistics.
  """
  net = net.clone(parent=None)
  params, statistics = jax.eval_shape(lambda key: begin(net, key, spec.x_shape), jax.random.key(0))
  if statistics:
    raise ConfigError(
      f"config.method.name='subnetwork' freezes weights only, and this net keeps {', '.join(statistics)}: take one "
      "without, such as config.net.name='mlp'"
    )
  x, slot = jnp.zeros((1, *spec.x_shape)), jnp.zeros(1, jnp.int32)
  names = [name for name in layers(net, {"params": params}, x, slot) if "kernel" in at_path(params, name)]

  def most(name: str, l: int, size: int) -> int:
    fractions = selection.fractions
    if selection.select == "topk" and l >= len(fractions):
      raise ConfigError(f"config.method.fractions={fractions}: a share in (0, 1] for each layer is needed")
    return masking.most(selection.select, size, fractions[min(l, len(fractions) - 1)])

  own = layout(params, names, room.slots, most, sharing.bias == "per_task")
  return Mixture(net, tx, spec, own, room.experts, decisions, selection, sharing, centred, infer)
