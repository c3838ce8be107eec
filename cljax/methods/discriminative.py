"""The discriminative gate: a classifier of the task trained on the rows of all tasks so far, the oracle that Expert
Gate's autoencoders are measured against (Aljundi et al. 2017, Table 3).

The experts are those of a chain, as in `confident`. The gate is one hidden ReLU layer on the autoencoders' own target
(`ops.gate.target_of`), trained until its accuracy on the validation rows of all tasks no longer rises.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.fit import mean_over
from cljax.nets.features import FeatureFn, feature_function
from cljax.ops import gate, trees
from cljax.ops.losses import mean_live
from cljax.ops.trees import parameters
from cljax.pieces import early
from cljax.pieces import experts as grown
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State:
  experts: grown.Experts
  params: Any  # of the gate
  opt_state: Any
  best: early.Best  # its loss is the share of validation rows sent to a wrong task
  standard: gate.Standard  # of the first task
  train_accuracy: Array  # [T] the gate's on the train rows of all tasks so far, after each task
  gate_epochs: Array  # [T] int32 until the early stop
  live: Array  # [T] bool, tasks that the gate knows


def discriminative(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: int = 64,
  epochs: int = 5,
  warmup_epochs: int = 1,
  parent: str = "previous",
  mode: str = "finetune",
  distill_weight: float = 1.0,
  distill_temperature: float = 2.0,
  phi: str | FeatureFn = "flatten",
  hidden: int = 100,
  gate_batch: int = 64,
  gate_epochs: int = 30,
  gate_lr: float = 1e-3,
  patience: int = 3,
) -> Method:
  """Experts in a chain behind a classifier of the task.

  Args:
    net, tx: of one expert, with one head; trained afresh for each task.
    batch_size, epochs, warmup_epochs, distill_weight, distill_temperature: see `pieces.experts.Training`.
    parent, mode: see `pieces.experts.chain`.
    phi: frozen feature function, as in `expert_gate`.
    hidden: units of the gate.
    gate_batch, gate_epochs, gate_lr: of the gate, by Adam; an epoch is all rows of all tasks so far.
    patience: epochs without a better validation accuracy after which it rests at its best.

  Raises:
    ConfigError: an unknown choice.
  """
  T = spec.T
  features, d = feature_function(phi, spec.x_shape)
  machine, optimizer = nn.Sequential([nn.Dense(hidden), nn.relu, nn.Dense(T)]), optax.adam(gate_lr)
  training = grown.Training(batch_size, epochs, warmup_epochs, distill_weight, distill_temperature)
  growing = grown.growing(net, tx, spec, training)

  def init(key: Key) -> State:
    begin, grow = jax.random.split(key)
    params = machine.init(begin, jnp.zeros((1, d)))["params"]
    standard = gate.Standard(jnp.zeros(d), jnp.ones(d), jnp.int32(0))
    none = jnp.zeros(T, jnp.int32)
    best = early.begin(params)
    return State(growing.init(grow), params, optimizer.init(params), best, standard, jnp.zeros(T), none, none > 0)

  def scores(params: Any, state: State, x: Array) -> Array:
    logits: Any = machine.apply({"params": params}, gate.target_of(features, state.standard, x))
    return jnp.where(state.live, logits, -jnp.inf)

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    measured = gate.standard_of(features, view, view.tasks.train)
    return state.replace(
      standard=trees.where(view.t == 0, measured, state.standard),
      opt_state=optimizer.init(state.params),
      best=early.begin(state.params),
      live=state.live.at[view.t].set(True),
    )

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    def loss(params):
      logits = scores(params, state, batch.x)
      each = optax.softmax_cross_entropy_with_integer_labels(logits, batch.task)
      return mean_live(each, batch.live), mean_live(logits.argmax(axis=-1) == batch.task, batch.live)

    (value, right), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    rests = state.best.stopped | ~batch.live.any()
    params, opt_state = early.update(rests, optimizer, grads, state.opt_state, state.params)
    return state.replace(params=params, opt_state=opt_state), {"loss": value, "accuracy": right}

  def accuracy(params: Any, state: State, view: View, rows: Any) -> Array:
    """[] share of rows sent to their own task, as the mean over the tasks so far."""

    def right(batch):
      return scores(params, state, batch.x).argmax(axis=-1) == batch.task

    each = jax.vmap(lambda task: mean_over(right, view, rows, task))(jnp.arange(T))
    return jnp.where(state.live, each, 0).sum() / state.live.sum()

  def tick(key: Key, state: State, view: View, clock: Clock) -> State:
    wrong = 1 - accuracy(state.params, state, view, view.tasks.valid)
    return state.replace(best=early.measure(state.best, state.params, wrong, patience))

  def leave(key: Key, state: State, view: View, clock: Clock) -> State:
    t, params = view.t, state.best.params
    return state.replace(
      params=params,
      train_accuracy=state.train_accuracy.at[t].set(accuracy(params, state, view, view.tasks.train)),
      gate_epochs=state.gate_epochs.at[t].set(state.best.epochs),
    )

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    if slot is None:
      slot = jnp.where(state.live.any(), scores(state.params, state, x).argmax(axis=-1), -1).astype(jnp.int32)
    return growing.apply(state.experts, x, slot)

  def report(state: State) -> dict[str, Array]:
    return {
      "parameters": parameters((state.experts.store, state.params)),
      "memory_bytes": jnp.int32(0),
      "parent": state.experts.parent,
      "mode": state.experts.mode,
      "gate_train_accuracy": state.train_accuracy,
      "gate_epochs": state.gate_epochs,
    }

  fit = Phase("gate", gate_batch, step, epochs=gate_epochs, joint=True, enter=enter, tick=tick, exit=leave)
  return Method(init, (*growing.phases(grown.chain(parent, mode)), fit), apply, report, infers=True, told=True)
