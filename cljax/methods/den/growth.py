"""The network of all tasks, and what happens to it at the edges of a task's parts."""

from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cljax.declared import at_least, one_of
from cljax.loops import mean_over
from cljax.methods.den.units import Wide, free_places, furthest, norms
from cljax.ops.losses import cross_entropies
from cljax.ops.masks import keep_only
from cljax.ops.slots import over_live
from cljax.ops.trees import put, take
from cljax.types import NONE, Array, Batch, Clock, Key, View


class Growth(NamedTuple):
  """What holds the weights, and when the network grows."""

  sparsity: Annotated[Array | float, at_least(0, "strength of the penalty on sizes of weights")] = 1e-6
  weight_decay: Annotated[Array | float, at_least(0, "strength of the pull of weights to zero")] = 0.01
  group_sparsity: Annotated[Array | float, at_least(0, "strength of the penalty on lengths of new units")] = 0.8
  drift: Annotated[Array | float, at_least(0, "strength of the pull to what was before the task")] = 0.5
  proximal_rate: Annotated[
    Array | float, at_least(0, "of the steps that make weights zero; as a rule the optimizer's")
  ] = 1e-4
  loss_threshold: Annotated[Array | float, at_least(0, "of the training loss, above which units are added")] = 0.01
  added_units: Annotated[
    int, at_least(1, "more of each layer where it is expanded, and the most that are split", 10_000)
  ] = 16
  split_thresholds: Annotated[
    tuple[float, ...], at_least(0, "how far a unit moved before it is split, in convolutions, and above", least=2)
  ] = (0.98, 0.01)
  old_copy: Annotated[
    str, one_of(("stays", "leaves"), "what a split unit does in the tasks from then on, beside its copy")
  ] = "stays"
  extra_room: Annotated[
    int, at_least(0, "most units that a layer gains in all tasks; 0: what it can ever need", 100_000)
  ] = 0
  part_shares: Annotated[
    tuple[float, ...], at_least(0, "of the epochs, for head, expand and split; selective has the rest", 1, least=3)
  ] = (0.2, 0.2, 0.2)


@flax.struct.dataclass
class State:
  """The network with its room; tuples are over its layers below the head."""

  params: Any  # the head is that of the task in training
  opt_state: Any
  before: Any  # params before the task in training, zero where there was no unit
  heads: Any  # [T, ...] of all tasks
  born: Any  # [W] int32 the task that each unit began with, NONE where there is no unit
  left: Any  # [W] int32 the first task that no longer uses it, NONE for none
  chosen: Any  # [W] bool units of the subnetwork of the task in training
  held: Any  # [W] bool units that it set back
  now: Array  # [] int32 the task in training, -1 where there is none
  finished: Array  # [T] bool
  units_chosen: Array  # [T, L] int32
  units_split: Array  # [T, L] int32
  full: Array  # [] bool, whether a unit found no room


class Growing(NamedTuple):
  """The edges of a task's parts."""

  wide: Wide
  bases: tuple[int, ...]  # units that each layer begins with
  tx: optax.GradientTransformation
  how: Growth

  # Which units there are.

  def live(self, state: State, s: Array) -> list[Array]:
    """[W] bool the units that answer for task s."""
    return [(born <= s) & (s < left) for born, left in zip(state.born, state.left, strict=True)]

  def new(self, state: State, t: Array) -> list[Array]:
    """[W] bool the units that began with task t, if it is not the first."""
    return [(born == t) & (t > 0) for born in state.born]

  def expanded(self, state: State, t: Array) -> Array:
    """[] bool whether there are any."""
    return jnp.stack([new.any() for new in self.new(state, t)]).any()

  # A task.

  def init(self, key: Key) -> State:
    """Before the first task."""
    own_key, heads_key = jax.random.split(key)
    T, L, params = self.wide.spec.T, len(self.bases), self.wide.fresh(own_key)
    heads = over_live(lambda t: self.wide.fresh(jax.random.fold_in(heads_key, t))["head"], jnp.ones(T, bool))
    widths = self.wide.widths
    return State(
      params=params,
      opt_state=self.tx.init(params),
      before=jax.tree.map(jnp.zeros_like, params),
      heads=heads,
      born=tuple(
        jnp.where(jnp.arange(W) < n, 0, NONE).astype(jnp.int32) for W, n in zip(widths, self.bases, strict=True)
      ),
      left=tuple(jnp.full(W, NONE, jnp.int32) for W in widths),
      chosen=tuple(jnp.ones(W, bool) for W in widths),
      held=tuple(jnp.zeros(W, bool) for W in widths),
      now=jnp.int32(-1),
      finished=jnp.zeros(T, bool),
      units_chosen=jnp.zeros((T, L), jnp.int32),
      units_split=jnp.zeros((T, L), jnp.int32),
      full=jnp.array(False),
    )

  def enter_head(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Task t starts: its head, and what was before it."""
    params = state.params | {"head": take(state.heads, view.t)}
    known = self.wide.among(params, [born < NONE for born in state.born])
    held = tuple(jnp.zeros_like(held) for held in state.held)
    state = state.replace(params=params, before=keep_only(params, known), held=held, now=jnp.int32(view.t))
    return state.replace(opt_state=self.tx.init(params))

  def enter_selective(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The subnetwork of the task: all units in the first, else those that its head reads, directly or not."""
    live = self.live(state, view.t)
    kept = keep_only(state.params, self.wide.among(state.params, live))
    traced = self.wide.traced(kept, view.tasks.classes[view.t])
    chosen = tuple(own & (found | (view.t == 0)) for own, found in zip(live, traced, strict=True))
    counts = jnp.stack([own.sum(dtype=jnp.int32) for own in chosen])
    return state.replace(chosen=chosen, units_chosen=state.units_chosen.at[view.t].set(counts))

  def enter_expand(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """More units in every layer, if the loss is too high."""
    t, live = view.t, self.live(state, view.t)

    def loss(batch: Batch) -> Array:
      logits = self.wide.answer(state.params, live, batch.x).logits
      return cross_entropies(logits, batch)

    grows = (t > 0) & (mean_over(loss, view, view.tasks.train) > self.how.loss_threshold)
    places = [free_places(born, self.how.added_units) for born in state.born]
    born = tuple(
      born.at[jnp.where(grows, place, NONE)].set(t, mode="drop") for born, place in zip(state.born, places, strict=True)
    )
    missing = jnp.stack([(place == NONE).any() for place in places]).any()
    state = state.replace(born=born, full=state.full | (grows & missing))
    ends = self.wide.ends(self.new(state, t), outside=False)
    drawn = self.wide.tree(state.params, [below | own for below, own in ends], [own for _, own in ends])
    params = jax.tree.map(jnp.where, drawn, self.wide.fresh(key), state.params)
    return state.replace(params=params)

  def leave_expand(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """New units without incoming weights are removed, from the lowest layer on."""
    born, new, live = list(state.born), self.new(state, view.t), self.live(state, view.t)
    for l, kernel in enumerate(self.wide.kernels(state.params)[:-1]):
      below = self.wide.ends(live)[l][0][:, 0]
      empty = new[l] & (norms(kernel, below) == 0)
      born[l], live[l] = jnp.where(empty, NONE, born[l]), live[l] & ~empty
    return state.replace(born=tuple(born))

  def enter_split(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Old units that moved far are set back, and copies of what they became take free places."""
    wide, t, names = self.wide, view.t, self.wide.names
    kernels, before = wide.kernels(state.params), wide.kernels(state.before)
    biases = [state.params[name]["bias"] for name in names]
    born, left, held = list(state.born), list(state.left), list(state.held)
    old = [began < t for began in born]
    live, full, counts = self.live(state, t), state.full, []
    for l, own in enumerate(old):
      bar = self.how.split_thresholds[l >= wide.net.depth]
      moved = jnp.where(own & live[l], norms(kernels[l] - before[l], wide.ends(old)[l][0][:, 0]), 0)
      source, asked = furthest(moved, bar, self.how.added_units)
      place = free_places(born[l], len(source))
      full |= (asked & (place == NONE)).any()
      asked &= place != NONE
      place, back = jnp.where(asked, place, NONE), jnp.where(asked, source, NONE)

      kernels[l] = kernels[l].at[:, :, place].set(kernels[l][:, :, source], mode="drop")
      kernels[l] = kernels[l].at[:, :, back].set(before[l][:, :, source], mode="drop")
      biases[l] = biases[l].at[place].set(biases[l][source], mode="drop")
      biases[l] = biases[l].at[back].set(state.before[names[l]]["bias"][source], mode="drop")
      kernels[l + 1] = kernels[l + 1].at[:, place].set(kernels[l + 1][:, source], mode="drop")
      born[l], held[l] = born[l].at[place].set(t, mode="drop"), held[l].at[back].set(True, mode="drop")
      if self.how.old_copy == "leaves":
        left[l] = left[l].at[back].set(t, mode="drop")
      counts.append(asked.sum(dtype=jnp.int32))
    params = wide.tree(state.params, kernels, biases)
    state = state.replace(params=params, born=tuple(born), left=tuple(left))
    split = state.units_split.at[t].set(jnp.stack(counts))
    return state.replace(held=tuple(held), units_split=split, full=full)

  def leave_split(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The task keeps its head."""
    heads = put(state.heads, view.t, state.params["head"])
    return state.replace(heads=heads, now=jnp.int32(-1), finished=state.finished.at[view.t].set(True))
