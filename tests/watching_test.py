"""Boundaries that the stream hides: when an onset is noticed, what is held back, consolidated, recognised, reopened."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.config import complete, default
from cljax.data import STREAMS, bank
from cljax.data.sample import fetch
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.methods.subnetwork import saliency
from cljax.methods.subnetwork.keywords import Onsets, Room
from cljax.nets import MLP
from cljax.nets.taps import derivatives
from cljax.ops import masks, recent
from cljax.run import train
from cljax.types import Clock, Place, View
from tests import subnetworks
from tests.subjects import cut
from tests.subnetworks import AGAIN, APART, BATCH, HIDDEN, OPEN, Run, again, hidden
from tests.tiers import at_release


def test_every_onset_is_noticed_at_once_and_there_is_no_other():
  run = again()
  delay = run.onsets() - run.edges
  assert len(run.onsets()) == 3 and ((delay >= 1) & (delay <= 2)).all(), (run.onsets(), run.edges)
  assert (np.cumsum(run.data.tasks.train.count)[:-1] % BATCH != 0).any()  # some of them inside a batch


def test_a_task_that_comes_again_is_recognised_and_watched_by_its_own_loss():
  run = again()
  np.testing.assert_array_equal(run.carry.slot_of[0], [0, 1, 0, 2])
  np.testing.assert_array_equal(run.report("onset_slot")[:3], [1, 0, 2])
  R = run.carry.right["task"][0]
  assert R[3, 2] == R[4, 2] == R[4, 0] == R[2, 0]  # from its consolidation on


def test_it_learns_and_forgets_nothing_after_consolidation():
  run = again()
  R = run.carry.right["task"][0]
  assert R[3, 1] >= 0 and R[3, 1] == R[4, 1]
  assert (R[4] / run.experiment.test_rows[0]).mean() > 0.9
  assert (run.carry.confusion["inferred"][0].argmax(axis=1) == [0, 1, 0, 2]).all()


def test_recut():
  """The same rows in the same order under other boundaries, in chunks of another length: the same bits."""
  recut = hidden(cut=(37, 1000, 1003), like=again().subject)
  chex.assert_trees_all_equal(Run(recut, cut(recut.units(), lambda: 13)).carry.state, again().carry.state)


def test_rows_held_back_do_not_reach_the_task_before():
  """Other rows of the next task in the batches that fire: what was consolidated before is the same to the bit."""
  run = again()
  first, step = int(run.edges[0]) + 1, int(run.onsets()[0])  # the batch with both tasks' rows may differ

  def other(rows):
    new = slice(first * BATCH, (step + 1) * BATCH)
    rows = rows.copy()
    rows[new] = np.roll(rows[new], 5)
    rows[new.start] = rows[new.stop + 40]
    return rows

  changed = Run(hidden(change=other, like=again().subject))
  np.testing.assert_array_equal(changed.onsets()[0], step)
  a, b = run.state.learner.subnets, changed.state.learner.subnets
  for name in a.bits:
    np.testing.assert_array_equal(a.bits[name][0], b.bits[name][0])
    held = np.asarray(masks.unpack(a.bits[name][0], run.state.learner.params[name]["kernel"].shape))
    weights = [np.asarray(each.store[name]["kernel"][0])[held] for each in (a, b)]
    assert weights[0].tobytes() == weights[1].tobytes()
  assert not np.array_equal(
    run.state.learner.params["first"]["kernel"], changed.state.learner.params["first"]["kernel"]
  )


def test_batches_that_fire_without_an_onset_are_learnt_in_order():
  """Single batches of another task in the first one, each held back until the next: as if nothing were watched."""

  def strewn(rows):
    rows, length = rows.copy(), len(rows) // len(AGAIN)
    for batch in (60, 63, 90, 120):
      at = slice(batch * BATCH, (batch + 1) * BATCH)
      rows[at] = rows[at.start + length : at.stop + length]
    return rows

  base = hidden(change=strewn, like=again().subject)
  never = hidden(change=strewn, like=base, numbers={**OPEN, "onset_factor": 1e30})
  chunk = next(i for i, unit in enumerate(base.units()) if unit.kind == "chunk")  # of the first task alone
  held, plain = (Run(each, each.units()[: chunk + 1]).state for each in (base, never))
  assert held.watching.turns == 0 and held.watching.fired > 3 and plain.watching.fired == 0
  chex.assert_trees_all_equal(held.learner, plain.learner)


@pytest.mark.parametrize("shares", [False, True])
def test_a_slot_of_few_rows_goes_on_learning_when_its_task_comes_again(shares):
  """The window was not full when it was consolidated; where a later task of its expert builds on it, it rests."""
  few = 1400  # rows of the first task, then all of the second, and the first to the end

  def early(rows):
    one, two, *_ = np.split(rows, np.cumsum(again().data.tasks.train.count))
    return np.concatenate([one[:few], two, np.resize(one, len(rows) - few - len(two))])

  run = Run(hidden(change=early, like=again().subject, numbers=OPEN if shares else APART))
  np.testing.assert_array_equal(run.report("onset_slot")[:3], [1, 0, -1])
  window, rows = HIDDEN["window"], int(run.state.watching.rows[0])
  assert int(run.state.learner.slot) == 0 and int(run.state.watching.window.count) > window
  assert bool(run.report("reused")) == shares and (few <= rows < window if shares else rows == window)


@pytest.mark.parametrize("watch", ["loss", *at_release("last")])
def test_the_mask_of_the_task_before_or_the_loss_may_be_watched(watch):
  run = Run(hidden(like=again().subject, new=(".chunk",), watch=watch))
  delay = run.onsets() - run.edges
  assert len(delay) == 3 and ((delay >= 1) & (delay <= 2)).all()


def test_running_out_of_slots_names_the_key():
  """All slots but the first are done already."""
  base = hidden(like=again().subject)
  carry = base.start()
  subnets = carry.state.learner.subnets
  subnets = subnets.replace(expert_of=subnets.expert_of.at[:, 1:].set(0), done=subnets.done.at[:, 1:].set(True))
  carry.state = carry.state.replace(learner=carry.state.learner.replace(subnets=subnets))
  with pytest.raises(ConfigError, match=r"config\.method\.slots does not suffice"):
    base.run(carry=carry)
  assert int(carry.state.watching.turns[0]) == 1


@functools.cache
def made(**keywords):
  """The method on a stream without boundaries, nothing run."""
  spec, data = subnetworks.digits(AGAIN, 8)
  net = MLP(heads=1, classes=10, hidden=(4, 4))
  return METHODS["subnetwork"](net, optax.sgd(0.1), spec, **{"epochs": 1, **keywords}), data


@pytest.mark.parametrize("name", [*Onsets._fields, *Room._fields])
def test_no_value_of_a_keyword_ends_in_a_traceback(name):
  """Of those that only streams without boundaries look at: each is refused in words, or has a state."""
  for value in (-5, 0, 1, 2**40, 10**400, -0.5, 1e30, math.nan, math.inf, "", "no such word", None, (), (1,)):
    try:
      method, _ = made(**{name: value})
    except ConfigError as error:
      assert f"config.method.{name}=" in str(error)
      continue
    jax.eval_shape(method.init, jax.random.key(0))


def test_the_least_of_everything_has_a_step():
  least = {"batch_size": 1, "experts": 1, "slots": 1, "score_rows": 1, "retrain": 0, "onset_quantile": 0.0}
  least |= {"onset_history": 1, "onset_batches": 1, "decide_after": 1, "warmup": 0, "window": 1}
  method, data = made(**least)
  state = jax.eval_shape(method.init, jax.random.key(0))
  zeros, clock = jnp.zeros(1, jnp.int32), Clock(*[jnp.int32(0)] * 4)

  def all_of_it(state, data):
    view = View(data.bank, data.tasks, None)
    batch = fetch(view, Place(zeros, zeros))
    (phase,) = method.phases
    state = phase.enter(jax.random.key(0), state, view, clock)
    state, _ = phase.step(jax.random.key(0), state, batch, clock, view)
    return phase.exit(jax.random.key(0), state, view, clock)

  chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(all_of_it, state, data), state)


@pytest.mark.parametrize(
  ("stream", "method", "words"),
  [
    ({}, {"epochs": 5}, r"config\.method\.epochs=5: where boundaries are hidden"),
    ({"passes": 0}, {}, r"config\.stream\.passes=0 is too small; the least is 1"),
    ({"boundaries": True, "passes": 2}, {}, r"config\.stream\.passes=2.*config\.method\.epochs"),
    ({}, {"watch": "entropy"}, "scores, last, loss"),
    ({}, {"infer": "guess"}, "entropy, features, pictures, pseudo_grad, supsup_oneshot, hamming, oracle"),
    ({}, {"onset_batches": 3}, r"config\.method\.decide_after=2: at least config\.method\.onset_batches=3"),
    ({"permuted_rounds": -1}, {}, r"config\.stream\.permuted_rounds=-1"),
  ],
)
def test_refusals(stream, method, words):
  config = default()
  config.stream = {"name": "subsets", "source": "digits", "boundaries": False, **stream}
  config.net = {"name": "mlp", "hidden": (8, 8)}
  config.method = {"name": "subnetwork", "epochs": 1, "fractions": (0.1, 0.1, 0.1), **method}
  with pytest.raises(ConfigError, match=words):
    train(complete(config), quiet=True)


@pytest.mark.parametrize("name", ["single", "joint", "lwf", "routing", "expert_gate", "discriminative"])
def test_methods_that_have_to_be_told_are_refused(name):
  config = default()
  config.stream = {"name": "subsets", "source": "digits", "boundaries": False}
  config.net = {"name": "routed_mlp" if name == "routing" else "mlp"}
  config.method = {"name": name}
  with pytest.raises(ConfigError, match=r"has to know where tasks begin.*finetune, er, subnetwork"):
    train(complete(config), quiet=True)


def test_rows_of_a_hidden_stream_come_in_passes():
  source = bank.load("digits")
  _, stream = STREAMS["subsets"](source, jax.random.key(0), classes=((1, 5), (2, 6)), boundaries=False, passes=3)
  _, once = STREAMS["subsets"](source, jax.random.key(0), classes=((1, 5), (2, 6)))
  for t, count in enumerate(once.tasks.train.count):
    passes = stream.tasks.train.idx[t, : 3 * count].reshape(3, count)
    assert stream.tasks.train.count[t] == 3 * count
    for rows in passes:
      np.testing.assert_array_equal(np.sort(rows), once.tasks.train.idx[t, :count])
    assert not np.array_equal(passes[0], passes[1])


def test_rounds_of_permuted_tasks():
  spec, stream = STREAMS["subsets"](bank.load("digits"), jax.random.key(0), classes=((1, 5), (2, 6)), permuted_rounds=2)
  index = stream.tasks.train.warp.index
  assert spec.T == 6 and index.shape == (6, 64)
  np.testing.assert_array_equal(index[:2], np.tile(np.arange(64), (2, 1)))
  np.testing.assert_array_equal(index[2], index[3])
  np.testing.assert_array_equal(np.sort(index[4]), np.arange(64))
  assert not np.array_equal(index[2], index[4])


# The window and what is held.


def test_a_window_keeps_the_latest_live_rows():
  window = recent.empty(5)
  for first in (0, 3, 6):
    rows = jnp.arange(first, first + 3, dtype=jnp.int32)
    window = recent.push(window, Place(rows + 100, rows), rows != 4)
  assert int(window.count) == 8
  assert sorted(window.place.row.tolist()) == [3, 5, 6, 7, 8]
  place, live = recent.picked(window, window.place.row % 2 == 1, 4)
  assert sorted(place.row[live].tolist()) == [3, 5, 7] and int(live.sum()) == 3
  np.testing.assert_array_equal(place.task[live], place.row[live] + 100)


def test_a_window_that_is_not_full_has_dead_entries():
  window = recent.push(recent.empty(4), Place(jnp.array([7]), jnp.array([8])), jnp.array([True]))
  np.testing.assert_array_equal(recent.inside(window), [True, False, False, False])
  assert int(recent.picked(window, jnp.ones(4, bool), 3)[1].sum()) == 1


def test_the_mean_score_is_the_mean_of_the_scores():
  net = MLP(heads=1, classes=4, hidden=(5, 3))
  x, y = jax.random.normal(jax.random.key(0), (6, 7)), jnp.array([0, 1, 2, 3, 0, 1])
  zero = jnp.zeros(6, jnp.int32)
  params = net.init(jax.random.key(1), x, zero)["params"]
  live = jnp.array([True] * 4 + [False] * 2)

  def losses(out):
    return jnp.where(live, optax.softmax_cross_entropy_with_integer_labels(out.logits, y), 0)

  layers = ("first", "hidden_1")

  @jax.jit
  def found():
    scores = saliency.scores(net, params, x, zero, losses)
    slopes = derivatives(net, {"params": params}, x, zero, losses)
    inside = {name: scores[name] > jnp.median(scores[name]) for name in scores}
    means = [saliency.mean_score(slopes, layers, live, masks) for masks in (None, inside)]
    return scores, inside, means

  scores, inside, (mean, mean_inside) = found()
  flat = np.concatenate([np.asarray(scores[name]).ravel() for name in layers]) * 6 / 4
  np.testing.assert_allclose(mean, flat.mean(), rtol=1e-5)
  chosen = np.concatenate([np.asarray(scores[name])[np.asarray(inside[name])] for name in layers]) * 6 / 4
  np.testing.assert_allclose(mean_inside, chosen.mean(), rtol=1e-5)
