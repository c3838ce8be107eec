"""A method that is told its task becomes one that finds it: a gate chooses, the method answers as if it were told.

  fit(gated(packnet(net, tx, spec), means(spec)), spec, stream)

The method's own state, keys and steps are those that it has without a gate, so its answers where the task is given keep
their bits, and what the gate loses stands apart: `inferred` beside `task`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from cljax.errors import ConfigError, shown
from cljax.ops.gate import gate_choice
from cljax.ops.trees import parameters
from cljax.types import (
  Array,
  Batch,
  Block,
  Clock,
  EdgeFn,
  Info,
  Key,
  Method,
  Outputs,
  Phase,
  Plan,
  PlanFn,
  StepFn,
  View,
  as_it_is,
  in_turn,
  keep,
  nothing,
)

APART = 2**31 - 1  # of a method's keys the gate takes this fold


@flax.struct.dataclass
class State:
  """Of the method, and of the gate."""

  method: Any
  gates: Any


class Gate(NamedTuple):
  """What tells tasks apart. Its phases train it on a `State` after those of the method."""

  init: Callable[[Key], Any]  # -> its own state, `State.gates`
  errors: Callable[
    [Any, Array, Callable[[Array], Outputs]], Array
  ]  # (own, x, what a slot answers) -> [B, T], inf: never
  note: Callable[[Any, View], Any] = lambda own, view: own  # as a task begins
  phases: tuple[Phase, ...] = ()
  faults: Callable[[Any], dict[str, Array]] = nothing
  needs_valid: bool = False
  size: Callable[[Any], Array] = parameters  # own state -> the numbers that it answers with


def lifted(phase: Phase) -> Phase:
  """A phase of the method on its part of the state; what does nothing stays what the engine knows to do nothing."""

  def edge(own: EdgeFn) -> EdgeFn:
    def lifted_edge(key: Key, state: State, view: View, clock: Clock) -> State:
      return state.replace(method=own(key, state.method, view, clock))

    return keep if own is keep else lifted_edge

  def steps(own: StepFn) -> StepFn:
    def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
      method, info = own(key, state.method, batch, clock, view)
      return state.replace(method=method), info

    return step

  def plans(own: PlanFn) -> PlanFn:
    def plan(key: Key, state: State, view: View, rows: Plan) -> tuple[State, Plan]:
      method, rows = own(key, state.method, view, rows)
      return state.replace(method=method), rows

    return as_it_is if own is as_it_is else plan

  block = phase.block and Block(phase.block.size, steps(phase.block.step))
  enter, tick, leave = edge(phase.enter), edge(phase.tick), edge(phase.exit)
  return phase._replace(step=steps(phase.step), plan=plans(phase.plan), block=block, enter=enter, tick=tick, exit=leave)


def check_given(method: Any, gate: Any) -> None:
  """
  Raises:
    ConfigError: no method or no gate, a factory of one that was not called, or one in the other's place.
  """
  if isinstance(method, Gate) and isinstance(gate, Method):
    raise ConfigError("gated(method, gate) takes the method first: change the two about")
  if not isinstance(method, Method):
    name = getattr(method, "__name__", "method")
    way = f"call it, {name}(net, tx, spec)" if callable(method) else "give what a factory of cljax.METHODS makes"
    raise ConfigError(f"gated: method={shown(method)} is no method: {way}")
  if not isinstance(gate, Gate):
    name = getattr(gate, "__name__", "gate")
    way = f"call it, {name}(spec)" if callable(gate) else "give what a factory of cljax.pieces.gates.GATES makes"
    raise ConfigError(f"gated: gate={shown(gate)} is no gate: {way}")


def gated(method: Method, gate: Gate) -> Method:
  """The method behind a gate.

  Raises:
    ConfigError: no method or no gate, or a method that finds its task by itself, numbers its own slots, or learns all
      tasks at once.
  """
  check_given(method, gate)
  why = "finds its task by itself" if method.infers else "numbers its own networks" if method.slots else ""
  why = why or ("learns all tasks at once" if all(phase.joint for phase in method.phases) else "")
  if why:
    raise ConfigError(
      f"config.gate is for methods that are told their task, and this one {why}; set config.gate.name=none"
    )

  def init(key: Key) -> State:
    return State(method.init(key), gate.init(jax.random.fold_in(key, APART)))

  def note(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(gates=gate.note(state.gates, view))

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    if slot is not None:
      return method.apply(state.method, x, slot)
    errors = gate.errors(state.gates, x, lambda t: method.apply(state.method, x, jnp.full(len(x), t, jnp.int32)))
    chosen = gate_choice(errors)
    return method.apply(state.method, x, jnp.maximum(chosen, 0))._replace(task=chosen)

  def report(state: State) -> dict[str, Array]:
    own = method.report(state.method)
    return {**own, "parameters": own["parameters"] + gate.size(state.gates)}

  def faults(state: State) -> dict[str, Array]:
    return {**method.faults(state.method), **gate.faults(state.gates)}

  first, *others = map(lifted, method.phases)
  first = first._replace(enter=in_turn(note, first.enter))
  return method._replace(
    init=init,
    phases=(first, *others, *gate.phases),
    apply=apply,
    report=report,
    faults=faults,
    parts=lambda state: method.parts(state.method),
    load=lambda state, parts: state.replace(method=method.load(state.method, parts)),
    infers=True,
    needs_boundaries=True,
    needs_valid=method.needs_valid or gate.needs_valid,
  )
