"""A gradient step of a convolution net in a loop, against `lax`'s convolutions dispatched step by step, and PyTorch."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from benchmarks.rows import Result, result_of
from benchmarks.timing import Timing
from cljax.nets.conv import Conv
from cljax.ops.convolution import max_pool
from cljax.types import Array, PyTree

STEPS, BATCH, SHAPE, LR = 20, 10, (32, 32, 3), 0.01
CHECKED = 5  # steps after which both sides must agree; later one unit at 0 may go either way by rounding
CHANNELS, POOLS, HIDDEN, CLASSES = (32, 32, 64, 64), (1, 2, 1, 2), 64, 10
TEXT = f"gradient step of a CIFAR net of {len(CHANNELS)} convolutions, batch {BATCH}, in a loop against"
OTHERS = {"convolving": "`lax` dispatched", "convolving_torch": "eager PyTorch"}
GOALS = {"convolving": (1.05, False), "convolving_torch": (None, True)}


class Net(nn.Module):
  """ReLU convolutions of 3x3 with pooling, one ReLU layer above and the logits [B, 10]."""

  conv: Any = Conv

  @nn.compact
  def __call__(self, x: Array) -> Array:
    for width, size in zip(CHANNELS, POOLS, strict=True):
      x = max_pool(nn.relu(self.conv(width, (3, 3))(x)), size)
    x = nn.relu(nn.Dense(HIDDEN)(x.reshape(len(x), -1)))
    return nn.Dense(CLASSES)(x)


def step(net: Net, params: PyTree, x: Array, y: Array) -> PyTree:
  """The weights after one step of plain SGD."""

  def loss(params):
    return optax.softmax_cross_entropy_with_integer_labels(net.apply({"params": params}, x), y).mean()

  return jax.tree.map(lambda w, g: w - LR * g, params, jax.grad(loss)(params))


def looped(params: PyTree, xs: Array, ys: Array) -> PyTree:
  """The weights after a step on each of the batches, in one program."""
  return jax.lax.fori_loop(0, len(xs), lambda i, params: step(Net(), params, xs[i], ys[i]), params)


def batches(steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Pictures [steps, BATCH, 32, 32, 3] and labels."""
  random = np.random.default_rng(0)
  xs = random.random((steps, BATCH, *SHAPE), np.float32)
  return xs, random.integers(0, CLASSES, (steps, BATCH)).astype(np.int32)


def sides(names: Sequence[str], steps: int) -> dict[str, Callable[[], PyTree]]:
  """`loop`, and the other side of each of these rows: what takes so many steps from the same weights."""
  xs, ys = batches(steps)
  params = jax.jit(Net().init)(jax.random.key(0), xs[0])["params"]
  loop, one = jax.jit(looped), jax.jit(partial(step, Net(nn.Conv)))
  given = jax.device_put((xs, ys))
  pairs = jax.device_put(list(zip(xs, ys, strict=True)))

  def dispatched():
    found = params
    for x, y in pairs:
      found = one(found, x, y)
    return found

  calls: dict[str, Callable[[], PyTree]] = {"loop": lambda: loop(params, *given), "convolving": dispatched}
  if "convolving_torch" in names:
    from benchmarks.torch_convolving import eager

    calls["convolving_torch"] = eager(
      params, xs, ys, pools=POOLS, optimizer=lambda optim, weights: optim.SGD(weights, lr=LR)
    )
  return {name: call for name, call in calls.items() if name == "loop" or name in names}


def timed(calls: Mapping[str, Callable[[], PyTree]], rounds: int, steps: int = STEPS) -> dict[str, Timing]:
  """Microseconds a step of each in turn, round after round."""
  taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
  for r in range(rounds):
    for name, call in list(calls.items())[:: -1 if r % 2 else 1]:
      wall, cpu = time.perf_counter(), time.process_time()
      jax.block_until_ready(call())
      cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
      taken[name].append((cpu / steps * 1e6, wall / steps * 1e6))
  return {name: Timing(*map(tuple, zip(*pairs, strict=True))) for name, pairs in taken.items()}


def convolving(names: Sequence[str], rounds: int) -> list[Result]:
  """The rows of these names; both sides come to the same weights."""
  wanted = [name for name in OTHERS if name in names]
  if not wanted:
    return []
  found = {name: call() for name, call in sides(wanted, CHECKED).items()}
  for name in wanted:
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found["loop"], found[name])
  calls = sides(wanted, STEPS)
  for call in calls.values():
    call()  # compiles
  times = timed(calls, rounds)
  return [result_of(f"{TEXT} {OTHERS[name]}", times["loop"], times[name], *GOALS[name]) for name in wanted]
