"""Autoencoder gates that grow one by one (Aljundi et al. 2017, sections 3.1 and 3.2): training, errors, routes.

Methods keep the record as `state.gates`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cljax.artifacts import fill, read
from cljax.errors import choose
from cljax.fit import mean_over
from cljax.nets.autoencoder import Autoencoder
from cljax.nets.features import FeatureFn, feature_function
from cljax.ops import gate, trees
from cljax.ops.losses import mean_live
from cljax.ops.trees import put, take
from cljax.pieces import early
from cljax.types import Array, Batch, Clock, Info, Key, Phase, Routes, Spec, View


@flax.struct.dataclass
class Gates:
  autoencoder: Any  # in training: {"params", "centre" [d] the task's mean target}
  opt_state: Any
  best: early.Best
  store: Any  # [T + 1, ...] finished autoencoders; slot T is the root's
  standard: gate.Standard  # of the root, else of the first task
  trained: Array  # [T + 1] bool
  valid_error: Array  # [T] mean squared error of each autoencoder on its own validation rows
  dead: Array  # [T] share of code units that no validation row wakes
  lost: Array  # [T] share of validation rows without a finite error
  epochs: Array  # [T] int32 until the early stop
  blind: Array  # [] bool, a task had no validation row


class Gating(NamedTuple):
  init: Callable[[Key], Gates]
  phase: Phase  # on `state.gates`
  errors: Callable[[Gates, Array], Array]  # x [B, ...] -> [B, T + 1] squared errors, inf where nothing is trained
  route: Callable[[Any, Array], Routes]  # (tree of `export`, x [B, ...])
  export: Callable[[Gates], Any]  # the tasks' gates without the root's: what routing needs


def optimizer_of(name: str, lr: Array | float, decay: Array | float) -> optax.GradientTransformation:
  """`adam` or `adagrad`; the weights decay, the biases do not."""
  rules = {"adam": optax.adam, "adagrad": lambda lr: optax.adagrad(lr, 0.0, 1e-8)}
  rule = rules[choose("config.method.autoencoder_optimizer", name, rules)]
  return optax.chain(
    optax.add_decayed_weights(decay, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)), rule(lr)
  )


def autoencoder_gates(
  spec: Spec,
  *,
  phi: str | FeatureFn,
  code: int,
  center: bool,
  batch_size: int,
  epochs: int,
  patience: int,
  optimizer: str,
  lr: float,
  decay: float,
  kernel_init: str,
  temperature: float,
  has_root: bool,
) -> Gating:
  """The functions of the gates; the arguments are those of `methods.expert_gate`.

  Raises:
    ConfigError: an unknown name, or a feature function of the wrong shape.
  """
  T = spec.T
  features, d = feature_function(phi, spec.x_shape)
  machine = Autoencoder(d, code, kernel_init)
  tx = optimizer_of(optimizer, lr, decay)

  def fresh(key: Key, centre: Array) -> Any:
    params = machine.init(key, jnp.zeros((1, d)))["params"]
    if center:
      params["decoder"]["bias"] = jnp.log(centre / (1 - centre))
    return {"params": params, "centre": centre if center else jnp.zeros(d)}

  def rebuild(autoencoder: Any, target: Array) -> tuple[Array, Array]:
    return machine.apply({"params": autoencoder["params"]}, target - autoencoder["centre"])

  def errors_of(store: Any, standard: gate.Standard, trained: Array, x: Array) -> Array:
    target = gate.target_of(features, standard, x)
    each = jax.vmap(lambda one: gate.squared_error(rebuild(one, target)[0], target))(store)
    return jnp.where(trained[:, None], each, jnp.inf).T

  def init(key: Key) -> Gates:
    one = fresh(key, jnp.full(d, 0.5, jnp.float32))
    stack = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (T + 1, *leaf.shape)), one)
    standard = gate.Standard(jnp.zeros(d), jnp.ones(d), jnp.int32(0))
    zeros = jnp.zeros(T)
    opt_state, best, off = tx.init(one["params"]), early.begin(one["params"]), jnp.zeros(T + 1, bool)
    return Gates(one, opt_state, best, stack, standard, off, zeros, zeros, zeros, jnp.zeros(T, jnp.int32), off[0])

  def enter(key: Key, state: Any, view: View, clock: Clock) -> Any:
    gates = state.gates
    first = jnp.array(False) if has_root else view.t == 0
    measured = gate.standard_of(features, view, view.tasks.train)
    standard = trees.where(first, measured, gates.standard)
    centre = mean_over(lambda batch: gate.target_of(features, standard, batch.x), view, view.tasks.train)
    autoencoder = fresh(key, jnp.clip(centre, 1e-4, 1 - 1e-4))
    gates = gates.replace(
      standard=standard,
      autoencoder=autoencoder,
      opt_state=tx.init(autoencoder["params"]),
      best=early.begin(autoencoder["params"]),
      blind=gates.blind | (view.tasks.valid.count[view.t] == 0),
    )
    return state.replace(gates=gates)

  def step(key: Key, state: Any, batch: Batch, clock: Clock, view: View) -> tuple[Any, Info]:
    gates = state.gates
    target = gate.target_of(features, gates.standard, batch.x)

    def loss(params):
      logits, _ = rebuild({**gates.autoencoder, "params": params}, target)
      return mean_live(gate.entropy_error(logits, target), batch.live)

    params = gates.autoencoder["params"]
    value, grads = jax.value_and_grad(loss)(params)
    rests = gates.best.stopped | ~batch.live.any()
    params, opt_state = early.update(rests, tx, grads, gates.opt_state, params)
    gates = gates.replace(autoencoder={**gates.autoencoder, "params": params}, opt_state=opt_state)
    return state.replace(gates=gates), {"loss": value}

  def tick(key: Key, state: Any, view: View, clock: Clock) -> Any:
    gates = state.gates

    def loss(batch):
      target = gate.target_of(features, gates.standard, batch.x)
      return gate.entropy_error(rebuild(gates.autoencoder, target)[0], target)

    value = mean_over(loss, view, view.tasks.valid)
    best = early.measure(gates.best, gates.autoencoder["params"], value, patience)
    return state.replace(gates=gates.replace(best=best))

  def leave(key: Key, state: Any, view: View, clock: Clock) -> Any:
    gates = state.gates
    best = {**gates.autoencoder, "params": gates.best.params}

    def each(batch):
      target = gate.target_of(features, gates.standard, batch.x)
      logits, hidden = rebuild(best, target)
      error = gate.squared_error(logits, target)
      return error, hidden > 0, ~jnp.isfinite(error)

    error, awake, lost = mean_over(each, view, view.tasks.valid)
    t = view.t
    gates = gates.replace(
      store=put(gates.store, t, best),
      trained=gates.trained.at[t].set(True),
      valid_error=gates.valid_error.at[t].set(error),
      dead=gates.dead.at[t].set((awake == 0).mean()),
      lost=gates.lost.at[t].set(lost),
      epochs=gates.epochs.at[t].set(gates.best.epochs),
    )
    return state.replace(gates=gates)

  def errors(gates: Gates, x: Array) -> Array:
    return errors_of(gates.store, gates.standard, gates.trained, x)

  def export(gates: Gates) -> Any:
    tasks = jax.tree.map(lambda leaf: leaf[:T], gates.store)
    return {"autoencoders": tasks, "standard": gates.standard, "trained": gates.trained[:T]}

  def route(part: Any, x: Array) -> Routes:
    found = errors_of(part["autoencoders"], part["standard"], part["trained"], x)
    return Routes(gate.gate_choice(found), gate.gate_probabilities(found, temperature), found)

  phase = Phase("autoencode", batch_size, step, epochs=epochs, enter=enter, tick=tick, exit=leave)
  return Gating(init, phase, errors, route, export)


def with_root(gates: Gates, path: str) -> Gates:
  """The gates with the autoencoder beside the expert of a file, `gate.npz`, in the root's slot, and its standard.

  Raises:
    ConfigError: no such file, or autoencoders of other shapes.
  """
  folder, _, name = path.rpartition("/")
  source, k = f"{folder}/gate.npz", int("".join(filter(str.isdigit, name)) or 0)
  stored = {key: leaf[k] if "autoencoders" in key else leaf for key, leaf in read(source).items()}
  root = fill({"autoencoders": take(gates.store, 0), "standard": gates.standard}, stored, source)
  return gates.replace(
    store=put(gates.store, -1, root["autoencoders"]),
    standard=jax.tree.map(jnp.asarray, root["standard"]),
    trained=gates.trained.at[-1].set(True),
  )
