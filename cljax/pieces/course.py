"""The course of an optimizer over a run: a schedule of its learning rate, and its state begun anew at each task.

Both are put around a method from outside, so that every method has them: a schedule makes the method again at the rate
of each step, and a restart marks the optimizer's state wherever it stands in the method's. A rate follows from the
clock alone, which is a position and no count: any cut of a run and any resume gives the same bits, and steps that
move nothing (an empty memory, a method that rests) count as steps.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from absl import logging

from cljax.declared import at_least, checked, fields, free, one_of
from cljax.errors import ConfigError
from cljax.pieces.optimizers import PlainSGD
from cljax.types import Array, Batch, Clock, Info, Key, Method, Phase, State, StepFn, View, in_turn

NEEDS = {  # schedule -> its keywords; each of the others stands at its default
  "constant": (),
  "warmup": ("warmup_steps",),
  "cosine": ("warmup_steps", "cosine_end"),
  "step": ("warmup_steps", "step_at", "step_factor"),
}


class Course(NamedTuple):
  """Keywords of `config.optimizer` that every optimizer takes, beside its rate."""

  schedule: Annotated[str, one_of(tuple(NEEDS), "of the learning rate")] = "constant"
  schedule_over: Annotated[str, one_of(("phase", "stream"), "whose steps a schedule counts")] = "phase"
  warmup_steps: Annotated[int, at_least(0, "first steps, over which the rate rises from 0")] = 0
  cosine_end: Annotated[float, at_least(0, "share of the rate that a cosine ends at", 1)] = 0.0
  step_at: Annotated[tuple[float, ...], at_least(0, "shares of the steps after which the rate drops", 1)] = (0.5, 0.75)
  step_factor: Annotated[float, at_least(0, "what the rate is multiplied by at each drop", 1)] = 0.1
  restart: Annotated[bool, free("the optimizer's state begins anew at each task")] = False

  def checked(self) -> "Course":
    """The same, with values that go together.

    Raises:
      ConfigError: a wrong value, or one that the schedule does not use.
    """
    own = Course(**checked("optimizer", fields(Course), self._asdict()))
    unused = [name for name in dict.fromkeys(sum(NEEDS.values(), ())) if name not in NEEDS[own.schedule]]
    unused += ["schedule_over"] * (own.schedule == "constant")
    for name in unused:
      if getattr(own, name) != Course._field_defaults[name]:
        users = [each for each in NEEDS if name in NEEDS[each] or (name == "schedule_over" and NEEDS[each])]
        raise ConfigError(
          f"config.optimizer.{name}={getattr(own, name)!r} means nothing to config.optimizer.schedule="
          f"{own.schedule!r}; it goes with schedule={' or '.join(users)}"
        )
    if own.schedule == "warmup" and not own.warmup_steps:
      raise ConfigError(
        "config.optimizer.schedule='warmup' needs steps to rise over: set config.optimizer.warmup_steps"
      )
    return own

  def factor(self, clock: Clock, trials: int = 1) -> Array:
    """[] float32, what the rate is multiplied by at a step.

    With k the step's position among the L that are counted, from 0, and W = warmup_steps, it is min(k / W, 1) times

      cosine: e + (1 - e) (1 + cos(pi (k - W) / (L - W))) / 2 from W on, e = cosine_end; 1 before
      step: step_factor to the power of how many of step_at are at most k / L

    which is what `optax.warmup_cosine_decay_schedule` gives of a rate that starts at 0.

    Args:
      trials: of the phase; each is a training of its own, which a schedule over the phase begins anew.
    """
    if self.schedule_over == "stream":
      length, k = clock.whole, clock.total
    else:
      length = clock.length // trials
      k = clock.position % jnp.maximum(length, 1)
    length, k = jnp.maximum(length, 1).astype(jnp.float32), k.astype(jnp.float32)
    warm = jnp.minimum(k / self.warmup_steps, 1.0) if self.warmup_steps else jnp.float32(1)
    if self.schedule == "cosine":
      along = (k - self.warmup_steps) / jnp.maximum(length - self.warmup_steps, 1)
      wave = (1 + jnp.cos(jnp.pi * jnp.clip(along, 0, 1))) / 2
      return warm * (self.cosine_end + (1 - self.cosine_end) * wave)
    if self.schedule == "step":
      drops = (k >= length * jnp.asarray(self.step_at, jnp.float32)).sum()
      return warm * jnp.float32(self.step_factor) ** drops
    return warm


def scheduled(make: Callable[[Any], Method], rate: Array | float, course: Course) -> Method:
  """The method at a learning rate that follows the course; with a constant one it is `make(rate)` itself.

  fit(lambda hyper: scheduled(lambda rate: er(net, optax.adam(rate), spec), hyper["lr"], Course("cosine")), spec,
      stream, hyper={"lr": 1e-3})

  Steps are taken one by one, as those of a block would share a rate, and tell it as `lr`; edges have the rate itself.

  Args:
    make: the method at a learning rate, which may be traced.

  Raises:
    ConfigError: a wrong value of the course.
  """
  course = course.checked()
  method = make(rate)
  if course.schedule == "constant":
    return method
  if any(phase.block for phase in method.phases):
    logging.log_first_n(logging.WARNING, "under a schedule steps are taken one by one: blocks of steps are off", 1)

  def step_of(p: int, phase: Phase) -> StepFn:
    def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
      now = rate * course.factor(clock, phase.trials)
      state, info = make(now).phases[p].step(key, state, batch, clock, view)
      return state, {**info, "lr": now}

    return step

  phases = enumerate(method.phases)
  return method._replace(phases=tuple(each._replace(step=step_of(p, each), block=None) for p, each in phases))


@flax.struct.dataclass
class Restarted:
  """The state of an optimizer that begins anew when it is next used."""

  inner: Any  # of the optimizer itself
  stale: Array  # [] bool, or [...] where a method keeps several


def restarts(make: Callable[[Any], Method], tx: Any) -> Method:
  """The method whose optimizer begins anew with each task after the first: its state is then `tx.init` of the params
  that it moves next. Plain SGD keeps no state, and its method is as it was.

  fit(restarts(lambda tx: er(net, tx, spec), optax.adam(1e-3)), spec, stream)
  """
  if isinstance(tx, PlainSGD):
    return make(tx)

  def init(params: Any) -> Restarted:
    return Restarted(tx.init(params), jnp.zeros((), bool))

  def update(updates: Any, state: Restarted, params: Any = None, **extra: Any) -> tuple[Any, Restarted]:
    inner = jax.lax.cond(state.stale, lambda: tx.init(params), lambda: state.inner)
    updates, inner = optax.with_extra_args_support(tx).update(updates, inner, params, **extra)
    return updates, Restarted(inner, jnp.zeros((), bool))

  def is_marked(node: Any) -> bool:
    return isinstance(node, Restarted)

  def mark(key: Key, state: State, view: View, clock: Clock) -> State:
    def stale(node: Any) -> Any:
      return node.replace(stale=jnp.full_like(node.stale, view.t > 0)) if is_marked(node) else node

    return jax.tree.map(stale, state, is_leaf=is_marked)

  method = make(optax.GradientTransformationExtraArgs(init, update))
  first, *others = method.phases
  first = first._replace(enter=in_turn(mark, first.enter))
  return method._replace(phases=(first, *others), needs_boundaries=True)
