"""Autoencoder gates that grow one by one (Aljundi et al. 2017, https://arxiv.org/abs/1611.06194, sections 3.1 and 3.2):
training and errors.

A method keeps them as `state.gates`, and so does `gated`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cljax.artifacts import fill
from cljax.declared import at_least, declared, free, one_of
from cljax.errors import ConfigError
from cljax.loops import mean_over
from cljax.nets.autoencoder import KERNELS, Autoencoder
from cljax.nets.features import FeatureFn, Phi, feature_function
from cljax.ops import gate, trees
from cljax.ops.losses import mean_live
from cljax.ops.trees import put, take
from cljax.pieces import early
from cljax.pieces.descent import LossFn, descend
from cljax.pieces.gated import Gate
from cljax.pieces.standard import Standard, standard_of, target_of
from cljax.types import Array, Batch, Clock, Info, Key, Phase, Spec, View

RULES = {"adam": optax.adam, "adagrad": lambda lr: optax.adagrad(lr, 0.0, 1e-8)}


@flax.struct.dataclass
class Gates:
  """The gates of all tasks, and the one in training."""

  autoencoder: Any  # in training: {"params", "centre" [d] the task's mean target}
  opt_state: Any
  best: early.Best
  store: Any  # [T + 1, ...] finished autoencoders; slot T is the root's
  standard: Standard  # of the root, else of the first task
  trained: Array  # [T + 1] bool
  valid_error: Array  # [T] mean squared error of each autoencoder on its own validation rows
  dead: Array  # [T] share of code units that no validation row wakes
  lost: Array  # [T] share of validation rows without a finite error
  epochs: Array  # [T] int32 until the early stop
  blind: Array  # [] bool, a task had no validation row


class Autoencoders(NamedTuple):
  """How the autoencoders are built, trained and read."""

  phi: Phi = "flatten"
  code: Annotated[int, at_least(1, "hidden units of an autoencoder", 1_000_000)] = 100
  center: Annotated[
    bool, free("it sees target less mean target, and its decoder's bias starts at logit(mean); else the target")
  ] = True
  autoencoder_batch: Annotated[int, at_least(1, "rows a step of an autoencoder", 1_000_000)] = 64
  autoencoder_epochs: Annotated[int, at_least(1, "passes of an autoencoder over its task at most", 1_000_000)] = 30
  patience: Annotated[
    int, at_least(1, "epochs without a lower validation loss after which it stops, at its best; its steps still run")
  ] = 3
  autoencoder_optimizer: Annotated[str, one_of(tuple(RULES), "of the autoencoders")] = "adam"
  autoencoder_lr: Annotated[Array | float, at_least(0, "of that optimizer")] = 1e-3
  autoencoder_decay: Annotated[Array | float, at_least(0, "of the weights; biases do not decay")] = 0.0
  autoencoder_init: Annotated[str, one_of(tuple(KERNELS), "of the weights; `sparse` is the authors'")] = "glorot"


def optimizer_of(name: str, lr: Array | float, decay: Array | float) -> optax.GradientTransformation:
  """The rule of that name in RULES; the weights decay, the biases do not."""
  weights = optax.add_decayed_weights(decay, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
  return optax.chain(weights, RULES[name](lr))


class GateLearner(NamedTuple):
  """The functions of the gates, on states with a field `gates`."""

  T: int
  features: FeatureFn
  d: int  # of the features
  machine: Autoencoder
  tx: Any
  autoencoders: Autoencoders
  has_root: bool  # the root's standardisation serves all tasks

  def fresh(self, key: Key, centre: Array) -> Any:
    """A new autoencoder of targets whose mean is `centre` [d]."""
    params = self.machine.init(key, jnp.zeros((1, self.d)))["params"]
    if self.autoencoders.center:
      params["decoder"]["bias"] = jnp.log(centre / (1 - centre))
    return {"params": params, "centre": centre if self.autoencoders.center else jnp.zeros(self.d)}

  def rebuild(self, autoencoder: Any, target: Array) -> tuple[Array, Array]:
    """(logits [B, d], code [B, code]) of targets [B, d]."""
    return self.machine.apply({"params": autoencoder["params"]}, target - autoencoder["centre"])

  def init(self, key: Key) -> Gates:
    """Before the first task: none is trained."""
    T, d, one = self.T, self.d, self.fresh(key, jnp.full(self.d, 0.5, jnp.float32))
    zeros, off = jnp.zeros(T), jnp.zeros(T + 1, bool)
    return Gates(
      autoencoder=one,
      opt_state=self.tx.init(one["params"]),
      best=early.begin(one["params"]),
      store=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (T + 1, *leaf.shape)), one),
      standard=Standard(jnp.zeros(d), jnp.ones(d), jnp.int32(0)),
      trained=off,
      valid_error=zeros,
      dead=zeros,
      lost=zeros,
      epochs=jnp.zeros(T, jnp.int32),
      blind=off[0],
    )

  def enter(self, key: Key, state: Any, view: View, clock: Clock) -> Any:
    """The autoencoder of task t starts anew."""
    gates, rows = state.gates, view.tasks.train
    first = jnp.array(False) if self.has_root else view.t == 0
    standard = trees.where(first, standard_of(self.features, view, rows), gates.standard)
    centre = mean_over(lambda batch: target_of(self.features, standard, batch.x), view, rows)
    autoencoder = self.fresh(key, jnp.clip(centre, 1e-4, 1 - 1e-4))
    gates = gates.replace(
      standard=standard,
      autoencoder=autoencoder,
      opt_state=self.tx.init(autoencoder["params"]),
      best=early.begin(autoencoder["params"]),
      blind=gates.blind | (view.tasks.valid.count[view.t] == 0),
    )
    return state.replace(gates=gates)

  def loss(self, gates: Gates) -> LossFn:
    """(params, batch) -> (mean `entropy_error` of the live rows, info)."""

    def loss(params: Any, batch: Batch) -> tuple[Array, Info]:
      target = target_of(self.features, gates.standard, batch.x)
      logits, _ = self.rebuild({**gates.autoencoder, "params": params}, target)
      value = mean_live(gate.entropy_error(logits, target), batch.live)
      return value, {"loss": value}

    return loss

  def step(self, key: Key, state: Any, batch: Batch, clock: Clock, view: View) -> tuple[Any, Info]:
    """One step of the autoencoder in training, which rests where it has stopped."""
    gates = state.gates
    params, opt_state, _, info = descend(
      self.tx, self.loss(gates), gates.autoencoder["params"], gates.opt_state, batch, rests=gates.best.stopped
    )
    gates = gates.replace(autoencoder={**gates.autoencoder, "params": params}, opt_state=opt_state)
    return state.replace(gates=gates), info

  def tick(self, key: Key, state: Any, view: View, clock: Clock) -> Any:
    """After an epoch: the best one is kept."""
    gates = state.gates

    def loss(batch: Batch) -> Array:
      target = target_of(self.features, gates.standard, batch.x)
      return gate.entropy_error(self.rebuild(gates.autoencoder, target)[0], target)

    value = mean_over(loss, view, view.tasks.valid)
    best = early.measure(gates.best, gates.autoencoder["params"], value, self.autoencoders.patience)
    return state.replace(gates=gates.replace(best=best))

  def leave(self, key: Key, state: Any, view: View, clock: Clock) -> Any:
    """The autoencoder of task t is finished, as its best epoch left it."""
    gates, t = state.gates, view.t
    best = {**gates.autoencoder, "params": gates.best.params}

    def each(batch: Batch) -> tuple[Array, Array, Array]:
      target = target_of(self.features, gates.standard, batch.x)
      logits, code = self.rebuild(best, target)
      error = gate.squared_error(logits, target)
      return error, code > 0, ~jnp.isfinite(error)

    error, awake, lost = mean_over(each, view, view.tasks.valid)
    gates = gates.replace(
      store=put(gates.store, t, best),
      trained=gates.trained.at[t].set(True),
      valid_error=gates.valid_error.at[t].set(error),
      dead=gates.dead.at[t].set((awake == 0).mean()),
      lost=gates.lost.at[t].set(lost),
      epochs=gates.epochs.at[t].set(gates.best.epochs),
    )
    return state.replace(gates=gates)

  def errors_of(self, store: Any, standard: Standard, trained: Array, x: Array) -> Array:
    """[B, slots] the squared errors of x [B, ...] by the autoencoders of a store; inf where none is trained."""
    target = target_of(self.features, standard, x)
    each = jax.vmap(lambda one: gate.squared_error(self.rebuild(one, target)[0], target))(store)
    return jnp.where(trained[:, None], each, jnp.inf).T

  def errors(self, gates: Gates, x: Array) -> Array:
    """[B, T + 1] the squared errors of x [B, ...]; inf where no autoencoder is trained."""
    return self.errors_of(gates.store, gates.standard, gates.trained, x)

  def part(self, gates: Gates) -> Any:
    """The tasks' gates as a file of their own holds them, without the root's: what routing needs."""
    tasks = jax.tree.map(lambda leaf: leaf[: self.T], gates.store)
    return {"autoencoders": tasks, "standard": gates.standard, "trained": gates.trained[: self.T]}

  def faults(self, gates: Gates, section: str) -> dict[str, Array]:
    """A task without validation rows; an autoencoder that diverges, by the key of the section that has its rate."""
    best = gates.best
    return {
      "stream.valid_per_task (or valid_share)": gates.blind,
      f"{section}.autoencoder_lr": (best.waited > 0) & ~jnp.isfinite(best.loss),
    }

  def phase(self) -> Phase:
    """The training of an autoencoder."""
    batch, epochs = self.autoencoders.autoencoder_batch, self.autoencoders.autoencoder_epochs
    return Phase("autoencode", batch, self.step, epochs=epochs, enter=self.enter, tick=self.tick, exit=self.leave)


def gate_learner(spec: Spec, autoencoders: Autoencoders, has_root: bool) -> GateLearner:
  """The learner of the gates of all tasks.

  Raises:
    ConfigError: a feature function of the wrong shape.
  """
  it = autoencoders
  features, d = feature_function(it.phi, spec.x_shape)
  machine = Autoencoder(d, it.code, it.autoencoder_init)
  tx = optimizer_of(it.autoencoder_optimizer, it.autoencoder_lr, it.autoencoder_decay)
  return GateLearner(spec.T, features, d, machine, tx, it, has_root)


@declared("gate", given=1)
def autoencoder(spec: Spec, *, autoencoders: Autoencoders = Autoencoders()) -> Gate:
  """The task whose autoencoder rebuilds a picture best, as in Expert Gate; each stops at its validation plateau."""
  learner = gate_learner(spec, autoencoders, has_root=False)

  def errors(gates: Gates, x: Array, answer: Any) -> Array:
    return learner.errors(gates, x)[:, : spec.T]

  return Gate(
    learner.init,
    errors,
    phases=(learner.phase(),),
    faults=lambda gates: learner.faults(gates, "gate"),
    needs_valid=True,
    size=lambda gates: trees.parameters(gates.store),
  )


def with_root(gates: Gates, leaves: Mapping[str, Array], k: int, source: str) -> Gates:
  """The gates with the k-th autoencoder of a file in the root's slot, and its standard.

  Args:
    leaves: of the file, by their paths.
    source: the file, for a message.

  Raises:
    ConfigError: autoencoders of other shapes, or fewer of them.
  """
  stacked = {name for name in leaves if name.startswith("['autoencoders']")}
  held = min((len(leaves[name]) for name in stacked), default=0)
  if k >= held:
    raise ConfigError(f"{source} holds {held} autoencoders, and none of expert_{k}; name one of the others")
  stored = {name: leaf[k] if name in stacked else leaf for name, leaf in leaves.items()}
  root = fill({"autoencoders": take(gates.store, 0), "standard": gates.standard}, stored, source)
  return gates.replace(
    store=put(gates.store, -1, root["autoencoders"]),
    standard=jax.tree.map(lambda own, leaf: jnp.asarray(leaf, own.dtype), gates.standard, root["standard"]),
    trained=gates.trained.at[-1].set(True),
  )
