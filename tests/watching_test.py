"""Boundaries that the stream hides: when an onset is noticed, what is held back, consolidated, recognised, reopened."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.config import complete, default
from cljax.data import STREAMS, bank
from cljax.drive import Driver, drive, start
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.methods.subnetwork import saliency
from cljax.monitor import Monitor
from cljax.nets import MLP
from cljax.ops import masks, recent
from cljax.run import compile_events, train
from cljax.types import Place, Rows
from tests import toys

SMALL = {
  "batch_size": 16, "epochs": 1, "retrain": 60, "experts": 2, "slots": 6, "fractions": (0.15, 0.15, 0.25), "warmup": 30,
  "onset_history": 20, "window": 512,
  "overlap_from": 0.0, "deviation_up_to": 1e9, "capacity_hidden": 1.0, "capacity_output": 1.0,
}  # fmt: skip
AGAIN = ((1, 5), (2, 6), (1, 5), (3, 7))
BATCH = 16


class Hidden:
  """A run on tasks of the embedded digits whose boundaries nobody tells."""

  def __init__(self, classes=AGAIN, passes=8, cut=None, change=None, chunk=0, **keywords):
    self.spec, self.data = STREAMS["subsets"](
      bank.load("digits"), jax.random.key(0), classes=classes, boundaries=False, passes=passes
    )
    train = self.data.tasks.train
    self.rows = np.concatenate([idx[:count] for idx, count in zip(train.idx, train.count, strict=True)])
    self.edges = np.cumsum(train.count)[:-1] // BATCH  # the first batch with a row of the next task
    if cut is not None or change is not None:
      rows = self.rows if change is None else change(self.rows.copy())
      ends = np.cumsum(train.count)[:-1] if cut is None else cut
      self.data = self.data._replace(tasks=self.data.tasks._replace(train=Rows(*toys.pad(np.split(rows, ends)), None)))
    net = MLP(heads=1, classes=10, hidden=(32, 32))
    self.method = METHODS["subnetwork"](net, optax.adam(0.003), self.spec, **{**SMALL, **keywords})
    experiment = toys.experiment(self.method, self.spec, self.data, seeds=(0,), evaluate_group=32, chunk=chunk)
    self.experiment = experiment
    compiled = compile_events(experiment)
    self.carry = start(experiment, compiled)
    driver = Driver(experiment, compiled, Monitor(None, 1, 0, 0, "toy", True), None, lambda: False)
    drive(experiment.timeline.units(None, 0), self.carry, driver)

  @property
  def state(self):
    return jax.tree.map(lambda leaf: leaf[0], self.carry.state)

  def report(self, name):
    return self.carry.reports[name][0, -1]

  def onsets(self):
    steps = self.report("onset_step")
    return steps[steps >= 0]


@functools.cache
def again() -> Hidden:
  return Hidden()


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
  chex.assert_trees_all_equal(Hidden(cut=(37, 1000, 1003), chunk=13).carry.state, again().carry.state)


def test_rows_held_back_do_not_reach_the_task_before():
  """Other rows of the next task in the batches that fire: what was consolidated before is the same to the bit."""
  run = again()
  first, step = int(run.edges[0]) + 1, int(run.onsets()[0])  # the batch with both tasks' rows may differ

  def other(rows):
    new = slice(first * BATCH, (step + 1) * BATCH)
    rows[new] = np.roll(rows[new], 5)
    rows[new.start] = rows[new.stop + 40]
    return rows

  changed = Hidden(change=other)
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
  """With so many needed in a row that none is an onset, all is as if nothing were watched."""
  one = {"classes": ((1, 5),), "passes": 6, "retrain": 0, "warmup": 5, "onset_batches": 12, "decide_after": 12}
  held = Hidden(onset_factor=1.0, onset_quantile=0.5, **one)
  plain = Hidden(onset_factor=1e30, onset_quantile=0.5, **one)
  assert len(held.onsets()) == 0 and int(held.report("fired")) > 3 and int(plain.report("fired")) == 0
  chex.assert_trees_all_equal(held.state.learner, plain.state.learner)


def test_a_slot_of_few_rows_goes_on_learning_when_its_task_comes_again():
  """The window was not full when it was consolidated, and no later task of its expert builds on it."""
  run = Hidden(classes=AGAIN[:3], overlap_from=1.1, window=4096)
  np.testing.assert_array_equal(run.carry.slot_of[0], [0, 1, 0])
  assert not bool(run.report("reused"))
  assert int(run.state.watching.rows[0]) == int(run.state.watching.window.count) > 1000


def test_the_mask_of_the_task_before_may_be_watched():
  run = Hidden(classes=((1, 5), (2, 6), (3, 7)), watch="last", retrain=0)
  delay = run.onsets() - run.edges
  assert len(delay) == 2 and ((delay >= 1) & (delay <= 2)).all()


def test_the_loss_may_be_watched_and_running_out_of_slots_names_the_key():
  with pytest.raises(ConfigError, match=r"config\.method\.slots does not suffice"):
    Hidden(classes=AGAIN[:2], slots=1, watch="loss", retrain=0)


@pytest.mark.parametrize(
  ("stream", "method", "words"),
  [
    ({}, {"epochs": 5}, r"config\.method\.epochs=5: where boundaries are hidden"),
    ({"passes": 0}, {}, r"config\.stream\.passes=0: at least 1"),
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
    window = recent.enter(window, Place(rows + 100, rows), rows != 4)
  assert int(window.count) == 8
  assert sorted(window.place.row.tolist()) == [3, 5, 6, 7, 8]
  place, live = recent.picked(window, window.place.row % 2 == 1, 4)
  assert sorted(place.row[live].tolist()) == [3, 5, 7] and int(live.sum()) == 3
  np.testing.assert_array_equal(place.task[live], place.row[live] + 100)


def test_a_window_that_is_not_full_has_dead_entries():
  window = recent.enter(recent.empty(4), Place(jnp.array([7]), jnp.array([8])), jnp.array([True]))
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

  scores = saliency.dense_scores(net, params, x, zero, losses)
  _, inputs, found = saliency.slopes(net, params, x, zero, losses)
  layers = ("first", "hidden_1")
  flat = np.concatenate([np.asarray(scores[name]).ravel() for name in layers]) * 6 / 4
  np.testing.assert_allclose(saliency.mean_score(inputs, found, layers, live), flat.mean(), rtol=1e-5)
  inside = {name: scores[name] > np.median(scores[name]) for name in scores}
  chosen = np.concatenate([np.asarray(scores[name])[np.asarray(inside[name])] for name in layers]) * 6 / 4
  np.testing.assert_allclose(saliency.mean_score(inputs, found, layers, live, inside), chosen.mean(), rtol=1e-5)
