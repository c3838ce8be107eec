"""Whether a run fits into the memory of its devices and into whole numbers, asked before anything is made."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cljax.errors import ConfigError
from cljax.host import fit_into, host_bytes
from cljax.timeline import Timeline, edges_of
from cljax.types import Method, Place, Plan, State, Stream, View

MOST_STEPS = 2**31 - 1  # a position is an int32
MOST_EDGES = 1_000_000  # which the host walks one by one
DOUBTFUL = 64  # layers are looked at where rows of the widths' sum come within such a factor of the memory
PRODUCTS = ("dot_general", "conv_general_dilated")


def bytes_of(state: State) -> int:
  """Bytes of a tree of arrays, or of their shapes."""
  return sum(int(np.prod(leaf.shape, dtype=object)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def device_bytes(device: Any) -> int | None:
  """Bytes of a device's memory, on a CPU the machine's; None where neither is told."""
  told = device.memory_stats() or {}
  if "bytes_limit" in told:
    return int(told["bytes_limit"])
  return host_bytes() if device.platform == "cpu" else None


def refuse(what: str, wanted: int, device: Any, remedy: str) -> None:
  """
  Raises:
    ConfigError: `wanted` bytes are more than the device has; says both sizes.
  """
  fit_into(device_bytes(device), device.device_kind, what, wanted, remedy)


def check_memory(
  method: Method, one: Stream, timeline: Timeline, group: int, rows: int, at_once: int, device: Any
) -> None:
  """Refuses a state, or rows of a step or of an evaluation, that are larger than the memory of their device.

  Args:
    one: the arrays of one seed.
    group: test rows a batch.
    rows: of the seed axis on the device; of these so many `at_once` are computed.

  Raises:
    ConfigError: says both sizes and what makes them large.
  """
  key = jax.random.key(0)
  state = jax.eval_shape(method.init, key)
  wanted, lower = (
    rows * bytes_of(state),
    "lower the widths of config.net, the experts, slots or rows that config.method ",
  )
  refuse(f"the state of {rows} seed(s) takes", wanted, device, f"{lower}keeps, or config.num_seeds")
  copied = f"the state of {rows} seed(s), and its copy where it is saved, take"
  refuse(copied, 2 * wanted, device, f"{lower}keeps, or config.num_seeds")
  pixels = 4 * int(np.prod(timeline.spec.x_shape))
  asked = group * (pixels + answer_bytes(method, state, group, timeline, device))
  refuse(f"{group} test rows at once take", at_once * asked, device, "lower config.evaluate_group")
  view = View(one.bank, one.tasks, np.int32(0) if timeline.spec.boundaries else None)
  for phase in method.phases:
    lower = f"lower config.method.batch_size (here {phase.batch}), the rows that are replayed, or config.chunk"
    refuse(f"{phase.batch} rows of a step take", at_once * phase.batch * pixels, device, lower)
    number = jax.ShapeDtypeStruct((timeline.chunk, phase.batch), jnp.int32)
    current = Plan(Place(number, number), number, jax.ShapeDtypeStruct(number.shape, bool))
    _, plan = jax.eval_shape(phase.plan, jax.ShapeDtypeStruct(number.shape[:1], key.dtype), state, view, current)
    width = int(plan.live.shape[1]) * (phase.block.size if phase.block else 1)
    answers = 2 * width * answer_bytes(method, state, width, timeline, device)  # and their gradients
    wanted = bytes_of(plan._replace(held=None)) + width * pixels + answers
    refuse(f"{width} rows of a step and the places of a chunk take", at_once * wanted, device, lower)


def answer_bytes(method: Method, state: State, width: int, timeline: Timeline, device: Any) -> int:
  """Bytes of what the products of all layers answer to one row; 0 where they cannot matter."""
  widths = sum(leaf.shape[-1] for leaf in jax.tree.leaves(state) if leaf.shape)
  there = device_bytes(device)
  if there is None or 4 * DOUBTFUL * width * (widths + int(np.prod(timeline.spec.x_shape))) < there:
    return 0
  x, slot = jax.ShapeDtypeStruct((1, *timeline.spec.x_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  return product_bytes(jax.make_jaxpr(method.apply)(state, x, slot).jaxpr)


def product_bytes(jaxpr: Any) -> int:
  """Bytes of the results of all matrix products and convolutions of a program."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name in PRODUCTS:
      total += sum(int(np.prod(one.aval.shape, dtype=object)) * one.aval.dtype.itemsize for one in equation.outvars)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += product_bytes(inner)
  return total


def check_length(timeline: Timeline) -> None:
  """Refuses a run of more steps than a position counts, or of more edges than the host can walk.

  Raises:
    ConfigError: says how many there are, and the most.
  """
  steps = timeline.steps()
  if steps > MOST_STEPS:
    raise ConfigError(
      f"the run has {steps:,} steps, and the most is {MOST_STEPS:,}: lower config.method.epochs, config.steps_per_task "
      "or the tasks of config.stream, or raise config.method.batch_size"
    )
  for phase in timeline.phases if timeline.spec.boundaries else ():
    ticks = "tick" in edges_of(phase) or any(look.when == "epoch" for look in timeline.looks)
    if ticks and phase.epochs * len(timeline.tasks) > MOST_EDGES:
      raise ConfigError(
        f"phase {phase.name!r} has {phase.epochs:,} epochs in each of {len(timeline.tasks)} tasks with something to do "
        f"after each, and the most are {MOST_EDGES:,} in all: lower config.method.epochs"
      )
  if any(look.when == "steps" for look in timeline.looks) and steps > MOST_EDGES * timeline.look_every:
    raise ConfigError(
      f"config.look_every_steps={timeline.look_every} makes {steps // timeline.look_every:,} looks of {steps:,} steps, "
      f"and the most is {MOST_EDGES:,}: raise it"
    )
