"""The rule as a method: files that it reads, the first task, the rule's memory; an untrained rule is fine-tuning."""

import functools

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cljax import artifacts
from cljax.advice import elsewhere
from cljax.errors import ConfigError
from cljax.experiment import assemble
from cljax.methods import METHODS
from cljax.methods.learned_rule import exhibits
from cljax.nets.heads import Heads
from cljax.pieces.neurons import tensors_of_net
from cljax.pieces.optimizers import sgd
from cljax.pieces.rule import BINS, WIDEST, Rule, init_theta, part
from cljax.start import read_parts
from cljax.types import Outputs
from tests import toys
from tests.subjects import Subject, first

RULE = Rule(hidden=4, hidden_vectors=3)
STATIC = Rule(form="static")


def short(spec):
  """One hidden layer: each of its tensors has a rule of its own."""
  return toys.mlp(spec).clone(hidden=(8,))


def made(spec, net=None, alpha=0.3, rule=STATIC, **keywords):
  return METHODS["learned_rule"](
    net or short(spec), sgd(0.3), spec, batch_size=10, epochs=4, alpha=alpha, **rule._asdict(), **keywords
  )


def subject(settings=(), like=None, new=("init",), **keywords):
  """Its programs are those of `like` but for those whose names end in one of `new`."""
  spec, data = toys.stream()
  return Subject(toys.experiment(made(spec, **keywords), spec, data, seeds=(0,), **dict(settings)), like, new)


@functools.cache
def untrained(rule=STATIC):
  """Whose programs are those of every theta, which lies in the state."""
  return subject(rule=rule)


def task_ends(it):
  """The state after each task."""
  ends = {}
  it.run(after=lambda unit, carry: ends.update({unit.at.task: first(carry.state)}) if unit.kind == "chunk" else None)
  return ends


def files(folder, rule=STATIC, x_shape=(4, 4, 1), seed=3):
  """A theta of random numbers, and a start, for the toys' net."""
  spec, _ = toys.stream()
  net = short(spec)
  variables = jax.jit(net.init)(jax.random.key(seed), np.zeros((1, *x_shape), np.float32), np.zeros(1, np.int32))
  tensors = tensors_of_net(net, variables, x_shape)[1]
  random = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda key: init_theta(key, tensors, rule, 1.0), jax.random.key(0))
  theta = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)
  artifacts.write(folder, {"theta": part(theta, rule), "start": variables["params"]})
  return theta, variables["params"], {name: str(folder / f"{name}.npz") for name in ("theta", "start")}


def test_an_untrained_rule_is_fine_tuning():
  spec, data = toys.stream()
  plain = METHODS["finetune"](short(spec), sgd(0.3), spec, batch_size=10, epochs=4, block=1)
  wanted = Subject(toys.experiment(plain, spec, data, seeds=(0,))).run()
  chex.assert_trees_all_close(untrained().run().state.params, wanted.state.params, atol=1e-4)


def test_what_is_read_is_what_runs(tmp_path):
  """Of a network that knows the first task, too: that moves nothing, the second task does, and theta stays."""
  theta, start, paths = files(tmp_path)
  known = {"start_from": paths["start"], "given_tasks": 1}
  it = subject(known, untrained(), theta=paths["theta"])
  begun = first(it.start().state)
  chex.assert_trees_all_equal(begun.theta, theta)
  chex.assert_trees_all_equal(begun.params, start)
  ends = task_ends(it)
  assert 0 not in ends
  chex.assert_trees_all_equal(ends[2].theta, theta)
  moved = np.abs(ends[1].params["first"]["kernel"] - start["first"]["kernel"]).max()
  other = task_ends(subject(known, untrained()))[1]
  assert moved > 1e-3 and np.abs(ends[1].params["first"]["kernel"] - other.params["first"]["kernel"]).max() > 1e-3


def test_the_memory_goes_back_to_zero_at_a_task_or_is_kept(tmp_path):
  """Neurons of the last task begin blank, or where the task before left them; the first task has none."""
  _, _, paths = files(tmp_path, RULE)
  largest = {}
  for memory in ("reset", "keep"):
    it = subject((), untrained(RULE), rule=RULE, memory=memory, theta=paths["theta"])
    seen = {}

    def note(unit, carry, seen=seen):
      if unit.kind in ("enter", "chunk"):
        seen[unit.kind, unit.at.task] = np.abs(first(carry.state).memory["first/kernel"]).max()

    carry = it.run(after=note)
    assert seen["chunk", 0] == 0 and seen["chunk", 1] > 0.01
    assert memory == "keep" or (seen["enter", 2] == 0 and seen["chunk", 2] > 0.01)
    state = first(carry.state)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state.theta, state.memory)))
    assert carry.reports["memory_bytes"][0].tolist() == [held] * 3
    largest[memory] = carry.reports["largest_cell"][0]
  assert largest["reset"][0] == 0 and largest["reset"][1] > 0
  assert largest["keep"][1] == largest["reset"][1] and largest["keep"][2] != largest["reset"][2]


def test_multipliers_are_counted_by_the_task(tmp_path):
  """Those of the control are the same in every step and of every neuron; counting them moves nothing."""
  theta, _, paths = files(tmp_path)
  counting = ("init", ".enter", ".chunk", "report")
  its = [
    subject((), untrained(), new, theta=paths["theta"], count_multipliers=new is counting)
    for new in (counting, ("init",))
  ]
  carry, plain = (it.run() for it in its)
  chex.assert_trees_all_equal(first(carry.state).params, first(plain.state).params)
  flat = flatten_dict(first(carry.state).params, sep="/")
  for name, own in theta.items():
    delta = own["scale"] * np.tanh(own["bias"])
    neurons = flat[name].size // delta.size
    expected = np.histogram(np.clip(delta, -WIDEST, WIDEST), BINS, (-WIDEST, WIDEST))[0]
    found = carry.reports[f"multipliers/{name}"][0]
    assert not found[0].any()
    for task in (1, 2):
      steps = its[0].experiment.timeline.phase_steps(task, 0)[0]
      np.testing.assert_array_equal(found[task], steps * neurons * expected)
  assert exhibits.WIDEST == WIDEST
  figure = exhibits.figures({}, carry.reports, "toy")["multipliers"]
  assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == list(theta)
  assert exhibits.figures({}, plain.reports, "toy") == {}


@pytest.mark.parametrize(
  ("rule", "shape", "message"),
  [
    (RULE, (4, 4, 1), "holds a rule of the form 'static', but 'lstm_tanh_rms' is asked for"),
    (STATIC, (5, 4, 1), r"'bias'\] has the shape \(16,\), but \(20,\) is needed"),
  ],
)
def test_files_that_do_not_fit_are_refused_with_both(tmp_path, rule, shape, message):
  _, _, paths = files(tmp_path)
  spec, _ = toys.stream()
  method = made(spec._replace(x_shape=shape), rule=rule, theta=paths["theta"])
  with pytest.raises(ConfigError, match=message):
    read_parts(method, (0,))


def test_a_rule_of_a_training_that_diverged_is_refused(tmp_path):
  theta, _, paths = files(tmp_path)
  theta["first/bias"]["scale"] = np.float32(np.inf)
  artifacts.write(tmp_path, {"theta": part(theta, STATIC)})
  spec, _ = toys.stream()
  with pytest.raises(ConfigError, match=r"theta\.npz: .*'first/bias'.*'scale'\] holds NaN or infinity: its run had"):
    read_parts(made(spec, theta=paths["theta"]), (0,))


def test_another_alpha_than_that_of_the_training_is_told(tmp_path):
  """Where the file tells it, as those of earlier versions do not; by each value of a sweep, and from the first seed."""
  theta, _, paths = files(tmp_path)
  spec, data = toys.stream()

  def told(*alphas):
    experiment = toys.experiment(made(spec, theta=paths["theta"]), spec, data, seeds=(0, 1))
    return elsewhere(experiment._replace(configs=tuple({"method": {"alpha": alpha}} for alpha in alphas)))

  assert told(0.1) == []
  artifacts.write(tmp_path, {"theta": part(theta, STATIC, 0.3)})
  assert told(0.3) == [] and elsewhere(toys.experiment(made(spec, theta=paths["theta"]), spec, data)) == []
  lines = [f"{paths['theta']} was trained at config.method.alpha=0.3, and runs at {own} here" for own in (0.1, 0.5)]
  assert told(0.1, 0.3, 0.5) == lines
  method = made(spec, theta=paths["theta"])
  loaded = method.load(method.init(jax.random.key(0)), {"theta": artifacts.read(paths["theta"])})
  chex.assert_trees_all_equal(loaded.theta, theta)


def test_a_rule_that_no_task_would_use_is_refused():
  spec, _ = toys.stream()
  one = spec._replace(T=1, heads=1, rows=spec.rows[:1])
  with pytest.raises(
    ConfigError, match="config.method.theta='x.npz' is for tasks after the first, .* take a stream of"
  ):
    made(one, theta="x.npz")
  made(one)


def test_a_missing_file_is_refused(tmp_path):
  files(tmp_path)
  spec, data = toys.stream()
  with pytest.raises(ConfigError, match="does not exist; .* holds start.npz, theta.npz"):
    assemble(made(spec, theta=f"{tmp_path}/other.npz"), spec._replace(rows=()), data)


def test_literal_cells_that_blow_up_stop_the_run_by_name(tmp_path):
  _, _, paths = files(tmp_path, RULE._replace(cell="relu"))
  with pytest.raises(ConfigError, match=r"config.method.cell='relu' does not suffice"):
    literal = {"rule": RULE._replace(cell="relu"), "alpha": 1e20, "theta": paths["theta"]}
    subject((), untrained(RULE), ("init", ".chunk", "faults"), **literal).run()


class Statistics(nn.Module):
  """A layer, BatchNorm and dropout: what a net may have beside parameters."""

  heads: int
  classes: int

  @nn.compact
  def __call__(self, x, slot, train: bool = False):
    x = nn.Dense(8, name="first")(x.reshape(len(x), -1))
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
    x = nn.Dropout(0.1, deterministic=not train)(x)
    return Outputs(Heads(self.heads, self.classes, name="head")(x, slot), x, slot)


@pytest.mark.slow
def test_a_net_with_statistics_is_updated_too():
  spec, data = toys.stream()
  method = made(spec, Statistics(spec.heads, spec.C))
  carry = Subject(toys.experiment(method, spec, data, seeds=(0,))).run()
  assert set(first(carry.state).theta) == {f"{layer}/{leaf}" for layer in ("first", "norm") for leaf in ("bias",)} | {
    "first/kernel",
    "norm/scale",
  }
  right = np.diagonal(carry.right["task"][0, 1:]) / np.array([60, 53, 46])
  assert right.mean() > 0.5
