"""Subnetworks: what stays frozen, whose expert a task gets, what is chosen, and who answers without a label."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.config import complete, default
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.methods.subnetwork.subnets import deviations, layout_of
from cljax.ops import masks
from cljax.ops.infer import mean_entropy
from cljax.run import train
from tests import toys
from tests.subnetworks import APART, GIVEN, OPEN, OTHER, Run, answer, apart, by_accuracy, given, shared, toy
from tests.tiers import at_release


def test_frozen_weights_keep_their_bits_and_answers_stay_the_same():
  run = shared()
  x = jnp.asarray(run.data.test_bank.x / np.float32(255))
  np.testing.assert_array_equal(run.report("expert"), [0, 0, 0])
  for t, then in enumerate(run.kept):
    now = run.kept[-1]
    for slot in range(t + 1):
      answers = [np.asarray(answer()(s, x, jnp.full(60, slot)).logits) for s in (then, now)]
      np.testing.assert_array_equal(*answers)
    for name, bits in then.learner.subnets.bits.items():
      shape = then.learner.params[name]["kernel"].shape
      held = np.asarray(masks.unpack(np.bitwise_or.reduce(bits[: t + 1], axis=0), shape))
      weights = [state.learner.subnets.store[name]["kernel"][0][held] for state in (then, now)]
      assert weights[0].tobytes() == weights[1].tobytes() and held.any()
  first, last = run.kept[0], run.kept[-1]
  assert not np.array_equal(
    first.learner.subnets.store["first"]["kernel"][0], last.learner.subnets.store["first"]["kernel"][0]
  )
  np.testing.assert_array_equal(
    first.learner.subnets.store["first"]["bias"][0], last.learner.subnets.store["first"]["bias"][0]
  )


def test_a_mask_has_k_weights_and_the_frozen_share_only_grows():
  run = shared()
  for name, share in zip(("first", "hidden_1", "head"), GIVEN["fractions"], strict=True):
    size = run.state.learner.params[name]["kernel"].size
    for slot in range(3):
      assert np.unpackbits(run.state.learner.subnets.bits[name][slot]).sum() == round(share * size)
  frozen = run.carry.reports["frozen_share"][0, :, 0]  # [T, layers] of expert 0
  assert (np.diff(frozen, axis=0) >= 0).all() and (np.diff(frozen, axis=0) > 0).any()
  np.testing.assert_allclose(frozen[0], GIVEN["fractions"], atol=0.02)


def test_it_learns_and_forgets_nothing():
  R = shared().carry.right["task"][0]
  for task in range(3):
    assert R[task + 1, task] == R[-1, task]
  accuracy = R[-1] / shared().experiment.test_rows[0]
  assert accuracy.mean() > 0.8, accuracy


def test_without_overlap_each_task_opens_an_expert():
  run = apart()
  np.testing.assert_array_equal(run.report("expert"), [0, 1, 2])
  assert (run.report("frozen_share") > 0).all()
  assert np.isnan(run.report("overlap")[0]).all() and np.isfinite(run.report("overlap")[2, :2]).all()


def test_a_full_expert_is_not_shared():
  run = Run(given(like=toy(), numbers={**OPEN, "capacity_hidden": 0.21}))
  np.testing.assert_array_equal(run.report("expert"), [0, 1, 2])


def test_running_out_of_experts_names_the_key():
  """One slot is done already, on the second expert of three."""
  base = given(like=toy(), numbers=APART)
  carry = base.start()
  subnets = carry.state.learner.subnets
  subnets = subnets.replace(expert_of=subnets.expert_of.at[:, 0].set(1), done=subnets.done.at[:, 0].set(True))
  carry.state = carry.state.replace(learner=carry.state.learner.replace(subnets=subnets))
  with pytest.raises(ConfigError, match=r"config\.method\.experts does not suffice"):
    base.run(carry=carry)
  assert (carry.row, np.asarray(carry.state.learner.full)) == (2, True)


def test_a_task_that_comes_again_is_recognised():
  run = Run(given(same=[(2, 0)], like=toy()))
  np.testing.assert_array_equal(run.carry.slot_of[0], [0, 1, 0])
  assert bool(run.report("reused")) and run.report("expert")[2] == -1
  before, after = run.kept[1], run.kept[2]
  chex.assert_trees_all_equal(before.learner.subnets, after.learner.subnets)
  assert run.carry.right["task"][0, -1, 2] == run.carry.right["task"][0, -1, 0]


def test_the_selector_takes_the_least_entropy_and_sees_no_label():
  run = shared()
  x = jnp.asarray(run.data.test_bank.x[:32] / np.float32(255))
  each = [float(mean_entropy(answer()(run.state, x, jnp.full(32, k)).logits)) for k in range(3)]
  out = answer()(run.state, x, None)
  np.testing.assert_array_equal(out.task, np.full(32, np.argmin(each)))
  order = np.random.default_rng(0).permutation(32)
  np.testing.assert_array_equal(answer()(run.state, x[order], None).task, out.task)
  first = run.kept[0]  # one slot: it answers whatever comes
  np.testing.assert_array_equal(answer()(first, 1 - x, None).task, np.zeros(32))
  empty = jax.jit(toy().method.init)(jax.random.key(0))
  np.testing.assert_array_equal(answer()(empty, x, None).task, np.full(32, -1))


def test_a_slot_keeps_what_is_typical_of_its_rows():
  """Mean and variance over the task's training rows, of the pictures as the net sees them and of its own features."""
  run, learner = shared(), shared().state.learner
  for t, (idx, count) in enumerate(zip(run.data.tasks.train.idx, run.data.tasks.train.count, strict=True)):
    x = (run.data.bank.x[idx[:count]] / np.float32(255) - 0.5) / 0.5
    x = x.reshape(count, -1)[:, run.data.tasks.train.warp.index[t]].reshape(x.shape)
    net = layout_of(learner.subnets).function(learner.subnets, t)
    features = toys.wide_mlp(run.spec).apply({"params": net}, x, jnp.zeros(count, jnp.int32)).features
    for name, values in (("pictures", x.reshape(count, -1)), ("features", np.asarray(features))):
      expected = np.stack([values.mean(axis=0), values.var(axis=0)])
      np.testing.assert_allclose(learner.typical[name][t], expected, rtol=1e-4, atol=1e-5)


def test_entropy():
  assert float(mean_entropy(jnp.zeros((3, 2)))) == pytest.approx(0.693147, abs=1e-6)
  assert float(mean_entropy(jnp.array([[1000.0, 0.0]]))) == 0


def test_labels_of_the_test_rows_change_no_route():
  run = shared()
  test_bank = run.data.test_bank._replace(y=(run.data.test_bank.y + 1) % 4)
  stream = run.experiment.on_devices(run.data._replace(test_bank=test_bank), run.experiment.axes)
  compiled = run.subject.compiled
  at = run.experiment.numbers(1, 2)
  slot = run.experiment.on_devices(np.array([1], np.int32), 0)
  counts = compiled["evaluate.inferred"](run.carry.hyper, run.carry.state, stream, *at, slot, None)
  np.testing.assert_array_equal(counts["confusion"][0], run.carry.confusion["inferred"][0, 1])


VARIANTS = {
  "fisher": lambda: given(like=toy(), new=(".enter", ".exit"), score="fisher", retrain=0),
  "accuracy": by_accuracy,
  "threshold": lambda: given(like=by_accuracy(), new=(".exit",), select="threshold", **OTHER),
}


@functools.cache
def variant(name):
  return Run(VARIANTS[name]())


@pytest.mark.parametrize("name", ["accuracy", *at_release("fisher", "threshold")])
def test_variants_train_and_keep_what_they_froze(name):
  run = variant(name)
  R = run.carry.right["task"][0]
  for task in range(3):
    assert R[task + 1, task] == R[-1, task]
  assert (run.report("frozen_share")[0] > 0).all()


def test_each_task_may_have_biases_of_its_own():
  first, *_, last = (kept.learner.subnets for kept in variant("accuracy").kept)
  for path, biases in last.biases.items():
    np.testing.assert_array_equal(biases[0], first.biases[path][0])
    assert not np.array_equal(biases[0], biases[1])


def test_a_task_may_use_the_weights_of_similar_tasks_only():
  overlap = shared().report("overlap")
  limit = float((overlap[2, 0] + overlap[2, 1]) / 2)
  run = Run(given(like=toy(), new=(".enter",), numbers={**OPEN, "overlap_from": limit}, forward_from="similar"))
  subnets, found = run.state.learner.subnets, run.report("overlap")
  same = subnets.expert_of[:, None] == subnets.expert_of
  np.testing.assert_array_equal(subnets.sees, same & (np.nan_to_num(found, nan=-1) >= limit) & np.tri(3, 3, -1, bool))
  assert 0 < int(subnets.sees.sum()) < 3
  assert run.carry.right["task"][0, 1, 0] == run.carry.right["task"][0, -1, 0]


@pytest.mark.parametrize("labels", [True, False])
def test_deviations_are_stored_scores_less_those_of_the_rows(labels):
  """By a loop over layers and slots, from the bits and the stored numbers."""
  run = shared()
  subnets, net = run.state.learner.subnets, toys.wide_mlp(run.spec)
  x = (jnp.asarray(run.data.test_bank.x[:3] / np.float32(255)) - 0.5) / 0.5
  y = jnp.asarray(run.data.test_bank.y[:3]) if labels else None
  found, zero = jax.jit(lambda subnets: deviations(net, subnets, x, y))(subnets), jnp.zeros(3, jnp.int32)
  layout = layout_of(subnets)

  @jax.jit
  def gradients(subnets, s):
    params = layout.function(subnets, s)
    answers = net.apply({"params": params}, x, zero).logits.argmax(axis=-1) if y is None else y

    def loss(params, x, y):
      logits = net.apply({"params": params}, x[None], zero[:1]).logits
      return optax.softmax_cross_entropy_with_integer_labels(logits, y[None])[0]

    return jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, answers)

  for s in range(3):
    each = gradients(subnets, s)
    for l, name in enumerate(("first", "hidden_1", "head")):
      size = subnets.store[name]["kernel"][0].size
      mask = np.unpackbits(np.asarray(subnets.bits[name][s]))[:size].astype(bool)
      stored = np.asarray(subnets.scores[name][s], np.float32)[: mask.sum()] * float(subnets.means[s, l])
      gradient = np.abs(np.asarray(each[name]["kernel"])).mean(axis=0).ravel()[mask]
      assert float(found[s, l]) == pytest.approx((stored - gradient).sum(), rel=1e-3, abs=1e-4)


def test_accuracy_selects_the_smallest_share_that_keeps_it():
  """Nothing asked: the smallest share of the ladder; more than all asked: half of each layer."""
  few, many = (
    Run(given(like=by_accuracy(), numbers={**APART, "keep_accuracy": least}, select="accuracy", **OTHER)).report(
      "frozen_share"
    )
    for least in (0.0, 2.0)
  )
  assert (few < 0.02).all() and (np.abs(many - 0.5) < 0.02).all()


@pytest.mark.parametrize(
  ("keywords", "words"),
  [
    ({"select": "best"}, "topk, threshold, accuracy"),
    ({"score": "hessian"}, "grad, taylor, fisher"),
    ({"fractions": (0.1, 0.1)}, "a share in"),
    ({"fractions": (0.1, 0.1, 1.5)}, r"config\.method\.fractions=.*1\.5\) is too large; the most is 1"),
    ({"fractions": ()}, r"config\.method\.fractions=\(\) holds 0 values"),
    ({"onset_quantile": 2}, r"config\.method\.onset_quantile=2 is too large; the most is 1"),
    ({"window": -5}, r"config\.method\.window=-5 is too small; the least is 1"),
    ({"slots": -3}, r"config\.method\.slots=-3 is too small; the least is 0"),
  ],
)
def test_refusals(keywords, words):
  spec, _ = toys.stream(heads=1)
  with pytest.raises(ConfigError, match=words):
    METHODS["subnetwork"](toys.wide_mlp(spec), optax.adam(0.01), spec, **keywords)


def test_a_stream_with_several_heads_is_refused():
  spec, _ = toys.stream()
  with pytest.raises(ConfigError, match=r"config\.stream\.name='subsets'"):
    METHODS["subnetwork"](toys.wide_mlp(spec), optax.adam(0.01), spec)


@pytest.mark.slow
def test_six_pairs_of_digits_end_to_end():
  """The paper's tasks on the embedded digits: every answer among ten classes, and the task found in batches of 32."""
  config = default()
  config.num_seeds, config.evaluate_group = 2, 32
  config.stream = {"name": "subsets", "source": "digits"}
  config.net = {"name": "mlp", "hidden": (64, 64)}
  config.optimizer = {"name": "adam", "lr": 1e-3}
  config.method = {"name": "subnetwork", "epochs": 15, "fractions": (0.1, 0.1, 0.1)}
  result = train(complete(config), quiet=True).result
  assert result["metrics"]["ACC"]["mean"] > 0.95
  np.testing.assert_array_equal(result["metrics"]["forgetting"]["values"], 0)
  assert result["readouts"]["inferred"]["task_recognition"]["mean"] > 0.7


def test_subsets_share_classes_and_keep_all_logits_live():
  from cljax.data import STREAMS, bank

  source = bank.load("digits")
  spec, stream = STREAMS["subsets"](source, jax.random.key(0), classes=((1, 5), (2, 5)))
  assert (spec.T, spec.C, spec.heads) == (2, 10, 1) and stream.tasks.classes.all()
  for t, labels in enumerate(({1, 5}, {2, 5})):
    assert set(source.train.y[stream.tasks.train.idx[t, : stream.tasks.train.count[t]]]) == labels
  np.testing.assert_array_equal(stream.tasks.label_map[1], np.arange(10))
  with pytest.raises(ConfigError, match=r"no labels \[10\]"):
    STREAMS["subsets"](source, jax.random.key(0), classes=((1, 10),))
