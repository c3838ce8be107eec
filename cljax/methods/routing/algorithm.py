"""Algorithm 1 of Collier et al. 2020 (https://arxiv.org/abs/2009.04381): one step of training.

theta is the net's params (experts of each layer, and heads), the router R and its noise N, in one dict by name.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cljax.declared import REQUIRED, check, field_of
from cljax.methods.routing.gates import Gates
from cljax.methods.routing.keywords import Cotraining, Routing
from cljax.ops import gating
from cljax.ops.losses import accuracy, cross_entropy, rows
from cljax.pieces import blocks
from cljax.pieces.descent import descend
from cljax.pieces.optimizers import Rate
from cljax.pieces.replay import Memory
from cljax.types import FREE, Array, At, Batch, Block, Clock, Guard, Info, Key, StepFn, View

NoiseFn = Callable[[Batch], Array]  # rows of a batch -> [B, L, E] that their gates are drawn with
ScoreFn = Callable[[Any, Array, Batch], tuple[Array, Any]]  # (theta, pre-activations, batch) -> (loss [], told)


@flax.struct.dataclass
class State:
  """What training changes."""

  params: Any  # experts of each layer and heads
  router: Array  # [L, T, E] R, logits
  noise: Array  # [L, T, E] N, softplus(N) is the learned noise of noisy_topk; [0, T, E] where nothing learns it
  used: Array  # [L, T, E] bool, the paper's E
  skipped: Array  # [T] int32, co-training steps skipped in each task
  memory: Memory  # place [M] and seen []
  past: Any = None  # of the guard

  @property
  def theta(self) -> dict[str, Any]:
    """All that is learned by gradients."""
    return {**self.params, "router": self.router, "noise": self.noise}

  def moved(self, theta: Mapping[str, Any], past: Any) -> "State":
    """The state after a step on theta, or on the params alone."""
    own = {"router": self.router, "noise": self.noise, **theta}
    return self.replace(router=own.pop("router"), noise=own.pop("noise"), params=own, past=past)  # type: ignore[attr-defined]


class Rates(NamedTuple):
  """Learning rates of plain SGD."""

  params: Array | float  # the paper's alpha
  router: Array | float  # of R and N
  cotraining: Array | float  # the paper's alpha_c

  @classmethod
  def of(cls, lr: Array | float, routes: Routing, cotraining: Cotraining) -> "Rates":
    """The rates, `lr` where none of its own is given.

    Raises:
      ConfigError: a rate below 0, or no number.
    """
    lr = check("config.optimizer.lr", lr, field_of(Rate, REQUIRED))
    router, cotrain = (lr if own is None else own for own in (routes.router_lr, cotraining.cotrain_lr))
    return cls(lr, router, cotrain)


class Algorithm(NamedTuple):
  """Algorithm 1 for a net: what a step draws, and the step."""

  net: Any
  gates: Gates
  rates: Rates
  cotraining: Cotraining
  current: int  # leading rows of a batch; the others come from the memory
  replays: bool
  union: bool  # steps 1 and 2 are one step on both
  guard: Guard

  def stepping(self) -> StepFn:
    """The step of the phase."""
    return blocks.alone(self.step, self.draw) if self.guard is FREE else self.guarded_step

  def block(self, width: int, size: int) -> Block | None:
    """The step of `width` rows in blocks of `size` (`pieces.blocks`), where it is not guarded and it pays."""
    if self.guard is FREE:
      return blocks.blocked(self.step, width, size, self.draw)
    blocks.off_under_a_guard(size)
    return None

  def draw(self, key: Key, batch: Batch) -> Array:
    """[W, L, E]: the noise of both steps, by one key for the current rows and one for the replayed."""
    place = jnp.arange(len(batch.task))
    again = (place >= self.current) & (not self.union)
    keys = jax.random.split(key)[again.astype(jnp.int32)]
    return self.gates.noise(keys, batch.task, place - jnp.where(again, self.current, 0))

  def redraw(self, key: Key, batch: Batch) -> Array:
    """[B, L, E]: the same noise for the rows of one of the two steps, by its own key."""
    place = jnp.arange(len(batch.task))
    return self.gates.noise(jnp.broadcast_to(key, place.shape), batch.task, place)

  def step(self, drawn: Array, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """A step without a guard, which may stand in a block; `drawn` is of `draw`."""
    at = At(None, clock, view)
    now = drawn if self.union else drawn[: self.current]
    return self.take((at, at, at), (lambda batch: now, lambda batch: drawn[self.current :]), state, batch)

  def guarded_step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """A step under the guard; gates are drawn where a gradient is asked, which may be on rows of the guard's choice."""
    now, then, last = (At(jax.random.fold_in(key, place), clock, view) for place in (2, 3, 4))  # split takes 0 and 1
    current, replayed = (partial(self.redraw, own) for own in jax.random.split(key))
    return self.take((now, then, last), (current, replayed), state, batch)

  def take(
    self, ats: tuple[At, At, At], noises: tuple[NoiseFn, NoiseFn], state: State, batch: Batch
  ) -> tuple[State, Info]:
    """The five steps; 3, what the memory stores, was decided by the plan.

    Args:
      ats: where steps 1, 2 and 5 are.
      noises: of the gates that steps 1 and 2 draw.
    """
    now, then, last = ats
    current = rows(batch, 0, self.current)
    if self.union:
      state, info = self.learn(now, noises[0], state, batch)
    else:
      state, info = self.learn(now, noises[0], state, current)
      if self.replays:
        state, _ = self.learn(then, noises[1], state, rows(batch, self.current))
    t = now.view.t
    state = state.replace(used=self.gates.usage(state.router, state.used, t))
    if not self.cotraining.cotrain:
      return state, info
    taught = current if self.cotraining.cotrain_rows == "current" else batch
    state, run = self.cotrain(last, state, taught)
    return state.replace(skipped=state.skipped.at[t].add((~run & batch.live.any()).astype(jnp.int32))), info

  def learn(self, at: At, noise: NoiseFn, state: State, batch: Batch) -> tuple[State, Info]:
    """Steps 1 and 2: SGD on theta through drawn gates; nothing moves where no row is live."""

    def score(theta, z, batch):
      gates, balance = self.gates.drawn(noise(batch), theta["router"], theta["noise"], batch, at.clock)
      logits = self.answer(theta, z, batch, gates)
      entropy = cross_entropy(logits, batch)
      right = accuracy(logits[: self.current], rows(batch, 0, self.current))
      return entropy + jnp.where(batch.live.any(), balance, 0), {"loss": entropy, "accuracy": right}

    router = self.rates.router
    rates = dict.fromkeys(state.params, self.rates.params) | {"router": router, "noise": router}
    theta, past, info = self.descend(at, score, state.theta, state.past, batch, rates)
    return state.moved(theta, past), info

  def cotrain(self, at: At, state: State, batch: Batch) -> tuple[State, Array]:
    """Step 5: all experts that no task uses, at equal weight; and whether it was taken [].

    R, used experts and layers without an unused one keep their bits.
    """
    used = state.used.any(axis=1)  # [L, E]
    none_left = used.all(axis=-1)  # [L]
    routed = self.cotraining.exhausted == "routed"
    run = ~(none_left.all() if routed else none_left.any()) & batch.live.any()

    def score(theta, z, batch):
      gates = [jnp.broadcast_to(gating.unused_gates(used[l]), (*batch.task.shape, self.gates.experts)) for l in layers]
      if routed:
        route = self.gates.kept(state.router, batch.task)
        gates = [jnp.where(none_left[l], route[l], gates[l]) for l in layers]
      return cross_entropy(self.answer(theta, z, batch, gates), batch), None

    layers, rate, heads = range(len(self.gates.ks)), self.rates.cotraining, self.cotraining.cotrain_update_heads
    rates = {name: rate if name in self.net.layers or heads else 0.0 for name in state.params}
    if routed:
      rates |= {name: jnp.where(none_left[l], 0.0, rate) for l, name in enumerate(self.net.layers)}
    theta = state.params
    if self.guard is not FREE:
      theta, rates = state.theta, rates | {"router": 0.0, "noise": 0.0}
    theta, past = jax.lax.cond(
      run,
      lambda theta, past: self.descend(at, score, theta, past, batch, rates, used)[:2],
      lambda theta, past: (theta, past),
      theta,
      state.past,
    )
    return state.moved(theta, past), run

  def answer(self, theta: Any, z: Array, batch: Batch, gates: list[Array]) -> Array:
    """Logits [B, C] from the first layer's pre-activations."""
    return self.net.apply({"params": theta}, z, batch.task, gates, method="after_first").logits

  def descend(
    self,
    at: At,
    score: ScoreFn,
    theta: dict[str, Any],
    past: Any,
    batch: Batch,
    rates: dict[str, Any],
    used: Array | None = None,
  ) -> tuple[dict[str, Any], Any, Any]:
    """(theta, past, info) after one step of plain SGD.

    Without a guard it may stand in a block, and a rate or a gradient of 0 keeps the bits. Under one, entries without a
    rate and `used` experts [L, E] are held.
    """
    if self.guard is FREE:
      theta, info = blocks.descend(lambda others, z: score(others, z, batch), theta, batch.x, rates)
      return theta, past, info

    def loss(theta, batch):
      return score(theta, blocks.pre_activation(theta["first"], batch.x), batch)

    tx, held = sgd_by_name(rates), self.held(theta, rates, used)
    moved, _, past, info = descend(tx, loss, theta, tx.init(theta), batch, at, guard=self.guard, past=past, frozen=held)
    return moved, past, info

  def held(self, theta: dict[str, Any], rates: Mapping[str, Any], used: Array | None) -> dict[str, Any]:
    """What keeps its bits whatever the guard pulls: a tree of bools."""
    held: dict[str, Any] = {name: jnp.asarray(rate) == 0 for name, rate in rates.items()}
    if used is not None:
      for name, own in zip(self.net.layers, used, strict=True):
        units = {leaf: of.shape[-1] // self.gates.experts for leaf, of in theta[name].items()}  # experts lie in a row
        held[name] = {leaf: held[name] | jnp.repeat(own, count) for leaf, count in units.items()}
    return held


def sgd_by_name(rates: Mapping[str, Array | float]) -> optax.GradientTransformation:
  """Plain SGD on a dict of trees, each with the rate of its name."""

  def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    return {name: jax.tree.map(lambda g, rate=rates[name]: -rate * g, tree) for name, tree in gradient.items()}, state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
