"""Taps: what goes into each layer of a net and what comes out, to be read, scaled and added to; the net knows nothing.

  out, inputs, outputs = tapped(net, {"params": params}, x, slot, scale={"first": gate}, add={"hidden_1": shift})

A layer is named by the path of its parameters, such as `first` or `block_0/conv`. Layers are `nn.Dense`, `nn.Conv`
(also one that is given another convolution), `Heads`, `nn.BatchNorm`, `nn.LayerNorm`, `nn.GroupNorm`, and layers of
experts, of which the pre-activations of all experts come out. `Heads` give the logits [B, classes] of each row's own
slot; with `all_heads` they give those of all slots [B, heads * classes], of which each row then takes its own.

A gate on what comes out of a dense layer, where it is not negative, is one on its ReLU: relu(g z) = g relu(z).

Each layer is called once, by its own `__call__`; what `nn.scan`, `nn.remat` or `nn.vmap` call is not to be tapped.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cljax.errors import choose
from cljax.nets.heads import Heads
from cljax.nets.routed import Experts
from cljax.ops.per_example import PowerFn, of_products, of_sums, of_windows, windows_of
from cljax.types import Array

NORMALISATIONS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm)
CALLED = (nn.Dense, nn.Conv, Heads, *NORMALISATIONS)
LEAVES = ("kernel", "bias", "scale")  # of a layer's parameters

ByLayer = Mapping[str, Any]
UNTOUCHED: ByLayer = {}


class Tapped(NamedTuple):
  """What the taps of one call found."""

  out: Any  # what the net answers
  inputs: dict[str, Array]  # by layer, what goes in, after `scale_in` and `add_in`
  outputs: dict[str, Array]  # what comes out, after `scale` and `add`


class Layer(NamedTuple):
  """One layer of a net."""

  module: nn.Module  # unbound
  input: jax.ShapeDtypeStruct
  output: jax.ShapeDtypeStruct


def tapped(
  net: nn.Module,
  variables: Any,
  x: Array,
  slot: Array,
  *,
  add: ByLayer = UNTOUCHED,
  scale: ByLayer = UNTOUCHED,
  add_in: ByLayer = UNTOUCHED,
  scale_in: ByLayer = UNTOUCHED,
  all_heads: bool = False,
  **options: Any,
) -> Tapped:
  """`net.apply(variables, x, slot, **options)` with taps.

  Args:
    variables: the net's collections, `params` among them.
    x: [B, ...]; slot: [B].
    add, scale: by layer, what comes out becomes scale * it + add; both broadcast to it.
    add_in, scale_in: the same of what goes in.
    all_heads: of `Heads`, all slots' logits come out.

  Raises:
    ConfigError: a layer that the net does not have.
    ValueError: a layer that the net calls twice.
  """
  return run(net, variables, x, slot, (scale_in, add_in), (scale, add), all_heads, options)[0]


def run(
  net: nn.Module,
  variables: Any,
  x: Array,
  slot: Array,
  before: tuple[ByLayer, ByLayer],
  after: tuple[ByLayer, ByLayer],
  all_heads: bool,
  options: Mapping[str, Any],
) -> tuple[Tapped, dict[str, nn.Module]]:
  """What `tapped` gives, and the layers in the order in which they are called."""
  modules: dict[str, nn.Module] = {}
  inputs: dict[str, Array] = {}
  outputs: dict[str, Array] = {}

  def tap(call, args, kwargs, context):
    module = context.module
    if not isinstance(module, Experts if context.method_name == "before" else CALLED) or not module.path:
      return call(*args, **kwargs)
    name = "/".join(module.path)
    if name in inputs:
      raise ValueError(f"the net calls its layer {name} twice; taps are for layers that are called once")
    modules[name] = module.clone(parent=None)
    inputs[name] = changed(name, args[0], *before)
    all_of_them = all_heads and isinstance(module, Heads) and module.heads > 1
    given = every_head(module, inputs[name]) if all_of_them else call(inputs[name], *args[1:], **kwargs)
    outputs[name] = changed(name, given, *after)
    return own_logits(module, outputs[name], args[1]) if all_of_them else outputs[name]

  with nn.intercept_methods(tap):
    out = net.apply(variables, x, slot, **options)
  for name in (name for tree in (*before, *after) for name in tree):
    choose("layer", name, inputs)
  return Tapped(out, inputs, outputs), modules


def changed(name: str, value: Array, scale: ByLayer, add: ByLayer) -> Array:
  """scale * value + add, as far as the layer has them."""
  value = value * scale[name] if name in scale else value
  return value + add[name] if name in add else value


def every_head(module: Heads, features: Array) -> Array:
  """[B, heads * classes] the logits of all slots."""
  params = module.variables["params"]
  return features @ params["kernel"] + params["bias"]


def own_logits(module: Heads, logits: Array, slot: Array) -> Array:
  """[B, classes] of each row's slot, out of those of all slots."""
  head = jnp.minimum(slot, module.heads - 1)
  return jnp.take_along_axis(logits.reshape(-1, module.heads, module.classes), head[:, None, None], axis=1)[:, 0]


def layers(
  net: nn.Module, variables: Any, x: Any, slot: Any, *, all_heads: bool = False, **options: Any
) -> dict[str, Layer]:
  """The layers in the order in which the net calls them; nothing is computed, and shapes do for the arguments."""
  modules: dict[str, nn.Module] = {}

  def shapes(variables, x, slot):
    found, called = run(net, variables, x, slot, (UNTOUCHED,) * 2, (UNTOUCHED,) * 2, all_heads, options)
    modules.update(called)
    return found.inputs, found.outputs

  inputs, outputs = jax.eval_shape(shapes, variables, x, slot)
  return {name: Layer(module, inputs[name], outputs[name]) for name, module in modules.items()}


class Derivatives(NamedTuple):
  """What each example's loss does at each layer of a net at rest, and its gradients from there."""

  out: Any  # what the net answers
  inputs: dict[str, Array]  # [B, ...] by layer, what goes in
  slopes: dict[str, Array]  # [B, ...] the derivative of each example's loss by what comes out; of Heads, all slots'
  layers: dict[str, Layer]
  variables: Any

  def leaf(self, layer: str, leaf: str) -> Any:
    """The `leaf` of a layer's parameters, None where it has none."""
    return at_path(self.variables["params"], layer).get(leaf)

  def power_sum(self, layer: str, leaf: str, power: PowerFn) -> Array:
    """The sum over examples of `power` of each one's gradient by a layer's kernel, bias or scale, of its shape.

    Raises:
      ValueError: a layer that is more than this: other feature axes, a masked kernel, padding by more than zeros.
    """
    module, x, d = self.layers[layer].module, self.inputs[layer], self.slopes[layer]
    if leaf == "bias":
      found = of_sums(d, power)
    elif leaf == "scale":
      found = of_sums(d * normalised(module, self.statistics(layer), x), power)
    elif isinstance(module, nn.Conv):
      found = of_windows(conv_windows(module, x), d, module.feature_group_count, power)
    else:
      found = of_products(x, d, power)
    wanted = self.leaf(layer, leaf)
    if wanted is None or found.size != wanted.size:
      raise ValueError(f"no gradient of single examples is known of {layer}/{leaf}, {type(module).__name__}")
    return found.reshape(wanted.shape)

  def power_sums(self, leaf: str, power: PowerFn) -> dict[str, Array]:
    """`power_sum` of each layer that has this leaf."""
    names = (name for name in self.layers if self.leaf(name, leaf) is not None)
    return {name: self.power_sum(name, leaf, power) for name in names}

  def statistics(self, layer: str) -> dict[str, Any]:
    """The layer's own collections but its parameters."""
    others = {name: tree for name, tree in self.variables.items() if name != "params"}
    return {name: at_path(tree, layer) for name, tree in others.items()}


def derivatives(
  net: nn.Module, variables: Any, x: Array, slot: Array, losses: Callable[[Any], Array], **options: Any
) -> Derivatives:
  """The derivatives of each example's loss by what comes out of each layer.

  Args:
    x: [B, ...]; slot: [B].
    losses: what the net answers -> [B], the loss of each example, which depends on that example alone.
  """
  called = layers(net, variables, x, slot, all_heads=True, **options)
  shifts = {name: jnp.zeros(layer.output.shape, layer.output.dtype) for name, layer in called.items()}

  def total(shifts):
    found = tapped(net, variables, x, slot, add=shifts, all_heads=True, **options)
    return losses(found.out).sum(), (found.out, found.inputs)

  slopes, (out, inputs) = jax.grad(total, has_aux=True)(shifts)
  return Derivatives(out, inputs, slopes, called, variables)


def at_path(tree: Any, path: str) -> Any:
  """The branch of nested dicts at a layer's path, {} where there is none."""
  for key in path.split("/"):
    tree = tree.get(key, {})
  return tree


def normalised(module: nn.Module, statistics: Any, x: Array) -> Array:
  """What a normalisation gives before its own scale and bias; BatchNorm by its running statistics."""
  rest: dict[str, Any] = {"use_running_average": True} if isinstance(module, nn.BatchNorm) else {}
  own: Any = module.clone(use_scale=False, use_bias=False, **rest)
  return own.apply(statistics, x)


def conv_windows(module: nn.Conv, x: Array) -> Array:
  """[B, ..., w, C] what a convolution multiplies with its kernel at each place.

  Raises:
    ValueError: a masked kernel, or padding by more than zeros.
  """
  padding = nn.linear.canonicalize_padding(module.padding, x.ndim - 2)
  if module.mask is not None or padding in ("CIRCULAR", "REFLECT", "CAUSAL"):
    raise ValueError(f"no gradient of single examples is known of a convolution with padding={padding} or a mask")

  size = (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)
  steps = (module.strides, module.input_dilation, module.kernel_dilation)
  strides, input_dilation, kernel_dilation = (
    (step or 1,) * len(size) if step is None or isinstance(step, int) else tuple(step) for step in steps
  )
  return windows_of(x, size, strides, padding, input_dilation, kernel_dilation)
