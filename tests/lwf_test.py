"""LwF through all tasks against a plain implementation, and what its weight does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import cljax
from cljax.data.sample import fetch
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.ops.trees import where
from cljax.run import train
from cljax.types import Clock, Outputs, Place, View
from tests import toys


@functools.cache
def stepping(heads, shares):
  """(weight, task) -> (state before, state after, batch) of one step, from a state whose earlier heads are old."""
  spec, data = toys.stream(heads=heads)
  data = jax.tree.map(jnp.asarray, data)
  clock = Clock(*(jnp.int32(n) for n in (0, 0, 3, 0)))

  @jax.jit
  def one_step(weight, t):
    method = METHODS["lwf"](
      toys.mlp(spec), optax.sgd(0.5), spec, warmup_epochs=0, batch_size=6, distill_weight=weight, weigh_by_tasks=shares
    )
    view, phase = View(data.bank, data.tasks, t), method.phases[-1]
    state = method.init(jax.random.key(0))
    for k in range(spec.T):
      learnt = phase.exit(jax.random.key(0), state, view._replace(t=jnp.int32(k)), clock)
      state = where(k < t, learnt, state)
    state = phase.enter(jax.random.key(0), state, view, clock)
    batch = fetch(view, Place(jnp.full(6, t, jnp.int32), data.tasks.train.idx[t, :6]))
    moved = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.05, state.params))  # away from the teacher
    after, _ = phase.step(jax.random.key(1), moved, batch, clock, view)
    return moved, after, batch

  return one_step


def one_step(weight, t=1, heads=None, shares=False):
  return stepping(heads, shares)(jnp.float32(weight), jnp.int32(t))


def plain_loss(params, teacher, x, y, t, weight, first=1.0, T=3, C=4):
  def forward(params):
    h = jax.nn.relu(x.reshape(6, -1) @ params["first"]["kernel"] + params["first"]["bias"])
    h = jax.nn.relu(h @ params["hidden_1"]["kernel"] + params["hidden_1"]["bias"])
    return (h @ params["head"]["kernel"] + params["head"]["bias"]).reshape(6, T, C)

  new, old = forward(params), forward(teacher)
  value = first * -jax.nn.log_softmax(new[:, t])[jnp.arange(6), y].mean()
  for k in range(t):
    value += weight * -(jax.nn.softmax(old[:, k] / 2) * jax.nn.log_softmax(new[:, k] / 2)).sum(axis=1).mean()
  return value


@pytest.mark.parametrize("shares", [False, True])
def test_a_step_is_that_of_a_plain_implementation(shares):
  """With shares the new task counts a third of the loss in the third, the old ones two thirds."""
  for t in (0, 2):
    before, after, batch = one_step(0.7, t, shares=shares)
    weighed = {0: (0.0, 1.0), 2: (0.7 * 2 / 3, 1 / 3)}[t] if shares else (0.7, 1.0)
    slope = jax.jit(jax.grad(plain_loss), static_argnums=4)(
      before.params, before.teacher, batch.x, batch.y, t, *weighed
    )
    expected = jax.tree.map(lambda leaf, slope: leaf - 0.5 * slope, before.params, slope)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), after.params, expected)


def test_weight_zero_leaves_old_heads_alone_and_more_holds_them():
  before, after, _ = one_step(0.0)
  kernel = [np.asarray(state.params["head"]["kernel"]).reshape(8, 3, 4) for state in (before, after)]
  np.testing.assert_array_equal(kernel[0][:, 0], kernel[1][:, 0])
  before, after, _ = one_step(1.0)
  kernel = [np.asarray(state.params["head"]["kernel"]).reshape(8, 3, 4) for state in (before, after)]
  assert np.abs(kernel[0][:, 0] - kernel[1][:, 0]).max() > 1e-4
  np.testing.assert_array_equal(kernel[0][:, 2], kernel[1][:, 2])  # a later head


def test_one_head_is_held_to_the_classes_seen_before():
  before, _, _ = one_step(1.0, heads=1)
  assert before.old.shape == (1, 4) and before.old.all()


@pytest.mark.parametrize("rivals", ["old", "seen"])
def test_old_answers_compete_with_old_classes_or_with_all_seen(rivals):
  """Two of four classes are old: the student's softmax is over these, or over those of the new task, too."""
  spec, data = toys.stream(heads=1)
  data = jax.tree.map(jnp.asarray, data)
  method = METHODS["lwf"](
    toys.mlp(spec), optax.sgd(0.5), spec, warmup_epochs=0, batch_size=6, distill_weight=0.7, rivals=rivals
  )
  view, clock, old = View(data.bank, data.tasks, jnp.int32(1)), Clock(*map(jnp.int32, (0, 0, 3, 0))), [1, 1, 0, 0]
  state = method.init(jax.random.key(0)).replace(old=jnp.array([old], bool))
  state = state.replace(params=jax.tree.map(lambda leaf: leaf + 0.05, state.params))
  batch = fetch(view, Place(jnp.full(6, 1, jnp.int32), data.tasks.train.idx[1, :6]))
  after, _ = method.phases[-1].step(jax.random.key(1), state, batch, clock, view)

  def loss(params):
    def logits(params):
      h = jax.nn.relu(batch.x.reshape(6, -1) @ params["first"]["kernel"] + params["first"]["bias"])
      h = jax.nn.relu(h @ params["hidden_1"]["kernel"] + params["hidden_1"]["bias"])
      return h @ params["head"]["kernel"] + params["head"]["bias"]

    new = logits(params)
    among = new if rivals == "seen" else new[:, :2]
    held = jax.nn.softmax(logits(state.teacher)[:, :2] / 2) * jax.nn.log_softmax(among / 2)[:, :2]
    return -jax.nn.log_softmax(new)[jnp.arange(6), batch.y].mean() - 0.7 * held.sum(axis=1).mean()

  expected = jax.tree.map(lambda leaf, slope: leaf - 0.5 * slope, state.params, jax.grad(loss)(state.params))
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), after.params, expected)


@pytest.mark.slow
def test_it_forgets_less_than_fine_tuning_on_related_tasks():
  """Split digits, three seeds: BWT nearer zero at the same learning rate."""
  found = {}
  for name, keywords in (("finetune", {}), ("lwf", {"warmup_epochs": 1})):
    method = {"name": name, "batch_size": 10, "epochs": 5, **keywords}
    config = toys.config_of(method, (32,), 0.003, {"num_seeds": 3, "evaluate": "ends"}, tasks=5)
    found[name] = train(config, quiet=True).result["metrics"]["BWT"]["mean"]
  assert found["lwf"] > found["finetune"] + 0.01, found


def test_a_net_whose_heads_are_its_own_is_refused():
  class Whole(nn.Module):
    @nn.compact
    def __call__(self, x, slot):
      return Outputs(nn.Dense(4)(x.reshape(len(x), -1)), x, slot)

  spec = toys.stream()[0]
  assert isinstance(cljax.headed(Whole(), spec), Whole)
  with pytest.raises(ConfigError, match=r"has none that it knows: .* cljax\.headed\(net, spec\)"):
    METHODS["lwf"](Whole(), optax.sgd(0.1), spec)
