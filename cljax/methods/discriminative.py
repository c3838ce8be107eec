"""The discriminative gate: a classifier of the task trained on the rows of all tasks so far, the oracle that Expert
Gate's autoencoders are measured against (Aljundi et al. 2017, https://arxiv.org/abs/1611.06194, Table 3).

The experts are those of a chain, as in `confident`. The gate is one hidden ReLU layer on the autoencoders' own target
(`pieces.standard.target_of`), trained until its accuracy on the validation rows of all tasks no longer rises.
"""

from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import at_least, declared
from cljax.loops import mean_over
from cljax.nets.features import FeatureFn, Phi, feature_function
from cljax.ops import trees
from cljax.ops.losses import mean_live
from cljax.ops.trees import parameters
from cljax.pieces import early
from cljax.pieces.descent import descend
from cljax.pieces.experts import Chain, Experts, Training, expert_learner
from cljax.pieces.standard import Standard, standard_of, target_of
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Rows, Spec, View


@flax.struct.dataclass
class State:
  """The experts of all tasks, and the gate."""

  experts: Experts
  params: Any  # of the gate
  opt_state: Any
  best: early.Best  # its loss is the share of validation rows sent to a wrong task
  standard: Standard  # of the first task
  train_accuracy: Array  # [T] the gate's on the train rows of all tasks so far, after each task
  gate_epochs: Array  # [T] int32 until the early stop
  live: Array  # [T] bool, tasks that the gate knows


class Classifier(NamedTuple):
  """How the gate is built and trained; one of its epochs is all rows of all tasks so far."""

  phi: Phi = "flatten"
  hidden: Annotated[int, at_least(1, "units of the gate", 1_000_000)] = 100
  gate_batch: Annotated[int, at_least(1, "rows a step of the gate", 1_000_000)] = 64
  gate_epochs: Annotated[int, at_least(1, "passes of the gate at most", 1_000_000)] = 30
  gate_lr: Annotated[Array | float, at_least(0, "of the gate's Adam")] = 1e-3
  patience: Annotated[
    int, at_least(1, "epochs without a better validation accuracy after which it rests at its best")
  ] = 3


class GateLearner(NamedTuple):
  """The functions of the gate, on the method's states."""

  T: int
  features: FeatureFn
  d: int  # of the features
  machine: nn.Module
  tx: Any
  classifier: Classifier

  def init(self, key: Key, experts: Experts) -> State:
    """Before the first task."""
    params = self.machine.init(key, jnp.zeros((1, self.d)))["params"]
    none = jnp.zeros(self.T, jnp.int32)
    return State(
      experts=experts,
      params=params,
      opt_state=self.tx.init(params),
      best=early.begin(params),
      standard=Standard(jnp.zeros(self.d), jnp.ones(self.d), jnp.int32(0)),
      train_accuracy=jnp.zeros(self.T),
      gate_epochs=none,
      live=none > 0,
    )

  def scores(self, params: Any, state: State, x: Array) -> Array:
    """[B, T] the logits of the tasks so far, -inf for those to come."""
    logits: Any = self.machine.apply({"params": params}, target_of(self.features, state.standard, x))
    return jnp.where(state.live, logits, -jnp.inf)

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The gate goes on, with one task more."""
    measured = standard_of(self.features, view, view.tasks.train)
    return state.replace(
      standard=trees.where(view.t == 0, measured, state.standard),
      opt_state=self.tx.init(state.params),
      best=early.begin(state.params),
      live=state.live.at[view.t].set(True),
    )

  def step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """One step of the gate, which rests where it has stopped."""

    def loss(params: Any, batch: Batch) -> tuple[Array, Info]:
      logits = self.scores(params, state, batch.x)
      each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.task)
      value = mean_live(each, batch.live)
      return value, {"loss": value, "accuracy": mean_live(logits.argmax(axis=-1) == batch.task, batch.live)}

    params, opt_state, _, info = descend(self.tx, loss, state.params, state.opt_state, batch, rests=state.best.stopped)
    return state.replace(params=params, opt_state=opt_state), info

  def accuracy(self, params: Any, state: State, view: View, rows: Rows) -> Array:
    """[] share of rows sent to their own task, as the mean over the tasks so far."""

    def right(batch: Batch) -> Array:
      return self.scores(params, state, batch.x).argmax(axis=-1) == batch.task

    each = jax.vmap(lambda task: mean_over(right, view, rows, task))(jnp.arange(self.T))
    return jnp.where(state.live, each, 0).sum() / state.live.sum()

  def tick(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """After an epoch: the best one is kept."""
    wrong = 1 - self.accuracy(state.params, state, view, view.tasks.valid)
    return state.replace(best=early.measure(state.best, state.params, wrong, self.classifier.patience))

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The gate goes back to its best epoch."""
    t, params = view.t, state.best.params
    right = self.accuracy(params, state, view, view.tasks.train)
    return state.replace(
      params=params,
      train_accuracy=state.train_accuracy.at[t].set(right),
      gate_epochs=state.gate_epochs.at[t].set(state.best.epochs),
    )

  def phase(self) -> Phase:
    """The training of the gate, on the rows of all tasks so far."""
    batch, epochs = self.classifier.gate_batch, self.classifier.gate_epochs
    it = Phase("gate", batch, self.step, epochs=epochs, joint=True)
    return it._replace(enter=self.enter, tick=self.tick, exit=self.leave)


@declared("method", given=3)
def discriminative(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  training: Training = Training(),
  chain: Chain = Chain(),
  classifier: Classifier = Classifier(),
) -> Method:
  """Experts in a chain behind a classifier of the task.

  Args:
    net, tx: of one expert, with one head; trained afresh for each task.

  Raises:
    ConfigError: a feature function of the wrong shape.
  """
  features, d = feature_function(classifier.phi, spec.x_shape)
  machine = nn.Sequential([nn.Dense(classifier.hidden), nn.relu, nn.Dense(spec.T)])
  gates = GateLearner(spec.T, features, d, machine, optax.adam(classifier.gate_lr), classifier)
  experts = expert_learner(net, tx, spec, training, chain.consolidates)

  def init(key: Key) -> State:
    begin, grow = jax.random.split(key)
    return gates.init(begin, experts.init(grow))

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    if slot is None:
      scores = gates.scores(state.params, state, x)
      slot = jnp.where(state.live.any(), scores.argmax(axis=-1), -1).astype(jnp.int32)
    return experts.apply(state.experts, x, slot)

  def report(state: State) -> dict[str, Array]:
    return {
      "parameters": parameters((state.experts.store, state.params)),
      "memory_bytes": jnp.int32(0),
      "parent": state.experts.parent,
      "mode": state.experts.mode,
      "gate_train_accuracy": state.train_accuracy,
      "gate_epochs": state.gate_epochs,
    }

  phases = (*experts.phases(chain.decide), gates.phase())
  return Method(init, phases, apply, report, infers=True, told=True, needs_boundaries=True, needs_valid=True)
