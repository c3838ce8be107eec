"""Schedules of the learning rate and restarts of an optimizer: optax's own schedules, and edges that call `tx.init`,
are the references."""

import functools

import chex
import jax
import numpy as np
import optax
import pytest

from cljax.config import complete, default
from cljax.errors import ConfigError
from cljax.experiment import assemble
from cljax.methods import METHODS
from cljax.pieces.course import Course, restarts, scheduled
from cljax.pieces.optimizers import adam, sgd
from cljax.recipe import recipe
from cljax.types import Clock, Spec
from tests import methods_test, toys
from tests.subjects import Subject, cut

LENGTH, EPOCHS = 40, 4
SCHEDULES = {
  "warmup": (Course("warmup", warmup_steps=7), optax.warmup_constant_schedule(0, 1, 7)),
  "cosine": (
    Course("cosine", warmup_steps=5, cosine_end=0.1),
    optax.warmup_cosine_decay_schedule(0, 1, 5, LENGTH, 0.1),
  ),
  "step": (
    Course("step", step_at=(0.25, 0.5), step_factor=0.3),
    optax.piecewise_constant_schedule(1, {10: 0.3, 20: 0.3}),
  ),
}


def factors(course, steps, trials=1, epoch=10, length=LENGTH, before=0, whole=LENGTH):
  k = np.arange(steps, dtype=np.int32)
  clocks = Clock(
    k // epoch, k % epoch, np.full_like(k, epoch), before + k, np.full_like(k, length), np.full_like(k, whole)
  )
  return jax.vmap(functools.partial(course.factor, trials=trials))(clocks)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_factor_is_that_of_optax(name):
  course, wanted = SCHEDULES[name]
  np.testing.assert_allclose(factors(course, LENGTH), [float(wanted(k)) for k in range(LENGTH)], atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_stream_is_one_course_and_each_trial_another(name):
  course, _ = SCHEDULES[name]
  alone = factors(course, LENGTH)
  over = course._replace(schedule_over="stream")
  np.testing.assert_allclose(factors(over, 25, before=15, length=25), alone[15:], atol=1e-6)
  two = factors(course, 2 * LENGTH, trials=2, length=2 * LENGTH, whole=0)
  np.testing.assert_allclose(two, [*alone, *alone], atol=1e-6)


def subject(make, **numbers):
  spec, data = toys.stream()
  hyper = {name: (value, 2 * value) for name, value in numbers.items()}
  own = {"seeds": (0, 0), "hyper": hyper, "seed_executor": "map", "evaluate_group": 16, "log_every_steps": 1}
  return Subject(assemble(lambda hyper: make(spec, **hyper), spec._replace(rows=()), data, **own))


def steps_of(it):
  """The units that learn."""
  return [unit for unit in it.units() if unit.kind not in ("evaluate", "save")]


def run(make, **numbers):
  it = subject(make, **numbers)
  return it, it.run(steps_of(it))


def finetune(tx, spec):
  return METHODS["finetune"](toys.mlp(spec).clone(hidden=(8,)), tx, spec, epochs=EPOCHS)


def test_a_run_follows_its_course_in_pieces_too_and_at_each_rate_of_a_sweep():
  course = Course("cosine", "stream", warmup_steps=6)
  it, whole = run(lambda spec, lr: scheduled(lambda rate: finetune(sgd(rate, 0.9), spec), lr, course), lr=0.1)
  total = it.experiment.timeline.steps()

  def by_optax(spec, lr):
    return finetune(optax.chain(optax.trace(0.9), optax.scale_by_schedule(wave), optax.scale(-lr)), spec)

  told = np.array([row["lr"] for row in it.rows if row["event"] == "step"])
  wave = optax.warmup_cosine_decay_schedule(0, 1, 6, total)
  np.testing.assert_allclose(told, [[0.1 * wave(k), 0.2 * wave(k)] for k in range(total)], atol=1e-6)
  chex.assert_trees_all_close(whole.state.params, run(by_optax, lr=0.1)[1].state.params, atol=1e-5)
  chex.assert_trees_all_equal(it.run(cut(steps_of(it), lambda: 3)).state, whole.state)
  assert not np.allclose(*np.asarray(whole.state.params["head"]["bias"]))


def test_a_restart_is_a_new_optimizer_at_each_task_but_the_first():
  def by_hand(spec, lr):
    tx = optax.adam(lr)
    method = finetune(tx, spec)

    def enter(key, state, view, clock):
      return state.replace(opt_state=jax.lax.cond(view.t > 0, lambda: tx.init(state.params), lambda: state.opt_state))

    return method._replace(phases=(method.phases[0]._replace(enter=enter),))

  it, found = run(lambda spec, lr: restarts(lambda tx: finetune(tx, spec), optax.adam(lr)), lr=0.01)
  wanted = run(by_hand, lr=0.01)[1]
  chex.assert_trees_all_equal(found.state.params, wanted.state.params)
  assert int(found.state.opt_state.inner[0].count[0]) == it.experiment.timeline.phase_steps(2, 0)[0]
  chex.assert_trees_all_equal(found.state.opt_state.inner, wanted.state.opt_state)


def test_plain_sgd_has_nothing_to_restart_and_keeps_its_blocks():
  spec, _ = toys.stream()
  of = functools.partial(restarts, lambda tx: finetune(tx, spec))
  assert of(sgd(0.1)).phases[0].block and not of(sgd(0.1)).needs_boundaries
  assert not of(sgd(0.1, 0.9)).phases[0].block and of(sgd(0.1, 0.9)).needs_boundaries


@pytest.mark.parametrize("name", ["routing", "discriminative"])
def test_every_kind_of_method_takes_both(name):
  """One that takes plain steps of its own by a rate, and one of two phases of which one has an optimizer of its own."""
  net, keywords = methods_test.TOYS[name]
  spec, data = toys.stream()

  def make(rate):
    def of(second):
      return METHODS[name](net(spec), second, spec, **keywords)

    return of(rate) if name == "routing" else restarts(of, adam(rate))

  it = toys.experiment(scheduled(make, 0.1, Course("cosine")), spec, data)
  assert all(phase.block is None for phase in it.method.phases)
  timeline = it.timeline
  assert timeline.stream_steps(0)[0] == sum(timeline.phase_steps(t, 0)[0] for t in range(3))


def config(**optimizer):
  own = default()
  own.optimizer = {"name": "sgd", "lr": 0.1, **optimizer}
  return own


def test_a_config_knows_all_of_them():
  assert complete(config()).optimizer.schedule == "constant"
  spec = Spec((4, 4, 1), 3, 4, 3, rows=(8, 8, 8))
  told = complete(config(schedule="step", step_at=(0.5,), momentum=0.9, restart=True))
  method = recipe(told, spec)({"lr": 0.1})
  assert method.phases[0].block is None and method.needs_boundaries
  with pytest.raises(ConfigError, match="restart=True has to know where tasks begin"):
    recipe(told, spec._replace(boundaries=False))


@pytest.mark.parametrize(
  ("own", "message"),
  [
    ({"schedule": "cosin"}, "cosine"),
    (
      {"schedule_over": "stream"},
      "means nothing to config.optimizer.schedule='constant'; it goes with schedule=warmup",
    ),
    ({"schedule": "cosine", "step_at": (0.1,)}, r"step_at=\(0.1,\) means nothing .*it goes with schedule=step"),
    ({"schedule": "warmup"}, "set config.optimizer.warmup_steps"),
    ({"schedule": "step", "step_at": (1.5,)}, "too large; the most is 1"),
    ({"schedule": "cosine", "cosine_end": -0.5}, "too small"),
  ],
)
def test_what_does_not_go_together_is_refused(own, message):
  with pytest.raises(ConfigError, match=message):
    Course(**own).checked()
