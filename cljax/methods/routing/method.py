"""Routing networks with co-training (Collier, Kokiopoulou, Gesmundo and Berent 2020, "Routing networks with
co-training for continual learning", https://arxiv.org/abs/2009.04381, Algorithm 1).

Layers of E experts; the router of layer l is a row of logits for each task, R[l, t, :]. A step is Algorithm 1 whole:

1. draw gates from R, one SGD step on the current rows through them, for experts, heads and R;
2. draw gates anew, a second SGD step on rows from the memory (which does not hold this batch yet);
3. store the current rows (reservoir; decided ahead by the plan, since it depends on no weight);
4. used[l, t, :] = the top k of R[l, t, :], from R itself and not from the draw;
5. co-training: a step on current and replayed rows together with every expert that no task uses, at equal weight. The
   gradient of R is discarded.

What the paper leaves open is a keyword, with the default that the sources it cites suggest. Deviations: an empty
memory skips step 2 (the algorithm draws from an empty set); step 5 is skipped where a layer has no unused expert (the
algorithm would train the heads on zero features). The paper has no guard; under one, steps 1, 2 and 5 are guarded.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.declared import declared, one_of
from cljax.methods.routing.algorithm import Algorithm, Rates, State
from cljax.methods.routing.gates import Gates
from cljax.methods.routing.keywords import Balancing, Cotraining, Routing, Sampling, check, experts_by_layer
from cljax.ops import gating
from cljax.ops.trees import amount, parameters
from cljax.pieces import replay as memories
from cljax.pieces.guards import NO_GUARD, Guarded, guarding
from cljax.pieces.guards.examples import Answer
from cljax.pieces.learner import Fit
from cljax.types import FREE, Array, Batch, Clock, Guard, Key, Method, Outputs, Phase, Spec, View, keep, past_as_it_is


class Mixture(NamedTuple):
  """What the method does besides its steps."""

  net: Any
  spec: Spec
  gates: Gates
  routes: Routing
  capacity: int  # rows of the memory
  own: Guard

  def init(self, key: Key) -> State:
    """Before the first task."""
    weights, logits = jax.random.split(key)
    L, T, E, x_shape = len(self.gates.ks), self.spec.T, self.net.experts, self.spec.x_shape
    blank = [jnp.ones((1, E))] * L
    state = State(
      params=self.net.init(weights, jnp.zeros((1, *x_shape)), jnp.zeros(1, jnp.int32), blank)["params"],
      router=self.routes.router_init * jax.random.normal(logits, (L, T, E)),
      noise=jnp.zeros((L if self.gates.learns_noise else 0, T, E)),
      used=jnp.zeros((L, T, E), bool),
      skipped=jnp.zeros(T, jnp.int32),
      memory=memories.empty(self.capacity),
    )
    return state.replace(past=self.own.init(state.theta))

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Task t's row of the router begins."""
    state = state.replace(router=gating.begin_row(self.routes.new_rows, key, state.router, view.t))
    return state.replace(past=self.own.enter(jax.random.fold_in(key, 1), state.past, state.theta, view))

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The guard keeps what it keeps of task t."""
    return state.replace(past=self.own.exit(key, state.past, state.theta, view))

  def apply(self, state: State, x: Array, slot: Array) -> Outputs:
    """Each row of x [B, ...] by the router of its slot [B], without noise."""
    return self.net.apply({"params": state.params}, x, slot, self.gates.kept(state.router, slot))

  def report(self, state: State) -> dict[str, Array]:
    """Which experts each task uses, and how many are left."""
    return {
      "parameters": parameters(state.theta),
      "memory_bytes": amount(memories.memory_bytes(self.spec, self.capacity + self.own.stored)),
      "routing": jnp.stack([gating.top_k_gates(state.router[l], k) for l, k in enumerate(self.gates.ks)]),  # [L, T, E]
      "used": state.used,  # [L, T, E]
      "unused": (~state.used.any(axis=1)).sum(axis=-1),  # [L] experts that no task uses
      "skipped": state.skipped,  # [T]
    }


@declared("method", given=3)
def routing(
  net: Any,
  lr: Array | float,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  replay: memories.Replay = memories.Replay(),
  routes: Routing = Routing(),
  sampling: Sampling = Sampling(),
  update: Annotated[
    str,
    one_of(("sequential", "union"), "steps 1 and 2 one after the other as in Algorithm 1, or as one step on both"),
  ] = "sequential",
  balancing: Balancing = Balancing(),
  cotraining: Cotraining = Cotraining(),
  guard: Guarded = NO_GUARD,
) -> Method:
  """A mixture of experts routed by task, with replay and co-training.

  Args:
    net: a routed net, `net.apply({'params': p}, x, slot, gates)` with one gate array [B, E] a layer.
    lr: the paper's alpha, of plain SGD.

  Raises:
    ConfigError: sizes that contradict each other, or a wrong value.
  """
  gates = Gates(experts_by_layer(routes.k, net), spec.T, net.experts, routes, sampling, balancing)
  check(sampling, balancing)

  def answer(theta: Any, collections: Any, batch: Batch) -> Array:
    return net.apply({"params": theta}, batch.x, batch.task, gates.kept(theta["router"], batch.task)).logits

  protect = guarding(guard, spec)
  own = protect(Answer(answer, {}, by_task=True)) if protect else FREE
  rates, replays = Rates.of(lr, routes, cotraining), replay.capacity > 0
  algorithm = Algorithm(net, gates, rates, cotraining, fit.batch_size, replays, update == "union", own)

  mixture = Mixture(net, spec, gates, routes, replay.capacity, own)
  phase = Phase(
    "fit",
    fit.batch_size,
    algorithm.stepping(),
    epochs=fit.epochs,
    plan=memories.reservoir(*replay),
    block=algorithm.block(fit.batch_size + (replay.replay if replays else 0), fit.block),
    enter=mixture.enter,
    exit=keep if own.exit is past_as_it_is else mixture.leave,
  )
  return Method(mixture.init, (phase,), mixture.apply, mixture.report, told=True, needs_boundaries=True)
