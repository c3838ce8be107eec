"""Networks to begin with: by the loss of a new head after its steps, and on the meta-training classes too."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import artifacts
from cljax.data import bank
from cljax.errors import ConfigError
from cljax.keys import INIT
from cljax.meta.episodes import fresh_heads
from cljax.meta.outer import SEGMENT, Adam, episode_key
from cljax.meta.query import HEADS, QUERY, STEPS, Query
from cljax.meta.settings import settings_of
from cljax.meta.start import learner_of, old_task, source_of
from cljax.meta.train import train
from cljax.meta.unroll import Inner
from cljax.nets import MLP
from cljax.predict import Predictor
from tests.meta_test import lines_of, quick, untrained
from tests.outer_test import KEY, episodes_of

START = {"trains": "start", "curriculum": {"truncation": 2, "truncation_most": 2}, "length": {"segments": 8}}


def query_of(lr=0.01):
  return Query(MLP(3, 2, (4,)), Inner(alpha=0.5, old_batch=4, new_batch=6), Adam(lr=lr).transform(20), "head", 3, 2)


def by_hand(params, x, y, slot):
  """Mean cross-entropy of an MLP of one hidden layer whose heads lie side by side, two columns each."""
  features = jax.nn.relu(x.reshape(len(x), -1) @ params["first"]["kernel"] + params["first"]["bias"])
  logits = (features @ params["head"]["kernel"] + params["head"]["bias"]).reshape(len(x), 3, 2)
  own = jnp.take_along_axis(logits, slot[:, None, None], axis=1)[:, 0]
  return (jax.nn.logsumexp(own, axis=1) - jnp.take_along_axis(own, y[:, None], axis=1)[:, 0]).mean()


def test_a_step_is_the_query_s_gradient_through_the_steps_of_the_head():
  """The loss and Adam's move of one segment against a loop in the open: the head of slot 1 alone takes the steps."""
  it, episodes, S = query_of(), episodes_of(), 2
  params = jax.tree.map(lambda leaf: leaf[1], episodes.starts)
  segment = jax.jit(
    lambda params: it.segment(KEY, episodes, S, it.begin(KEY, params, episodes), jnp.int32(5))  # of a new episode
  )
  after, told = segment(params)
  own = jax.random.fold_in(jax.random.fold_in(KEY, SEGMENT), 5)

  @jax.jit
  def batches():
    classes = episodes.classes(episode_key(KEY, jnp.int32(5)), (3, 2))
    keys = jax.random.split(jax.random.fold_in(own, STEPS), S)
    support = [episodes.batch(key, classes, jnp.int32(1), (0, 6)) for key in keys]
    return support, episodes.batch(jax.random.fold_in(own, QUERY), classes, jnp.int32(1), (4, 6))

  support, query = batches()
  assert sorted(query.task.tolist()) == [0] * 4 + [1] * 6
  assert all((batch.task == 1).all() and len(batch.y) == 6 for batch in support)
  drawn = [batch.place.row[-6:].tolist() for batch in (*support, query)]
  assert len({tuple(rows) for rows in drawn}) == 3  # what is asked about are other draws than what the head learnt from

  def loss(params):
    moving = fresh_heads(jax.random.fold_in(own, HEADS), params, "head", 2)
    for batch in support:
      slope = jax.grad(lambda head, m=moving, b=batch: by_hand({**m, "head": head}, b.x, b.y, b.task))(moving["head"])
      moving = {**moving, "head": jax.tree.map(lambda w, g: w - 0.5 * g, moving["head"], slope)}
    return by_hand(moving, query.x, query.y, query.task)

  @jax.jit
  def by_hand_too(params):
    value, slope = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(jnp.add, params, it.tx.update(slope, it.tx.init(params), params)[0])

  expected, moved = by_hand_too(params)
  assert told["loss"] == pytest.approx(float(expected), rel=1e-5)
  chex.assert_trees_all_close(after.theta, moved, rtol=1e-4, atol=1e-5)
  assert not np.array_equal(after.theta["first"]["kernel"], params["first"]["kernel"])
  fresh = slice(2, None)  # heads of new tasks are drawn anew for each episode, so nothing comes back to them
  np.testing.assert_array_equal(after.theta["head"]["kernel"][:, fresh], params["head"]["kernel"][:, fresh])


def test_a_network_is_trained_in_place_of_a_rule(tmp_path):
  untrained(tmp_path / "before")
  file = tmp_path / "before" / "parts" / "seed_0" / "start.npz"
  tmp_path = tmp_path / "run"
  result = train(quick(start={"file": str(file)}, **START), tmp_path, quiet=True)
  assert (result["trains"], result["rule"], result["segments"], result["inner_steps"]) == ("start", "", [8], [16])
  folder = tmp_path / "parts" / "seed_0"
  assert [path.name for path in folder.iterdir()] == ["start.npz"]
  trained, before = (artifacts.read(at) for at in (folder / "start.npz", file))
  assert all(not np.array_equal(trained[name], before[name]) for name in before if "head" not in name)
  assert [row["episode"] for row in lines_of(tmp_path)] == [0, 3, 6]
  assert result["episodes"] == [8] and result["curve"]["segment"] == [[4, 8]]


@pytest.mark.slow
def test_networks_may_know_the_new_classes_half_too(tmp_path):
  """One head of all classes while they learn; what is kept has the net's own heads, drawn anew."""
  settings = quick(trains="nothing", start={"of": "both"}, num_seeds=2)
  result = train(settings, tmp_path, quiet=True)
  assert result["segments"] == [0, 0] and result["curve"]["loss"] == [[], []] and result["trains"] == "nothing"
  for seed in (0, 1):
    own = artifacts.read(tmp_path / "parts" / f"seed_{seed}" / "start.npz")
    trained = artifacts.read(tmp_path / "start" / "parts" / f"seed_{seed}" / "start.npz")
    assert trained["['head']['kernel']"].shape == (8, 10) and own["['head']['kernel']"].shape == (8, 2 * 5)
    assert not own["['head']['bias']"].any() and own["['head']['kernel']"].any()
    np.testing.assert_array_equal(own["['first']['kernel']"], trained["['first']['kernel']"])
    x, slot = jnp.zeros((1, *bank.load("digits").train.x.shape[1:])), jnp.zeros(1, jnp.int32)
    net = settings_of(settings).net.clone(heads=1, classes=10)
    begun = net.init(jax.random.fold_in(jax.random.key(seed), INIT), x, slot)["params"]["head"]["kernel"]
    assert abs(np.corrcoef(np.ravel(begun), np.ravel(own["['head']['kernel']"]))[0, 1]) < 0.5  # other draws than those
  count = np.bincount(bank.load("digits").train.y)
  known = json.loads((tmp_path / "start" / "result.json").read_text())
  assert known["train_rows"] == [[count[:5].sum() + (-(-count[5:] // 2)).sum()]] * 2
  assert not (tmp_path / "figures").exists() or not list((tmp_path / "figures").iterdir())
  assert train(settings, tmp_path, quiet=True) == result


def test_networks_may_learn_the_old_task_with_gates(tmp_path):
  """From the weights that a plain one begins with; beside them lie the embeddings of all tasks of the net."""
  gates = {"name": "hat", "largest_slope": 3.0}
  settings = quick(trains="nothing", method=gates, start={"epochs": 1})
  assert train(settings, tmp_path, quiet=True)["config"]["method"] == gates
  own = {path.name: artifacts.read(path) for path in (tmp_path / "parts" / "seed_0").iterdir()}
  assert sorted(own) == ["embeddings.npz", "start.npz"]
  with pytest.raises(ConfigError, match="holds no parts to load"):  # of those that answer by themselves
    Predictor(tmp_path / "start")
  assert {name: leaf.shape for name, leaf in own["embeddings.npz"].items()} == {"['first']": (2, 8)}
  source = source_of(settings_of(settings).data, None)
  begun = {}
  for method in (gates, {"name": "finetune"}):
    it = settings_of({**settings, "method": method})
    learner = learner_of(it, it.net, old_task(source, it.data)[0])
    begun[method["name"]] = jax.jit(learner.init)(jax.random.fold_in(jax.random.key(0), INIT))
  chex.assert_trees_all_equal(begun["hat"].params, begun["finetune"].params)
  moved = np.abs(own["embeddings.npz"]["['first']"] - begun["hat"].embeddings["first"]).max(axis=1)
  assert moved[0] > 0.01 and moved[1] == 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"trains": "start", "start": {"networks": 2}}, "config.trains='start' trains one network"),
    ({"start": {"of": "both", "file": "x"}}, "config.start.of='old', or leave the file out"),
    ({"trains": "rules"}, "config.trains='rules' is not known. Did you mean rule"),
  ],
)
def test_wrong_settings_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    settings_of(changes)
