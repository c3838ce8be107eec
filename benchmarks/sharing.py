"""A step of LASEM in a loop: all 16 configurations as a prefix tree, one by one, and one configuration alone, which
stands beside the same net in eager PyTorch; and what memory they take."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.convolving import timed
from benchmarks.rows import Result, result_of
from benchmarks.timing import Ratio
from cljax.methods import METHODS
from cljax.nets import Stack
from cljax.ops.losses import cross_entropy
from cljax.ops.posterior import configurations, counted, log_likelihood, posterior, prior_of
from cljax.pieces.layered import params_of
from cljax.pieces.optimizers import rmsprop
from cljax.pieces.transfer import Transfer, layered
from cljax.types import Batch, Clock, Method, Place, PyTree, Spec, View
from configs.papers.lasem.table1 import GROUPS, RESNET

STEPS, BATCH, SHAPE, CLASSES = 8, 10, (32, 32, 3), 10  # as many steps as lie between two E-steps
CHECKED = 2  # steps after which both sides of `naive` must agree; later rounding decides
NET: dict[str, Any] = {"channels": (32, 32, 64, 64), "pools": (1, 2, 1, 2), "hidden": (64,), "dropout": 0.0}
CHOICES: dict[str, dict[str, Any]] = {
  "alone": {"choose": "static"},
  "tree": {},
  "amortised": {"m_step": "best", "e_every": STEPS},
  "residual": {"choose": "static"},
  "groups": {"groups": GROUPS["resnet_4g"]},
}
RESIDUAL = ("residual", "groups")  # on the residual net
TX = rmsprop(0.03, decay=0.9, eps=1e-10, initial_scale=1.0)
RATE, EPS = 1e-3, 1e-2  # of PyTorch's RMSProp; an eps that keeps roundings of 0 from a whole step
TEXT = f"LASEM, CIFAR net, batch {BATCH}, in a loop:"
DEEP = f"LASEM, residual net of 17 convolutions, batch {BATCH}, in a loop: 4 groups,"
ROWS = {  # name -> text, ours, other, goal
  "tree": (f"{TEXT} 16 configurations as a tree against one", "tree", "alone", 11),
  "naive": (f"{TEXT} 16 configurations as a tree against one by one", "tree", "naive", 0.85),
  "amortised": (f"{TEXT} an E-step in {STEPS} against one configuration", "amortised", "alone", 1.45),
  "groups": (f"{DEEP} 16 configurations as a tree against one", "groups", "residual", None),
}
TORCH = f"{TEXT} one configuration against eager PyTorch"
MEMORY = {  # name -> text, ours, other
  "memory_tree": (f"{TEXT} buffers of 16 configurations as a tree against one", "tree", "alone"),
  "memory_naive": (f"{TEXT} buffers of 16 configurations as a tree against one by one", "tree", "naive"),
}


def batch_of() -> Batch:
  """Random pictures and labels of one task."""
  random = np.random.default_rng(0)
  none = jnp.zeros(BATCH, jnp.int32)
  x, y = random.random((BATCH, *SHAPE), np.float32), random.integers(0, CLASSES, BATCH).astype(np.int32)
  allowed, live = jnp.ones((BATCH, CLASSES), bool), jnp.ones(BATCH, bool)
  return Batch(jnp.asarray(x), jnp.asarray(y), none, allowed, Place(none, none), none, live)


def parts(name: str, tx: Any = TX) -> tuple[Stack, Spec, Method]:
  """The net, what it is told, and the method with one of the choices; `naive` begins as `tree` does."""
  net, spec = Stack(heads=1, classes=CLASSES, **(RESNET if name in RESIDUAL else NET)), Spec(SHAPE, 10, CLASSES, 10)
  return net, spec, METHODS["lasem"](net, tx, spec, **CHOICES.get(name, {}))


def one_by_one(net: Stack, spec: Spec, carry: Any, batch: Batch) -> Any:
  """(params, optimizer's state, counts) after the exact step without the tree: each configuration's whole net."""
  params, opt_state, counts = carry
  nets, table = layered(net, spec, Transfer()), jnp.asarray(configurations(len(NET["channels"])))

  def loss(params: Any) -> Any:
    logits = [nets.top(params["work"], nets.features(params, batch.x, config)).logits for config in table]
    logp = [jax.nn.log_softmax(each)[jnp.arange(BATCH), batch.y] for each in logits]
    likelihood = log_likelihood(jnp.stack(logp), batch.live)
    q = jax.lax.stop_gradient(posterior(prior_of(counts, 1.0), likelihood))
    return sum(q[k] * cross_entropy(each, batch) for k, each in enumerate(logits)), q

  slopes, q = jax.grad(loss, has_aux=True)(params)
  updates, opt_state = TX.update(slopes, opt_state, params)
  return optax.apply_updates(params, updates), opt_state, counted(counts, q, whole=False)


def program(name: str, steps: int, tx: Any = TX) -> tuple[Any, Any]:
  """(what takes so many steps and gives the weights after them, compiled when it is called; the state before them)."""
  net, spec, method = parts(name, tx)
  batch, view = batch_of(), View(None, None, jnp.int32(0))  # type: ignore[arg-type]
  state = jax.jit(method.init)(jax.random.key(0))

  def step(k: Any, state: Any) -> Any:
    key, clock = jax.random.fold_in(jax.random.key(1), k), Clock(jnp.int32(0), k, jnp.int32(steps), k)
    return method.phases[0].step(key, state, batch, clock, view)[0]

  def naive(state: Any) -> PyTree:
    begun = params_of(state.layers), state.opt_state, jnp.zeros(2 ** len(NET["channels"]))
    return jax.lax.fori_loop(0, steps, lambda k, carry: one_by_one(net, spec, carry, batch), begun)[0]

  def ours(state: Any) -> PyTree:
    return params_of(jax.lax.fori_loop(0, steps, step, state).layers)

  return jax.jit(naive if name == "naive" else ours), state


def stepping(name: str, steps: int) -> Callable[[], PyTree]:
  """What takes so many steps from the same weights, and gives the weights after them."""
  run, state = program(name, steps)
  return partial(run, state)


def memory(names: Sequence[str]) -> list[Result]:
  """The rows of these names: megabytes that the compiled loop needs beside its arguments and results."""
  wanted = [name for name in MEMORY if name in names]
  found = {}
  for side in dict.fromkeys(side for name in wanted for side in MEMORY[name][1:]):
    steps, state = program(side, STEPS)
    found[side] = steps.lower(state).compile().memory_analysis().temp_size_in_bytes / 1e6
  rows = []
  for text, ours, other in (MEMORY[name] for name in wanted):
    share = found[ours] / found[other]
    rows.append(
      Result(text, f"{found[ours]:.1f} MB", f"{found[other]:.1f} MB", Ratio(share, share, share), None, False)
    )
  return rows


def in_torch(steps: int) -> dict[str, Callable[[], PyTree]]:
  """One configuration here (`alone`) and in eager PyTorch (`torch`), under PyTorch's RMSProp."""
  from benchmarks.torch_convolving import eager

  here, state = program("alone", steps, rmsprop(RATE, decay=0.9, eps=EPS, eps_in_sqrt=False))
  batch, top = batch_of(), state.layers.work["top"]
  names = {"Dense_0": "hidden_0", "Dense_1": "head"}

  def renamed(params: Any) -> PyTree:
    below = {f"Conv_{l}": leaves for l, leaves in enumerate(params["shared"])}
    return below | {name: params["work"]["top"][own] for name, own in names.items()}

  assert set(top) == set(names.values())
  xs, ys = (np.repeat(np.asarray(each)[None], steps, axis=0) for each in (batch.x, batch.y))
  there = eager(
    renamed(params_of(state.layers)),
    xs,
    ys,
    pools=NET["pools"],
    optimizer=lambda optim, weights: optim.RMSprop(weights, lr=RATE, alpha=0.9, eps=EPS),
  )
  return {"alone": lambda: renamed(here(state)), "torch": there}


def against_torch(rounds: int) -> Result:
  """The row `alone_torch`; both sides come to the same weights.

  RMSProp enlarges roundings of a gradient that is nearly 0: after the second step one weight in ten thousand may be off
  by up to a twentieth of a step, and no other.
  """
  for steps, off in ((1, 0.0), (CHECKED, 1e-4)):
    pairs = zip(*(jax.tree.leaves(call()) for call in in_torch(steps).values()), strict=True)
    far = np.concatenate([np.abs(np.subtract(*pair)).ravel() for pair in pairs])
    assert far.max() < RATE / 20 and (far > 1e-5).mean() <= off, (steps, far.max(), (far > 1e-5).sum())
  calls = in_torch(STEPS)
  for call in calls.values():
    call()
  times = timed(calls, rounds, STEPS)
  return result_of(TORCH, times["alone"], times["torch"], None, True)


def sharing(names: Sequence[str], rounds: int) -> list[Result]:
  """The rows of these names; tree and one by one come to the same weights."""
  wanted = [name for name in ROWS if name in names]
  sides = dict.fromkeys(side for name in wanted for side in ROWS[name][1:3])
  if "naive" in sides:
    one, other = (stepping(side, CHECKED)() for side in ("tree", "naive"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other)
  calls = {side: stepping(side, STEPS) for side in sides}
  for call in calls.values():
    jax.block_until_ready(call())  # compiles
  times = timed(calls, rounds, STEPS)
  found = [result_of(ROWS[n][0], times[ROWS[n][1]], times[ROWS[n][2]], ROWS[n][3], False) for n in wanted]
  return found + ([against_torch(rounds)] if "alone_torch" in names else []) + memory(names)
