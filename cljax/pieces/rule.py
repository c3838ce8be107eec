"""A learned update rule: each neuron's step is its gradient times what a network of its own layer says.

Xiong, Ren and Urtasun 2020, section 4 (https://arxiv.org/abs/1910.04650):

  delta_j = scale * tanh(W out(LSTM(w_:j, g_:j, pre, post_j)) + b),    w_:j <- w_:j - alpha * delta_j * g_:j

One three-layer stacked LSTM for each parameter tensor of the net, shared by the tensor's output neurons j; each neuron
has its own h and c. A kernel of kH * kW * Cin weights a neuron takes 2 kH kW Cin + Cin + 1 numbers and gives kH kW Cin;
a bias, and the scale or the bias of a normalisation, take 4 and give 1. `static` is the control without a network:
delta = scale * tanh(b), b one for each input unit. Heads take plain SGD at alpha.

Deviations, each an option: cells are tanh cells with a ReLU on what each layer gives (`cell`: literal ReLU cells end in
non-finite weights); each block of inputs is divided by its root mean square over the tensor (`inputs`); `scale` begins
where delta is 1, so that the rule begins as plain SGD, bit for bit.
"""

import re
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
from cljax.pieces.neurons import Acts, Tensor
from cljax.types import Array, Key, PyTree

LAYERS = 3  # of the stacked LSTM
EPSILON = 1e-8  # beside a mean square
MOST_HIDDEN = 4096
BINS, WIDEST = 60, 3.0  # of a histogram of multipliers
PLACE = re.compile(r"\['(static|lstm_[a-z]+_[a-z]+)'\]\['([^']*)'\]\['[^']*'\]")  # form and tensor of a number

Theta = Mapping[str, Mapping[str, Array]]  # tensor, such as first/kernel -> its meta-parameters
Memory = dict[str, Array]  # tensor -> [2, layers, neurons, H], h and c; {} of `static`


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

  def units(self, tensor: Tensor) -> int:
    """H of a tensor's LSTM."""
    return self.hidden_vectors if tensor.vector else self.hidden

  @property
  def label(self) -> str:
    """What decides what the numbers of a theta mean, as the file of one says it."""
    return self.form if self.form == "static" else f"{self.form}_{self.cell}_{self.inputs}"


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
  H = rule.units(tensor)
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


def part(theta: Theta, rule: Rule, alpha: float | None = None) -> PyTree:
  """What the file of a theta holds: the numbers below the form that they belong to, beside them the rate at which they
  were trained, where it is known."""
  return {rule.label: theta} | ({} if alpha is None else {"config.method.alpha": np.float32(alpha)})


def filled(tensors: Mapping[str, Tensor], rule: Rule, leaves: Mapping[str, Array], source: str) -> Theta:
  """The theta of a file that `part` made.

  Args:
    leaves: by path, as `artifacts.read` gives them.
    source: the file, for the message.

  Raises:
    ConfigError: no rule, or one of another form, net or shape; says what is there and what is asked for.
  """
  places = [found.groups() for found in map(PLACE.fullmatch, leaves) if found]
  if not places:
    raise ConfigError(
      f"{source} holds no rule of any form: a trained one is parts/seed_N/theta.npz in the work dir of "
      "`python -m launch.meta` with config.trains='rule'"
    )
  own = {tensor for form, tensor in places if form == rule.label}
  if not own:
    raise ConfigError(f"{source} holds a rule of the form {places[0][0]!r}, but {rule.label!r} is asked for here")
  unused, lacking = (sorted(set(some) - set(rest)) for some, rest in ((own, tensors), (tensors, own)))
  if unused or lacking:
    where = f"{unused[0]} is in the file alone" if unused else f"{lacking[0]} is not in the file"
    raise ConfigError(
      f"{source} holds the rule of a net of {len(own)} parameter tensors without those of heads, but the net here has "
      f"{len(tensors)}, and {where}: set config.net to the net that the rule was trained with"
    )
  template = jax.eval_shape(lambda key: part(init_theta(key, tensors, rule, 1.0), rule), jax.random.key(0))
  return fill(template, leaves, source)[rule.label]


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
      name: jnp.zeros((2, LAYERS, one.neurons, self.rule.units(one)), flat[name].dtype)
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
    return self.applied(grads, deltas), after

  def applied(self, grads: PyTree, deltas: Mapping[str, Array]) -> PyTree:
    """-alpha * delta * gradient; of heads, which have no delta, -alpha * gradient."""
    slopes = flatten_dict(grads, sep="/")
    moved = {name: -self.alpha * (deltas[name] * g if name in deltas else g) for name, g in slopes.items()}
    return unflatten_dict(moved, sep="/")


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


def counting(
  theta: Theta, alpha: Array | float, tensors: Mapping[str, Tensor], rule: Rule = Rule()
) -> optax.GradientTransformationExtraArgs:
  """The rule as `learned` makes it, whose state is (memory, counts of multipliers); counts that are {} stay so."""
  it = Learned(theta, alpha, tensors, rule, through_inputs=False)

  def update(
    grads: PyTree, state: tuple[Memory, dict[str, Array]], params: PyTree = None, *, acts: Acts, **extra: Any
  ) -> tuple[PyTree, tuple[Memory, dict[str, Array]]]:
    memory, counts = state
    deltas, memory = it.multipliers(grads, memory, params, acts)
    counts = {name: count + histogram(deltas[name]) for name, count in counts.items()}
    return it.applied(grads, deltas), (memory, counts)

  return optax.GradientTransformationExtraArgs(lambda params: (it.init(params), blank_counts(tensors)), update)


def blank_counts(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
  """No multiplier counted yet."""
  return {name: jnp.zeros(BINS, jnp.float32) for name in tensors}


def histogram(delta: Array) -> Array:
  """[BINS] float32 how many multipliers lie in each bin between -WIDEST and WIDEST; those beyond are in the last."""
  place = jnp.clip((delta.ravel() + WIDEST) * (BINS / (2 * WIDEST)), 0, BINS - 1).astype(jnp.int32)
  return jnp.zeros(BINS, jnp.float32).at[place].add(1)


def largest_cell(memory: Memory) -> Array:
  """[] the largest |c|; 0 where there is none."""
  return jnp.stack([jnp.zeros(()), *(jnp.abs(state[1]).max().astype(jnp.float32) for state in memory.values())]).max()
