"""A teacher and a student side by side, and the derivative of how far apart they are by what makes the student's steps.

Xiong, Ren and Urtasun 2020, Algorithm 1 (https://arxiv.org/abs/1910.04650), one inner step:

  w  <- w  - alpha g(x_a, x_b; w)                                   the teacher, by SGD on old and new rows
  w^ <- w^ - alpha f(w^, g^, h^; theta) g^,  g^ = g(x_b; w^)        the student, by the rule on new rows alone
  L  = scale * mean Huber(h(x_a, x_b; w), h^(x_a, x_b; w^))         both as they are now

Derivatives go through the student's weights and the rule's memory from step to step. What else they go through is
chosen: through g^ (`second_order`), and through what the rule's networks take in (`through_inputs`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import above, at_least, free, one_of
from cljax.errors import ConfigError
from cljax.nets.modes import at_rest
from cljax.nets.taps import Layer, tapped
from cljax.ops.losses import cross_entropy, rows
from cljax.pieces.neurons import Tensor, activations
from cljax.pieces.rule import Memory, Rule, Theta, learned
from cljax.types import Array, Batch, PyTree

Step = Callable[[Theta, Any, Any], tuple[Theta, Any]]  # (theta, the optimizer's state, gradient) -> both afterwards


class Inner(NamedTuple):
  """Inner steps, and how they are differentiated."""

  alpha: Annotated[float, above(0, "the learning rate of teacher and student")] = 0.1
  old_batch: Annotated[int, at_least(1, "of the teacher's batch that are old", 100_000)] = 64
  new_batch: Annotated[int, at_least(1, "of the teacher's batch that are new, which the student sees", 100_000)] = 64
  loss_scale: Annotated[float, above(0, "of the mean Huber loss")] = 300.0
  second_order: Annotated[bool, free("derivatives go through the student's gradient")] = False
  through_inputs: Annotated[bool, free("derivatives go through what the rule's networks take in")] = False
  update: Annotated[str, one_of(("segment", "step"), "when theta moves; step is the paper's, for S / 2 the cost")] = (
    "segment"
  )
  remat: Annotated[bool, free("a step is computed again on the way back: less memory, a third more time")] = False
  unroll: Annotated[bool, free("a segment is no loop: faster for convolutions in second order")] = False

  def checked(self) -> "Inner":
    """Itself.

    Raises:
      ConfigError: options that do not go together.
    """
    if self.unroll and self.remat:
      raise ConfigError(
        "config.inner.unroll and config.inner.remat do not go together: remat saves memory in a loop only"
      )
    if self.unroll and self.update == "step":
      raise ConfigError(
        "config.inner.unroll=True means nothing to config.inner.update='step', where a segment is no loop in any case: "
        "set config.inner.unroll=False, or config.inner.update='segment'"
      )
    return self


class Nets(NamedTuple):
  """What goes from inner step to inner step."""

  teacher: PyTree
  student: PyTree
  memory: Memory


class Pair(NamedTuple):
  """A teacher and a student of one net."""

  net: nn.Module
  called: Mapping[str, Layer]
  tensors: Mapping[str, Tensor]
  rule: Rule
  inner: Inner

  def teach(self, params: PyTree, batch: Batch) -> PyTree:
    """The teacher after one step of SGD on the whole batch, each row by its own task's head."""
    grads = jax.grad(lambda params: cross_entropy(self.answer(params, batch).logits, batch))(params)
    return jax.tree.map(lambda w, g: w - self.inner.alpha * g, params, grads)

  def answer(self, params: PyTree, batch: Batch) -> Any:
    """What the net answers to a batch."""
    return at_rest(self.net, params, {}, batch.x, batch.task)

  def slopes(self, params: PyTree, batch: Batch) -> tuple[PyTree, Any]:
    """(g^, activations) of the student on its own rows; cut where derivatives do not go."""
    if not (self.inner.second_order or self.inner.through_inputs):
      params = jax.lax.stop_gradient(params)

    def loss(params):
      found = tapped(self.net, {"params": params}, batch.x, batch.task)
      return cross_entropy(found.out.logits, batch), activations(found, self.called, {"params": params})

    grads, acts = jax.grad(loss, has_aux=True)(params)
    return grads if self.inner.second_order else jax.lax.stop_gradient(grads), acts

  def learn(self, theta: Theta, params: PyTree, memory: Memory, batch: Batch) -> tuple[PyTree, Memory]:
    """The student and the rule's memory after one step of the rule on new rows."""
    rule = learned(theta, self.inner.alpha, self.tensors, self.rule, self.inner.through_inputs)
    grads, acts = self.slopes(params, batch)
    updates, memory = rule.update(grads, memory, params, acts=acts)
    return optax.apply_updates(params, updates), memory

  def apart(self, teacher: PyTree, student: PyTree, batch: Batch) -> Array:
    """[] L: scale times the mean Huber loss, delta 1, of the student's features to the teacher's."""
    target, found = (self.answer(params, batch).features for params in (teacher, student))
    return self.inner.loss_scale * huber(found, target)

  def step(self, theta: Theta, nets: Nets, batch: Batch) -> tuple[Nets, Array]:
    """One inner step: (both networks afterwards, L)."""
    teacher = jax.lax.stop_gradient(self.teach(nets.teacher, batch))
    student, memory = self.learn(theta, nets.student, nets.memory, rows(batch, self.inner.old_batch))
    return Nets(teacher, student, memory), self.apart(teacher, student, batch)

  def run(self, theta: Theta, nets: Nets, batches: Batch) -> tuple[Array, tuple[Nets, Array]]:
    """A segment: (mean L, (the networks at its end, L [S])) of batches [S, ...]."""
    step: Any = partial(self.step, theta)
    step = jax.checkpoint(step, prevent_cse=False) if self.inner.remat else step
    length = len(batches.y)
    nets, losses = jax.lax.scan(step, nets, batches, unroll=length if self.inner.unroll else 1)
    return losses.mean(), (nets, losses)

  def by_segment(
    self, theta: Theta, opt_state: Any, nets: Nets, batches: Batch, move: Step
  ) -> tuple[Theta, Any, Nets, Array, Array]:
    """One move of theta by the mean L of a segment: (theta, opt_state, networks, L [S], [] norm of the gradient)."""
    (_, (nets, losses)), slope = jax.value_and_grad(self.run, has_aux=True)(theta, nets, batches)
    return *move(theta, opt_state, slope), nets, losses, optax.tree.norm(slope)

  def by_step(
    self, theta: Theta, opt_state: Any, nets: Nets, batches: Batch, move: Step
  ) -> tuple[Theta, Any, Nets, Array, Array]:
    """The same with a move after each step (line 24): step t's loss goes back through all steps of the segment so far,
    each with the theta that it was made with. The norm is the last one's.

    With `remat` a step is computed again each time that a loss goes back through it: S (S + 1) / 2 times in all."""
    step: Any = jax.checkpoint(self.step) if self.inner.remat else self.step  # no loop, so what is equal is shared
    pulls: list[Any] = []
    losses: list[Array] = []
    norm = jnp.zeros(())
    for t in range(len(batches.y)):
      batch = jax.tree.map(lambda leaf, t=t: leaf[t], batches)

      def moved(theta, student, memory, teacher=nets.teacher, batch=batch):
        after, loss = step(theta, Nets(teacher, student, memory), batch)
        return (after.student, after.memory, loss), after.teacher

      (student, memory, loss), pull, teacher = jax.vjp(moved, theta, nets.student, nets.memory, has_aux=True)
      pulls.append(pull)
      losses.append(loss)
      nets = Nets(teacher, student, memory)
      slope = self.back(pulls, student, memory, loss)
      theta, opt_state = move(theta, opt_state, slope)
      norm = optax.tree.norm(slope)
    return theta, opt_state, nets, jnp.stack(losses), norm

  def back(self, pulls: list[Any], student: PyTree, memory: Memory, loss: Array) -> Theta:
    """The derivative of the newest step's loss by theta, summed over all steps that led to it."""
    slope, *cotangents = pulls[-1]((*jax.tree.map(jnp.zeros_like, (student, memory)), jnp.ones_like(loss)))
    for pull in reversed(pulls[:-1]):
      own, *cotangents = pull((*cotangents, jnp.zeros_like(loss)))
      slope = jax.tree.map(jnp.add, slope, own)
    return slope


def huber(one: Array, other: Array) -> Array:
  """[] the mean Huber loss, delta 1, of two arrays of one shape."""
  return optax.huber_loss(one, other, delta=1.0).mean()
