"""DARTS over shared and own layers, as a comparator of LASEM (Liu, Simonyan and Yang 2019, "DARTS: differentiable
architecture search", https://arxiv.org/abs/1806.09055; adapted to layers by Lee, Behpour and Eaton 2021).

Each layer of the task in training is a mixture of the shared one and the task's own, by a softmax over two numbers
alpha that start at 0. A batch moves alpha, then the weights, each by a step of the optimizer, to first order. What a
task answers with, and what is committed at its end, is the larger side of each alpha; of equals the task's own. Shared
tensors that it does not use are rolled back, as in LASEM.

The authors' program moves alpha on the training batch (`alpha_rows='train'`); DARTS itself takes validation rows
(`valid`, as many as a batch, in turn; where a task has none, alpha rests). With `unrolled` alpha is moved by the loss
of the weights after a plain gradient step on the training batch, differentiated through that step (Liu et al., section
2.3): exactly, where both programs take a difference.
"""

from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.data.sample import some_rows
from cljax.declared import at_least, declared, free, one_of
from cljax.ops.losses import accuracy, cross_entropy
from cljax.pieces.descent import GradientFn, descend
from cljax.pieces.layered import Layered, Layers, params_of
from cljax.pieces.learner import Fit
from cljax.pieces.transfer import Decay, Transfer, layered, scaled
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State:
  """The networks of all tasks, and the mixture of the task in training."""

  layers: Layers
  opt_state: Any
  alpha: Array  # [G, 2] the task's own side, the shared one
  alpha_state: Any  # of its optimizer
  now: Array  # [] int32 the task in training, -1 where there is none
  alphas: Array  # [T, G, 2] of each task at its end


class Darts(NamedTuple):
  """The functions of the method."""

  nets: Layered
  tx: optax.GradientTransformation
  decay: Decay
  fit: Fit
  on_valid: bool
  ahead: Array | float | None  # rate of the step that alpha looks ahead by; None: it does not

  def init(self, key: Key) -> State:
    """Before the first task."""
    layers, G, T = self.nets.init(key), len(self.nets.groups), self.nets.spec.T
    alpha = jnp.zeros((G, 2))
    opt_state, alpha_state = self.tx.init(params_of(layers)), self.tx.init(alpha)
    return State(layers, opt_state, alpha, alpha_state, jnp.int32(-1), jnp.zeros((T, G, 2)))

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Task t starts with an even mixture and optimizers that know nothing."""
    layers, alpha = self.nets.begin(state.layers, view.t), jnp.zeros_like(state.alpha)
    opt_state, alpha_state = self.tx.init(params_of(layers)), self.tx.init(alpha)
    return state.replace(
      layers=layers, opt_state=opt_state, alpha=alpha, alpha_state=alpha_state, now=jnp.int32(view.t)
    )

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The larger sides are committed."""
    layers = self.nets.commit(state.layers, view.t, self.config(state))
    return state.replace(layers=layers, now=jnp.int32(-1), alphas=state.alphas.at[view.t].set(state.alpha))

  def config(self, state: State) -> Array:
    """[G] bool, which groups are shared by the larger side."""
    return state.alpha[:, 1] > state.alpha[:, 0]

  def loss(self, alpha: Array, params: Any, batch: Batch, key: Key) -> tuple[Array, Info]:
    """Cross-entropy of the mixture, and what the sharing adds by its share."""
    shares = jax.nn.softmax(alpha, axis=-1)[:, 1]
    logits = self.nets.top(params["work"], self.nets.mixed(params, batch.x, shares), key).logits
    value = cross_entropy(logits, batch)
    return value + self.nets.held(params, shares), {"loss": value, "accuracy": accuracy(logits, batch)}

  def alpha_batch(self, batch: Batch, clock: Clock, view: View) -> Batch:
    """The rows that alpha is moved on."""
    if not self.on_valid:
      return batch
    rows, size = view.tasks.valid, self.fit.batch_size
    count = rows.count[view.t]
    i = clock.position * size + jnp.arange(size)
    return some_rows(view, rows, view.t, i % jnp.maximum(count, 1), jnp.arange(size) < count)

  def steering(self, params: Any, batch: Batch, keys: Array, scale: Array) -> GradientFn:
    """(alpha, rows) -> (gradient by alpha, info); to second order through a step of the weights on `batch`."""

    def loss(alpha: Array, rows: Batch) -> tuple[Array, Info]:
      if self.ahead is None:
        return self.loss(alpha, params, rows, keys[0])
      slopes = jax.grad(lambda now: self.loss(alpha, now, batch, keys[1])[0])(params)
      after = jax.tree.map(lambda now, slope: now - self.ahead * scale * slope, params, slopes)
      return self.loss(alpha, after, rows, keys[0])

    return jax.grad(loss, has_aux=True)

  def step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """A step of alpha, then one of the weights."""
    at, keys = At(key, clock, view), jax.random.split(key)
    tx, scale = scaled(self.tx), self.decay.faded(view.t * self.fit.epochs + clock.epoch)
    params, rows = params_of(state.layers), self.alpha_batch(batch, clock, view)
    alpha, alpha_state, _, _ = descend(
      tx,
      lambda alpha, rows: self.loss(alpha, params, rows, keys[0]),
      state.alpha,
      state.alpha_state,
      rows,
      at,
      gradient=self.steering(params, batch, keys, scale),
      rests=~batch.live.any(),
      scale=scale,
    )
    params, opt_state, _, info = descend(
      tx, lambda p, b: self.loss(alpha, p, b, keys[1]), params, state.opt_state, batch, at, scale=scale
    )
    layers = state.layers.replace(shared=params["shared"], work=params["work"])
    return state.replace(layers=layers, opt_state=opt_state, alpha=alpha, alpha_state=alpha_state), info

  def report(self, state: State) -> dict[str, Array]:
    """What each task shares, and its mixture at its end."""
    return {
      "parameters": self.nets.parameters(state.layers),
      "memory_bytes": jnp.int32(0),
      "shared_layers": state.layers.configs[:, jnp.array(self.nets.group_of)],  # [T, L]
      "shares": jax.nn.softmax(state.alphas, axis=-1)[..., 1],  # [T, G]
    }


@declared("method", given=3)
def darts(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  transfer: Transfer = Transfer(),
  decay: Decay = Decay(),
  alpha_rows: Annotated[str, one_of(("train", "valid"), "that move the mixture")] = "train",
  unrolled: Annotated[bool, free("the mixture is moved through a step of the weights")] = False,
  ahead: Annotated[Array | float, at_least(0, "rate of that step")] = 1e-3,
) -> Method:
  """Layers shared or a task's own by a softened choice that is learnt by gradients.

  Raises:
    ConfigError: a net that is no stack of convolutions, a stream with one head, or keywords that do not fit the net.
  """
  method = Darts(layered(net, spec, transfer), tx, decay, fit, alpha_rows == "valid", ahead if unrolled else None)

  def apply(state: State, x: Array, slot: Array) -> Outputs:
    return method.nets.apply(state.layers, state.now, method.config(state), x, slot)

  phase = Phase("fit", fit.batch_size, method.step, fit.epochs, enter=method.enter, exit=method.leave)
  return Method(
    method.init, (phase,), apply, method.report, told=True, needs_boundaries=True, needs_valid=method.on_valid
  )
