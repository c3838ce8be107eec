"""What finding the task costs: autoencoder gates and one expert, against running every expert."""

import time
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.rows import Result, median
from benchmarks.timing import Timing, ratio
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.types import Serve, Spec

TASKS, SAMPLES, SHAPE, CODE = 4, 500, (28, 28, 1), 100
WIDTHS = (256, 2048)  # of both hidden layers of an expert


def gating(rounds: int) -> list[Result]:
  """One row for each size of expert, microseconds a sample; the samples of a batch are of one task."""
  return [measure(width, rounds) for width in WIDTHS]


def measure(width: int, rounds: int) -> Result:
  """The time of the gate and one expert against that of all experts, of networks of this width."""
  spec = Spec(SHAPE, TASKS, 10, TASKS)
  net = MLP(heads=TASKS, classes=10, hidden=(width, width))
  method = METHODS["expert_gate"](net, optax.adam(1e-3), spec, code=CODE)
  state = method.init(jax.random.key(0))
  state = state.replace(gates=state.gates.replace(trained=jnp.arange(TASKS + 1) < TASKS))
  parts, serve = method.parts(state), cast(Serve, method.serve)
  experts = [parts[f"expert_{k}"] for k in range(TASKS)]
  x = jax.random.uniform(jax.random.key(1), (SAMPLES, *SHAPE))
  gated = jax.jit(lambda gate, expert, x: (serve.route(gate, x).slot, serve.answer(expert, x)))
  every = jax.jit(lambda experts, x: [serve.answer(expert, x) for expert in experts])
  np.testing.assert_allclose(gated(parts["gate"], experts[1], x)[1], every(experts, x)[1], atol=1e-4)
  timings: dict[str, tuple[list[float], list[float]]] = {"gate": ([], []), "all": ([], [])}
  calls = {"gate": lambda: gated(parts["gate"], experts[1], x), "all": lambda: every(experts, x)}
  for _ in range(rounds):
    for name, call in calls.items():
      wall, cpu = time.perf_counter(), time.process_time()
      jax.block_until_ready([call() for _ in range(20)])
      timings[name][0].append((time.process_time() - cpu) / 20 / SAMPLES * 1e6)
      timings[name][1].append((time.perf_counter() - wall) / 20 / SAMPLES * 1e6)
  ours, other = (Timing(tuple(timings[name][0]), tuple(timings[name][1])) for name in ("gate", "all"))
  text = f"gate and one expert against all {TASKS} experts, two layers of {width}, a sample"
  gate, every_one = (f"{median(each.cpu):.1f} ({median(each.wall):.1f})" for each in (ours, other))
  return Result(text, gate, every_one, ratio(other, ours), None, True)
