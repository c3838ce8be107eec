"""APD-Net, additive parameter decomposition (Yoon, Kim, Yang and Hwang 2020, "Scalable and order-robust continual
learning with additive parameter decomposition", https://arxiv.org/abs/1902.09432).

The kernel of each convolution in task t is theta_t = sigma * sigmoid(v_t) + tau_t: what all tasks share, through a mask
of the task's, and what the task adds. The layers above belong to the task. Old tasks answer with the present sigma and
their own v and tau. The loss of task t is its cross-entropy with two penalties, `sparsity` on tau and `drift`:

  simple:    sparsity * mean_l mean|tau_t| + drift * mean_l mean(sigma - sigma')^2 / 2
  original:  sparsity * sum_{i<=t} |tau_i|_1 + drift * sum_{i<t} ||theta_i' - sigma * sigmoid(v_i) - tau_i||^2

where a prime is the value as the task began; the first task has no drift. `simple` is what Lee, Behpour and Eaton 2021
(https://proceedings.mlr.press/v139/lee21a.html) compared with: v and tau have a kernel's shape and are drawn as a
kernel is, biases are shared, and drift is over them too. In `original` v has a number for each output channel, tau
starts as sigma, biases belong to the task (as in the authors' program), and the tau of old tasks learn with the new
one to keep its theta.

At every `consolidate_every`-th task the original puts the tau of all tasks into clusters, layer by layer, by k-means.
Where those of one cluster are within `gap` of one another they become their mean, which the cluster then holds once:
from then on a tau's penalty is on what it adds to that. The paper starts k-means from its earlier centres and random
ones; here nothing is drawn. Entries near zero are pruned by nobody; `added` reports the share of the others.
"""

from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import at_least, declared, one_of
from cljax.errors import ConfigError
from cljax.nets.stack import Stack
from cljax.ops.clusters import in_common, k_means
from cljax.ops.losses import accuracy, cross_entropy
from cljax.ops.trees import where
from cljax.pieces.descent import descend
from cljax.pieces.layered import Layered, Layers, params_of
from cljax.pieces.learner import Fit
from cljax.pieces.sharing import Shape, Sharing, plain
from cljax.pieces.transfer import Decay, grouped, scaled, stack_of
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


class Decomposition(NamedTuple):
  """How parameters are decomposed, and what their parts cost."""

  form: Annotated[
    str, one_of(("simple", "original"), "as Lee et al. 2021 had it, or with old tasks that learn to keep their weights")
  ] = "simple"
  sparsity: Annotated[Array | float, at_least(0, "strength of the penalty on what tasks add")] = 4e-4
  drift: Annotated[Array | float, at_least(0, "strength of the pull to what was before the task")] = 100.0
  consolidate_every: Annotated[
    int, at_least(0, "tasks to a search for what they add alike, in the original form; 0 never", 100_000)
  ] = 0
  clusters: Annotated[int, at_least(1, "more of tasks at each such search", 1_000)] = 2
  gap: Annotated[Array | float, at_least(0, "within a cluster, up to which its tasks add the same")] = 1e-4


@flax.struct.dataclass
class State:
  """The networks of all tasks; `Layers.backup` is what they shared before the task in training."""

  layers: Layers
  opt_state: Any
  now: Array  # [] int32 the task in training, -1 where there is none
  # Of the original form alone, tuples over layers:
  before: Any = ()  # [T, k, k, C, O] what each task added as the one in training began
  common: Any = ()  # [T, k, k, C, O] what each task's cluster holds for it
  cluster: Any = ()  # [T] int32, `most` for none


def decomposed(net: Stack, original: bool) -> Sharing:
  """The two forms as a way to share a convolution."""
  layer = plain(net)

  def shared(key: Key, shape: Shape, l: int) -> dict[str, Array]:
    whole = layer(key, shape, l)
    return {"kernel": whole["kernel"]} if original else whole

  def own(key: Key, shape: Shape, l: int) -> dict[str, Array]:
    mask_key, added_key = jax.random.split(key)
    if original:
      mask = net.weight_scale * jax.random.truncated_normal(mask_key, -2, 2, (shape.outgoing,))
      return {"mask": mask, "added": jnp.zeros(shape.kernel), "bias": layer(key, shape, l)["bias"]}
    return {"mask": layer(mask_key, shape, l)["kernel"], "added": layer(added_key, shape, l)["kernel"]}

  def weights(shared: dict[str, Array], own: dict[str, Array]) -> dict[str, Array]:
    kernel = shared["kernel"] * jax.nn.sigmoid(own["mask"]) + own["added"]
    return {"kernel": kernel, "bias": (own if original else shared)["bias"]}

  return Sharing(shared, own, weights)


def added(work: Any) -> tuple[Array, ...]:
  """The tau of each layer, of one task or stacked."""
  return tuple(own["added"] for own in work["own"])


def with_added(work: Any, values: Any) -> Any:
  """The same with other tau."""
  return work | {"own": tuple(own | {"added": value} for own, value in zip(work["own"], values, strict=True))}


class Additive(NamedTuple):
  """The functions of the method; `params` is {"shared", "work"}, and {"old"}, the tau of all, in the original form."""

  nets: Layered
  tx: optax.GradientTransformation
  how: Decomposition
  decay: Decay
  epochs: int

  @property
  def original(self) -> bool:
    """Whether old tasks learn too."""
    return self.how.form == "original"

  @property
  def most(self) -> int:
    """Clusters after the last search, 0 where there is none."""
    T, every = self.nets.spec.T, self.how.consolidate_every
    return min(T, self.how.clusters * (T // every)) if every else 0

  @property
  def config(self) -> Array:
    """[G] bool, every layer is shared."""
    return jnp.ones(len(self.nets.groups), bool)

  def params(self, layers: Layers) -> dict[str, Any]:
    """What a step moves."""
    return params_of(layers) | ({"old": added(layers.store)} if self.original else {})

  def init(self, key: Key) -> State:
    """Before the first task."""
    layers = self.nets.init(key)
    state = State(layers, self.tx.init(self.params(layers)), jnp.int32(-1))
    if not self.original:
      return state
    before = added(layers.store)
    cluster = tuple(jnp.full(self.nets.spec.T, self.most, jnp.int32) for _ in before)
    return state.replace(before=before, common=jax.tree.map(jnp.zeros_like, before), cluster=cluster)

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Task t starts with an optimizer that knows nothing."""
    layers = self.nets.begin(state.layers, view.t)
    if self.original:
      work = with_added(layers.work, [shared["kernel"] for shared in layers.shared])
      layers, state = layers.replace(work=work), state.replace(before=added(layers.store))
    return state.replace(layers=layers, opt_state=self.tx.init(self.params(layers)), now=jnp.int32(view.t))

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Task t keeps what is its own."""
    t, every = view.t, self.how.consolidate_every
    state = state.replace(layers=self.nets.commit(state.layers, t, self.config), now=jnp.int32(-1))
    return where((t + 1) % every == 0, self.consolidated(state, t), state) if self.most else state

  def consolidated(self, state: State, t: Array) -> State:
    """What the tasks up to t add alike is held once by their cluster."""
    T, k = self.nets.spec.T, self.how.clusters * ((t + 1) // self.how.consolidate_every)
    clusters, values, common = [], [], []
    for value in added(state.layers.store):
      points = value.reshape(T, -1)
      cluster = k_means(points, jnp.arange(T) <= t, jnp.minimum(k, self.most), self.most)
      alike, mean = in_common(points, cluster, self.most, self.how.gap)
      clusters.append(cluster)
      values.append(jnp.where(alike, mean, points).reshape(value.shape))
      common.append(jnp.where(alike, mean, 0).reshape(value.shape))
    layers = state.layers.replace(store=with_added(state.layers.store, values))
    return state.replace(layers=layers, common=tuple(common), cluster=tuple(clusters))

  def simple_penalty(self, params: Any, state: State, t: Array) -> Array:
    """[] on the tau of the task, and on how far the shared tensors moved; averages over tensors of averages."""
    sizes = [jnp.abs(value).mean() for value in added(params["work"])]
    moved = jax.tree.map(lambda now, then: ((now - then) ** 2).mean() / 2, params["shared"], state.layers.backup)
    moves = jax.tree.leaves(moved)
    return self.how.sparsity * sum(sizes) / len(sizes) + self.how.drift * (t > 0) * sum(moves) / len(moves)

  def original_penalty(self, params: Any, state: State, t: Array) -> Array:
    """[] on the tau of all tasks so far, and on how far the kernels of old tasks moved; sums over all entries."""
    sizes, moves, each = jnp.float32(0), jnp.float32(0), (1, 2, 3, 4)
    old = jnp.arange(self.nets.spec.T) < t
    for l, own in enumerate(state.layers.store["own"]):
      masks, value = jax.nn.sigmoid(own["mask"])[:, None, None, None], params["old"][l]
      moved = params["shared"][l]["kernel"] - state.layers.backup[l]["kernel"]
      kernels = moved * masks + value - state.before[l]  # [T, k, k, C, O], how far each went
      moves += jnp.where(old, (kernels**2).sum(each), 0).sum()
      sizes += jnp.where(old, jnp.abs(value - state.common[l]).sum(each), 0).sum()
    sizes += sum(jnp.abs(value).sum() for value in added(params["work"]))
    return self.how.sparsity * sizes + self.how.drift * moves

  def loss(self, params: Any, state: State, batch: Batch, key: Key, t: Array) -> tuple[Array, Info]:
    """Cross-entropy of the task in training, and its penalty."""
    logits = self.nets.top(params["work"], self.nets.features(params, batch.x, self.config), key).logits
    value = cross_entropy(logits, batch)
    penalty = (self.original_penalty if self.original else self.simple_penalty)(params, state, t)
    return value + penalty, {"loss": value, "accuracy": accuracy(logits, batch)}

  def step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """One step of all that learns."""
    scale = self.decay.faded(view.t * self.epochs + clock.epoch)
    params, opt_state, _, info = descend(
      scaled(self.tx),
      lambda params, batch: self.loss(params, state, batch, key, view.t),
      self.params(state.layers),
      state.opt_state,
      batch,
      At(key, clock, view),
      scale=scale,
    )
    layers = state.layers.replace(shared=params["shared"], work=params["work"])
    if self.original:
      layers = layers.replace(store=with_added(layers.store, params["old"]))
    return state.replace(layers=layers, opt_state=opt_state), info

  def report(self, state: State) -> dict[str, Array]:
    """What the tasks hold, and how much of tau is above the strength of its penalty, where the authors prune it."""
    layers, T = state.layers, self.nets.spec.T
    parameters = self.nets.parameters(layers)
    tau = added(layers.store)
    values = [value - common for value, common in zip(tau, state.common or (0.0,) * len(tau), strict=True)]
    above = sum((jnp.abs(value) > self.how.sparsity).reshape(T, -1).sum(axis=1) for value in values)
    share = above / sum(value[0].size for value in values) * layers.committed
    for cluster, value in zip(state.cluster, values if state.cluster else (), strict=True):
      held = (cluster[:, None] == jnp.arange(self.most)).sum(axis=0) > 1
      parameters += held.sum() * value[0].size
    return {
      "parameters": parameters.astype(jnp.int32),
      "memory_bytes": jnp.int32(0),
      "shared_layers": layers.configs,  # [T, L] all of them, of each task that is done
      "added": share,  # [T]
    }


@declared("method", given=3)
def apd(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  how: Decomposition = Decomposition(),
  decay: Decay = Decay(),
) -> Method:
  """Convolutions as a shared part through a mask and an added part, both the task's.

  Raises:
    ConfigError: a net that is no stack of convolutions, a stream with one head, or keywords that do not go together.
  """
  stack, original = stack_of(net, spec), how.form == "original"
  if how.consolidate_every and not original:
    raise ConfigError(
      f"config.method.consolidate_every={how.consolidate_every} goes with config.method.form='original'; set it to 0"
    )
  nets = Layered(stack, decomposed(stack, original), spec, grouped((), stack.depth), rolls_back=False, chooses=False)
  method = Additive(nets, tx, how, decay, fit.epochs)

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return nets.apply(state.layers, state.now, method.config, x, slot)

  phase = Phase("fit", fit.batch_size, method.step, fit.epochs, enter=method.enter, exit=method.leave)
  return Method(method.init, (phase,), apply, method.report, told=True, needs_boundaries=True)
