"""SupSup against plain numpy in float64; old tasks keep their bits; the task is found from the entropy's slopes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.methods import METHODS
from cljax.methods.supsup import narrowed
from cljax.nets import CNN, MLP
from cljax.ops.masks import unpack
from cljax.pieces.optimizers import sgd
from cljax.pieces.scores import drawn
from tests.tiers import at_release
from tests.walks import B, C, T, Walk, batches, double, gradients, slopes, stream

RATE, MOMENTUM, STEPS, SHARE = 0.2, 0.9, 5, 0.4


def walk(net, tx, heads=T, **keywords):
  return Walk(METHODS["supsup"](net, tx, stream(heads)[0], batch_size=B, **keywords), STEPS, heads)


@functools.cache
def finding():
  """(the walk, its last state) of a method that finds the task at once."""
  own = walk(MLP(T, C, (8,)), optax.sgd(RATE, MOMENTUM), infer="oneshot")
  return own, own.states()


def mask_of(score, by):
  if by == "sign":
    return score >= 0
  chosen = np.argsort(np.abs(score).ravel())[score.size - round(SHARE * score.size) :]
  return np.isin(np.arange(score.size), chosen).reshape(score.shape)


def follow(w, scores, t, heads, by):
  """One task in numpy: SGD with momentum on the scores, and on the task's own head where it has one."""
  column = np.repeat(np.arange(T) == t, C)
  speed, head_speed = dict.fromkeys(scores, 0.0), {"kernel": 0.0, "bias": 0.0}
  w = jax.tree.map(np.copy, w)
  for k in range(STEPS):
    batch = jax.tree.map(lambda leaf, k=k: leaf[k], batches(t, STEPS, heads))
    inside = jax.tree.map(np.copy, w)
    for name, score in scores.items():
      inside[name]["kernel"] *= mask_of(score, by)
    slope, _ = gradients(inside, batch.x, batch.y, t)
    for name in scores:
      pull = slope[name]["kernel"] * w[name]["kernel"] * (1 if by == "sign" else np.sign(scores[name]))
      speed[name] = MOMENTUM * speed[name] + pull
      scores[name] = scores[name] - RATE * speed[name]
    for leaf in head_speed if heads > 1 else ():
      head_speed[leaf] = MOMENTUM * head_speed[leaf] + slope["head"][leaf]
      w["head"][leaf] -= np.where(column, RATE * head_speed[leaf], 0)
  return w, scores


@pytest.mark.parametrize(("heads", "by"), [(T, "sign"), (1, "share")])
def test_steps_and_masks_are_those_of_a_plain_implementation(heads, by):
  if heads > 1:
    found = finding()[1]
  else:
    found = walk(MLP(heads, C, (8,)), optax.sgd(RATE, MOMENTUM), heads, masked_by=by, winning_share=SHARE).states()
  w = double(found[0][0].params)
  for name, inputs in (("first", 16), ("head", 8))[: 1 if heads > 1 else 2]:
    np.testing.assert_allclose(np.abs(w[name]["kernel"]), np.sqrt(2 / inputs), rtol=1e-6)
    assert 0.2 < (w[name]["kernel"] > 0).mean() < 0.8 and not w[name]["bias"].any()
  moved = False
  for t in range(T):
    begun = double(drawn(jax.random.fold_in(jax.random.key(2), t), found[0][0].scores))
    w, scores = follow(w, {path.split("/")[0]: leaf for path, leaf in begun.items()}, t, heads, by)
    (after,) = found[t + 1]
    chex.assert_trees_all_close(double(after.params), w, atol=1e-5)
    assert set(scores) == ({"first"} if heads > 1 else {"first", "head"})
    for name, score in scores.items():
      np.testing.assert_allclose(after.scores[f"{name}/kernel"], score, atol=1e-5)
      mask = unpack(after.bits[f"{name}/kernel"][t], score.shape)
      np.testing.assert_array_equal(mask, mask_of(score, by))
      moved |= (np.asarray(mask) != mask_of(begun[f"{name}/kernel"], by)).any()
  assert moved


@pytest.mark.parametrize(
  ("net", "tx", "heads"),
  [
    (MLP(T, C, (8,)), optax.adamw(0.05, weight_decay=0.1), T),
    *at_release((CNN(1, C, channels=(3, 4), hidden=(6,)), sgd(0.1), 1)),
  ],
)
def test_old_tasks_keep_their_bits(net, tx, heads):
  states = walk(net, tx, heads).check_old_logits_keep_their_bits()
  first, last = states[1][0], states[3][0]
  chex.assert_trees_all_equal(first.params["first"], last.params["first"])
  assert all(leaf.dtype == jnp.uint8 for leaf in last.bits.values())
  assert last.bits["first/kernel"].nbytes == T * -(-last.params["first"]["kernel"].size // 8)


def test_spare_logits_compete_and_are_not_answered():
  """In the loss of task 2 of three, by its own head of seven columns, the only ones that a step moves."""
  own = walk(MLP(T, C, (8,)), sgd(RATE), spare_logits=3)
  state, batch = jax.jit(own.method.init)(jax.random.key(3)), jax.tree.map(lambda leaf: leaf[0], batches(1, STEPS))
  w, mask = double(state.params), mask_of(np.asarray(state.scores["first/kernel"]), "sign")
  h = np.maximum(np.asarray(batch.x, np.float64).reshape(B, -1) @ (w["first"]["kernel"] * mask), 0)
  column = slice(C + 3, 2 * (C + 3))
  logits = h @ w["head"]["kernel"][:, column]
  after, info = jax.jit(own.method.phases[0].step)(jax.random.key(0), state, batch, None, stream()[2][1])
  lost = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(B), np.asarray(batch.y)]
  np.testing.assert_allclose(info["loss"], lost.mean(), rtol=1e-5)
  np.testing.assert_allclose(own.apply(state, batch.x, batch.task).logits, logits[:, :C], atol=1e-5)
  moved = (np.asarray(after.params["head"]["kernel"]) != np.asarray(state.params["head"]["kernel"])).any(axis=0)
  np.testing.assert_array_equal(np.flatnonzero(moved), np.arange(column.start, column.stop))


def entropy_slopes(w, masks, tasks, x):
  """dH/dalpha in numpy by central differences, at equal shares of the tasks, whose heads are superposed too."""
  x = np.asarray(x, np.float64).reshape(len(x), -1)

  def entropy(alpha):
    z = x @ (w["first"]["kernel"] * sum(alpha[t] * masks[t] for t in tasks)) + w["first"]["bias"]
    logits = 0
    for t in tasks:
      own = slice(t * C, t * C + C)
      logits = logits + alpha[t] * (np.maximum(z, 0) @ w["head"]["kernel"][:, own] + w["head"]["bias"][own])
    p = slopes(logits, np.zeros(len(x), int)) * len(x) + np.eye(C)[np.zeros(len(x), int)]
    return -(p * np.log(p)).sum(axis=1).mean()

  whole = np.where(np.isin(np.arange(T), tasks), 1 / len(tasks), 0.0)
  # the biases of the hidden layer are no task's own: they are there once, as the shares add up to 1
  return {t: (entropy(whole + 1e-5 * np.eye(T)[t]) - entropy(whole - 1e-5 * np.eye(T)[t])) / 2e-5 for t in tasks}


def test_the_task_is_found_by_the_slopes_of_the_entropy():
  """Of the batches of each task after the last, at once and by halves; and of none before any has ended."""
  own, states = finding()
  last = states[-1][0]
  halves = jax.jit(METHODS["supsup"](MLP(T, C, (8,)), sgd(RATE), stream()[0], infer="binary").apply)
  w = double(last.params)
  masks = [np.asarray(unpack(bits, w["first"]["kernel"].shape)) for bits in last.bits["first/kernel"]]
  ask = jax.jit(lambda state, x: own.method.apply(state, x, None))
  for t in range(T):
    x = batches(t, 1).x[0]
    found = entropy_slopes(w, masks, range(T), x)
    out = ask(last, x)
    lowest = sorted(found, key=found.get)
    np.testing.assert_array_equal(out.task, lowest[0])
    np.testing.assert_array_equal(out.logits, own.apply(last, x, jnp.full(B, lowest[0])).logits)
    again = entropy_slopes(w, masks, lowest[:2], x)
    np.testing.assert_array_equal(halves(last, x, None).task, min(again, key=again.get))
  out = ask(states[0][0], x)
  assert (out.task == -1).all() and not out.logits.any()
  assert own.method.infers and not walk(MLP(T, C, (8,)), sgd(RATE)).method.infers


def test_halves_stay_until_one_is_left():
  """Slopes may change with who is left: of five the three lowest stay, then two, then one."""
  asked = []

  def slopes(live):
    asked.append(live.tolist())
    return jnp.array([0.3, -0.1, 0.9, 0.2, 0.1]) * jnp.where(live.sum() == 3, -1.0, 1.0)

  live = jnp.ones(5, bool)
  assert int(narrowed(slopes, live, "binary")) == 4
  assert [sum(each) for each in asked] == [5, 3, 2]
  assert int(narrowed(slopes, live, "oneshot")) == 1
  assert int(narrowed(slopes, live.at[1].set(False), "oneshot")) == 4
  assert int(narrowed(slopes, jnp.zeros(5, bool), "binary")) == -1
