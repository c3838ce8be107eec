"""Meta-gradients against central differences, what is cut and what is not, and segments that are begun anew."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from cljax.meta.unroll import Inner, Nets, Pair, huber
from cljax.nets import MLP
from cljax.ops.trees import where
from cljax.pieces.neurons import tensors_of_net
from cljax.pieces.rule import Learned, Rule, init_theta, learned
from cljax.types import Batch, Place
from tests.tiers import at_release

RULE = Rule(hidden=3, hidden_vectors=2)
STATIC = Rule("static")  # where the rule is not the point: its programs are small
EXACT = {"second_order": True, "through_inputs": True}
S = 3


def pair_of(rule=RULE, **inner):
  """A 3-2-2 net: three pixels, two hidden units, two classes to each of two heads."""
  net = MLP(2, 2, (2,))
  variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 3, 1, 1)), jnp.zeros(1, jnp.int32))
  inner = {"alpha": 1.0, "old_batch": 4, "new_batch": 4, "loss_scale": 100.0, **inner}
  return Pair(net, *tensors_of_net(net, variables, (3, 1, 1)), rule, Inner(**inner))


def batches_of(length=S, rows=8, old=4):
  random = np.random.default_rng(3)
  task = jnp.tile((jnp.arange(rows) >= old).astype(jnp.int32), (length, 1))
  none = jnp.zeros((length, rows), jnp.int32)
  y = jnp.asarray(random.integers(0, 2, (length, rows)))
  x = jnp.asarray(random.normal(size=(length, rows, 3, 1, 1)))
  return Batch(x, y, task, jnp.ones((length, rows, 2), bool), Place(task, none), none, jnp.ones((length, rows), bool))


def begun(pair, noise=0.3, seed=0, dtype=jnp.float64):
  """(theta, networks) away from all zeros."""
  random = np.random.default_rng(seed)

  def some(leaf):
    return jnp.asarray(leaf + noise * random.normal(size=leaf.shape), dtype)

  params = {
    "first": {"kernel": some(np.array([[1, -0.5], [0.3, 1], [-0.7, 0.2]])), "bias": some(np.array([0.5, 0.6]))},
    "head": {"kernel": some(np.zeros((2, 4))), "bias": some(np.zeros(4))},
  }
  shapes = jax.eval_shape(lambda key: init_theta(key, pair.tensors, pair.rule, 1.3), jax.random.key(0))
  theta = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), dtype), shapes)
  memory = learned(theta, 0.5, pair.tensors, pair.rule).init(params)
  return theta, Nets(params, jax.tree.map(some, params), memory)


def central(function, theta, step=1e-5):
  """(what else the function takes) -> its derivative by theta by central differences, as a flat array."""
  flat, back = ravel_pytree(theta)
  each = jax.jit(lambda many, *more: jax.vmap(lambda flat: function(back(flat), *more))(many))
  eye = step * jnp.eye(flat.size, dtype=flat.dtype)
  return lambda *more: (each(flat + eye, *more) - each(flat - eye, *more)) / (2 * step)


def slope_of(pair, theta, nets, batches):
  slope = jax.jit(jax.grad(lambda theta: pair.run(theta, nets, batches)[0]))(theta)
  return ravel_pytree(slope)[0]


@functools.cache
def exact():
  """The derivative that nothing cuts."""
  pair = pair_of(**EXACT)
  return slope_of(pair, *begun(pair), batches_of())


@functools.cache
def held():
  """(gradient, inputs) -> the derivative of the mean loss by differences in which the student's gradients, or what the
  rule takes in, stay as they were; written out step by step."""
  pair, batches = pair_of(**EXACT), batches_of()
  theta, nets = begun(pair)
  each = [jax.tree.map(lambda leaf, t=t: leaf[t], batches) for t in range(S)]
  own = [jax.tree.map(lambda leaf: leaf[pair.inner.old_batch :], batch) for batch in each]

  @jax.jit
  def as_they_were(theta, nets):
    noted = []
    for t in range(S):
      noted.append((*pair.slopes(nets.student, own[t]), nets.student))
      nets = pair.step(theta, nets, each[t])[0]
    return noted

  noted = as_they_were(theta, nets)

  def loss(other, gradient, inputs):
    now, losses = nets, []
    for t, (grads, acts, params) in enumerate(noted):
      g, its_acts = pair.slopes(now.student, own[t])
      g = where(gradient, grads, g)
      seen = where(inputs, (grads, acts, params), (g, its_acts, now.student))
      it = Learned(other, pair.inner.alpha, pair.tensors, pair.rule, True)
      deltas, memory = it.multipliers(seen[0], now.memory, seen[2], seen[1])
      first = {leaf: deltas[f"first/{leaf}"] * g["first"][leaf] for leaf in ("kernel", "bias")}
      student = jax.tree.map(lambda w, u: w - pair.inner.alpha * u, now.student, {"first": first, "head": g["head"]})
      now = Nets(pair.teach(now.teacher, each[t]), student, memory)
      losses.append(pair.apart(now.teacher, student, each[t]))
    return jnp.stack(losses).mean()

  return central(loss, theta)


def assert_slopes(found, there):
  assert np.abs(there).max() > 0.05
  np.testing.assert_allclose(found, there, atol=3e-7 * np.abs(there).max() + 1e-9)


def test_the_exact_derivative_is_that_of_central_differences():
  with jax.enable_x64(True):
    assert_slopes(exact(), held()(False, False))


def test_the_exact_derivative_of_a_static_rule_is_that_of_central_differences():
  with jax.enable_x64(True):
    pair, batches = pair_of(STATIC, **EXACT), batches_of()
    theta, nets = begun(pair)
    there = central(lambda theta: pair.run(theta, nets, batches)[0], theta)()
    assert_slopes(slope_of(pair, theta, nets, batches), there)


@pytest.mark.parametrize(("second_order", "through_inputs"), [(False, True), (True, False)])
def test_what_is_cut_is_held_fixed(second_order, through_inputs):
  """The derivative is that of differences in which the cut parts are as they were; and not the exact one."""
  with jax.enable_x64(True):
    pair = pair_of(second_order=second_order, through_inputs=through_inputs)
    found = slope_of(pair, *begun(pair), batches_of())
    assert_slopes(found, held()(not second_order, not through_inputs))
    assert np.abs(found - exact()).max() > 1e-5 * np.abs(exact()).max()


@pytest.mark.parametrize("rule", [STATIC, *at_release((RULE,))], ids=lambda rule: rule.form)
def test_steps_and_segments_are_the_same_where_a_segment_is_a_step(rule):
  pair, tx = pair_of(rule), optax.adam(0.01)
  theta, nets = begun(pair, dtype=jnp.float32)

  def move(theta, opt_state, slope):
    updates, opt_state = tx.update(slope, opt_state, theta)
    return optax.apply_updates(theta, updates), opt_state

  first = jax.tree.map(lambda leaf: leaf[:1], batches_of())
  both = [
    jax.jit(lambda by=by: by(theta, tx.init(theta), nets, first, move))() for by in (pair.by_segment, pair.by_step)
  ]
  chex.assert_trees_all_close(*both, rtol=1e-5, atol=1e-6)


def stay(theta, opt_state, slope):
  """No move of theta: its state is the derivative."""
  return theta, slope


def test_a_move_goes_back_through_all_steps_of_its_segment():
  """Each with the theta that it had."""
  pair = pair_of()
  theta, nets = begun(pair, dtype=jnp.float32)
  norm = jax.jit(lambda: pair.by_step(theta, (), nets, batches_of(), stay)[-1])()
  last = jax.jit(jax.grad(lambda theta: pair.run(theta, nets, batches_of())[1][1][-1]))(theta)
  np.testing.assert_allclose(norm, optax.tree.norm(last), rtol=1e-4)


@pytest.mark.parametrize("by", ["segment", *at_release("step")])
def test_nothing_goes_back_through_the_start_of_a_segment(by):
  """The derivative is that from networks which are plain numbers; through both segments it is another."""
  pair = pair_of(STATIC, **EXACT)
  theta, nets = begun(pair, dtype=jnp.float32)
  first, second = (jax.tree.map(lambda leaf, at=at: leaf[at], batches_of(2)) for at in (slice(1), slice(1, 2)))
  move = getattr(pair, f"by_{by}")

  @jax.jit
  def both(theta, nets):
    theta, _, nets, *_ = move(theta, None, nets, first, stay)
    return nets, move(theta, None, nets, second, stay)[1]

  between, found = both(theta, nets)
  alone = slope_of(pair, theta, jax.tree.map(np.asarray, between), second)
  np.testing.assert_allclose(ravel_pytree(found)[0], alone, rtol=1e-4, atol=1e-5)
  through = slope_of(pair, theta, nets, batches_of(2)) * 2 - slope_of(pair, theta, nets, first)
  assert np.abs(through - alone).max() > 0.01 * np.abs(alone).max()


@functools.cache
def segment(rule=STATIC, **options):
  """(text of the program, derivative) of a segment that is computed in a way of its own."""
  pair, batches = pair_of(rule, **options), batches_of()
  theta, nets = begun(pair, dtype=jnp.float32)
  return str(jax.make_jaxpr(pair.run)(theta, nets, batches)), slope_of(pair, theta, nets, batches)


@pytest.mark.parametrize(("option", "trace"), [("remat", "prevent_cse=False"), ("unroll", "unroll=3")])
@pytest.mark.parametrize("rule", [STATIC, *at_release((RULE,))], ids=lambda rule: rule.form)
def test_how_a_segment_is_computed_changes_no_number(option, trace, rule):
  (plain, slope), (other, the_same) = segment(rule), segment(rule, **{option: True})
  assert trace not in plain and trace in other
  np.testing.assert_allclose(slope, the_same, rtol=1e-4, atol=1e-6)
  assert np.abs(slope).max() > 0.01


@functools.cache
def stepwise(rule=STATIC, **options):
  """(text of the program, (norm of the derivative, theta, networks, losses)) of a segment whose steps move theta."""
  pair, batches = pair_of(rule, update="step", **options), batches_of()
  theta, nets = begun(pair, dtype=jnp.float32)

  def down(theta, opt_state, slope):
    return jax.tree.map(lambda leaf, g: leaf - 0.01 * g, theta, slope), opt_state

  def run(theta, nets):
    theta, _, nets, losses, norm = pair.by_step(theta, (), nets, batches, down)
    return norm, theta, nets, losses

  return str(jax.make_jaxpr(run)(theta, nets)), jax.jit(run)(theta, nets)


@pytest.mark.parametrize("rule", [STATIC, *at_release((RULE,))], ids=lambda rule: rule.form)
def test_steps_that_are_computed_again_change_no_number(rule):
  """Each kept apart from the step that it repeats, which no loop does here."""
  (plain, one), (other, the_same) = stepwise(rule), stepwise(rule, remat=True)
  assert "prevent_cse" not in plain and other.count("prevent_cse=True") >= S
  chex.assert_trees_all_close(one, the_same, rtol=1e-4, atol=1e-6)
  assert one[0] > 0.01


def test_the_teacher_gets_no_derivative():
  pair = pair_of(STATIC, **EXACT)
  theta, nets = begun(pair, dtype=jnp.float32)
  loss = lambda teacher, student: pair.run(theta, Nets(teacher, student, nets.memory), batches_of())[0]  # noqa: E731
  of_teacher, of_student = jax.jit(jax.grad(loss, (0, 1)))(nets.teacher, nets.student)
  assert not np.any(ravel_pytree(of_teacher)[0]) and np.any(ravel_pytree(of_student)[0])


def test_the_loss_by_hand():
  """Huber, delta 1: .5 * .5^2 = .125 and 2 - .5 = 1.5."""
  assert float(huber(jnp.array([0.5, 2.0]), jnp.zeros(2))) == 0.8125
  assert 300 * float(huber(jnp.array([0.5]), jnp.zeros(1))) == 37.5


def test_a_teacher_that_sees_what_the_student_sees_is_the_student():
  """At the rule's start delta is 1, so both take the same steps."""
  pair = pair_of(old_batch=0, new_batch=8)
  _, nets = begun(pair, dtype=jnp.float32)
  theta = jax.jit(lambda key: init_theta(key, pair.tensors, pair.rule))(jax.random.key(0))
  same = nets._replace(teacher=nets.student)
  _, (after, losses) = jax.jit(pair.run)(theta, same, batches_of())
  np.testing.assert_array_equal(losses, 0)
  chex.assert_trees_all_equal(after.teacher, after.student)
  assert np.abs(after.student["first"]["kernel"] - nets.student["first"]["kernel"]).max() > 1e-3
