"""Guards that project against plain numpy in float64: A-GEM, GEM and OGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from cljax.pieces.guards import guarding
from cljax.pieces.rings import empty_rings
from cljax.types import At
from tests.guarded import STEPS, C, Numpy, flat, guarded, is_close, like, mean, rows_of, setting, steps_of, trained

KEPT = 6


def of_task(past, k):
  """The rows that a ring of the past holds of task k: different ones, and of that task."""
  places = np.asarray(past.place.row).reshape(3, KEPT)[k]
  own = setting()[1].tasks.train
  assert len(set(places.tolist())) == KEPT and set(places.tolist()) <= set(own.idx[k, : own.count[k]].tolist())
  assert (np.asarray(past.place.task).reshape(3, KEPT)[k] == k).all()
  return rows_of(k, places)


def memory_gradients(ours, past, t):
  """[t, D] the mean gradient on what is kept of each earlier task."""
  return np.array([flat(mean(ours.gradients(*of_task(past, k), k))) for k in range(t)])


def follow(found, start, project):
  """The steps of all tasks, each gradient through project(t, ours, past, flat gradient); how many it turned."""
  ours, turned = Numpy(start), 0
  for t in range(3):
    past = found[t - 1].past if t else None
    for x, y in steps_of(t):
      gradient = flat(mean(ours.gradients(x, y, t)))
      after = project(t, ours, past, gradient)
      turned += not np.array_equal(gradient, after)
      ours.step(like(after, ours.w))
    is_close(found[t].params, ours.w)
  return turned


def test_agem_equals_its_formula():
  """With as many drawn as are kept, so that the mean does not hang on the draw."""
  start, found = trained("agem", per_task=KEPT, drawn_rows=20)

  def project(t, ours, past, g):
    if not t:
      return g
    r = memory_gradients(ours, past, t).mean(axis=0)
    return g if g @ r >= 0 else g - (g @ r) / (r @ r) * r

  assert 0 < follow(found, start, project) < 2 * STEPS


@pytest.mark.parametrize("margin_as", ["added", "bound"])
def test_gem_equals_its_formula(margin_as):
  """Nothing is turned where no earlier task is hurt; elsewhere the dual of the nearest gradient, and the margin."""
  margin = 0.4
  start, found = trained("gem", per_task=KEPT, margin=margin, margin_as=margin_as)

  def project(t, ours, past, g):
    if not t or ((G := memory_gradients(ours, past, t)) @ g >= 0).all():
      return g
    least = margin if margin_as == "bound" else 0
    v = nnls(G.T, -(g + least * G.sum(axis=0)))[0] + margin
    return g + v @ G

  assert 0 < follow(found, start, project) < 2 * STEPS


@functools.cache
def drawing(rows=4):
  """(key, past) -> which rows a step of A-GEM asks for, and which of them are live."""
  spec, _, views = setting()
  guard = guarding({"name": "agem", "per_task": KEPT, "drawn_rows": rows}, spec)(None)

  def asked(key, past):
    seen = []
    gradient = {"w": jnp.ones(2)}
    guard.project(At(key, None, views[2]), past, gradient, lambda batch: seen.append(batch) or gradient)
    return seen[0]

  return jax.jit(asked)


def test_agem_draws_anew_from_all_earlier_tasks():
  past = trained("agem", per_task=KEPT, drawn_rows=20)[1][1].past
  kept = [(int(task), int(row)) for task, row in zip(*past.place, strict=True)]
  draws = []
  for k in range(40):
    batch = drawing()(jax.random.key(k), past)
    assert batch.live.all()
    draws.append(list(zip(batch.task.tolist(), batch.place.row.tolist(), strict=True)))
    assert len(set(draws[-1])) == 4
  assert {place for draw in draws for place in draw} == set(kept[: 2 * KEPT])
  assert not drawing()(jax.random.key(0), past._replace(seen=jnp.zeros(3, jnp.int32))).live.any()


def test_agem_asks_for_no_more_rows_than_can_be_kept():
  """However many it may draw: a step of 2^31 rows would need more memory than there is."""
  past = jax.eval_shape(lambda: empty_rings(3 * KEPT, 3))
  assert jax.eval_shape(drawing(2**31 - 1), jax.random.key(0), past).live.shape == (3 * KEPT,)


def chosen(logits, i, y):
  """[1, C] the derivative of what the i-th direction is about."""
  return {"label": np.eye(C)[y], "average": np.full(C, 1 / C), "all": np.eye(C)[i % C]}[logits][None]


def test_ogd_equals_its_formula():
  """The steps stand upright on all directions of earlier tasks, which are orthonormal."""
  start, found = trained("ogd", per_task=KEPT)

  def project(t, ours, past, g):
    if not t:
      return g
    return g - (B := np.float64(past)).T @ (B @ g)

  assert follow(found, start, project) == 2 * STEPS
  for state, t in zip(found, range(3), strict=True):
    B = np.float64(state.past)
    assert not B[(t + 1) * KEPT :].any()
    basis = B[: (t + 1) * KEPT]
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-5)


@pytest.mark.parametrize("logits", ["label", "average", "all"])
def test_ogd_spans_the_gradients_of_rows(logits):
  """Of as many rows of the task as there are: each one's gradient lies in the span of the directions."""
  spec, data, views = setting()
  many = 120
  method = guarded("ogd", per_task=many, logits=logits)

  @jax.jit
  def ended(key, view):
    state = method.init(key)
    return state.params, method.phases[0].exit(key, state, view, None).past

  params, B = ended(jax.random.key(3), views[1])
  start, B = Numpy(params), np.float64(B)
  assert not B[:many].any() and not B[2 * many :].any()
  own, count = data.tasks.train.idx[1], data.tasks.train.count[1]
  x, y = rows_of(1, own[:count])
  lengths = np.linalg.norm(B, axis=1)
  assert set(np.round(lengths, 5)) == {0, 1} and np.round(lengths).sum() <= count * (C if logits == "all" else 1)
  for i in range(count):
    for c in range(C if logits == "all" else 1):
      row = start.backward(x[i : i + 1], 1, chosen(logits, c, int(y[i])))
      vector = flat(mean(row))
      np.testing.assert_allclose(B.T @ (B @ vector), vector, atol=1e-4)
