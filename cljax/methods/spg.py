"""Soft-masking of parameters (Konishi et al. 2023, https://proceedings.mlr.press/v202/konishi23a.html): what a weight
matters to earlier tasks holds it back, by a share.

At the end of task t each parameter i below the heads gets an importance from its gradients through all heads tau <= t
over the task's rows X_t, of the cross-entropy of the task's own head, and of the sum of the logits of each earlier one:

  gamma^{t,tau}_i = |tanh(Norm(dL_{t,tau} / dw_i))|,  L_{t,t} = CE,  L_{t,tau} = sum of head tau's logits on X_t
  gamma^{<=t}_i = max(gamma^{<=t-1}_i, max_tau gamma^{t,tau}_i)

Norm takes from each tensor its mean, and divides by its deviation. Later steps are held back by it, those of a head by
the mean of all:

  w_i <- w_i - rate (1 - gamma_i) g_i,  head <- head - rate (1 - mean gamma) g

Every task uses the whole network, so that nothing is free of forgetting but what has an importance of 1 to the last bit
and the heads of earlier tasks: these keep their bits. The factors are those of the gradient; adaptive optimizers undo
those between 0 and 1.
"""

from typing import Annotated, Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import declared, free
from cljax.loops import mean_over
from cljax.nets.modes import at_rest
from cljax.ops.losses import cross_entropy
from cljax.ops.slots import largest_of_live
from cljax.ops.trees import parameters
from cljax.pieces.learner import Passes, Trained, supervised
from cljax.pieces.owners import first_owners
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Phase, Spec, View


@flax.struct.dataclass
class State(Trained):
  """The network, and what its parameters matter."""

  importance: Any = None  # gamma, like the params but for the heads


def below_heads(params: Any) -> Any:
  """The parameters that all tasks share."""
  return {name: leaf for name, leaf in params.items() if name != "head"}


def mean_of(importance: Any) -> Array:
  """[] over all parameters."""
  leaves = jax.tree.leaves(importance)
  return sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)


def softened(gradient: Array) -> Array:
  """|tanh(Norm(g))| of one tensor; 0 where all entries are alike."""
  chex.assert_type(gradient, float)
  deviation = jnp.sqrt(((gradient - gradient.mean()) ** 2).sum() / max(gradient.size - 1, 1))
  return jnp.abs(jnp.tanh((gradient - gradient.mean()) / jnp.where(deviation > 0, deviation, 1)))


@declared("method", given=3)
def spg(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  passes: Passes = Passes(),
  across_heads: Annotated[
    bool, free("what matters to earlier tasks' heads is held too, as published; else to the task's own alone")
  ] = True,
) -> Method:
  """Fine-tuning by softened steps; the optimizer begins anew with each task. Published is plain SGD at .25."""
  learner = supervised(net, tx, spec)

  def init(key: Key) -> State:
    own = learner.init(key)
    return State(**own, importance=jax.tree.map(jnp.zeros_like, below_heads(own["params"])))

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(opt_state=tx.init(state.params))

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    at, importance = At(key, clock, view), state.importance
    plain, passes = learner.gradient(state, at), 1 - mean_of(importance)

    def gradient(params: Any, batch: Batch) -> tuple[Any, Any]:
      whole, told = plain(params, batch)
      held = jax.tree.map(lambda g, gamma: (1 - gamma) * g, below_heads(whole), importance)
      return jax.tree.map(lambda g: passes * g, whole) | held, told

    others = jax.tree.map(lambda owner: owner != view.t, first_owners(state.params, spec))
    frozen = jax.tree.map(lambda gamma: gamma == 1, importance)
    if "head" in others:
      frozen["head"] = others["head"] if spec.heads > 1 else False
    return learner.step(at, state, batch, gradient=gradient, frozen=frozen)

  def importance_to(state: State, view: View, head: Array) -> Any:
    """gamma^{t,tau} of the head tau."""
    own = head == jnp.minimum(view.t, spec.heads - 1)

    def answer(params: Any, batch: Batch) -> Array:
      return at_rest(net, state.params | params, state.collections, batch.x, batch.task).logits

    def value(below: Any, batch: Batch) -> Array:
      """Summed over the live rows, so that one gradient is that of them all."""
      asked = batch._replace(task=jnp.where(own, batch.task, head))
      logits = answer(below, asked)
      others = jnp.where(batch.live[:, None] & view.tasks.classes[head], logits, 0).sum()
      return jnp.where(own, cross_entropy(logits, asked) * batch.live.sum(), others)

    below = below_heads(state.params)
    mean = mean_over(lambda batch: jax.grad(value)(below, batch), view, view.tasks.train, summed=True)
    return jax.tree.map(softened, mean)

  def leave(key: Key, state: State, view: View, clock: Clock) -> State:
    heads, last = jnp.arange(spec.heads), jnp.minimum(view.t, spec.heads - 1)
    live = heads <= last if across_heads else heads == last
    found = largest_of_live(lambda head: importance_to(state, view, head), live)
    return state.replace(importance=jax.tree.map(jnp.maximum, state.importance, found))

  def report(state: State) -> dict[str, Array]:
    """`held` is the mean importance."""
    return {
      "parameters": parameters(state.params),
      "memory_bytes": jnp.int32(0),
      "held": mean_of(state.importance),
    }

  phase = Phase("fit", passes.batch_size, step, epochs=passes.epochs, enter=enter, exit=leave)
  return Method(init, (phase,), learner.apply, report, needs_boundaries=True)
