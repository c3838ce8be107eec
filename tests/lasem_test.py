"""The steps of LASEM: posterior-weighted gradients, what each form of EM counts and moves, and what it commits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.methods.exhibits import EXHIBITS
from cljax.methods.lasem.em import EM
from cljax.methods.lasem.keywords import Selection, bits
from cljax.metrics import spread
from cljax.nets import MLP, Stack
from cljax.ops.posterior import configurations
from cljax.outcome import outcome_of
from cljax.pieces.layered import params_of
from cljax.pieces.optimizers import sgd
from cljax.pieces.transfer import Decay, scaled
from cljax.report.exhibits import columns_of, figures_of
from cljax.types import At, Clock, Place
from tests import toys
from tests.results import S, T, fake
from tests.rows import fetch, view_at
from tests.sharing_test import layered
from tests.subjects import Subject, first
from tests.tiers import at_release

ROWS = 6
CLOCK = Clock(*(jnp.int32(n) for n in (0, 0, 8, 0)))


@functools.cache
def data():
  spec, stream = toys.stream()
  stream = jax.device_put(stream)
  view = view_at(stream, jnp.int32(1), spec.heads)
  batch = fetch(view, Place(jnp.ones(ROWS, jnp.int32), stream.tasks.train.idx[1, :ROWS]))
  return spec, view, batch


@functools.cache
def em_of(name="hps", dropout=0.0, decay=0.0, lr=0.5, **choice):
  spec, view, _ = data()
  net = {"channels": (3, 3), "pools": (1, 2), "dropout": dropout, "weight_scale": 0.3, "bias": 0.1}
  nets = layered(name, x_shape=spec.x_shape, T=spec.T, C=spec.C, **net)
  selection = Selection(**choice)
  em = EM(nets, sgd(lr), selection, bits(selection.layers, 2), Decay(decay), epochs=5)
  state = jax.jit(em.init)(jax.random.key(0))
  return em, jax.jit(em.enter)(jax.random.key(1), state, view, CLOCK)


@functools.cache
def stepping(em):
  return jax.jit(em.step)


def steps(em, state, count, batch=None):
  """States after each of `count` steps on one batch, and the infos."""
  _, view, usual = data()
  step, found = stepping(em), []
  for k in range(count):
    clock = CLOCK._replace(epoch=jnp.int32(k // 8), step=jnp.int32(k % 8))
    state, info = step(jax.random.key(k), state, usual if batch is None else batch, clock, view)
    found.append((state, info))
  return found


@pytest.mark.parametrize("name", ["hps", *at_release("tf", "df_cnn")])
def test_one_backward_pass_is_the_sum_over_configurations(name):
  """The gradient of the weighted loss is the weighted sum of gradients, and nothing flows through the posterior."""
  em, state = em_of(name)
  _, _, batch = data()
  params, key, table = params_of(state.layers), jax.random.key(2), jnp.asarray(configurations(2))

  @jax.jit
  def both(params):
    whole, (_, q) = jax.grad(em.weighted, has_aux=True)(params, batch, key, state.weights)
    each = jax.lax.map(lambda c: jax.grad(em.alone, has_aux=True)(params, batch, key, c)[0], table)
    return whole, jax.tree.map(lambda leaves: jnp.tensordot(q, leaves, 1), each), q

  whole, expected, q = both(params)
  chex.assert_trees_all_close(whole, expected, atol=2e-6)
  assert q.max() < 0.9 and max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole)) > 1e-3


def test_one_configuration_alone_is_plain_training():
  """A posterior of 1 on it: the same step, and nothing else moves."""
  alone, state = em_of(choose="static", layers="01")
  fixed, _ = em_of(choose="fixed", layers="01", posterior_weight=1.0)
  one, other = (steps(em, state, 3)[-1][0].layers for em in (alone, fixed))
  chex.assert_trees_all_close(params_of(one), params_of(other), atol=1e-6)
  for layers in (one, other):
    chex.assert_trees_all_equal(layers.shared[0], state.layers.shared[0])
    chex.assert_trees_all_equal(layers.work["layers"][1], state.layers.work["layers"][1])
    assert not np.array_equal(layers.shared[1]["kernel"], state.layers.shared[1]["kernel"])
    assert not np.array_equal(layers.work["layers"][0]["kernel"], state.layers.work["layers"][0]["kernel"])


def test_a_step_of_the_paper_counts_the_most_probable():
  em, state = em_of()
  _, _, batch = data()
  params = params_of(state.layers)
  q = jax.jit(lambda p: em.weighted(p, batch, jax.random.key(0), state.weights)[1][1])(params)
  (after, info), *_ = steps(em, state, 1)
  assert after.weights.sum() == 1 and after.weights[q.argmax()] == 1
  assert float(info["prior_max"]) == pytest.approx(2 / 5) and int(info["configuration"]) == int(q.argmax())


def test_a_step_of_the_release_adds_the_posterior():
  em, state = em_of(likelihood="mean", prior="posteriors")
  _, _, batch = data()
  q = jax.jit(lambda p: em.weighted(p, batch, jax.random.key(0), state.weights)[1][1])(params_of(state.layers))
  np.testing.assert_allclose(steps(em, state, 1)[0][0].weights, q, rtol=1e-6)


def test_an_e_step_at_every_third_batch():
  """One count each, and the M-step moves what is best by then."""
  em, state = em_of(m_step="best", e_every=3)
  found = [int(after.weights.sum()) for after, _ in steps(em, state, 7)]
  assert found == [1, 1, 1, 2, 2, 2, 3]
  (after, _), *_ = steps(em, state, 1)
  static, _ = em_of(choose="static", layers="".join(str(int(bit)) for bit in em.config(after)))
  chex.assert_trees_all_close(params_of(after.layers), params_of(steps(static, state, 1)[0][0].layers), atol=1e-6)


def test_all_configurations_until_the_prior_is_sharp():
  """Counts go on to the first prior above the threshold: 3 of 4 + 4 batches is .57 where the first three agree."""
  em, state = em_of(m_step="until", until=0.5, lr=0.0)
  found = steps(em, state, 6)
  np.testing.assert_allclose([info["prior_max"] for _, info in found], [2 / 5, 3 / 6, *[4 / 7] * 4], rtol=1e-6)
  assert [int(after.weights.sum()) for after, _ in found] == [1, 2, 3, 3, 3, 3]


def test_several_m_steps_keep_the_posterior():
  em, state = em_of(m_steps=2)
  _, view, batch = data()
  (after, _), *_ = steps(em, state, 1)
  keys = jax.random.split(jax.random.key(0), 2)

  @jax.jit
  def twice(state, weights):
    state, (_, q) = em.descend(At(keys[0], CLOCK, view), state, batch, lambda p, b: em.weighted(p, b, keys[0], weights))
    return em.descend(At(keys[1], CLOCK, view), state, batch, lambda p, b: em.weighted(p, b, keys[1], weights, q))[0]

  expected = twice(state, state.weights)
  chex.assert_trees_all_close(params_of(after.layers), params_of(expected.layers), atol=1e-6)
  assert after.weights.sum() == 1


def test_the_rate_falls_over_the_whole_lifetime():
  """lr / (1 + decay * epoch), the epochs of the tasks before counted; a new task starts the optimizer anew."""
  tx = scaled(optax.sgd(1.0))
  assert float(tx.update(jnp.float32(2), tx.init(jnp.float32(0)), scale=0.25)[0]) == -0.5
  moved = []
  for decay in (0.0, 0.2):
    em, state = em_of(decay=decay, choose="static")
    after = steps(em, state, 1)[0][0].layers
    moved.append(np.asarray(after.shared[0]["bias"] - state.layers.shared[0]["bias"]))
  np.testing.assert_allclose(moved[1], moved[0] / (1 + 0.2 * 5), rtol=1e-4, atol=1e-8)  # task 1 of 5 epochs


def test_dropout_is_drawn_for_each_configuration():
  """And never in the E-step: the posterior is that without dropout."""
  _, _, batch = data()
  em, state = em_of(dropout=0.5)
  plain, _ = em_of()
  params = params_of(state.layers)
  (value, (_, q)), (other, (_, same)) = (
    jax.jit(each.weighted)(params, batch, jax.random.key(3), state.weights) for each in (em, plain)
  )
  np.testing.assert_allclose(q, same, rtol=1e-6)
  assert abs(float(value) - float(other)) > 1e-4


def test_dead_batches_teach_nothing():
  em, state = em_of()
  _, _, batch = data()
  (after, info), *_ = steps(em, state, 1, batch._replace(live=jnp.zeros(ROWS, bool)))
  chex.assert_trees_all_equal(after, state)
  assert float(info["loss"]) == 0


def subject(looks=(), **choice):
  spec, stream = toys.stream()
  method = METHODS["lasem"](toys.stack(spec), sgd(0.3), spec, **{"epochs": 4, **choice})
  return Subject(toys.experiment(method, spec, stream, chunk=24, every_task=True, looks=looks))


@functools.cache
def static():
  """All tasks share all layers, unless the state gives them other configurations."""
  return subject(choose="static")


def test_tasks_that_share_nothing_never_change():
  """Single tasks: an answer, once right or wrong, stays. With all layers shared answers change."""
  for number, forgets in ((3, False), (0, True)):
    carry = static().start()
    carry.state = carry.state.replace(given=jnp.full_like(carry.state.given, number))
    static().run(carry=carry)
    right = carry.right["task"][0]
    later = [right[t + 1 :, t] for t in range(2)]  # from the end of the task on
    assert any(len(set(column.tolist())) > 1 for column in later) == forgets, right
    assert first(carry.state).layers.configs.all() == forgets


@functools.cache
def searching():
  return subject(("trials",), choose="search")


@functools.cache
def searched():
  return searching().run()


def test_a_search_tries_all_configurations_and_commits_the_best():
  """By validation rows, the first of equals, for each task; the trial that wins is kept as it ended."""
  state = first(searched().state)
  valid = np.asarray(state.search.valid)
  assert valid.shape == (3, 4) and (valid >= 0).all() and len(np.unique(valid)) > 2
  np.testing.assert_array_equal(state.layers.configs, configurations(2)[valid.argmax(axis=1)])
  np.testing.assert_array_equal(state.given, valid.argmax(axis=1))


def test_test_rows_of_all_trials_are_kept():
  """At each trial's best epoch by validation rows, its last one included; the peak is that of the winner."""
  peak = outcome_of(searching().experiment, searched()).result["peak"]
  trials = {name: np.array(value, float) for name, value in peak["trials"].items()}
  np.testing.assert_allclose(trials["valid"], searched().state.search.valid, rtol=1e-6)
  assert trials["test"].shape == (2, 3, 4) and len(np.unique(trials["test"])) > 4
  np.testing.assert_array_equal((trials["epoch"] - 1) // 4, np.broadcast_to(np.arange(4), (2, 3, 4)))
  assert (trials["epoch"] % 4 == 0).any()  # the last of its trial
  winner = searched().state.given[..., None]
  np.testing.assert_array_equal(peak["test"], np.take_along_axis(trials["test"], np.asarray(winner), axis=2)[..., 0])


def test_the_first_trial_is_training_with_its_configuration():
  """All shared, from the same start, by the same keys: a search of which the first trial has just ended."""
  ends = []
  for each in (searching(), static()):
    units = [unit for unit in each.units() if unit.kind in ("view", "enter", "chunk", "tick") and unit.at.task == 0]
    last = [i for i, unit in enumerate(units) if unit.kind == "tick"][3:4] or [len(units) - 1]
    ends.append(first(each.run(units=units[: last[0] + 1]).state))
  search, alone = ends
  chex.assert_trees_all_equal(search.search.best, params_of(alone.layers))
  assert search.search.trial == 1 and search.search.winner == 0
  chex.assert_trees_all_equal(search.layers.shared, search.layers.backup)


def test_random_configurations_are_each_task_s_and_seed_s_own():
  em, _ = em_of(choose="random")
  given = jax.jit(jax.vmap(lambda seed: em.init(jax.random.key(seed)).given))(jnp.arange(40))
  assert len(np.unique(given)) == 4 and len(np.unique(given, axis=0)) > 20


@pytest.mark.parametrize(
  ("rule", "expected"),
  [
    ("all", "1111"),
    ("none", "0000"),
    ("alternating", "0101"),
    ("top_1", "0001"),
    ("bottom_3", "1110"),
    ("1001", "1001"),
  ],
)
def test_rules_of_configurations(rule, expected):
  assert "".join(str(int(bit)) for bit in bits(rule, 4)) == expected


@pytest.mark.parametrize(
  ("keywords", "words"),
  [
    ({"layers": "top_5"}, "config.method.layers='top_5': the net has 2 groups of layers; use at most top_2"),
    ({"layers": "101"}, "config.method.layers='101' has 3 bits, and there are 2 groups of layers"),
    ({"layers": "everything"}, "config.method.layers='everything' is not known"),
    ({"layers": "top_K"}, "put a number for K, such as top_2"),
    ({"groups": (3,)}, "config.method.groups=(3,) are 3 layers, and the net has 2 convolutions"),
    (
      {"likelihood": "mean"},
      "config.method.prior='counts' with config.method.likelihood='mean' settles on an arbitrary",
    ),
    (
      {"sharing": "df_cnn", "base_depths": (1,)},
      "config.method.base_depths=(1,) must have 2 entries, one a convolution",
    ),
    ({"m_steps": 2, "m_step": "best"}, "config.method.m_steps=2 goes with config.method.m_step='all'"),
    ({"e_every": 8}, "config.method.e_every=8 goes with config.method.m_step='best'"),
  ],
)
def test_choices_that_do_not_go_together_are_refused(keywords, words):
  spec, _, _ = data()
  with pytest.raises(ConfigError) as caught:
    METHODS["lasem"](toys.stack(spec), sgd(0.1), spec, **keywords)
  assert words in str(caught.value)


def test_too_many_configurations_are_refused_with_their_bytes():
  spec, _, _ = data()
  deep = Stack(heads=3, classes=4, channels=(64,) * 17, pools=(1,))
  with pytest.raises(ConfigError, match=r"17 groups of layers have 2\^17 = 131072 configurations, .* bytes"):
    METHODS["lasem"](deep, sgd(0.1), spec._replace(x_shape=(32, 32, 3)))
  with pytest.raises(ConfigError, match="config.net.name='stack'"):
    METHODS["lasem"](MLP(3, 4), sgd(0.1), spec)
  with pytest.raises(ConfigError, match="config.stream.scenario='task'"):
    METHODS["lasem"](toys.stack(one := spec._replace(heads=1)), sgd(0.1), one)


def test_a_report_shows_what_is_shared_and_what_is_left():
  """Peaks and the accuracy before the roll-back have ratios of their own."""
  shared = np.zeros((S, T, 2), bool)
  shared[0, :, 1] = True
  told = {
    "shared_layers": shared,
    "prior_max": np.full((S, T), 0.9),
    "effective": np.full((S, T), 1.5),
    "changed": np.tile(np.arange(T), (S, 1)),
  }
  after_each = {name: np.stack([array] * T, axis=1) for name, array in told.items()}
  result = fake("lasem", report=after_each)
  R = np.array(result["accuracy"], float)
  then = np.diagonal(R[:, 1:], axis1=1, axis2=2)
  result["peak"] = {"test": (2 * then).tolist(), **spread((2 * then).mean(axis=1))}
  found = columns_of(result, EXHIBITS)
  ratio = (R[:, -1, :-1] / then[:, :-1]).mean(axis=1)
  np.testing.assert_allclose(found["forgetting ratio"]["values"], ratio)
  np.testing.assert_allclose(found["ratio to peaks"]["values"], ratio / 2)
  assert found["layers shared"]["values"][:2] == [0.5, 0] and found["last change at batch"]["mean"] == (T - 1) / 2
  assert "±" in found["peak, 95 % interval by t"]
  figures = figures_of(result, after_each, "title", EXHIBITS)
  bars = [bar.get_height() for bar in figures["shared_layers"].axes[1].patches]
  np.testing.assert_allclose(bars, [0, 1 / S])
