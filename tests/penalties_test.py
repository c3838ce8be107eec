"""Guards that add to the loss against plain numpy in float64: EWC, online EWC, SI, MAS and LwF."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.loops import edge
from cljax.pieces.guards import guarding
from cljax.pieces.guards.examples import label_of
from cljax.types import Batch, Place
from tests.guarded import (
  START,
  C,
  Numpy,
  all_rows,
  guarded,
  is_close,
  mean,
  setting,
  softmax,
  steps_of,
  trained,
  zip_trees,
)


def zeros_of(tree):
  return zip_trees(lambda leaf: np.zeros(leaf.shape), tree)


def follow(ours, t, pull):
  """The steps of task t, where pull(x) is what the guard adds to the gradient."""
  for x, y in steps_of(t):
    ours.step(zip_trees(np.add, mean(ours.gradients(x, y, t)), pull(x)))


def about(ours, factor, importance, anchor):
  """The pull of a quadratic: factor * importance * (w - anchor)."""
  return lambda x: zip_trees(lambda F, w, a: factor * F * (w - a), importance, ours.w, anchor)


def fisher(ours, t):
  rows = all_rows(t)
  return mean(zip_trees(np.square, ours.gradients(rows.x, np.asarray(rows.y), t)))


def test_ewc_equals_its_formula():
  """The sum of the penalties of all tasks so far, each Fisher the mean of squared per-example gradients."""
  strength = 3.0
  start, found = trained("ewc", strength=strength)
  ours, tasks = Numpy(start), []

  def pull(x):
    total = zeros_of(start)
    for F, anchor in tasks:
      total = zip_trees(lambda p, F, w, a: p + strength * F * (w - a), total, F, ours.w, anchor)
    return total

  for t in range(3):
    follow(ours, t, pull)
    tasks.append((fisher(ours, t), ours.w))
    is_close(found[t].params, ours.w)
    is_close(found[t].past.fisher, functools.reduce(lambda a, b: zip_trees(np.add, a, b), [F for F, _ in tasks]))
  far = zip_trees(lambda w: w + 0.3, ours.w)
  exact = sum(
    float((F * (w - a) ** 2).sum())
    for fisher, anchor in tasks
    for F, w, a in zip(*map(jax.tree.leaves, (fisher, far, anchor)), strict=True)
  )
  guard = guarding({"name": "ewc", "strength": strength}, setting()[0])(lambda params, batch: None)
  value = guard.loss(found[-1].past, zip_trees(jnp.float32, far), None)
  np.testing.assert_allclose(value, strength / 2 * exact, rtol=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
def test_online_ewc_equals_its_formula(normalised):
  """One penalty about the last task's end, whose earlier part fades."""
  strength, gamma = 4.0, 0.6
  start, found = trained("online_ewc", strength=strength, gamma=gamma, unit_fisher=normalised)
  ours, F, anchor = Numpy(start), zeros_of(start), start
  for t in range(3):
    follow(ours, t, about(ours, strength * gamma, F, anchor))
    own = fisher(ours, t)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(own))) if normalised else 1
    F, anchor = zip_trees(lambda F, new, norm=norm: gamma * F + new / norm, F, own), ours.w
    is_close(found[t].params, ours.w)
    is_close(found[t].past.importance, F)


def test_mas_equals_its_formula():
  """Each weight by the mean size of the derivative of the squared length of the logits, row by row."""
  strength = 0.4
  start, found = trained("mas", strength=strength)
  ours, omega, anchor = Numpy(start), zeros_of(start), start
  for t in range(3):
    follow(ours, t, about(ours, 2 * strength, omega, anchor))
    x = all_rows(t).x
    own = mean(zip_trees(np.abs, ours.backward(x, t, 2 * ours.logits(x, t))))
    omega, anchor = zip_trees(np.add, omega, own), ours.w
    is_close(found[t].params, ours.w)
    is_close(found[t].past.importance, omega)


@pytest.mark.parametrize("clipped", [False, True])
def test_si_equals_its_formula(clipped):
  strength, damping = 2.0, 0.05
  start, found = trained("si", strength=strength, damping=damping, clipped=clipped)
  ours, omega, anchor = Numpy(start), zeros_of(start), start
  for t in range(3):
    begin, path = ours.w, zeros_of(start)
    for x, y in steps_of(t):
      gradient, before = mean(ours.gradients(x, y, t)), ours.w
      ours.step(zip_trees(lambda g, w, o, a: g + 2 * strength * o * (w - a), gradient, before, omega, anchor))
      path = zip_trees(lambda p, g, old, new: p - g * (new - old), path, gradient, before, ours.w)
    own = zip_trees(lambda p, w, b: p / ((w - b) ** 2 + damping), path, ours.w, begin)
    omega = zip_trees(lambda o, new: o + (np.maximum(new, 0) if clipped else new), omega, own)
    anchor = ours.w
    is_close(found[t].params, ours.w)
    is_close(found[t].past.importance, omega)


def test_lwf_equals_its_formula():
  """The heads of earlier tasks are held to what the net answered as the task began, on the task's own rows."""
  strength, temperature = 0.7, 2.0
  start, found = trained("lwf", strength=strength, temperature=temperature)
  ours = Numpy(start)
  for t in range(3):
    teacher = Numpy(ours.w)

    def pull(x, t=t, teacher=teacher):
      total = zeros_of(start)
      for head in range(t):
        now, before = (softmax(net.logits(x, head) / temperature) for net in (ours, teacher))
        own = mean(ours.backward(x, head, (now - before) / temperature))
        total = zip_trees(lambda p, g: p + strength * g, total, own)
      return total

    follow(ours, t, pull)
    is_close(found[t].params, ours.w)
    is_close(found[t].past.params, ours.w)  # as the next task begins
    np.testing.assert_array_equal(found[t].past.old, np.tile(np.arange(3)[:, None] <= t, C))


def test_lwf_leaves_replayed_rows_out():
  """A batch of another task's rows is not held to anything."""
  spec, _, views = setting()
  guard = guarded("lwf", strength=3.0)
  state = trained("lwf", strength=3.0)[1][1]
  rows = all_rows(1)
  phase = guard.phases[0]
  free = guarded("none").phases[0]

  @functools.partial(jax.jit, static_argnums=0)
  def step(phase, state, batch):
    return phase.step(jax.random.key(0), state, batch, START, views[2])[0].params

  @jax.jit
  def begun(state):
    """As task 2 begins; then the params move, so that there is something to hold."""
    state = edge(phase, "enter", jax.random.key(0), state, views[2], START)
    return state.replace(params=jax.tree.map(lambda w: 1.1 * w, state.params))

  state = begun(state)
  mixed = rows._replace(live=jnp.arange(len(rows.live)) < 10)
  chex.assert_trees_all_equal(step(phase, state, mixed), step(free, state.replace(past=None), mixed))
  own = mixed._replace(task=jnp.where(jnp.arange(len(rows.live)) < 3, 2, 1))
  assert not np.array_equal(
    step(phase, state, own)["first"]["kernel"], step(free, state.replace(past=None), own)["first"]["kernel"]
  )


def test_labels_of_the_model_follow_its_answers():
  """Drawn by the row's own key, among the row's classes, as often as the softmax says."""
  W = 4000
  logits = jnp.broadcast_to(jnp.log(jnp.array([0.1, 0.6, 0.3, 5.0])), (W, 4))
  classes = jnp.broadcast_to(jnp.array([True, True, True, False]), (W, 4))
  place = Place(jnp.zeros(W, jnp.int32), jnp.arange(W))
  batch = Batch(None, jnp.zeros(W, jnp.int32), None, classes, place, None, None)
  drawn = np.asarray(jax.jit(label_of)(logits, batch, jax.random.key(0)))
  np.testing.assert_allclose(np.bincount(drawn, minlength=4) / W, [0.1, 0.6, 0.3, 0], atol=0.03)
  again = batch._replace(place=Place(*(leaf[::-1] for leaf in place)))
  np.testing.assert_array_equal(label_of(logits, again, jax.random.key(0)), drawn[::-1])


def untrained_fisher(**guard):
  """Of the first task, for weights that are not trained."""
  method, view = guarded("ewc", **guard), setting()[2][0]

  @jax.jit
  def ended(key, view):
    return edge(method.phases[0], "exit", key, method.init(key), view, START)

  return ended(jax.random.key(3), view).past.fisher


def test_fisher_of_the_model_and_of_some_rows_is_another():
  fishers = [untrained_fisher(**more) for more in ({}, {"labels": "model"}, {"fisher_rows": 5}, {"fisher_rows": 999})]
  sizes = [float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(fisher))) for fisher in fishers]
  assert len({round(size, 6) for size in sizes[:3]}) == 3
  chex.assert_trees_all_equal(fishers[0], fishers[3])
