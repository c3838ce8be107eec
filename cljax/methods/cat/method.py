"""CAT (Ke, Liu and Huang 2020, https://arxiv.org/abs/2112.10017): attention to units that similar tasks may share.

Gates a^t on units are learnt, and what they attend to is held, as in hard attention to the task. But before task t is
learnt it is compared with each task k before. A readout of the features h^k of the network behind the gates a^k is
trained on t's rows, and so is a network from scratch; tasks are similar if the readout is better on validation rows:

  similar(t, k) = [accuracy of k's readout > accuracy of the network from scratch]

Only what tasks that are not similar have attended to is held, so that t may change what similar ones know:

  g_ij <- (1 - min(a_i^dis, a_j^dis)) g_ij,  a^dis = max of a^k over k < t with not similar(t, k)

Beside its own gates, t attends to the features of similar tasks, which a second readout reads:

  o_t(x) = sum_k softmax_k(q_t . (h^k(x) W_k) / sqrt(D)) h^k(x) W_v,  L = CE(own) + c share + CE(readout of o_t)

It answers from o_t where that is more often right about the validation rows. With `masks="hard"` a task's answers keep
their bits for as long as no later one is similar to it or to what it attends to, but for what a net's BatchNorm moves;
with `similar_tasks="none"` this is hard attention to the task, bit for bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import at_least, declared, one_of
from cljax.loops import mean_over
from cljax.methods.cat.comparison import Comparison
from cljax.methods.cat.reading import read_off, reader, right
from cljax.nets.modes import in_training
from cljax.ops.losses import cross_entropy
from cljax.ops.slots import by_slot, over_live
from cljax.ops.trees import parameters, put, take
from cljax.pieces.attention import Attention, clipped, drawn
from cljax.pieces.descent import descend
from cljax.pieces.learner import Learner, Passes, Trained, supervised
from cljax.pieces.units import Units, units_of
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


class Transfer(NamedTuple):
  """How a task finds those before that it is similar to, and learns from them."""

  similar_tasks: Annotated[
    str, one_of(("detected", "all", "none"), "which of those before a task is similar to; detected: by validation rows")
  ] = "detected"
  compare_epochs: Annotated[int, at_least(1, "passes over each task that detect its similar ones")] = 5
  transfer_weight: Annotated[Array | float, at_least(0, "of the loss of what is read off similar tasks")] = 1.0


@flax.struct.dataclass
class State(Trained):
  """The network, its gates, and its tasks' likeness; `opt_state` is of what a step moves, see `Cat.moving`."""

  embeddings: Any = None  # [T, W] by layer
  used: Any = None  # [W] by layer, what any finished task has attended to
  blocked: Any = None  # [W] by layer, a^dis of the task in training
  read: Any = None  # [I] by layer, a^dis of the units that it reads
  similar: Any = None  # [T, T] bool, whether the row's task is similar to the column's before it
  transfer: Any = None  # [T, ...] what a task reads off similar ones with
  by_transfer: Any = None  # [T] bool, whether it answers so
  trials: Any = None  # what compares the task in training with those before


class Cat(NamedTuple):
  """The functions of the method."""

  learner: Learner
  units: Units
  attention: Attention
  transfer: Transfer

  @property
  def transfers(self) -> bool:
    """Whether any tasks can be similar."""
    return self.transfer.similar_tasks != "none"

  @property
  def detects(self) -> bool:
    """Whether tasks are compared."""
    return self.transfer.similar_tasks == "detected"

  @property
  def comparison(self) -> Comparison:
    """How a task is compared."""
    return Comparison(self.learner, self.width)

  def before(self, t: Array) -> Array:
    """[T] bool, the tasks before t []."""
    return jnp.arange(self.learner.spec.T) < t

  @property
  def width(self) -> int:
    """D of the features."""
    x, slot = jnp.zeros((1, *self.learner.spec.x_shape)), jnp.zeros(1, jnp.int32)
    out: Any = jax.eval_shape(lambda key: self.units.net.init_with_output(key, x, slot)[0], jax.random.key(0))
    return out.features.shape[-1]

  def moving(self, state: State, t: Array) -> dict[str, Any]:
    """What a step in task t [] moves."""
    own = {"net": state.params, "gates": take(state.embeddings, t)}
    return own | ({"transfer": take(state.transfer, t)} if self.transfers else {})

  def init(self, key: Key) -> State:
    """Gates as in hard attention; what a task reads off similar ones begins at random, a task's own."""
    own, widths, T, C = self.learner.init(key), self.units.widths, self.learner.spec.T, self.learner.spec.C
    none = {name: jnp.zeros(width) for name, width in widths.items()}
    variables = {"params": own["params"], **own["collections"]}
    state: Any = State(
      **own,
      embeddings=drawn(key, widths, T),
      used=none,
      blocked=none,
      read=self.units.read(variables, none),
      similar=jnp.zeros((T, T), bool),
    )
    if self.transfers:
      keys = jax.random.split(jax.random.fold_in(key, len(widths)), T)
      readers = jax.vmap(partial(reader, D=self.width, C=C))(keys)
      state = state.replace(transfer=readers, by_transfer=jnp.zeros(T, bool))
    if self.detects:
      state = state.replace(trials=self.comparison.begun(key))
    return state.replace(opt_state=self.learner.tx.init(self.moving(state, jnp.int32(0))))

  def features(self, state: State, k: Array, run: Callable[[Callable[..., Any]], Outputs]) -> Array:
    """[B, D] of task k [], of a batch that `run` asks behind its gates."""
    return run(self.units.gated(self.attention.at_rest(take(state.embeddings, k)))).features

  def asking(self, state: State, x: Array, slot: Array) -> Callable[[Callable[..., Any]], Outputs]:
    """Asks a gated net at rest."""
    return lambda apply: apply({"params": state.params, **state.collections}, x, slot)

  # The comparison

  def seen(self, state: State, before: Array) -> Callable[[Batch], Array]:
    """The features of a batch at rest, [T, B, D], of the tasks before [T]; zeros of the others."""

    def of(batch: Batch) -> Array:
      asks = self.asking(state, batch.x, batch.task)
      return over_live(lambda k: self.features(state, k, asks), before)

    return of

  def begin_comparison(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Trials begin anew for each task."""
    return state.replace(trials=self.comparison.begun(key))

  def compare_step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """A step of what is compared."""
    before = self.before(view.t)
    given = state.trials, state.collections, batch, self.seen(state, before), before
    trials, info = self.comparison.step(*given)
    return state.replace(trials=trials), info

  def compare(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Which tasks before are similar."""
    before = self.before(view.t)
    given = state.trials, state.collections, view, self.seen(state, before), before
    return state.replace(similar=state.similar.at[view.t].set(self.comparison.similar(*given)))

  # The task itself

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """What tasks that are not similar have attended to is held; a new optimizer."""
    before, similar = self.before(view.t), state.similar
    if self.transfer.similar_tasks == "all":
      similar = similar.at[view.t].set(before)
    others = before & ~similar[view.t]
    gates = self.attention.at_rest(state.embeddings)
    blocked = {name: jnp.where(others[:, None], a, 0).max(axis=0) for name, a in gates.items()}
    read = self.units.read({"params": state.params, **state.collections}, blocked)
    opt_state = self.learner.tx.init(self.moving(state, view.t))
    return state.replace(similar=similar, blocked=blocked, read=read, opt_state=opt_state)

  def step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """A step at the slope of the clock."""
    s, similar = self.attention.slope(clock), state.similar[view.t]
    held = self.units.between(state.params, state.read, state.blocked, view.t)

    def judge(params: Any, batch: Batch) -> tuple[Array, Any]:
      given = self.units.net, params["net"], state.collections, batch.x, batch.task, key, batch.live
      out, moved = in_training(*given, self.units.gated(params["gates"]))
      value, info = self.learner.judged(out, batch)
      value += self.attention.regulariser(params["gates"], state.used)
      if self.transfers:
        seen = over_live(lambda k: self.features(state, k, lambda apply: in_training(*given, apply)[0]), similar)
        read = cross_entropy(read_off(params["transfer"], seen, similar), batch)
        value += self.transfer.transfer_weight * jnp.where(similar.any(), read, 0)
      return value, (info, moved)

    loss, gradient = self.attention.asked(s, judge, held)
    moving = self.moving(state, view.t)
    frozen = dict.fromkeys(moving, False) | {"net": jax.tree.map(lambda held: held == 1, held)}
    given = self.learner.tx, loss, moving, state.opt_state, batch
    params, opt_state, _, (info, collections) = descend(*given, gradient=gradient, frozen=frozen)
    embeddings = put(state.embeddings, view.t, clipped(params["gates"]))
    state = state.replace(params=params["net"], opt_state=opt_state, collections=collections, embeddings=embeddings)
    return state.replace(transfer=put(state.transfer, view.t, params["transfer"])) if self.transfers else state, info

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The task's attention counts as used from now on, and validation rows tell how it answers."""
    own = self.attention.at_rest(take(state.embeddings, view.t))
    used = jax.tree.map(jnp.maximum, state.used, own)
    if self.transfers:

      def each(batch: Batch) -> Array:
        plain, read = self.both(state, batch.x, batch.task)
        return jnp.stack([right(plain.logits, batch), right(read, batch)], axis=1)

      plain, read = mean_over(each, view, view.tasks.valid)
      better = state.similar[view.t].any() & (read > plain)
      state = state.replace(by_transfer=state.by_transfer.at[view.t].set(better))
    return state.replace(used=used)

  def both(self, state: State, x: Array, slot: Array) -> tuple[Outputs, Array]:
    """What each row's own gates answer, and what is read off the tasks that are similar to its slot's [B, C]."""
    gates = self.attention.of_slots(state.embeddings, slot)
    asks = self.asking(state, x, slot)
    plain = asks(self.units.gated(gates))
    seen = over_live(lambda k: self.features(state, k, asks), state.similar[slot].any(axis=0))
    read = by_slot(lambda t: read_off(take(state.transfer, t), seen, state.similar[t]), self.learner.spec.T, slot)
    return plain, read

  def apply(self, state: State, x: Array, slot: Array) -> Outputs:
    """Each row through the gates of its own slot, or from what its task reads off similar ones."""
    if not self.transfers:
      gates = self.attention.of_slots(state.embeddings, slot)
      return self.asking(state, x, slot)(self.units.gated(gates))
    plain, read = self.both(state, x, slot)
    return plain._replace(logits=jnp.where(state.by_transfer[slot][:, None], read, plain.logits))

  def report(self, state: State) -> dict[str, Array]:
    """`used` is the share of all units that tasks have attended to, `similar` whom each task was found similar to."""
    used = jnp.concatenate(list(state.used.values())).mean()
    count = parameters((state.params, state.embeddings, state.transfer))
    return {"parameters": count, "memory_bytes": jnp.int32(0), "used": used, "similar": state.similar}


@declared("method", given=3)
def cat(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  passes: Passes = Passes(),
  attention: Attention = Attention(),
  transfer: Transfer = Transfer(),
) -> Method:
  """A comparison with the tasks before, then training with gates on units. The optimizer begins anew with each.

  Raises:
    ConfigError: a net with parameters that belong to no units.
  """
  own = Cat(supervised(net, tx, spec), units_of(net, spec), attention, transfer)
  fit = Phase("fit", passes.batch_size, own.step, epochs=passes.epochs, enter=own.enter, exit=own.leave)
  given = "compare", passes.batch_size, own.compare_step
  comparing = Phase(*given, epochs=transfer.compare_epochs, enter=own.begin_comparison, exit=own.compare)
  phases = (comparing, fit) if own.detects else (fit,)
  return Method(own.init, phases, own.apply, own.report, told=True, needs_boundaries=True, needs_valid=own.transfers)
