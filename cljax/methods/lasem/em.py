"""The steps of EM over configurations of shared layers, and of the comparators that fix the configuration."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cljax.methods.lasem.keywords import Selection
from cljax.ops.losses import accuracy, cross_entropies, cross_entropy
from cljax.ops.posterior import configurations, counted, effective, leaning, log_likelihood, posterior, prior_of
from cljax.pieces.descent import descend
from cljax.pieces.layered import Layered, Layers, params_of
from cljax.pieces.transfer import Decay, scaled
from cljax.types import Array, At, Batch, Clock, Info, Key, View


@flax.struct.dataclass
class State:
  """The networks of all tasks, and what EM knows of the task in training."""

  layers: Layers
  opt_state: Any
  weights: Array  # [K] counts of the most probable configuration, or sums of posteriors; of the task in training
  now: Array  # [] int32 the task in training, -1 where there is none
  given: Array  # [T] int32 the configuration that each task is given, where it is not chosen by EM
  prior_max: Array  # [T] of the prior at the task's end
  effective: Array  # [T] over how many configurations that prior is spread
  changed: Array  # [T] int32 the batch after which the most probable configuration never changed
  search: Any = None  # the trials of brute force


class EM(NamedTuple):
  """The functions of LASEM."""

  nets: Layered
  tx: optax.GradientTransformation
  selection: Selection
  rule: tuple[bool, ...]  # the configuration of `static` and `fixed`
  decay: Decay
  epochs: int

  @property
  def table(self) -> Array:
    """[K, G] all configurations."""
    return configurations(len(self.nets.groups))

  @property
  def number(self) -> int:
    """Of the configuration of `static` and `fixed`."""
    return sum(2**g for g, shared in enumerate(self.rule) if not shared)

  def init(self, key: Key) -> State:
    """Before the first task; a random configuration is drawn for each."""
    layers_key, random_key = jax.random.split(key)
    T, K = self.nets.spec.T, len(self.table)
    layers = self.nets.init(layers_key)
    drawn = jax.random.randint(random_key, (T,), 0, K, jnp.int32)
    none = jnp.zeros(T)
    return State(
      layers=layers,
      opt_state=self.tx.init(params_of(layers)),
      weights=jnp.zeros(K),
      now=jnp.int32(-1),
      given=drawn if self.selection.choose == "random" else jnp.full(T, self.number, jnp.int32),
      prior_max=none,
      effective=none,
      changed=jnp.zeros(T, jnp.int32),
    )

  def prior(self, weights: Array) -> Array:
    """[K] Equation 1, or the mean of the posteriors so far."""
    return prior_of(weights, smoothing=float(self.selection.prior == "counts"))

  def best(self, state: State) -> Array:
    """[] int32 the configuration of the task in training: the largest of the prior, the first of equals."""
    if self.selection.choose == "em":
      return self.prior(state.weights).argmax().astype(jnp.int32)
    return state.given[jnp.maximum(state.now, 0)]

  def config(self, state: State) -> Array:
    """[G] bool, the same as bits."""
    return jnp.asarray(self.table)[self.best(state)]

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Task t starts, with a uniform prior and an optimizer that knows nothing."""
    layers = self.nets.begin(state.layers, view.t)
    opt_state, weights = self.tx.init(params_of(layers)), jnp.zeros_like(state.weights)
    return state.replace(layers=layers, opt_state=opt_state, weights=weights, now=jnp.int32(view.t))

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The most probable configuration is committed."""
    prior, t = self.prior(state.weights), view.t
    return state.replace(
      layers=self.nets.commit(state.layers, t, self.config(state)),
      now=jnp.int32(-1),
      prior_max=state.prior_max.at[t].set(prior.max()),
      effective=state.effective.at[t].set(effective(prior)),
    )

  # The loss.

  def explained(self, work: Any, features: Array, batch: Batch) -> Array:
    """[K] the log-likelihood of the batch's labels under each configuration; features [K, B, D], dropout off."""
    K, B, D = features.shape
    logits = self.nets.top(work, features.reshape(K * B, D)).logits.reshape(K, B, -1)
    each = jax.vmap(cross_entropies, (0, None))(logits, batch)
    return log_likelihood(-each, batch.live, mean=self.selection.likelihood == "mean")

  def posterior(self, params: Any, features: Array, batch: Batch, weights: Array) -> Array:
    """[K] the posterior; a constant of the M-step."""
    if self.selection.choose == "fixed":
      return leaning(self.selection.posterior_weight, self.number, len(self.table))
    params, features = jax.lax.stop_gradient((params, features))
    return posterior(self.prior(weights), self.explained(params["work"], features, batch))

  def weighted(self, params: Any, batch: Batch, key: Key, weights: Array, q: Array | None = None) -> Any:
    """(the loss of all configurations, each by its posterior; (info, posterior)).

    Args:
      q: [K] the posterior; None: it is inferred from the features that the loss is made of, which one pass gives.
    """
    features = self.nets.tree(params, batch.x)
    K, B, D = features.shape
    q = self.posterior(params, features, batch, weights) if q is None else q
    logits = self.nets.top(params["work"], features.reshape(K * B, D), key).logits.reshape(K, B, -1)
    each = jax.vmap(cross_entropy, (0, None))(logits, batch)
    value = q @ each + self.nets.held(params, q @ jnp.asarray(self.table, jnp.float32))
    best = self.prior(weights).argmax()
    return value, (self.info(q @ each, logits[best], batch), q)

  def alone(self, params: Any, batch: Batch, key: Key, config: Array) -> Any:
    """(the loss of one configuration [G]; info)."""
    features = self.nets.features(params, batch.x, config)
    logits = self.nets.top(params["work"], features, key).logits
    value = cross_entropy(logits, batch)
    return value + self.nets.held(params, config.astype(jnp.float32)), self.info(value, logits, batch)

  def info(self, loss: Array, logits: Array, batch: Batch) -> Info:
    """What is logged of a step."""
    return {"loss": loss, "accuracy": accuracy(logits, batch)}

  # The steps.

  def step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """One step on a batch."""
    at, before = At(key, clock, view), self.best(state)
    if self.selection.choose in ("static", "random", "search"):
      state, info = self.move_one(at, state, batch)
    elif self.selection.m_step == "best":
      state, info = self.move_one(at, self.sometimes(at, state, batch), batch)
    elif self.selection.m_step == "until":
      sharp = self.prior(state.weights).max() > self.selection.until
      state, info = jax.lax.cond(sharp, self.move_one, self.move_all, at, state, batch)
    else:
      state, info = self.move_all(at, state, batch)
    done = clock.position + 1
    t = jnp.maximum(state.now, 0)
    changed = state.changed.at[t].set(jnp.where(self.best(state) == before, state.changed[t], done))
    return state.replace(changed=changed), info | {
      "prior_max": self.prior(state.weights).max(),
      "configuration": self.best(state).astype(jnp.float32),
    }

  def descend(self, at: At, state: State, batch: Batch, loss: Any) -> tuple[State, Any]:
    """One step of the optimizer."""
    epoch = at.view.t * self.epochs + at.clock.epoch % self.epochs
    params, opt_state, _, told = descend(
      scaled(self.tx), loss, params_of(state.layers), state.opt_state, batch, at, scale=self.decay.faded(epoch)
    )
    layers = state.layers.replace(shared=params["shared"], work=params["work"])
    return state.replace(layers=layers, opt_state=opt_state), told

  def move_all(self, at: At, state: State, batch: Batch) -> tuple[State, Info]:
    """E-step and M-steps on all configurations; the first M-step and the E-step share one pass."""
    weights = state.weights
    keys = jax.random.split(at.key, self.selection.m_steps) if self.selection.m_steps > 1 else [at.key]
    state, (info, q) = self.descend(at, state, batch, lambda p, b: self.weighted(p, b, keys[0], weights))
    for key in keys[1:]:
      state, _ = self.descend(at, state, batch, lambda p, b, key=key: self.weighted(p, b, key, weights, q))
    return self.learnt(state, q, batch), info

  def move_one(self, at: At, state: State, batch: Batch) -> tuple[State, Info]:
    """An M-step on the best configuration alone."""
    config = self.config(state)
    return self.descend(at, state, batch, lambda p, b: self.alone(p, b, at.key, config))

  def sometimes(self, at: At, state: State, batch: Batch) -> State:
    """An E-step at every `e_every`-th batch of a task."""
    turn = at.clock.position % self.selection.e_every == 0

    def learn(state: State) -> State:
      params = params_of(state.layers)
      q = self.posterior(params, self.nets.tree(params, batch.x), batch, state.weights)
      return self.learnt(state, q, batch)

    return jax.lax.cond(turn, learn, lambda state: state, state)

  def learnt(self, state: State, q: Array, batch: Batch) -> State:
    """The prior after a posterior q [K]; a batch without a live row teaches nothing."""
    if self.selection.choose != "em":
      return state
    after = counted(state.weights, q, whole=self.selection.prior == "posteriors")
    return state.replace(weights=jnp.where(batch.live.any(), after, state.weights))

  def report(self, state: State) -> dict[str, Array]:
    """What each task shares, and how sure the choice was."""
    found = {
      "parameters": self.nets.parameters(state.layers),
      "memory_bytes": jnp.int32(0),
      "shared_layers": state.layers.configs[:, jnp.array(self.nets.group_of)],  # [T, L]
    }
    if self.selection.choose != "em":
      return found
    return found | {"prior_max": state.prior_max, "effective": state.effective, "changed": state.changed}
