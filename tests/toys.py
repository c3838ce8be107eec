"""Small banks, streams and methods for the tests."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from cljax.config import complete, default
from cljax.data.sample import fetch
from cljax.data.warp import Permutation
from cljax.experiment import Experiment, assemble
from cljax.loops import mean_over
from cljax.nets import MLP, RoutedMLP, Stack
from cljax.ops.slots import apply_by_slot
from cljax.ops.trees import put, take
from cljax.pieces import replay
from cljax.pieces.learner import Trained, supervised
from cljax.types import At, Bank, Method, Phase, Place, Rows, Spec, Stream, Task


def bank(rows: int = 120, classes: int = 4, shape: tuple[int, ...] = (4, 4, 1), seed: int = 0) -> Bank:
  """Learnable uint8 pictures: a class mean and noise."""
  means = np.random.default_rng(9).integers(0, 200, (classes, *shape))  # the same classes for every seed
  random = np.random.default_rng(seed)
  y = np.arange(rows) % classes
  x = np.clip(means[y] + random.integers(0, 55, (rows, *shape)), 0, 255)
  return Bank(x.astype(np.uint8), y.astype(np.int32))


def pad(tables: list[Any]) -> tuple[np.ndarray, np.ndarray]:
  count = np.array([len(table) for table in tables], np.int32)
  idx = np.zeros((len(tables), max(1, count.max())), np.int32)
  for row, table in zip(idx, tables, strict=True):
    row[: len(table)] = table
  return idx, count


def stream(
  counts=(30, 23, 40), heads: int | None = None, boundaries: bool = True, seed: int = 0
) -> tuple[Spec, Stream]:
  """Permuted tasks of ragged lengths over one bank, with 8 validation rows each."""
  T, train, test = len(counts), bank(), bank(rows=60, seed=1)
  random = np.random.default_rng(seed)
  warp = Permutation(np.stack([random.permutation(16) for _ in range(T)]).astype(np.int32))
  order = [random.permutation(120).astype(np.int32) for _ in range(T)]
  tasks = Task(
    Rows(*pad([rows[8 : 8 + count] for rows, count in zip(order, counts, strict=True)]), warp),
    Rows(*pad([rows[:8] for rows in order]), warp),
    np.tile(np.arange(4, dtype=np.int32), (T, 1)),
    np.tile(np.arange(4, dtype=np.int32), (T, 1)),
    np.ones((T, 4), bool),
  )
  heads = heads or (T if boundaries else 1)
  spec = Spec((4, 4, 1), T, 4, heads, boundaries, tuple(counts))
  return spec, Stream(train, tasks, test, Rows(*pad([np.arange(60 - 7 * t) for t in range(T)]), warp))


def mlp(spec: Spec) -> MLP:
  return MLP(heads=spec.heads, classes=spec.C, hidden=(8, 8))


def wide_mlp(spec: Spec) -> MLP:
  return MLP(heads=spec.heads, classes=spec.C, hidden=(24, 24))


def stack(spec: Spec) -> Stack:
  return Stack(
    heads=spec.heads,
    classes=spec.C,
    channels=(4, 4),
    pools=(1, 2),
    hidden=(8,),
    dropout=0.1,
    weight_scale=0.4,
    bias=0.0,
  )


def routed(spec: Spec, experts: int = 6, width: int = 3) -> RoutedMLP:
  return RoutedMLP(heads=spec.heads, classes=spec.C, widths=(width, width), experts=experts)


def experiment(
  method: Method, spec: Spec, data: Stream, seeds=(0, 1), executor: str = "map", **settings: Any
) -> Experiment:
  """An experiment that asks and notes often; the stream may have other rows than those that the method was told."""
  often = {"evaluate_group": 16, "log_every_steps": 1, **settings}
  return assemble(method, spec._replace(rows=()), data, seeds=seeds, seed_executor=executor, **often)


SMALL_GATE = {"name": "expert_gate", "epochs": 2, "code": 8, "autoencoder_epochs": 3}


def config_of(
  method: dict[str, Any],
  hidden: tuple[int, ...] = (16,),
  lr: float = 0.01,
  keys: dict[str, Any] | None = None,
  **stream: Any,
) -> ConfigDict:
  """The complete config of two seeds of an MLP under Adam on the embedded digits, split unless `stream` says else.

  Args:
    keys: of the outer level.
    stream: fields of config.stream.
  """
  config = default()
  config.update({"num_seeds": 2, **(keys or {})})
  config.stream = {"name": "split", "source": "digits", **stream}
  config.net = {"name": "mlp", "hidden": hidden}
  config.optimizer = {"name": "adam", "lr": lr}
  config.method = method
  return complete(config)


def learn(learner: Any, params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, Any]:
  """(params, opt_state, info) after one step of a learner whose net draws nothing."""
  state, info = learner.step(At(None, None, None), Trained(params, opt_state), batch)
  return state.params, state.opt_state, info


def answer(learner: Any) -> Any:
  """(params, x, slot) -> Outputs of a learner whose net has no other collections."""
  return lambda params, x, slot: learner.apply(Trained(params, None), x, slot)


def plain(spec: Spec, *, batch: int = 10, epochs: int = 1, steps: int = 0, **phase: Any) -> Method:
  """Fine-tuning with room for other phase fields."""
  learner = supervised(mlp(spec), optax.sgd(0.1), spec)

  def step(key, state, batch, clock, view):
    params, opt_state, info = learn(learner, state.params, state.opt_state, batch)
    return state.replace(params=params, opt_state=opt_state), info

  return Method(
    lambda key: Trained(**learner.init(key)),
    (Phase("fit", batch, step, epochs=0 if steps else epochs, steps=steps, **phase),),
    learner.apply,
    lambda state: {"parameters": jnp.int32(1), "memory_bytes": jnp.int32(0)},
  )


@flax.struct.dataclass
class Stopping:
  params: Any
  opt_state: Any
  best: Any  # params of the best epoch
  losses: jax.Array  # [T, epochs] validation loss after each epoch
  stopped: jax.Array  # [] bool
  ticks: jax.Array  # [] int32


def early_stop(spec: Spec, epochs: int = 4) -> Method:
  """Plain training that freezes at the first epoch whose validation loss is not a new best, and goes back to that."""
  learner = supervised(mlp(spec), optax.sgd(1.0), spec)

  def init(key):
    params, opt_state = (learner.init(key)[name] for name in ("params", "opt_state"))
    return Stopping(params, opt_state, params, jnp.full((spec.T, epochs), jnp.inf), jnp.array(False), jnp.int32(0))

  def enter(key, state, view, clock):
    return state.replace(stopped=jnp.array(False))

  def step(key, state, batch, clock, view):
    params, opt_state, info = learn(learner, state.params, state.opt_state, batch)
    params = jax.tree.map(lambda old, new: jnp.where(state.stopped, old, new), state.params, params)
    return state.replace(params=params, opt_state=opt_state), info

  def valid_loss(params, view):
    def each(batch):
      logits = answer(learner)(params, batch.x, batch.task).logits
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)

    return mean_over(each, view, view.tasks.valid, group=3)

  def tick(key, state, view, clock):
    loss = valid_loss(state.params, view)
    better = ~state.stopped & (loss < state.losses[view.t].min())
    best = jax.tree.map(lambda old, new: jnp.where(better, new, old), state.best, state.params)
    losses = state.losses.at[view.t, clock.epoch].set(loss)
    return state.replace(best=best, losses=losses, stopped=~better, ticks=state.ticks + 1)

  def leave(key, state, view, clock):
    return state.replace(params=state.best)

  return Method(
    init,
    (Phase("fit", 10, step, epochs=epochs, enter=enter, tick=tick, exit=leave),),
    lambda state, x, slot: answer(learner)(state.params, x, slot),
    lambda state: {"parameters": jnp.int32(1), "memory_bytes": jnp.int32(0), "losses": state.losses},
  )


@flax.struct.dataclass
class Columns:
  params: Any  # in training
  store: Any  # [T, ...]
  parent: jax.Array  # [T] int32
  opened: jax.Array  # [T] int32, clock.total at which the slot was opened


def columns(spec: Spec) -> Method:
  """Two phases: `scout` trains anew, `fit` goes on from the stored network that is best on the first rows."""
  learner = supervised(mlp(spec), optax.sgd(0.1), spec)

  def init(key):
    store = jax.vmap(lambda t: learner.init(jax.random.fold_in(key, t))["params"])(jnp.arange(spec.T))
    return Columns(take(store, jnp.int32(0)), store, jnp.full(spec.T, -1), jnp.full(spec.T, -1))

  def anew(key, state, view, clock):
    return state.replace(params=learner.init(key)["params"])

  def choose(key, state, view, clock):
    losses = jax.vmap(lambda params: mean_over(error(params), view, view.tasks.train))(state.store)
    losses = jnp.where(jnp.arange(spec.T) < view.t, losses, jnp.inf)
    parent = jnp.where(view.t > 0, jnp.argmin(losses), view.t).astype(jnp.int32)
    params = take(state.store, parent)
    opened = state.opened.at[view.t].set(clock.total)
    return state.replace(params=params, parent=state.parent.at[view.t].set(parent), opened=opened)

  def error(params):
    def each(batch):
      return answer(learner)(params, batch.x, batch.task).logits.argmax(axis=-1) != batch.y

    return each

  def step(key, state, batch, clock, view):
    params, _, info = learn(learner, state.params, optax.sgd(0.1).init(state.params), batch)
    return state.replace(params=params), info

  def keep_it(key, state, view, clock):
    return state.replace(store=put(state.store, view.t, state.params))

  phases = (
    Phase("scout", 10, step, steps=4, enter=anew),
    Phase("fit", 8, step, epochs=2, enter=choose, exit=keep_it),
  )
  return Method(
    init,
    phases,
    lambda state, x, slot: apply_by_slot(answer(learner), state.store, x, slot),
    lambda state: {"parameters": jnp.int32(1), "memory_bytes": jnp.int32(0), "parent": state.parent},
  )


@flax.struct.dataclass
class Onsets:
  params: Any  # [E, ...]
  slot: jax.Array  # [] int32, expert in training
  mean: jax.Array  # [] running mean of the loss
  age: jax.Array  # [] int32, steps since the last onset
  recent: Place  # [R]
  memory: replay.Memory


def onsets(spec: Spec, experts: int = 3, recent: int = 12, first: int = 0) -> Method:
  """Hidden boundaries: a loss far above its running mean opens the next expert, which starts on the recent places.

  Args:
    first: experts below this one report no slot.
  """
  learner = supervised(mlp(spec._replace(heads=1)), optax.sgd(0.3), spec)

  def init(key):
    params = jax.vmap(lambda e: learner.init(jax.random.fold_in(key, e))["params"])(jnp.arange(experts))
    place = Place(jnp.zeros(recent, jnp.int32), jnp.zeros(recent, jnp.int32))
    return Onsets(params, jnp.int32(0), jnp.float32(2), jnp.int32(0), place, replay.empty(9))

  def learn_by_slot(params, slot, batch):
    own, _, info = learn(learner, take(params, slot), optax.sgd(0.3).init(take(params, slot)), batch)
    return put(params, slot, own), info

  def step(key, state, batch, clock, view):
    current = jax.tree.map(lambda leaf: leaf[:10], batch)
    params, info = learn_by_slot(state.params, state.slot, current)
    params, _ = learn_by_slot(params, state.slot, jax.tree.map(lambda leaf: leaf[10:], batch))

    def switch(params):
      slot = jnp.minimum(state.slot + 1, experts - 1)
      return learn_by_slot(params, slot, fetch(view, state.recent))[0], slot, info["loss"], jnp.int32(0)

    def stay(params):
      return params, state.slot, 0.7 * state.mean + 0.3 * info["loss"], state.age + 1

    onset = (info["loss"] > 2 * state.mean) & (state.age > 4)
    params, slot, mean, age = jax.lax.cond(onset, switch, stay, params)
    seen = jax.tree.map(lambda old, new: jnp.concatenate([old, new])[-recent:], state.recent, current.place)
    return state.replace(params=params, slot=slot, mean=mean, age=age, recent=seen), info

  def report(state):
    slot = jnp.where(state.slot < first, -1, state.slot)
    return {"parameters": jnp.int32(1), "memory_bytes": jnp.int32(0), "slot": slot}

  return Method(
    init,
    (Phase("fit", 10, step, epochs=1, plan=replay.reservoir(3, 9)),),
    lambda state, x, slot: apply_by_slot(answer(learner), state.params, x, slot),
    report,
    slots=experts,
    branches=True,
  )
