"""A step of meta-training against the plain steps inside it, dense and convolutional, and against PyTorch; its memory.

A meta step is an inner step of teacher and student with its share of the derivative by theta, in a segment of five; the
plain steps are those that the two networks take by themselves, without a rule or a derivative by it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.convolving import timed
from benchmarks.rows import Result, result_of
from benchmarks.timing import Ratio
from cljax.meta.unroll import Inner, Nets, Pair
from cljax.nets import MLP, ResNet
from cljax.ops.losses import cross_entropy, rows
from cljax.pieces.neurons import tensors_of_net
from cljax.pieces.rule import Rule, init_theta, learned
from cljax.types import Batch, Place, PyTree

LENGTH, OLD, NEW, CLASSES, ALPHA = 5, 64, 64, 5, 0.1
DENSE: tuple[Any, tuple[int, ...]] = (MLP(2, CLASSES, (64, 64, 64, 16)), (28, 28, 1))
CONVOLVING: tuple[Any, tuple[int, ...]] = (ResNet(2, CLASSES, 8), (32, 32, 3))
# Convolutions in second order: no loop on a CPU.
ORDERS: dict[str, dict[str, Any]] = {"first": {}, "second": {"second_order": True}}
SECOND_CONVOLVING = {"second_order": True, "unroll": True}
TEXT = f"meta-training, LSTM rule, {OLD} + {NEW} rows, segments of {LENGTH}:"
ROWS = {  # name -> text, side, plain side, goal
  "meta_dense": (f"{TEXT} MLP, first order, against its plain steps", "dense_first", "dense_plain", 25),
  "meta_dense_second": (f"{TEXT} MLP, second order, against its plain steps", "dense_second", "dense_plain", 25),
  "meta_conv": (f"{TEXT} ResNet-8, first order, against its plain steps", "conv_first", "conv_plain", 2.2),
  "meta_conv_second": (f"{TEXT} ResNet-8, second order, against its plain steps", "conv_second", "conv_plain", 4.5),
}
TORCH = f"{TEXT} MLP, second order, against PyTorch with create_graph"
MEMORY = (f"{TEXT} ResNet-8, buffers with remat against without", "conv_remat", "conv_first")


def pair_of(side: str) -> tuple[Pair, tuple[int, ...]]:
  """(teacher and student of a side, the shape of pictures)."""
  kind, _, order = side.partition("_")
  net, shape = DENSE if kind == "dense" else CONVOLVING
  variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32))
  options = {"remat": True} if order == "remat" else ORDERS.get(order, {})
  options = SECOND_CONVOLVING if (kind, order) == ("conv", "second") else options
  inner = Inner(alpha=ALPHA, old_batch=OLD, new_batch=NEW, **options)
  return Pair(net, *tensors_of_net(net, variables, shape), Rule(), inner), shape


def batches_of(shape: tuple[int, ...]) -> Batch:
  """[LENGTH, ...] random rows, the old ones first."""
  random, size = np.random.default_rng(0), OLD + NEW
  task = jnp.tile((jnp.arange(size) >= OLD).astype(jnp.int32), (LENGTH, 1))
  x = jnp.asarray(random.random((LENGTH, size, *shape), np.float32))
  y = jnp.asarray(random.integers(0, CLASSES, (LENGTH, size)).astype(np.int32))
  none, live = jnp.zeros_like(task), jnp.ones((LENGTH, size), bool)
  return Batch(x, y, task, jnp.ones((LENGTH, size, CLASSES), bool), Place(task, none), none, live)


def begun(pair: Pair, shape: tuple[int, ...]) -> tuple[Any, Nets]:
  """(theta, its last layer away from zero so that every derivative is; two equal networks)."""
  params = pair.net.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32))["params"]
  theta = init_theta(jax.random.key(1), pair.tensors, pair.rule)
  theta = {
    name: {leaf: 0.05 * jnp.cos(jnp.arange(w.size)).reshape(w.shape) if leaf == "out" else w for leaf, w in own.items()}
    for name, own in theta.items()
  }
  memory = learned(theta, ALPHA, pair.tensors, pair.rule).init(params)
  return theta, Nets(params, params, memory)


def program(side: str) -> tuple[Any, tuple[Any, ...]]:
  """(what a side computes in one segment, compiled when it is called; its arguments)."""
  pair, shape = pair_of(side)
  theta, nets = jax.jit(partial(begun, pair, shape))()
  batches = batches_of(shape)

  def plain(nets: Nets, batches: Batch) -> PyTree:
    def step(both: Any, batch: Batch) -> Any:
      teacher, student = both
      new = rows(batch, OLD)
      slope = jax.grad(lambda params: cross_entropy(pair.answer(params, new).logits, new))(student)
      return (pair.teach(teacher, batch), jax.tree.map(lambda w, g: w - ALPHA * g, student, slope)), None

    return jax.lax.scan(step, (nets.teacher, nets.student), batches)[0]

  if side.endswith("plain"):
    return jax.jit(plain), (nets, batches)
  return jax.jit(jax.value_and_grad(pair.run, has_aux=True)), (theta, nets, batches)


def against_torch(rounds: int) -> Result:
  """The row `meta_torch`; both sides have the same loss and the same derivative by theta."""
  from benchmarks.torch_unrolling import Segment, eager

  here, arguments = program("dense_second")
  names = ["first", *(f"hidden_{l}" for l in range(1, len(DENSE[0].hidden)))]
  segment = Segment(names, CLASSES, ALPHA)
  there = eager(*jax.device_get(arguments), segment=segment, old=OLD, scale=300.0)
  (loss, _), slope = here(*arguments)
  other, slopes = there()
  np.testing.assert_allclose(loss, other, rtol=1e-3)
  for name, own in slope.items():
    for leaf, value in own.items():
      np.testing.assert_allclose(value, slopes[name][leaf], rtol=0.02, atol=2e-3 * float(jnp.abs(value).max()) + 1e-7)
  calls: dict[str, Callable[[], Any]] = {"here": lambda: here(*arguments), "there": there}
  times = timed(calls, rounds, LENGTH)
  return result_of(TORCH, times["here"], times["there"], 4, True)


def memory() -> Result:
  """The row `meta_memory`: megabytes that the compiled segment needs beside its arguments and results."""
  text, ours, other = MEMORY
  found = []
  for side in (ours, other):
    run, arguments = program(side)
    found.append(run.lower(*arguments).compile().memory_analysis().temp_size_in_bytes / 1e6)
  share = Ratio(*[found[0] / found[1]] * 3)
  return Result(text, f"{found[0]:.0f} MB", f"{found[1]:.0f} MB", share, None, False)


def unrolling(names: Sequence[str], rounds: int) -> list[Result]:
  """The rows of these names."""
  wanted = [name for name in ROWS if name in names]
  calls = {}
  for side in dict.fromkeys(side for name in wanted for side in ROWS[name][1:3]):
    run, arguments = program(side)
    calls[side] = partial(run, *arguments)
    jax.block_until_ready(calls[side]())  # compiles
  times = timed(calls, rounds, LENGTH)
  found = [result_of(ROWS[n][0], times[ROWS[n][1]], times[ROWS[n][2]], ROWS[n][3], False) for n in wanted]
  found += [against_torch(rounds)] if "meta_torch" in names else []
  return found + ([memory()] if "meta_memory" in names else [])
