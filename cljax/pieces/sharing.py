"""How the layers of a task's network come from what all tasks share: HPS, TF and DF-CNN.

A sharing says of one convolution what all tasks hold together (`shared`), what each task holds of its own for the
transfer (`own`), and how the two make the layer's kernel [k, k, C, O] and bias [O]. Shapes and initial values are those
of the code of Lee et al. 2021 (https://proceedings.mlr.press/v139/lee21a.html).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from cljax.errors import ConfigError
from cljax.nets.stack import Stack
from cljax.ops.convolution import convolution
from cljax.ops.posterior import glorot_limit, orthogonality
from cljax.types import Array, Key

ORTHOGONALITY = 0.1  # weight of a TF layer's four matrices, each held to an orthogonal one


class Shape(NamedTuple):
  """The kernel of one convolution."""

  window: int  # k
  incoming: int  # C
  outgoing: int  # O

  @property
  def kernel(self) -> tuple[int, int, int, int]:
    """[k, k, C, O]."""
    return (self.window, self.window, self.incoming, self.outgoing)


class Sharing(NamedTuple):
  """One way to share a convolution."""

  shared: Callable[[Key, Shape, int], Any]  # (key, shape, layer) -> what all tasks hold together
  own: Callable[[Key, Shape, int], Any]  # what each task holds for the transfer
  weights: Callable[[Any, Any], dict[str, Array]]  # (shared, own) -> {"kernel", "bias"}
  loss: Callable[[Any], Array | float] = lambda own: 0.0  # of what a task holds, where the layer is shared


def glorot(key: Key, shape: tuple[int, ...]) -> Array:
  """Uniform, as TensorFlow 1 draws a variable."""
  limit = glorot_limit(shape)
  return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def drawn(key: Key, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
  """A tensor of each shape by `glorot`."""
  keys = jax.random.split(key, len(shapes))
  return {name: glorot(own, shape) for own, (name, shape) in zip(keys, shapes.items(), strict=True)}


def plain(net: Stack) -> Callable[[Key, Shape, int], dict[str, Array]]:
  """The kernel and bias of a layer as the net begins them."""

  def layer(key: Key, shape: Shape, l: int) -> dict[str, Array]:
    kernel = net.weight_scale * jax.random.truncated_normal(key, -2, 2, shape.kernel)
    return {"kernel": kernel, "bias": jnp.full(shape.outgoing, net.bias, jnp.float32)}

  return layer


def nothing(key: Key, shape: Shape, l: int) -> dict[str, Array]:
  """No tensor."""
  return {}


def hps(net: Stack) -> Sharing:
  """Hard parameter sharing (Caruana 1997): one kernel and bias for all tasks."""
  return Sharing(plain(net), nothing, lambda shared, own: shared)


def tf(net: Stack) -> Sharing:
  """Tensor factorisation (Bulat et al. 2020, https://arxiv.org/abs/1904.06345): a core of the kernel's shape, and for
  each task a square matrix along each of its four axes and a bias, W[a',b',c',d'] = sum G[a,b,c,d] U1[a,a'] U2[b,b']
  U3[c,c'] U4[d,d']. The loss is ORTHOGONALITY times the four norms of U^T U - I."""

  def core(key: Key, shape: Shape, l: int) -> Array:
    return glorot(key, shape.kernel)

  def matrices(key: Key, shape: Shape, l: int) -> dict[str, Array]:
    squares: dict[str, tuple[int, ...]] = {f"axis_{i}": (n, n) for i, n in enumerate(shape.kernel)}
    return drawn(key, {**squares, "bias": (shape.outgoing,)})

  def weights(shared: Array, own: dict[str, Array]) -> dict[str, Array]:
    kernel = jnp.einsum("abcd,ae,bf,cg,dh->efgh", shared, *(own[f"axis_{i}"] for i in range(4)))
    return {"kernel": kernel, "bias": own["bias"]}

  def loss(own: dict[str, Array]) -> Array:
    return ORTHOGONALITY * sum(orthogonality(own[f"axis_{i}"]) for i in range(4))

  return Sharing(core, matrices, weights, loss)


class Base(NamedTuple):
  """The knowledge base of one layer of a DF-CNN."""

  side: int  # s of the base [s, s, c], so that its deconvolution has the kernel's side, 2 (s - 1) + 1
  depth: int  # c
  middle: int  # h, channels that the deconvolution gives


def bases(shapes: Sequence[Shape], depths: Sequence[int], middles: Sequence[int]) -> list[Base]:
  """Of all layers.

  Raises:
    ConfigError: an even window.
  """
  for shape in shapes:
    if shape.window % 2 == 0:
      raise ConfigError(f"config.net.windows: a DF-CNN makes kernels of odd sides, not {shape.window}; use 3")
  return [Base((s.window - 1) // 2 + 1, c, h) for s, c, h in zip(shapes, depths, middles, strict=True)]


def deconvolved(base: Array, kernel: Array) -> Array:
  """[2 s - 1, 2 s - 1, h] the transposed convolution of stride 2 of a base [s, s, c] by a kernel [3, 3, h, c]."""
  chex.assert_rank([base, kernel], [3, 4])
  flipped = kernel[::-1, ::-1].swapaxes(2, 3)
  return convolution(base[None], flipped, (1, 1), ((1, 1), (1, 1)), (2, 2), (1, 1))[0]


def df_cnn(net: Stack, layers: Sequence[Base]) -> Sharing:
  """The deconvolutional factorised CNN (Lee, Stokes and Eaton 2019, https://www.ijcai.org/Proceedings/2019/393): a
  small base for all tasks; each task deconvolves it to the kernel's side and contracts its channels to [C, O]. No
  activation between the two."""

  def base(key: Key, shape: Shape, l: int) -> Array:
    side, depth, _ = layers[l]
    return glorot(key, (1, side, side, depth))[0]

  def maps(key: Key, shape: Shape, l: int) -> dict[str, Array]:
    _, depth, middle = layers[l]
    return drawn(
      key,
      {
        "deconvolution": (3, 3, middle, depth),
        "deconvolution_bias": (middle,),
        "contraction": (middle, shape.incoming, shape.outgoing),
        "bias": (shape.outgoing,),
      },
    )

  def weights(shared: Array, own: dict[str, Array]) -> dict[str, Array]:
    middle = deconvolved(shared, own["deconvolution"]) + own["deconvolution_bias"]
    return {"kernel": jnp.einsum("abh,hco->abco", middle, own["contraction"]), "bias": own["bias"]}

  return Sharing(base, maps, weights)
