"""Progressive networks (Rusu et al. 2016, https://arxiv.org/abs/1606.04671) of convolutions, as a comparator of LASEM
(Lee, Behpour and Eaton 2021), in the form of its authors' code.

Every task has a column, a network of its own that is frozen when the task ends. A convolution above the first also
reads what the layer below gave in each column before,

  h_l = ReLU(W_l * h_{l-1} + b_l + sum_{j<t} U_{l,j} * ReLU(V_{l,j} * alpha_{l,j} h_{l-1}^{(j)} + c_{l,j}))

with V of one by one, U of the layer's window, alpha a number, and V as wide as the channels of h over
`reduction` * (t + 1), cut to a whole number, at least 1. The first convolution, the layers above the convolutions and
the head have no laterals: those of Rusu et al. add to every layer, an output's too. Where a block skips, the addition
follows, then pooling, as in the net alone.

Adapters of all columns before lie one behind the other on the channel axis, so that U is one convolution. There is room
for the task that needs most; the channels beyond are zero and never move. A step of column t runs the t columns before
it forwards, so that T tasks cost O(T^2) columns, and parameters grow as fast, though slowly: the adapters of a layer
have less than C / `reduction` channels together.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import at_least, declared
from cljax.ops.convolution import convolution
from cljax.ops.losses import accuracy, cross_entropy
from cljax.ops.slots import by_slot, over_live
from cljax.ops.trees import put, take, where
from cljax.pieces.descent import descend
from cljax.pieces.layered import Layered, shapes_of, size
from cljax.pieces.learner import Fit
from cljax.pieces.transfer import Decay, Transfer, layered, scaled
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View


@flax.struct.dataclass
class State:
  """The column of the task in training, and those of all tasks."""

  column: Any  # "layers" and "laterals", tuples over layers, and "top"
  opt_state: Any
  store: Any  # [T, ...] the columns of all tasks, from their own random start
  now: Array  # [] int32 the task in training, -1 where there is none
  finished: Array  # [T] bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def adapted(block: int, old: Array, kernel: Array, count: Array, width: Array) -> Array:
  """[B, H, W, N]: channels i * width and after are old[i] times the same columns of the kernel, for i < count.

  Both directions loop over `count`, `width` channels at a time, so that they cost what the task needs. What lies beyond
  count * width means nothing, and must be given no gradient; `old` is given none.

  Args:
    block: the largest width.
    old: [P, B, H, W, C] what columns before gave.
    kernel: [C, N].
    count, width: [] int32.
  """
  padded = jnp.pad(kernel, ((0, 0), (0, block)))

  def one(i: Array, found: Array) -> Array:
    part = jax.lax.dynamic_slice_in_dim(padded, i * width, block, axis=1)
    return jax.lax.dynamic_update_slice_in_dim(found, old[i] @ part, i * width, axis=3)  # the next cuts it to its width

  found = jnp.zeros((*old.shape[1:-1], padded.shape[1]))
  return jax.lax.fori_loop(0, count, one, found)[..., : kernel.shape[1]]


def adapted_forward(block: int, old: Array, kernel: Array, count: Array, width: Array) -> tuple[Array, Any]:
  """What `adapted` gives, and what its gradient needs."""
  return adapted(block, old, kernel, count, width), (old, count, width)


def adapted_backward(block: int, kept: Any, slopes: Array) -> tuple[None, Array, None, None]:
  """The gradient by the kernel."""
  old, count, width = kept
  padded = jnp.pad(slopes, ((0, 0),) * 3 + ((0, block),))

  def one(i: Array, found: Array) -> Array:
    part = jax.lax.dynamic_slice_in_dim(padded, i * width, block, axis=3)
    own = jnp.einsum("bhwc,bhwn->cn", old[i], part)
    return jax.lax.dynamic_update_slice_in_dim(found, own, i * width, axis=1)

  found = jax.lax.fori_loop(0, count, one, jnp.zeros((old.shape[-1], padded.shape[-1])))
  return None, found[:, : slopes.shape[-1]], None, None


adapted.defvjp(adapted_forward, adapted_backward)


def width_of(channels: int, before: int, reduction: int) -> int:
  """Channels of an adapter, of so many channels of a column, where there are so many columns before."""
  return max(1, channels // (reduction * (before + 1)))


class Progressive(NamedTuple):
  """The functions of the method."""

  nets: Layered  # makes a column without its laterals
  tx: optax.GradientTransformation
  decay: Decay
  fit: Fit
  reduction: int

  # The widths of adapters.

  @property
  def most(self) -> int:
    """Columns that there is room for before one; at least 1."""
    return max(1, self.nets.spec.T - 1)

  def widths(self, l: int) -> list[int]:
    """Of the adapters of layer l, by how many columns are before."""
    incoming = shapes_of(self.nets.net, self.nets.spec)[l].incoming
    return [width_of(incoming, before, self.reduction) for before in range(self.most + 1)]

  def room(self, l: int) -> int:
    """N: the most channels that the adapters of layer l take together."""
    return max(before * width for before, width in enumerate(self.widths(l)))

  # A column.

  def fresh(self, key: Key, t: Array) -> dict[str, Any]:
    """Column t before its training."""
    own_key, laterals_key = jax.random.split(key)
    own, shapes = self.nets.fresh(own_key), range(1, self.nets.net.depth)
    laterals = [self.lateral(jax.random.fold_in(laterals_key, l), l, t) for l in shapes]
    return {"layers": own["layers"], "laterals": ({}, *laterals), "top": own["top"]}

  def lateral(self, key: Key, l: int, t: Array) -> dict[str, Array]:
    """What layer l of column t reads the columns before by."""
    net, N, keys = self.nets.net, self.room(l), jax.random.split(key, 3)
    window, incoming, outgoing = shapes_of(net, self.nets.spec)[l]
    live, _ = self.live(l, t)

    def drawn(key: Key, *shape: int) -> Array:
      return net.weight_scale * jax.random.truncated_normal(key, -2, 2, shape)

    return {
      "alpha": jnp.where(jnp.arange(self.most) < t, drawn(keys[0], self.most), 0),
      "reduce": jnp.where(live, drawn(keys[1], incoming, N), 0),
      "bias": jnp.where(live, net.bias, jnp.zeros(N)),
      "expand": jnp.where(live[:, None], drawn(keys[2], window, window, N, outgoing), 0),
    }

  def live(self, l: int, t: Array) -> tuple[Array, Array]:
    """([N] bool channels that the adapters of layer l of column t use, [] int32 the width of each)."""
    width = jnp.asarray(self.widths(l), jnp.int32)[t]
    return jnp.arange(self.room(l)) < t * width, width

  def beside(self, l: int, own: Any, t: Array, old: Array) -> Array:
    """[B, H, W, O] what layer l of column t reads in the columns before; old [P, B, H, W, C] is what they gave."""
    live, width = self.live(l, t)
    column = jnp.minimum(jnp.arange(self.room(l)) // width, self.most - 1)

    def read() -> Array:
      kernel = own["reduce"] * own["alpha"][column]
      x = nn.relu(adapted(max(self.widths(l)[1:]), old, kernel, t, width) + own["bias"])
      return convolution(jnp.where(live, x, 0), own["expand"])

    def nothing() -> Array:
      return jnp.zeros((*old.shape[1:-1], own["expand"].shape[-1]))

    return jax.lax.cond(t > 0, read, nothing)

  def outputs(self, column: Any, t: Array, x: Array, old: Sequence[Array] | None, depth: int) -> list[Array]:
    """What each of the lowest convolutions of column t gives, pooled; without laterals where there is no `old`."""
    net = self.nets.net
    found: list[Array] = []
    for l in range(depth):
      layer, source = column["layers"][l], net.skip(l)
      x = convolution(x, layer["kernel"]) + layer["bias"]
      if l and old is not None:
        x = x + self.beside(l, column["laterals"][l], t, old[l - 1])
      x = net.apply({}, l, nn.relu(x), found[source] if source >= 0 else None, method="pooled")
      found.append(x)
    return found

  def before(self, store: Any, t: Array, x: Array) -> list[Array]:
    """[P, B, H, W, C] what each convolution but the last gives in the columns before t; those after are not run."""
    below = self.nets.net.depth - 1
    shapes = jax.eval_shape(lambda: self.outputs(take(store, 0), jnp.int32(0), x, None, below))

    def run(i: Array, old: list[Array]) -> list[Array]:
      return put(old, i, self.outputs(take(store, i), i, x, old, below))

    return jax.lax.fori_loop(0, t, run, [jnp.zeros((self.most, *shape.shape)) for shape in shapes])

  def answer(self, column: Any, t: Array, x: Array, old: Sequence[Array], key: Key | None = None) -> Outputs:
    """What column t answers to x [B, ...], with dropout where there is a key."""
    features = self.outputs(column, t, x, old, self.nets.net.depth)[-1]
    return self.nets.top(column, features.reshape(len(x), -1), key)

  # The method.

  def init(self, key: Key) -> State:
    """Before the first task."""
    T = self.nets.spec.T
    store = over_live(lambda t: self.fresh(jax.random.fold_in(key, t), t), jnp.ones(T, bool))
    column = take(store, 0)
    return State(column, self.tx.init(column), store, jnp.int32(-1), jnp.zeros(T, bool))

  def enter(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """Task t starts, with an optimizer that knows nothing."""
    column = take(state.store, view.t)
    return state.replace(column=column, opt_state=self.tx.init(column), now=jnp.int32(view.t))

  def step(self, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """A step of the column in training alone."""
    t, old = view.t, self.before(state.store, view.t, batch.x)

    def loss(column: Any, batch: Batch) -> tuple[Array, Info]:
      logits = self.answer(column, t, batch.x, old, key).logits
      value = cross_entropy(logits, batch)
      return value, {"loss": value, "accuracy": accuracy(logits, batch)}

    scale = self.decay.faded(t * self.fit.epochs + clock.epoch)
    column, opt_state, _, info = descend(
      scaled(self.tx), loss, state.column, state.opt_state, batch, At(key, clock, view), scale=scale
    )
    return state.replace(column=column, opt_state=opt_state), info

  def leave(self, key: Key, state: State, view: View, clock: Clock) -> State:
    """The column is frozen."""
    store, finished = put(state.store, view.t, state.column), state.finished.at[view.t].set(True)
    return state.replace(store=store, now=jnp.int32(-1), finished=finished)

  def apply(self, state: State, x: Array, slot: Array) -> Outputs:
    """Each row of x [B, ...] through the column of its slot [B]."""

    def run(s: Array) -> Outputs:
      column = where(s == state.now, state.column, take(state.store, s))
      return self.answer(column, s, x, self.before(state.store, s, x))

    out: Outputs = by_slot(run, self.nets.spec.T, slot)
    return out._replace(task=slot)

  def report(self, state: State) -> dict[str, Array]:
    """The numbers of the columns so far, without the room that they do not use."""
    shapes = shapes_of(self.nets.net, self.nets.spec)
    alone = size((state.column["layers"], state.column["top"]))
    each = [alone] * self.nets.spec.T
    for l, (window, incoming, outgoing) in enumerate(shapes[1:], 1):
      for t, width in enumerate(self.widths(l)[: len(each)]):
        each[t] += t * (1 + width * (incoming + 1 + window**2 * outgoing))
    return {
      "parameters": (state.finished * jnp.array(each, jnp.int32)).sum().astype(jnp.int32),
      "memory_bytes": jnp.int32(0),
      "shared_layers": jnp.zeros((self.nets.spec.T, len(shapes)), bool),  # [T, L] a layer is moved by one task alone
    }


@declared("method", given=3)
def progressive(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  decay: Decay = Decay(),
  reduction: Annotated[int, at_least(1, "adapters are channels // (reduction * columns so far) wide", 1_000_000)] = 2,
) -> Method:
  """A column a task, which reads the frozen columns of the tasks before.

  Raises:
    ConfigError: a net that is no stack of convolutions, or a stream with one head.
  """
  method = Progressive(layered(net, spec, Transfer()), tx, decay, fit, reduction)
  phase = Phase("fit", fit.batch_size, method.step, fit.epochs, enter=method.enter, exit=method.leave)
  return Method(method.init, (phase,), method.apply, method.report, told=True, needs_boundaries=True)
