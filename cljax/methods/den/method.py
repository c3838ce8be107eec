"""DEN, dynamically expandable networks (Yoon, Yang, Lee and Hwang 2018, "Lifelong learning with dynamically expandable
networks", https://arxiv.org/abs/1708.01547), as a comparator of LASEM (Lee, Behpour and Eaton 2021). A
re-implementation: the code of DEN that is public has no convolutions.

All layers but the head are shared and grow; their units are output channels and units of the layers above. The first
task trains everything under |W|_1. The epochs of a later task t, from weights W', are four parts:

- head: the head of the task alone, under |W|_1. The units that weights other than zero lead from to its classes, layer
  by layer downwards, are the subnetwork S of the task;
- selective: the weights of S, by cross-entropy + weight_decay / 2 |W|^2 + drift / 2 |W - W'|^2;
- expand: if the cross-entropy of the task's rows is above `loss_threshold`, every layer gets `added_units` more, which
  are connected to all units. Their weights alone learn, under sparsity |W|_1 + group_sparsity * the sum over new units
  of |their incoming weights|_2; units without any are removed. Else S goes on;
- split: old units whose incoming weights moved by more than a threshold get a copy with what they learnt, and are
  themselves set back to what they were. Then S and what is new learn as in `selective`.

Each unit has the task that it began with as a timestamp, and a task is answered by units that are no younger.

The penalties |.| are proximal steps, which set weights to exact zeros, after each step of the optimizer. How long these
are is for `proximal_rate` to say, as no optimizer tells its rate. Where the paper and what is known of the code of Lee
et al. leave room:

- every part trains the task's whole head; old heads rest;
- a copy takes the outgoing weights of its unit with it. As timestamps have it the old unit stays in the task too
  (`old_copy='stays'`); with 'leaves' the task, and those after it, see the copy in its place and answer as before;
- at most `added_units` of a layer are split in a task, those that moved furthest;
- the two split thresholds of Lee et al., .98 and .01, are taken for convolutions and for the layers above;
- the parts take fixed shares of the epochs, and one optimizer that knows nothing as the task begins.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import declared
from cljax.errors import ConfigError
from cljax.methods.den.growth import Growing, Growth, State
from cljax.methods.den.units import Wide, group_soft, soft
from cljax.ops.losses import accuracy, cross_entropy
from cljax.ops.slots import by_slot
from cljax.ops.trees import take, where
from cljax.pieces.descent import descend
from cljax.pieces.learner import Fit
from cljax.pieces.transfer import Decay, scaled, stack_of
from cljax.types import NONE, Array, At, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, View

PARTS = ("head", "selective", "expand", "split")


class Den(NamedTuple):
  """The functions of the method."""

  edges: Growing
  decay: Decay
  fit: Fit

  @property
  def epochs(self) -> tuple[int, ...]:
    """Of each part, at least one."""
    head, expand, split = (max(1, round(share * self.fit.epochs)) for share in self.edges.how.part_shares)
    return head, max(1, self.fit.epochs - head - expand - split), expand, split

  def learns(self, part: str, state: State, t: Array) -> Any:
    """A tree of bools like the params: what a step of the part moves."""
    wide, first = self.edges.wide, t == 0
    live, chosen, new = wide.ends(self.edges.live(state, t)), wide.ends(state.chosen), self.edges.new(state, t)
    fresh, held = wide.ends(new, outside=False), wide.ends(state.held, outside=False)
    expanded, kernels, biases = self.edges.expanded(state, t), [], []
    for l in range(len(live)):
      every, own = live[l][0] & live[l][1], (chosen[l][0] & chosen[l][1], chosen[l][1])
      added = ((fresh[l][0] | fresh[l][1]) & every, fresh[l][1])
      both = tuple((a | b) & ~held[l][1] for a, b in zip(own, added, strict=True))
      grown = tuple(jnp.where(expanded, a, b) for a, b in zip(added, own, strict=True))
      nothing = tuple(jnp.zeros_like(each) for each in own)
      kernel, bias = {"head": nothing, "selective": own, "expand": grown, "split": both}[part]
      top = l == len(live) - 1
      kernels.append(jnp.where(first | top, every, kernel))
      biases.append(jnp.where(first | top, live[l][1], bias))
    return wide.tree(state.params, kernels, biases)

  def pull(self, part: str, params: Any, state: State, t: Array) -> Array:
    """[] the penalties of `selective` on all weights, of which only those that learn matter."""
    if part == "head":
      return jnp.float32(0)
    known = self.edges.wide.among(params, [born < t for born in state.born])
    known["head"] = jax.tree.map(jnp.zeros_like, known["head"])
    sizes = sum((w**2).sum() for w in jax.tree.leaves(params))
    moves = jax.tree.map(lambda w, then, old: jnp.where(old, w - then, 0), params, state.before, known)
    both = self.edges.how.weight_decay * sizes + self.edges.how.drift * sum(
      (move**2).sum() for move in jax.tree.leaves(moves)
    )
    pulls = (t > 0) & ~self.edges.expanded(state, t) if part == "expand" else t > 0
    return jnp.where(pulls, both / 2, 0)

  def shrunk(self, part: str, params: Any, state: State, learns: Any, t: Array, rate: Array) -> Any:
    """The params after the proximal steps of the part, by so small a rate."""
    first, expands = t == 0, (part == "expand") & self.edges.expanded(state, t)
    live, fresh = (
      self.edges.wide.ends(self.edges.live(state, t)),
      self.edges.wide.ends(self.edges.new(state, t), outside=False),
    )
    kernels, moves = self.edges.wide.kernels(params), self.edges.wide.kernels(learns)
    for l, (kernel, moved) in enumerate(zip(kernels, moves, strict=True)):
      top = l == len(kernels) - 1
      sparse = first | expands | (top and part == "head")
      kernels[l] = jnp.where(moved & sparse, soft(kernel, rate * self.edges.how.sparsity), kernel)
      if part == "expand" and not top:
        group = group_soft(kernels[l], live[l][0][:, 0], rate * self.edges.how.group_sparsity)
        kernels[l] = jnp.where(fresh[l][1], group, kernels[l])
    return self.edges.wide.tree(params, kernels, [params[name]["bias"] for name in self.edges.wide.names])

  def loss(self, part: str, params: Any, state: State, batch: Batch, key: Key, t: Array) -> tuple[Array, Info]:
    """Cross-entropy of the task in training, and what holds the weights in this part."""
    logits = self.edges.wide.answer(params, self.edges.live(state, t), batch.x, key).logits
    value = cross_entropy(logits, batch)
    return value + self.pull(part, params, state, t), {"loss": value, "accuracy": accuracy(logits, batch)}

  def step(self, part: str, key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    """One of the optimizer and one proximal step, of what learns in this part."""
    t, begun = view.t, sum(self.epochs[: PARTS.index(part)])
    scale = self.decay.faded(t * sum(self.epochs) + begun + clock.epoch)
    learns = self.learns(part, state, t)
    params, opt_state, _, info = descend(
      scaled(self.edges.tx),
      lambda params, batch: self.loss(part, params, state, batch, key, t),
      state.params,
      state.opt_state,
      batch,
      At(key, clock, view),
      frozen=jax.tree.map(jnp.logical_not, learns),
      scale=scale,
    )
    shrunk = self.shrunk(part, params, state, learns, t, scale * self.edges.how.proximal_rate)
    return state.replace(params=where(batch.live.any(), shrunk, params), opt_state=opt_state), info

  # Answers.

  def apply(self, state: State, x: Array, slot: Array) -> Outputs:
    """Each row of x [B, ...] by the units and the head of its slot [B]."""

    def run(s: Array) -> Outputs:
      head = where(s == state.now, state.params["head"], take(state.heads, s))
      return self.edges.wide.answer(state.params | {"head": head}, self.edges.live(state, s), x)

    out: Outputs = by_slot(run, self.edges.wide.spec.T, slot)
    return out._replace(task=slot)

  def report(self, state: State) -> dict[str, Array]:
    """How many units each task has, chose and split, and the numbers of all units there are."""
    T, C = self.edges.wide.spec.T, self.edges.wide.spec.C
    places = [kernel.shape[0] for kernel in self.edges.wide.kernels(state.params)]
    counts = [(born < NONE).sum(dtype=jnp.int32) for born in state.born]
    units = jnp.stack([jnp.stack([own.sum(dtype=jnp.int32) for own in self.edges.live(state, s)]) for s in range(T)])
    units *= state.finished[:, None]
    incoming = [self.edges.wide.spec.x_shape[-1], *counts]
    body = sum(own * (P * below + 1) for P, below, own in zip(places, incoming, counts, strict=False))
    heads = C * (places[-1] * units[:, -1].sum() + state.finished.sum())
    return {
      "parameters": ((body + heads) * state.finished.any()).astype(jnp.int32),
      "memory_bytes": jnp.int32(0),
      "shared_layers": jnp.broadcast_to(state.finished[:, None], units.shape),  # [T, L] all, of each task that is done
      "units": units,  # [T, L]
      "units_chosen": state.units_chosen,  # [T, L]
      "units_split": state.units_split,  # [T, L]
    }

  def faults(self, state: State) -> dict[str, Array]:
    """A layer without room for the units that it needs."""
    return {"method.extra_room": state.full}


@declared("method", given=3)
def den(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  fit: Fit = Fit(),
  how: Growth = Growth(),
  decay: Decay = Decay(),
) -> Method:
  """One network that is retrained in part for each task, and grows.

  Raises:
    ConfigError: a net that is no stack of convolutions or skips layers, a stream with one head, or keywords that do not
      fit together.
  """
  net = stack_of(net, spec)
  if any(source >= 0 for source in net.skips):
    raise ConfigError(f"config.net.skips={net.skips}: units that grow cannot be added to others; leave it at (-1,)")
  for name, entries in (("split_thresholds", 2), ("part_shares", 3)):
    if len(given := getattr(how, name)) != entries:
      raise ConfigError(f"config.method.{name}={given} must have {entries} entries")
  if sum(how.part_shares) > 1:
    raise ConfigError(f"config.method.part_shares={how.part_shares} add up to more than 1; make them smaller")
  room = how.extra_room or 2 * how.added_units * (spec.T - 1)
  bases = (*net.channels, *net.hidden)
  wider = net.clone(channels=tuple(n + room for n in net.channels), hidden=tuple(n + room for n in net.hidden))
  edges = Growing(Wide(wider, spec), bases, tx, how)
  method = Den(edges, decay, fit)
  own: dict[str, Any] = {
    "head": {"enter": edges.enter_head},
    "selective": {"enter": edges.enter_selective},
    "expand": {"enter": edges.enter_expand, "exit": edges.leave_expand},
    "split": {"enter": edges.enter_split, "exit": edges.leave_split},
  }
  phases = tuple(
    Phase(part, fit.batch_size, partial(method.step, part), epochs, **own[part])
    for part, epochs in zip(PARTS, method.epochs, strict=True)
  )
  return Method(edges.init, phases, method.apply, method.report, method.faults, told=True, needs_boundaries=True)
