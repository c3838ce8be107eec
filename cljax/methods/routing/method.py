"""Routing networks with co-training (Collier, Kokiopoulou, Gesmundo and Berent 2020, Algorithm 1).

Layers of E experts; the router of layer l is a row of logits for each task, R[l, t, :]. A step is Algorithm 1 whole:

1. draw gates from R, one SGD step on the current rows through them, for experts, heads and R;
2. draw gates anew, a second SGD step on rows from the memory (which does not hold this batch yet);
3. store the current rows (reservoir; decided ahead by the plan, since it depends on no weight);
4. used[l, t, :] = the top k of R[l, t, :], from R itself and not from the draw;
5. co-training: a step on current and replayed rows together with every expert that no task uses, at equal weight. The
   gradient of R is discarded.

What the paper leaves open is a keyword here, with the default that the sources it cites suggest. Deviations: an empty
memory skips step 2 (the algorithm draws from an empty set); step 5 is skipped where a layer has no unused expert (the
algorithm would train the heads on zero features).
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cljax.errors import ConfigError, choose
from cljax.ops import gating
from cljax.ops.losses import accuracy, cross_entropy, rows
from cljax.ops.trees import parameters
from cljax.pieces import replay as memories
from cljax.pieces.blocks import alone, blocked, descend
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State:
  params: Any  # theta: experts of each layer and heads
  router: Array  # [L, T, E] R, logits
  noise: Array  # [L, T, E] N, softplus(N) is the learned noise of noisy_topk; [0, T, E] where nothing learns it
  used: Array  # [L, T, E] bool, the paper's E
  skipped: Array  # [T] int32, co-training steps skipped in each task
  memory: memories.Memory  # place [M] and seen []


def routing(
  net: Any,
  lr: float,
  spec: Spec,
  *,
  batch_size: int = 10,
  epochs: int = 1,
  replay: int = 10,
  capacity: int = 1000,
  k: int | Sequence[int] = 4,
  sample: str = "noisy_topk",
  noise: float = 1.0,
  learned_noise: bool = True,
  draw: str = "step",
  temperature: float = 50.0,
  temperature_min: float = 0.5,
  gate_scale: float = 1.0,
  router_init: float = 0.01,
  router_lr: float | None = None,
  new_rows: str = "noise",
  update: str = "sequential",
  auxiliary: str = "none",
  auxiliary_weight: float = 0.1,
  cotrain: bool = True,
  cotrain_lr: float | None = None,
  cotrain_rows: str = "union",
  cotrain_update_heads: bool = True,
  exhausted: str = "skip",
  refresh_all_seen: bool = False,
  block: int = 0,
) -> Method:
  """A mixture of experts routed by task, with replay and co-training.

  Args:
    net: a routed net, `net.apply({'params': p}, x, slot, gates)` with one gate array [B, E] a layer.
    lr: the paper's alpha, of plain SGD.
    batch_size, epochs: current rows a step; passes over each task.
    replay, capacity: memory rows a step; rows of the memory, 0 is no replay.
    k: experts active in a layer, one number or one a layer.
    sample: how gates are drawn in training. `noisy_topk`: top k of R + sigma * N(0, 1), softmax over the kept;
      `gumbel_topk`: top k of R + noise * Gumbel, softmax of the clean R over the kept; `gumbel_matrix`: each expert by
      itself, straight-through, no k; `none`: top k of R. Usage and evaluation are the top k of R for all four.
    noise: scale of the noise of noisy_topk and gumbel_topk.
    learned_noise: sigma = noise * softplus(N) with N learned from 0 (Shazeer et al. 2017); else sigma = noise.
    draw: `step`, one draw of the whole matrix for each SGD step, or `example`, one for each row.
    temperature, temperature_min: of gumbel_matrix, max(temperature_min, temperature / sqrt(step + 1)), with steps
      counted over the stream.
    gate_scale: factor on the gates that R gives, in training and evaluation.
    router_init: standard deviation of the initial logits.
    router_lr: rate of R and N; None is lr, 0 freezes the random router.
    new_rows: logits of a task that begins: `noise`, as initialised; `mean` of the earlier tasks'; `ties`, equal up to
      a random order.
    update: `sequential` as in Algorithm 1, or `union`, steps 1 and 2 as one step on both.
    auxiliary, auxiliary_weight: `none`, `importance`, `load` or `both`: balancing losses of Shazeer et al. 2017.
    cotrain, cotrain_lr: whether step 5 is taken, and its rate alpha_c; None is lr.
    cotrain_rows: `union`, current and replayed rows as in Algorithm 1, or `current`, as in the paper's prose.
    cotrain_update_heads: whether co-training moves the heads.
    exhausted: where a layer has no unused expert, `skip` the co-training step, or let that layer take its `routed`
      path with fixed weights; the step is skipped in any case where no layer has one.
    refresh_all_seen: step 4 for all tasks so far, since replay moves their rows too.
    block: steps that share a pass over the first layer's weights (`pieces.blocks`); 0 chooses, 1 is step by step.

  Raises:
    ConfigError: sizes that contradict each other, or an unknown choice.
  """
  if not hasattr(net, "experts"):
    raise ConfigError("config.method.name='routing' needs layers of experts: set config.net.name='routed_mlp'")
  L, T, E = len(net.widths), spec.T, net.experts
  ks = (k,) * L if isinstance(k, int) else tuple(k)
  check(ks, L, E, sample, noise, draw, new_rows, update, auxiliary, cotrain_rows, exhausted)
  router_lr = lr if router_lr is None else router_lr
  cotrain_lr = lr if cotrain_lr is None else cotrain_lr
  learns_noise = sample == "noisy_topk" and learned_noise
  replays = capacity > 0

  def init(key: Key) -> State:
    weights, logits = jax.random.split(key)
    blank = [jnp.ones((1, E))] * L
    params = net.init(weights, jnp.zeros((1, *spec.x_shape)), jnp.zeros(1, jnp.int32), blank)["params"]
    router = router_init * jax.random.normal(logits, (L, T, E))
    return State(
      params,
      router,
      jnp.zeros((L if learns_noise else 0, T, E)),
      jnp.zeros((L, T, E), bool),
      jnp.zeros(T, jnp.int32),
      memories.empty(capacity),
    )

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(router=gating.begin_row(new_rows, key, state.router, view.t))

  def kept_gates(router: Array, task: Array) -> list[Array]:
    """One [B, E] a layer: the gates of evaluation, without noise."""
    return [gate_scale * gating.top_k_gates(router[l], ks[l])[task] for l in range(L)]

  def draw_noise(key: Key, batch: Batch) -> Array:
    """[W, L, E]: what gates are drawn with, by one key for the current rows and one for the replayed.

    Under `step` a row's noise is named by its task, so that rows of one task share it: one draw of the whole matrix,
    of which only the rows that the batch uses are drawn.
    """
    W = len(batch.task)
    again = (jnp.arange(W) >= batch_size) & (update == "sequential")
    names = batch.task if draw == "step" else jnp.arange(W) - jnp.where(again, batch_size, 0)

    def of_row(key, name):
      named = jax.vmap(lambda l: jax.random.fold_in(jax.random.fold_in(key, l), name))(jnp.arange(L))
      return jax.vmap(lambda key: gating.NOISES[sample](key, (E,)))(named)

    return jax.vmap(of_row)(jax.random.split(key)[again.astype(jnp.int32)], names)

  def draw_gates(
    drawn: Array, router: Array, noise_logits: Array, batch: Batch, clock: Clock
  ) -> tuple[list[Array], Array]:
    """One [B, E] a layer from noise [B, L, E], and the auxiliary loss [] of the draw, over live rows."""
    gates, loss, task = [], jnp.float32(0), batch.task
    cooled = jnp.maximum(temperature_min, temperature / jnp.sqrt(clock.total + 1.0))
    for l in range(L):
      sigma = noise * (jax.nn.softplus(noise_logits[l]) if learns_noise else jnp.ones((T, E)))
      logits, sigma = router[l][task], sigma[task]
      gates.append(gate_scale * gating.SAMPLERS[sample](drawn[:, l], logits, sigma, ks[l], cooled))
      for each in gating.balancing_losses(auxiliary, drawn[:, l], gates[l], logits, sigma, ks[l], batch.live):
        loss += auxiliary_weight * each
    return gates, loss

  def learn(drawn: Array, state: State, batch: Batch, clock: Clock) -> tuple[State, Info]:
    """Steps 1 and 2: SGD on experts, heads and router through drawn gates; nothing moves where no row is live."""

    def loss(theta, z):
      gates, balance = draw_gates(drawn, theta["router"], theta["noise"], batch, clock)
      logits = net.apply({"params": theta}, z, batch.task, gates, method="after_first").logits
      entropy = cross_entropy(logits, batch)
      own = rows(batch, 0, batch_size)
      info = {"loss": entropy, "accuracy": accuracy(logits[:batch_size], own)}
      return entropy + jnp.where(batch.live.any(), balance, 0), info

    theta = {**state.params, "router": state.router, "noise": state.noise}
    rates = dict.fromkeys(state.params, lr) | {"router": router_lr, "noise": router_lr}
    theta, info = descend(loss, theta, batch.x, rates)
    router, noise_logits = theta.pop("router"), theta.pop("noise")
    return state.replace(params=theta, router=router, noise=noise_logits), info

  def usage(state: State, t: Array) -> Array:
    """Step 4: [L, T, E] with row t, or all rows so far, set to the top k of R."""
    if not refresh_all_seen:
      top = jnp.stack([gating.top_k_mask(state.router[l, t], ks[l]) for l in range(L)])
      return state.used.at[:, t].set(top)
    top = jnp.stack([gating.top_k_mask(state.router[l], ks[l]) for l in range(L)])
    return jnp.where((jnp.arange(T) <= t)[None, :, None], top, state.used)

  def cotrain_step(state: State, batch: Batch, used: Array, none_left: Array) -> Any:
    """Step 5: the new params; used experts and exhausted layers [L] get exactly zero gradient and keep their bits."""
    gates = [jnp.broadcast_to(gating.unused_gates(used[l]), (*batch.task.shape, E)) for l in range(L)]
    if exhausted == "routed":
      routed = kept_gates(state.router, batch.task)
      gates = [jnp.where(none_left[l], routed[l], gates[l]) for l in range(L)]

    def loss(params, z):
      logits = net.apply({"params": params}, z, batch.task, gates, method="after_first").logits
      return cross_entropy(logits, batch), None

    rates = {name: cotrain_lr if name in net.layers or cotrain_update_heads else 0.0 for name in state.params}
    if exhausted == "routed":
      rates |= {name: jnp.where(none_left[l], 0.0, cotrain_lr) for l, name in enumerate(net.layers)}
    return descend(loss, state.params, batch.x, rates)[0]

  def step(drawn: Array, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    current = rows(batch, 0, batch_size)
    if update == "union":
      state, info = learn(drawn, state, batch, clock)
    else:
      state, info = learn(drawn[:batch_size], state, current, clock)
      if replays:
        state, _ = learn(drawn[batch_size:], state, rows(batch, batch_size), clock)
    state = state.replace(used=usage(state, view.t))
    if not cotrain:
      return state, info
    taught = current if cotrain_rows == "current" else batch
    used = state.used.any(axis=1)
    none_left = used.all(axis=-1)  # [L]
    run = ~(none_left.any() if exhausted == "skip" else none_left.all()) & taught.live.any()
    params = jax.lax.cond(
      run, lambda params: cotrain_step(state, taught, used, none_left), lambda params: params, state.params
    )
    skipped = state.skipped.at[view.t].add((~run & batch.live.any()).astype(jnp.int32))
    return state.replace(params=params, skipped=skipped), info

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return net.apply({"params": state.params}, x, slot, kept_gates(state.router, slot))

  def report(state: State) -> dict[str, Array]:
    return {
      "parameters": parameters((state.params, state.router, state.noise)),
      "memory_bytes": jnp.int32(memories.memory_bytes(spec, capacity)),
      "routing": jnp.stack([gating.top_k_gates(state.router[l], ks[l]) for l in range(L)]),  # [L, T, E]
      "used": state.used,  # [L, T, E]
      "unused": (~state.used.any(axis=1)).sum(axis=-1),  # [L] experts that no task uses
      "skipped": state.skipped,  # [T]
    }

  plan = memories.reservoir(replay, capacity)
  together = blocked(step, batch_size + (replay if replays else 0), block, draw_noise)
  phase = Phase("fit", batch_size, alone(step, draw_noise), epochs=epochs, plan=plan, block=together, enter=enter)
  return Method(init, (phase,), apply, report, told=True)


def check(ks, L, E, sample, noise, draw, new_rows, update, auxiliary, cotrain_rows, exhausted) -> None:
  """Refuses choices that are unknown or contradict each other."""
  choose("config.method.sample", sample, gating.SAMPLERS)
  choose("config.method.draw", draw, ("step", "example"))
  choose("config.method.new_rows", new_rows, ("noise", "mean", "ties"))
  choose("config.method.update", update, ("sequential", "union"))
  choose("config.method.auxiliary", auxiliary, ("none", "importance", "load", "both"))
  choose("config.method.cotrain_rows", cotrain_rows, ("union", "current"))
  choose("config.method.exhausted", exhausted, ("skip", "routed"))
  if len(ks) != L:
    raise ConfigError(f"config.method.k={ks} has {len(ks)} numbers for {L} layers; give one, or one a layer")
  for number in ks:
    if not 1 <= number <= E:
      raise ConfigError(f"config.method.k={number} must lie in 1..{E}, the experts of a layer (config.net.experts)")
  if auxiliary in ("load", "both") and sample != "noisy_topk":
    raise ConfigError(f"config.method.auxiliary={auxiliary!r} needs the noise of sample='noisy_topk', not {sample!r}")
  if auxiliary in ("load", "both") and isinstance(noise, float | int) and noise == 0:
    raise ConfigError(f"config.method.auxiliary={auxiliary!r} divides by the noise: set config.method.noise above 0")
