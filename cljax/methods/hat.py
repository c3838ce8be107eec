"""Hard attention to the task (Serra et al. 2018, https://arxiv.org/abs/1801.01423): gates on units, learnt by task.

Each task t has an embedding e_l for every layer l, and what the layer's units give is multiplied by a_l = sigma(s e_l).
The slope s rises within each epoch from 1 / s_max, where all units learn, to s_max, where a gate is open or shut. What
earlier tasks have attended to, a^{<t} = max(a^1, ..., a^{t-1}), is held: the gradient of a weight is multiplied by
1 - min(a_i^{<t}, a_j^{<t}) of the two units that it lies between.

A weight between two units whose a^{<t} are 1 keeps its bits, whatever the optimizer. With `masks="hard"` finished tasks
have gates of 0 and 1 alone, so that their answers keep their bits too (not those of a net with BatchNorm, whose
statistics all tasks share). With the published soft gates a gate is 1 to the last bit where s_max e is over 17, and one
that is shut lets through as little as e^-(s_max |e|); adaptive optimizers undo the factors between 0 and 1.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax import artifacts
from cljax.declared import declared, free
from cljax.loops import mean_over
from cljax.nets.modes import in_training
from cljax.ops.losses import cross_entropies
from cljax.ops.trees import parameters, put, take, where
from cljax.pieces import early
from cljax.pieces.attention import Attention, clipped, drawn
from cljax.pieces.descent import descend
from cljax.pieces.early import Cooled, Cooling, cool
from cljax.pieces.learner import Learner, Passes, Trained, supervised
from cljax.pieces.units import Units, units_of
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View, keep


@flax.struct.dataclass
class State(Trained):
  """The network and its gates; `opt_state` is of {"net": params, "gates": the embeddings of the task in training}."""

  embeddings: Any = None  # [T, W] by layer
  used: Any = None  # [W] by layer, a^{<t}
  read: Any = None  # [I] by layer, a^{<t} of the units that it reads
  cooled: Any = None  # where the rate is to drop


class Hat(NamedTuple):
  """The functions of the method."""

  learner: Learner
  units: Units
  attention: Attention
  cooling: Cooling
  gates_from: str  # file of embeddings; '' draws them

  def load(self, state: State, parts: Mapping[str, Mapping[str, Array]]) -> State:
    """The state with the embeddings of the file, where there is one.

    Raises:
      ConfigError: a file of other layers, widths or tasks.
    """
    if not self.gates_from:
      return state
    return state.replace(embeddings=artifacts.fill(state.embeddings, parts["embeddings"], self.gates_from))

  def moving(self, state: State, t: Array) -> dict[str, Any]:
    """What a step in task t [] moves."""
    return {"net": state.params, "gates": take(state.embeddings, t)}

  def kept(self, state: State, t: Array) -> dict[str, Any]:
    """What the best epoch of task t keeps."""
    return {**self.moving(state, t), "collections": state.collections}

  def begun(self, state: State, t: Array) -> State:
    """The state at the beginning of task t: a new optimizer."""
    cooled = Cooled(early.begin(self.kept(state, t)), jnp.float32(1)) if self.cooling.patience else None
    return state.replace(opt_state=self.learner.tx.init(self.moving(state, t)), cooled=cooled)

  def init(self, key: Key) -> State:
    """Embeddings are drawn from a normal distribution of deviation 1."""
    own, widths = self.learner.init(key), self.units.widths
    none = {name: jnp.zeros(width) for name, width in widths.items()}
    embeddings = drawn(key, widths, self.learner.spec.T)
    read = self.units.read({"params": own["params"], **own["collections"]}, none)
    return self.begun(State(**own, embeddings=embeddings, used=none, read=read), jnp.int32(0))

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """A task begins."""
    return self.begun(state, view.t)

  def step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """A step at the slope of the clock."""
    s = self.attention.slope(clock)
    held = self.units.between(state.params, state.read, state.used, view.t)

    def judge(params: Any, batch: Batch) -> tuple[Array, Any]:
      apply = self.units.gated(params["gates"])
      given = self.units.net, params["net"], state.collections, batch.x, batch.task, key, batch.live
      out, moved = in_training(*given, apply)
      value, info = self.learner.judged(out, batch)
      return value + self.attention.regulariser(params["gates"], state.used), (info, moved)

    loss, gradient = self.attention.asked(s, judge, held)
    cooled = state.cooled
    stopped: Any = False if cooled is None else cooled.best.stopped
    params, opt_state, _, (info, collections) = descend(
      self.learner.tx if cooled is None else cooled.slowed(self.learner.tx),
      loss,
      self.moving(state, view.t),
      state.opt_state,
      batch,
      gradient=gradient,
      frozen={"net": jax.tree.map(lambda held: held == 1, held), "gates": False},
      rests=stopped,
    )
    if cooled is not None:
      collections = where(stopped, state.collections, collections)
    embeddings = put(state.embeddings, view.t, clipped(params["gates"]))
    moved = {"params": params["net"], "opt_state": opt_state, "collections": collections}
    return state.replace(**moved, embeddings=embeddings), info

  def tick(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The validation loss of an epoch, at s_max and with the regulariser, decides about the rate."""
    params = self.kept(state, view.t)
    gates = self.attention.at_rest(params["gates"])
    apply, variables = self.units.gated(gates), {"params": params["net"], **params["collections"]}

    def each(batch: Batch) -> Array:
      logits = apply(variables, batch.x, batch.task).logits
      return cross_entropies(logits, batch)

    loss = mean_over(each, view, view.tasks.valid) + self.attention.regulariser(gates, state.used)
    return state.replace(cooled=cool(state.cooled, params, loss, self.cooling))

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The task's attention is held from now on; where the rate drops, that of its best epoch."""
    if state.cooled is not None:
      best = state.cooled.best.params
      own = {"params": best["net"], "collections": best["collections"]}
      state = state.replace(**own, embeddings=put(state.embeddings, view.t, best["gates"]))
    gates = self.attention.at_rest(take(state.embeddings, view.t))
    used = jax.tree.map(jnp.maximum, state.used, gates)
    return state.replace(used=used, read=self.units.read({"params": state.params, **state.collections}, used))

  def apply(self, state: State, x: Array, slot: Array) -> Outputs:
    """Each row through the gates of its own slot."""
    gates = self.attention.of_slots(state.embeddings, slot)
    return self.units.gated(gates)({"params": state.params, **state.collections}, x, slot)

  def report(self, state: State) -> dict[str, Array]:
    """`used` is the share of all units that tasks have attended to."""
    used = jnp.concatenate(list(state.used.values())).mean()
    count = parameters((state.params, state.embeddings))
    return {"parameters": count, "memory_bytes": jnp.int32(0), "used": used}


@declared("method", given=3)
def hat(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  passes: Passes = Passes(),
  attention: Attention = Attention(),
  cooling: Cooling = Cooling(),
  gates_from: Annotated[
    str, free("file of all tasks' embeddings to begin with, `W/parts/seed_0/embeddings.npz`; '' draws them")
  ] = "",
) -> Method:
  """Training with gates on units. Published are plain SGD at .05 that begins anew with each task, and patience 5.

  A run leaves its embeddings as the part `embeddings`. With its network, `config.start_from`, and `config.given_tasks`
  another run goes on from the tasks that it knows: what these attend to is held from the ends of theirs on.

  Raises:
    ConfigError: a net with parameters that belong to no units.
  """
  own = Hat(supervised(net, tx, spec), units_of(net, spec), attention, cooling, gates_from)
  cools = cooling.patience > 0
  tick = own.tick if cools else keep
  phase = Phase("fit", passes.batch_size, own.step, epochs=passes.epochs, enter=own.enter, tick=tick, exit=own.leave)
  return Method(
    own.init,
    (phase,),
    own.apply,
    own.report,
    parts=lambda state: {"embeddings": state.embeddings},
    load=own.load,
    reads={"embeddings": gates_from} if gates_from else {},
    told=True,
    needs_boundaries=True,
    needs_valid=cools,
  )
