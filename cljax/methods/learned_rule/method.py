"""A learned update rule at work: tasks after the first by the rule that a meta-training left.

Xiong, Ren and Urtasun 2020, "Learning to Remember from a Multi-Task Teacher" (https://arxiv.org/abs/1910.04650). The
rule (`pieces.rule`) sees the task in training alone: weights, gradients and mean activations; no teacher, no row of an
earlier task. The first task is learnt by the optimizer, as fine-tuning learns it; a network that knows it is read by
`config.start_from` with `config.given_tasks`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import at_least, declared, free, one_of
from cljax.errors import ConfigError
from cljax.nets.modes import begin
from cljax.nets.taps import tapped
from cljax.ops.trees import amount, parameters
from cljax.pieces.learner import Passes, Trained, supervised
from cljax.pieces.neurons import activations, tensors_of_net
from cljax.pieces.rule import Rule, blank_counts, counting, filled, init_theta, largest_cell, learned
from cljax.types import Array, At, Batch, Clock, Info, Key, Method, Phase, Spec, View, keep, nothing


@flax.struct.dataclass
class State(Trained):
  """The network, the rule, and what the rule remembers of each neuron."""

  theta: Any = None  # meta-parameters; nothing moves them here
  memory: Any = None  # h and c of each neuron
  largest: Any = None  # [] the largest |c| so far
  counts: Any = None  # tensor -> [BINS] multipliers of the task's steps; {} where they are not counted


def check_used(theta: str, spec: Spec) -> None:
  """
  Raises:
    ConfigError: the file of a rule, and a stream without a task for it.
  """
  if theta and spec.T == 1:
    raise ConfigError(
      f"config.method.theta={theta!r} is for tasks after the first, which is learnt by the optimizer, and this stream "
      "has one: take a stream of several tasks, with config.start_from and config.given_tasks=1 where a network knows "
      "the first already, or leave theta out"
    )


@declared("method", given=3)
def learned_rule(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  passes: Passes = Passes(epochs=1),
  rule: Rule = Rule(),
  theta: Annotated[
    str, free("file of a trained rule, `W/parts/seed_0/theta.npz`; '' is one before training: plain SGD at alpha")
  ] = "",
  alpha: Annotated[Array | float, at_least(0, "the learning rate of the rule's steps")] = 0.1,
  count_multipliers: Annotated[bool, free("those of each task are counted for a figure: a tenth more time")] = False,
  memory: Annotated[str, one_of(("reset", "keep"), "what becomes of the rule's memory as a task begins")] = "reset",
) -> Method:
  """Fine-tuning whose later tasks are learnt by the rule, heads by plain SGD at alpha.

  Raises:
    ConfigError: a net with parameters that the rule has no form for; files of another form or other shapes; a theta
      where there is no later task.
  """
  check_used(theta, spec)
  learner = supervised(net, tx, spec)
  params, collections = jax.eval_shape(lambda key: begin(net, key, spec.x_shape), jax.random.key(0))
  called, tensors = tensors_of_net(net, {"params": params, **collections}, spec.x_shape)

  def init(key: Key) -> State:
    own = learner.init(key)
    untrained = init_theta(jax.random.fold_in(key, 1), tensors, rule)
    blank = learned(untrained, alpha, tensors, rule).init(own["params"])
    counts = blank_counts(tensors) if count_multipliers else {}
    return State(**own, theta=untrained, memory=blank, largest=jnp.float32(0), counts=counts)

  def load(state: State, parts: Mapping[str, Mapping[str, Array]]) -> State:
    return state.replace(theta=filled(tensors, rule, parts["theta"], theta)) if theta else state

  def enter(key: Key, state: State, view: View, clock: Clock) -> State:
    blank = {"counts": state.counts} | ({"memory": state.memory} if memory == "reset" else {})
    return state.replace(**jax.tree.map(jnp.zeros_like, blank))

  def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
    at = At(key, clock, view)

    def by_optimizer(state: State) -> tuple[State, Info]:
      return learner.step(at, state, batch, alike=True)

    def by_rule(state: State) -> tuple[State, Info]:
      variables = {"params": state.params, **state.collections}
      found = tapped(net, variables, batch.x, batch.task)
      acts = activations(found, called, variables, batch.live)
      ruled = learner._replace(tx=counting(state.theta, alpha, tensors, rule))
      after, info = ruled.step(at, state.replace(opt_state=(state.memory, state.counts)), batch, acts=acts)
      memory, counts = after.opt_state
      largest = jnp.maximum(state.largest, largest_cell(memory))
      return after.replace(opt_state=state.opt_state, memory=memory, counts=counts, largest=largest), info

    return jax.lax.cond(view.t == 0, by_optimizer, by_rule, state)

  def report(state: State) -> dict[str, Array]:
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state.theta, state.memory)))
    told = {"parameters": parameters(state.params), "memory_bytes": amount(held)}
    return {**told, "largest_cell": state.largest, **{f"multipliers/{name}": n for name, n in state.counts.items()}}

  def faults(state: State) -> dict[str, Array]:
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)]).all()
    return {f"method.cell={rule.cell!r}": ~finite}

  literal = (rule.form, rule.cell) == ("lstm", "relu")
  begins = enter if memory == "reset" or count_multipliers else keep
  phase = Phase("fit", passes.batch_size, step, epochs=passes.epochs, enter=begins)
  return Method(
    init,
    (phase,),
    learner.apply,
    report,
    faults if literal else nothing,
    load=load,
    reads={"theta": theta} if theta else {},
    needs_boundaries=True,
  )
