"""A learned update rule: each neuron's step is its gradient times what a network of its own layer says.

Xiong, Ren and Urtasun 2020, section 4 (https://arxiv.org/abs/1910.04650):

  delta_j = scale * tanh(W out(LSTM(w_:j, g_:j, pre, post_j)) + b),    w_:j <- w_:j - alpha * delta_j * g_:j

One three-layer stacked LSTM for each parameter tensor of the net, shared by the tensor's output neurons j; each neuron
has its own h and c. A kernel of kH * kW * Cin weights a neuron takes 2 kH kW Cin + Cin + 1 numbers and gives kH kW Cin;
a bias, and the scale or the bias of a normalisation, take 4 and give 1. `static` is the control without a network:
delta = scale * tanh(b), b one for each input unit. Heads take plain SGD at alpha.

The paper's "pre" and "post" are what a layer takes in and gives out, as means over batch and window. Of a dense layer
the latter is past its ReLU, of a convolution before its normalisation. A bias has the mean before the ReLU as "pre", a
normalisation's scale and bias the mean of what is normalised.

Deviations, each an option: cells are tanh cells with a ReLU on what each layer gives (`cell`: literal ReLU cells end in
non-finite weights); each block of inputs is divided by its root mean square over the tensor (`inputs`); `scale` begins
where delta is 1, so that the rule begins as plain SGD, bit for bit.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.artifacts import fill
from cljax.declared import at_least, one_of
from cljax.errors import ConfigError
from cljax.nets.heads import Heads
from cljax.nets.taps import NORMALISATIONS, Layer, Tapped, at_path, layers, normalised
from cljax.types import Array, Key, PyTree

LAYERS = 3  # of the stacked LSTM
EPSILON = 1e-8  # beside a mean square
MOST_HIDDEN = 4096

Theta = Mapping[str, Mapping[str, Array]]  # tensor, such as first/kernel -> its meta-parameters
Memory = dict[str, Array]  # tensor -> [2, layers, neurons, H], h and c; {} of `static`
Acts = Mapping[str, Mapping[str, Array]]  # layer -> pre [Cin], mid [Cout], post [Cout]


class Rule(NamedTuple):
  """What a rule is made of."""

  form: Annotated[str, one_of(("lstm", "static"), "of the rule; static: a number for each input unit, the control")] = (
    "lstm"
  )
  cell: Annotated[str, one_of(("tanh", "relu"), "of the LSTM; relu is the paper's, and ends in non-finite weights")] = (
    "tanh"
  )
  inputs: Annotated[str, one_of(("rms", "raw"), "each block of them divided by its root mean square, or raw")] = "rms"
  hidden: Annotated[int, at_least(1, "units of a kernel's LSTM", MOST_HIDDEN)] = 64
  hidden_vectors: Annotated[int, at_least(1, "units of the LSTM of a bias or a scale", MOST_HIDDEN)] = 32

  @property
  def label(self) -> str:
    """What decides what the numbers of a theta mean, as the file of one says it."""
    return self.form if self.form == "static" else f"{self.form}_{self.cell}_{self.inputs}"


class Tensor(NamedTuple):
  """One parameter tensor, as the rule sees it."""

  layer: str
  leaf: str  # kernel, bias or scale
  window: int  # kH * kW, 1 of what is no convolution
  fan: int  # Cin, 1 of a bias or a scale
  neurons: int  # Cout

  @property
  def outputs(self) -> int:
    """Numbers that the rule gives a neuron."""
    return self.window * self.fan

  @property
  def inputs(self) -> int:
    """Numbers that the rule takes for a neuron: weights, gradients, pre and post."""
    return 2 * self.outputs + self.fan + 1

  @property
  def vector(self) -> bool:
    """Whether it is a bias or a scale."""
    return self.leaf != "kernel"

  def rows(self, leaf: Array) -> Array:
    """[neurons, outputs] of an array of the tensor's shape."""
    return leaf.reshape(-1, self.neurons).T

  def shaped(self, rows: Array, like: Array) -> Array:
    """The inverse of `rows`, in the shape of `like`."""
    return rows.T.reshape(like.shape)

  def hidden(self, rule: Rule) -> int:
    """H."""
    return rule.hidden_vectors if self.vector else rule.hidden


def tensors_of(called: Mapping[str, Layer], params: PyTree) -> dict[str, Tensor]:
  """The tensors of a net that the rule updates: all but those of heads.

  Args:
    called: the net's layers, `nets.taps.layers`.
    params: of the net; shapes do.

  Raises:
    ConfigError: parameters that the rule has no form for.
  """
  found: dict[str, Tensor] = {}
  for path, leaf in flatten_dict(params, sep="/").items():
    name, _, own = path.rpartition("/")
    layer = called.get(name)
    if layer is None or (isinstance(layer.module, nn.Conv) and layer.module.feature_group_count != 1):
      what = "no layer that taps can read" if layer is None else "a convolution in groups"
      raise ConfigError(f"the learned rule has no form for {path} of shape {leaf.shape}: {name or path} is {what}")
    if isinstance(layer.module, Heads):
      continue
    neurons = leaf.shape[-1]
    fan = layer.input.shape[-1] if own == "kernel" else 1
    size = int(np.prod(leaf.shape, dtype=int)) // neurons
    found[path] = Tensor(name, own, size // fan, fan, neurons)
  return found


def tensors_of_net(net: nn.Module, params: PyTree, x_shape: tuple[int, ...]) -> tuple[dict[str, Layer], dict]:
  """(the layers of a net for pictures of `x_shape`, its tensors); nothing is computed."""
  x, slot = jax.ShapeDtypeStruct((1, *x_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  called = layers(net, {"params": params}, x, slot)
  return called, tensors_of(called, params)


def one_at_start() -> np.ndarray:
  """The float32 (float64 where JAX is told so) nearest to 1 / tanh(1) whose product with the device's tanh(1) is 1."""
  with jax.ensure_compile_time_eval():
    tanh = np.asarray(jnp.tanh(jnp.ones(())))
  scale = near = (1 / tanh).astype(tanh.dtype)
  for far in (np.inf, -np.inf):
    scale = near
    for _ in range(8):
      if scale * tanh == 1:
        return scale
      scale = np.nextafter(scale, tanh.dtype.type(far))
  return near


def init_theta(key: Key, tensors: Mapping[str, Tensor], rule: Rule = Rule(), scale: float | None = None) -> Theta:
  """The meta-parameters at the start: output weights 0 and biases 1, so that delta is scale * tanh(1).

  Args:
    scale: None is 1 / tanh(1), at which the rule is plain SGD; the paper's text may mean 1.
  """
  start = one_at_start() if scale is None else scale
  return {name: init_one(jax.random.fold_in(key, n), one, rule, start) for n, (name, one) in enumerate(tensors.items())}


def init_one(key: Key, tensor: Tensor, rule: Rule, scale: Any) -> dict[str, Array]:
  """The meta-parameters of one tensor: Lecun's normal for all matrices but the last."""
  out = {"bias": jnp.ones(tensor.outputs), "scale": jnp.asarray(scale, jnp.ones(()).dtype)}
  if rule.form == "static":
    return out
  H = tensor.hidden(rule)
  lecun = nn.initializers.lecun_normal(batch_axis=0)
  keys = jax.random.split(key, 3)
  matrix = lecun(keys[0], (1, tensor.inputs, 4 * H))[0]
  ends = np.cumsum([tensor.outputs, tensor.outputs, tensor.fan])
  return out | {
    "weights": matrix[: ends[0]],
    "gradients": matrix[ends[0] : ends[1]],
    "pre": matrix[ends[1] : ends[2]],
    "post": matrix[ends[2] :],
    "stacked": lecun(keys[1], (LAYERS - 1, H, 4 * H)),
    "recurrent": lecun(keys[2], (LAYERS, H, 4 * H)),
    "gates": jnp.zeros((LAYERS, 4 * H)),
    "out": jnp.zeros((H, tensor.outputs)),
  }


def part(theta: Theta, rule: Rule) -> PyTree:
  """What the file of a theta holds: the numbers below the form that they belong to."""
  return {rule.label: theta}


def filled(tensors: Mapping[str, Tensor], rule: Rule, leaves: Mapping[str, Array], source: str) -> Theta:
  """The theta of a file that `part` made.

  Args:
    leaves: by path, as `artifacts.read` gives them.
    source: the file, for the message.

  Raises:
    ConfigError: another form, or shapes that do not fit; both are named.
  """
  if leaves and not any(name.startswith(f"['{rule.label}']") for name in leaves):
    there = next(iter(leaves)).split("'")[1]
    raise ConfigError(f"{source} holds a rule of the form {there!r}, but {rule.label!r} is asked for here")
  template = jax.eval_shape(lambda key: part(init_theta(key, tensors, rule, 1.0), rule), jax.random.key(0))
  return fill(template, leaves, source)[rule.label]


def activations(
  found: Tapped, called: Mapping[str, Layer], variables: PyTree, live: Array | None = None
) -> dict[str, dict[str, Array]]:
  """The means over batch and window that the rule takes.

  Args:
    found: what the taps of one call found.
    called: the net's layers.
    variables: the net's collections.
    live: [B] bool, the rows that are counted; None is all.
  """

  def mean(values):
    each = values.reshape(len(values), -1, values.shape[-1]).mean(axis=1)
    if live is None:
      return each.mean(axis=0)
    chex.assert_rank(live, 1)
    return jnp.where(live[:, None], each, 0).sum(axis=0) / jnp.maximum(live.sum(), 1)

  means: dict[str, dict[str, Array]] = {}
  for name, layer in called.items():
    if isinstance(layer.module, Heads):
      continue
    x, z = found.inputs[name], found.outputs[name]
    mid, post = z, nn.relu(z) if isinstance(layer.module, nn.Dense) else z
    if isinstance(layer.module, NORMALISATIONS):
      own = {kind: at_path(tree, name) for kind, tree in variables.items() if kind != "params"}
      mid = normalised(layer.module, own, x)
    means[name] = {"pre": mean(x), "mid": mean(mid), "post": mean(post)}
  return means


def blocks_of(tensor: Tensor, w: Array, g: Array, acts: Mapping[str, Array], rule: Rule) -> tuple[Array, ...]:
  """(weights [N, K], gradients [N, K], pre [Cin] or [N, 1], post [N, 1]) of the N neurons of a tensor."""
  pre = acts["mid"][:, None] if tensor.vector else acts["pre"]
  blocks = (tensor.rows(w), tensor.rows(g), pre, acts["post"][:, None])
  if rule.inputs == "raw":
    return blocks
  return tuple(block * jax.lax.rsqrt(jnp.square(block).mean() + EPSILON) for block in blocks)


def lstm(own: Mapping[str, Array], state: Array, blocks: tuple[Array, ...], cell: str) -> tuple[Array, Array]:
  """(what the stacked LSTM gives [N, H], its state [2, layers, N, H] afterwards)."""
  chex.assert_rank((state, *blocks[:2]), (4, 2, 2))
  squash = jnp.tanh if cell == "tanh" else nn.relu
  weights, gradients, pre, post = blocks
  coming = weights @ own["weights"] + gradients @ own["gradients"] + pre @ own["pre"] + post @ own["post"]
  hs, cs = [], []
  given = None
  for l in range(LAYERS):
    if given is not None:
      coming = given @ own["stacked"][l - 1]
    gates = coming + state[0, l] @ own["recurrent"][l] + own["gates"][l]
    enters, stays, new, leaves = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(stays) * state[1, l] + jax.nn.sigmoid(enters) * squash(new)
    h = jax.nn.sigmoid(leaves) * squash(c)
    given = nn.relu(h)
    hs.append(h)
    cs.append(c)
  return given, jnp.stack([jnp.stack(hs), jnp.stack(cs)])


class Learned(NamedTuple):
  """A rule at work: the fields `init` and `update` are those of an optax transformation with extra arguments."""

  theta: Theta
  alpha: Array | float
  tensors: Mapping[str, Tensor]
  rule: Rule
  through_inputs: bool

  def init(self, params: PyTree) -> Memory:
    """h = c = 0 of every neuron."""
    if self.rule.form == "static":
      return {}
    flat = flatten_dict(params, sep="/")
    return {
      name: jnp.zeros((2, LAYERS, one.neurons, one.hidden(self.rule)), flat[name].dtype)
      for name, one in self.tensors.items()
    }

  def multipliers(self, grads: PyTree, memory: Memory, params: PyTree, acts: Acts) -> tuple[dict[str, Array], Memory]:
    """(delta of each tensor in the tensor's shape, the memory afterwards)."""
    deltas, after = {}, {}
    flat, slopes = flatten_dict(params, sep="/"), flatten_dict(grads, sep="/")
    for name, tensor in self.tensors.items():
      own, w = self.theta[name], flat[name]
      bend = own["bias"]
      if self.rule.form == "lstm":
        blocks = blocks_of(tensor, w, slopes[name], acts[tensor.layer], self.rule)
        blocks = blocks if self.through_inputs else jax.lax.stop_gradient(blocks)
        given, after[name] = lstm(own, memory[name], blocks, self.rule.cell)
        bend = given @ own["out"] + bend
      delta = own["scale"] * jnp.tanh(bend)
      deltas[name] = tensor.shaped(jnp.broadcast_to(delta, (tensor.neurons, tensor.outputs)), w)
    return deltas, after

  def update(
    self, grads: PyTree, state: Memory, params: PyTree = None, *, acts: Acts, **extra: Any
  ) -> tuple[PyTree, Memory]:
    """(-alpha * delta * gradient, of heads -alpha * gradient; the memory afterwards)."""
    deltas, after = self.multipliers(grads, state, params, acts)
    slopes = flatten_dict(grads, sep="/")
    moved = {name: -self.alpha * (deltas[name] * g if name in deltas else g) for name, g in slopes.items()}
    return unflatten_dict(moved, sep="/"), after


def learned(
  theta: Theta,
  alpha: Array | float,
  tensors: Mapping[str, Tensor],
  rule: Rule = Rule(),
  through_inputs: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """The rule as an optax transformation: `update(grads, state, params, acts=activations(...))`.

  Args:
    theta: meta-parameters from outside, to be differentiated by.
    alpha: the learning rate; may be traced.
    tensors: of the net, `tensors_of`.
    through_inputs: whether derivatives go through what the networks take in.
  """
  it = Learned(theta, alpha, tensors, rule, through_inputs)
  return optax.GradientTransformationExtraArgs(it.init, it.update)


def largest_cell(memory: Memory) -> Array:
  """[] the largest |c|; 0 where there is none."""
  return jnp.stack([jnp.zeros(()), *(jnp.abs(state[1]).max().astype(jnp.float32) for state in memory.values())]).max()
