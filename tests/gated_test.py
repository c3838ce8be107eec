"""A gate before a method that has to be told its task: what it chooses, and that it changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.config import complete, default
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.overrides import changed
from cljax.pieces.gated import gated
from cljax.pieces.gates import GATES, autoencoder, entropy, means
from cljax.recipe import recipe
from cljax.types import Outputs, Spec
from tests import toys
from tests.subjects import Subject
from tests.tiers import at_release
from tests.walks import C, T, stream

SPEC = Spec((4, 4, 1), T, C, T)
X = jax.random.uniform(jax.random.key(5), (6, 4, 4, 1))
FITS = {  # all hooks that a phase may have: a plan and blocks; edges and two phases; an edge that ends a task
  "er": ({"capacity": 12, "replay": 5}, "means"),
  "packnet": ({"epochs": 1}, "means"),
  "ewc": ({}, "autoencoder"),
}


def knowing(gate, tasks):
  """The gate's own state after it has noted the first tasks."""
  own = gate.init(jax.random.key(0))
  for t in range(tasks):
    own = gate.note(own, stream()[2][t])
  return own


def test_the_nearest_mean_is_chosen():
  data, known = stream()[1], 2
  errors = np.asarray(jax.jit(means(SPEC).errors, static_argnums=2)(knowing(means(SPEC), known), X, None))
  for t in range(known):
    rows = data.tasks.train.idx[t, : data.tasks.train.count[t]]
    warp = jax.tree.map(lambda leaf, t=t: leaf[t], data.tasks.train.warp)
    shown = np.asarray(warp(data.bank.x[rows].astype(np.float32) / 255))
    mean = shown.reshape(len(rows), -1).astype(np.float64).mean(axis=0)
    expected = ((np.asarray(X, np.float64).reshape(6, -1) - mean) ** 2).sum(axis=1)
    np.testing.assert_allclose(errors[:, t], expected, rtol=1e-4)
  assert np.isinf(errors[:, known:]).all()


@pytest.mark.parametrize("over", ["row", "batch"])
def test_the_most_decided_answer_is_chosen(over):
  gate, known = entropy(SPEC, over=over), 2
  logits = np.random.default_rng(0).normal(size=(T, 6, C)) * 3

  def answer(t):
    return Outputs(jnp.asarray(logits, jnp.float32)[t], None, None)

  errors = np.asarray(gate.errors(knowing(gate, known), X, answer))
  classes = np.asarray(stream()[1].tasks.classes)
  for t in range(known):
    z = np.where(classes[t], logits[t], -np.inf)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    each = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)
    np.testing.assert_allclose(errors[:, t], each if over == "row" else np.full(6, each.mean()), rtol=1e-5)
  assert np.isinf(errors[:, known:]).all()


@pytest.mark.parametrize("name", ["er", *at_release("packnet", "ewc")])
def test_where_the_task_is_told_a_gated_method_keeps_its_bits(name):
  keywords, gate = FITS[name]
  spec, data = toys.stream(heads=T)
  factory = METHODS[name](toys.mlp(spec), optax.sgd(0.1), spec, batch_size=10, **keywords)
  behind = gated(factory, GATES[gate](spec, **({"autoencoder_epochs": 2, "code": 6} if gate == "autoencoder" else {})))
  plain, found = (
    Subject(toys.experiment(one, spec, data, seeds=(0,), readouts=("task",))).run() for one in (factory, behind)
  )
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(plain.state), jax.device_get(found.state.method))
  np.testing.assert_array_equal(plain.right["task"], found.right["task"])
  assert found.confusion["inferred"].sum() == data.test.count.sum()
  assert found.right["inferred"][0, 1:].max() > 0
  report = behind.report(jax.tree.map(lambda leaf: leaf[0], found.state))
  assert report["parameters"] > factory.report(jax.tree.map(lambda leaf: leaf[0], plain.state))["parameters"]


def test_before_a_task_is_known_nobody_answers():
  spec, _ = toys.stream(heads=T)
  method = gated(METHODS["finetune"](toys.mlp(spec), optax.sgd(0.1), spec), means(spec))
  out = jax.jit(lambda key: method.apply(method.init(key), X, None))(jax.random.key(0))
  np.testing.assert_array_equal(out.task, [-1] * 6)


def test_an_autoencoder_that_diverges_names_the_gate_s_rate():
  gate = autoencoder(SPEC, autoencoder_epochs=1)
  faults = gate.faults(gate.init(jax.random.key(0)))
  assert set(faults) == {"stream.valid_per_task (or valid_share)", "gate.autoencoder_lr"}
  assert gate.needs_valid


@pytest.mark.parametrize(
  ("name", "why"), [("confident", "finds its task by itself"), ("joint", "learns all tasks at once")]
)
def test_methods_that_need_no_gate_refuse_one(name, why):
  spec, _ = toys.stream()
  with pytest.raises(ConfigError, match=f"this one {why}; set config.gate.name=none"):
    gated(METHODS[name](toys.mlp(spec), optax.sgd(0.1), spec), means(spec))


TOLD = METHODS["finetune"](toys.mlp(SPEC), optax.sgd(0.1), SPEC)


@pytest.mark.parametrize(
  ("method", "gate", "words"),
  [
    (TOLD, means, r"gated: gate=<function means.* is no gate: call it, means\(spec\)"),
    (TOLD, None, "gated: gate=None is no gate: give what a factory of cljax.pieces.gates.GATES makes"),
    (TOLD, "means", "gated: gate='means' is no gate: give what"),
    (METHODS["er"], means(SPEC), r"gated: method=<function er.* is no method: call it, er\(net, tx, spec\)"),
    (None, means(SPEC), "gated: method=None is no method: give what a factory of cljax.METHODS makes"),
    (means(SPEC), TOLD, r"gated\(method, gate\) takes the method first"),
  ],
)
def test_what_is_no_method_and_no_gate_is_refused(method, gate, words):
  with pytest.raises(ConfigError, match=words) as caught:
    gated(method, gate)
  assert "\n" not in str(caught.value)


def test_a_config_names_its_gate():
  config = changed(default(), {"method.name": "packnet", "gate.name": "entropy", "gate.over": "batch"})
  assert config.gate.to_dict() == {"name": "entropy", "over": "batch"}
  method = recipe(config, SPEC)({})
  assert method.infers and method.needs_boundaries
  off = changed(config, {"gate.name": "none"})
  assert not recipe(off, SPEC)({}).infers
  with pytest.raises(ConfigError, match="config.gate.over='batch' means nothing to config.gate.name='means'"):
    complete({**default().to_dict(), "gate": {"name": "means", "over": "batch"}})
  with pytest.raises(ConfigError, match="config.gate.name='mean' is not known"):
    changed(default(), {"gate.name": "mean"})
