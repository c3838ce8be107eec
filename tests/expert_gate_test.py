"""Expert Gate (Aljundi et al. 2017): what never changes, what decides, who answers a row."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.data.sample import decode, view_at
from cljax.drive import Driver, drive, start
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.monitor import Monitor
from cljax.nets.features import FEATURES, feature_function
from cljax.pieces.experts import FINETUNE, LWF, SCRATCH
from cljax.run import compile_events, train
from cljax.types import Bank, Clock, Rows, Spec, Stream, Task
from tests import toys

GATE = {
  "batch_size": 10,
  "epochs": 3,
  "warmup_epochs": 1,
  "code": 6,
  "autoencoder_batch": 10,
  "autoencoder_epochs": 4,
  "autoencoder_lr": 0.01,
}


# Streams of which one knows what is related to what.


def subspaces(bases, rows=300, relabel=(), noise=0.3, seed=0) -> tuple[Spec, Stream]:
  """Tasks on linear subspaces of R^20 by the number of their basis, four classes each by two signs of coefficients."""
  random = np.random.default_rng(seed)
  frames = [np.linalg.qr(np.random.default_rng(40 + basis).normal(size=(20, 3)))[0] for basis in range(9)]
  T, each = len(bases), rows + 60 + 60
  x, y = [], []
  for t, basis in enumerate(bases):
    code = random.normal(size=(each, 3)) * 1.5
    code[:, :2] += np.sign(code[:, :2])
    label = 2 * (code[:, 0] > 0) + (code[:, 1] > 0)
    y.append((label + 1) % 4 if t in relabel else label)
    x.append(code @ frames[basis].T + noise * random.normal(size=(each, 20)))
  bank = Bank(np.concatenate(x).reshape(-1, 20, 1, 1).astype(np.float32), np.concatenate(y).astype(np.int32))
  first = np.arange(T)[:, None] * each

  def split(start, stop):
    count = np.full(T, stop - start, np.int32)
    return Rows((first + np.arange(start, stop)).astype(np.int32), count, None)

  labels = np.tile(np.arange(4, dtype=np.int32), (T, 1))
  tasks = Task(split(0, rows), split(rows, rows + 60), labels, labels, np.ones((T, 4), bool))
  return Spec((20, 1, 1), T, 4, T), Stream(bank, tasks, bank, split(rows + 60, each))


class Run(NamedTuple):
  experiment: object
  carry: object
  events: list

  @property
  def state(self):
    return jax.tree.map(lambda leaf: leaf[0], self.carry.state)

  def accuracy(self, readout):
    return self.carry.right[readout][0, -1] / self.experiment.test_rows[0]


COMPILED: dict[str, tuple] = {}


def compiled_for(spec, data, keywords):
  """One experiment and its functions for all streams of the same shapes."""
  shapes = jax.tree.map(np.shape, data)
  name = f"{spec} {sorted(keywords.items())} {shapes}"
  if name not in COMPILED:
    method = METHODS["expert_gate"](toys.mlp(spec), optax.adam(0.01), spec, **{**GATE, **keywords})
    experiment = toys.experiment(method, spec, data, seeds=(0,))
    COMPILED[name] = experiment, compile_events(experiment)
  experiment, compiled = COMPILED[name]
  return experiment._replace(stream=experiment.on_devices(data, experiment.axes)), compiled


def run(spec, data, after=None, **keywords) -> Run:
  """One seed; `after(unit, carry)` is called after each unit."""
  experiment, functions = compiled_for(spec, data, keywords)
  events: list[str] = []

  def spied(name, function):
    def call(*args):
      events.append(name)
      return function(*args)

    return call

  compiled = {name: spied(name, function) for name, function in functions.items()}
  carry = start(experiment, compiled)
  driver = Driver(experiment, compiled, Monitor(None, 1, 0, 0, "toy", True), None, lambda: False)
  for unit in experiment.timeline.units(None, 0):
    drive([unit], carry, driver)
    if after is not None:
      after(unit, carry)
  return Run(experiment, carry, events)


LONG = {"epochs": 5, "autoencoder_epochs": 20, "code": 6}


@functools.cache
def related() -> Run:
  """Tasks on subspaces A, B, A relabelled, C."""
  return run(*subspaces([0, 1, 0, 2], relabel=(2,)), **LONG)


def test_tasks_on_other_subspaces_are_told_apart():
  found = run(*subspaces([0, 1, 2]), **LONG)
  confusion = found.carry.confusion["inferred"][0]
  assert np.diagonal(confusion).sum() / confusion.sum() > 0.97
  assert found.accuracy("task").min() > 0.9
  np.testing.assert_allclose(found.accuracy("inferred"), found.accuracy("task"), atol=0.06)
  rel = np.asarray(found.state.relatedness)
  assert (rel[np.tril_indices(3, -1)] < 0.5).all()


def test_a_relabelled_copy_is_related_and_learns_without_forgetting():
  state = related().state
  rel = np.asarray(state.relatedness)
  assert rel[2, 0] > 0.85 and rel[2, 1] < 0.5
  np.testing.assert_array_equal(state.experts.parent[:3], [-1, 0, 0])
  np.testing.assert_array_equal(state.experts.mode, [SCRATCH, FINETUNE, LWF, FINETUNE])
  assert np.isnan(rel[np.triu_indices(4)]).all() and np.isnan(rel[:, 4]).all()


def test_more_of_a_task_in_the_new_one_is_more_related():
  """Mean over streams of the relatedness of a task whose training rows hold a growing share of task 0's pictures."""
  found = []
  for share in (0.0, 0.5, 1.0):
    values = []
    for seed in range(2):
      spec, data = subspaces([0, 1], seed=seed)
      rows = data.tasks.train.idx.copy()
      valid = data.tasks.valid.idx.copy()
      rows[1, : int(share * 300)] = rows[0, : int(share * 300)]
      valid[1, : int(share * 60)] = data.test.idx[0, : int(share * 60)]  # rows of the same kind that no one trains on
      tasks = data.tasks._replace(train=data.tasks.train._replace(idx=rows), valid=data.tasks.valid._replace(idx=valid))
      values.append(float(run(spec, data._replace(tasks=tasks), **LONG).state.relatedness[1, 0]))
    found.append(np.mean(values))
  assert found[0] < found[1] < found[2], found


def test_nothing_learnt_earlier_ever_changes():
  kept: dict[int, object] = {}

  def after(unit, carry):
    if unit.kind == "evaluate" and unit.row:
      kept[unit.row] = jax.tree.map(
        np.array, (carry.state.experts.store, carry.state.gates.store, carry.state.relatedness)
      )

  last = run(*toys.stream(), after=after, warmup_epochs=0).state
  now = (last.experts.store, last.gates.store, last.relatedness)
  for row, then in kept.items():
    for k in range(row):
      chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf, k=k: leaf[0, k], then), jax.tree.map(lambda leaf, k=k: leaf[k], now)
      )
  assert not np.array_equal(kept[1][0]["first"]["kernel"][0, 1], now[0]["first"]["kernel"][1])  # a later slot does


def test_no_forgetting_with_the_task_given():
  carry = related().carry
  R = carry.right["task"][0]
  for task in range(4):
    assert R[task + 1, task] == R[-1, task]


def test_order_of_events():
  """Autoencoder first, then the decision, then the expert; and one compilation for all tasks."""
  found = run(*toys.stream((30, 23)))
  wanted = [name for name in found.events if name.split(".")[0] in ("autoencode", "warmup", "fit")]
  once = [name for i, name in enumerate(wanted) if i == 0 or wanted[i - 1] != name]
  ticks = [name for name in once if not name.endswith((".chunk", ".tick"))]
  assert ticks == ["autoencode.enter", "autoencode.exit", "warmup.enter", "fit.enter", "fit.exit"] * 2
  for first, then in zip(once, once[1:], strict=False):
    if then == "warmup.enter":
      assert first == "autoencode.exit"
  _, functions = compiled_for(*toys.stream((30, 23)), {})
  assert all(function._cache_size() == 1 for name, function in functions.items() if name != "keys")


def test_weight_zero_is_fine_tuning_and_more_is_not():
  spec, data = toys.stream()
  tuned = run(spec, data, mode="finetune").state.experts
  nothing = run(spec, data, mode="lwf", distill_weight=0.0).state.experts
  chex.assert_trees_all_equal(nothing.store, tuned.store)
  held = run(spec, data, mode="lwf", distill_weight=1.0).state.experts
  changed = [
    float(np.abs(a[1] - b[1]).max()) for a, b in zip(*map(jax.tree.leaves, (held.store, tuned.store)), strict=True)
  ]
  assert max(changed) > 1e-3
  chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[0], each.store) for each in (held, tuned)))


def test_warmup_moves_the_new_head_only():
  spec, data = toys.stream((30, 23))
  seen: dict[tuple[str, int], object] = {}

  def after(unit, carry):
    if unit.kind in ("enter", "exit", "chunk"):
      seen[unit.kind, unit.at.task, unit.at.phase] = jax.tree.map(np.array, carry.state.experts.params)

  run(spec, data, after=after)
  before, behind = seen["enter", 1, 1], seen["chunk", 1, 1]
  rest = [{k: v for k, v in each["net"].items() if k != "head"} for each in (before, behind)]
  chex.assert_trees_all_equal(rest[0], rest[1])
  chex.assert_trees_all_equal(before["old_head"], behind["old_head"])
  assert not np.array_equal(before["net"]["head"]["kernel"], behind["net"]["head"]["kernel"])
  chex.assert_trees_all_equal(seen["enter", 0, 1], seen["chunk", 0, 1])  # the first task has no parent


def deciding(state, spec, stream) -> object:
  """The state after the enter that decides task 1, on a view of that stream."""
  method = METHODS["expert_gate"](toys.mlp(spec), optax.adam(0.01), spec, **GATE)
  view = view_at(jax.tree.map(jnp.asarray, stream), jnp.int32(1), spec.heads)
  return method.phases[1].enter(jax.random.key(3), state, view, Clock(*(jnp.int32(n) for n in (0, 0, 3, 0))))


def test_relatedness_sees_validation_rows_only():
  spec, data = toys.stream()
  found = run(spec, data)
  other = Bank(data.bank.x[::-1].copy(), data.bank.y)
  test = run(spec, data._replace(test_bank=Bank(255 - data.test_bank.x, data.test_bank.y)))
  np.testing.assert_array_equal(test.state.relatedness, found.state.relatedness)
  state = found.state
  base = deciding(state, spec, data).relatedness[1, 0]
  taken = np.concatenate([data.tasks.valid.idx[1]])
  x = data.bank.x.copy()
  x[~np.isin(np.arange(len(x)), taken)] = 7  # every row but the validation rows of the task
  assert deciding(state, spec, data._replace(bank=Bank(x, data.bank.y))).relatedness[1, 0] == base
  assert deciding(state, spec, data._replace(bank=other)).relatedness[1, 0] != base


def test_routes_do_not_depend_on_the_batch():
  found = related()
  method, state, data = found.experiment.method, found.state, found.experiment.stream
  x = decode(data.bank.x[np.random.default_rng(0).permutation(400)[:24]])
  whole = method.apply(state, x, None)
  for size in (1, 5):
    parts = [method.apply(state, x[i : i + size], None) for i in range(0, len(x), size)]
    np.testing.assert_array_equal(jnp.concatenate([part.task for part in parts]), whole.task)
    np.testing.assert_allclose(jnp.concatenate([part.logits for part in parts]), whole.logits, atol=1e-5)


def test_one_task_is_always_found():
  spec, data = toys.stream((30,), heads=1)
  found = run(spec, data)
  np.testing.assert_array_equal(found.carry.confusion["inferred"][0, 0], [found.experiment.test_rows[0, 0]])
  assert np.isnan(found.state.relatedness).all()


def test_before_any_training_no_row_is_routed():
  spec, _ = toys.stream()
  method = METHODS["expert_gate"](toys.mlp(spec), optax.adam(0.01), spec, **GATE)
  out = method.apply(method.init(jax.random.key(0)), jnp.zeros((3, 4, 4, 1)), None)
  np.testing.assert_array_equal(out.task, [-1] * 3)
  assert related().carry.right["inferred"][0, 0].sum() == 0  # and none of them is counted right


def test_later_data_does_not_touch_earlier_gates():
  """One standardisation, frozen at the first task: other data in task 1 leaves the errors of gate 0 as they are."""
  spec, data = toys.stream()
  x = data.bank.x.copy()
  own = np.setdiff1d(data.tasks.train.idx[1], np.concatenate([data.tasks.train.idx[0], data.tasks.valid.idx[0]]))
  x[own] = 255 - x[own]
  fixed = jnp.asarray(data.test_bank.x[:5] / np.float32(255))
  errors = []
  for bank in (data.bank, Bank(x, data.bank.y)):
    found = run(spec, data._replace(bank=bank))
    errors.append(
      np.asarray(found.experiment.method.serve.route(found.experiment.method.parts(found.state)["gate"], fixed).errors)
    )
  np.testing.assert_array_equal(errors[0][:, 0], errors[1][:, 0])
  assert (errors[0][:, 1] != errors[1][:, 1]).any()


def test_an_early_stop_fires_and_freezes_the_best_epoch():
  spec, data = toys.stream((30, 23))
  few = run(spec, data, autoencoder_epochs=40, patience=1, autoencoder_lr=0.3).state.gates
  assert (np.asarray(few.epochs[:2]) < 40).all(), few.epochs
  stop = int(few.epochs[0])
  again = run(spec, data, autoencoder_epochs=stop, patience=1, autoencoder_lr=0.3).state.gates
  chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[0], each.store) for each in (few, again)))


def test_few_code_units_die():
  assert (np.asarray(related().state.gates.dead) < 0.2).all()


# Options and refusals.


def build(spec=None, **keywords):
  spec = spec or toys.stream()[0]
  return METHODS["expert_gate"](toys.mlp(spec), optax.adam(0.01), spec, **{**GATE, **keywords})


@pytest.mark.parametrize(
  ("keywords", "words"),
  [
    ({"parent": "nearest"}, ("config.method.parent='nearest'", "related, previous, none")),
    ({"mode": "ewc"}, ("config.method.mode='ewc'", "auto, finetune, lwf")),
    ({"activate": "all"}, ("config.method.activate='all'", "one, several")),
    ({"phi": "flaten"}, ("config.method.phi='flaten'", "Did you mean flatten")),
    ({"autoencoder_optimizer": "sgd"}, ("autoencoder_optimizer='sgd'", "adam, adagrad")),
    ({"autoencoder_init": "zeros"}, ("autoencoder_init='zeros'", "sparse")),
    ({"parent": "none"}, ("config.method.mode='finetune'",)),
    ({"phi": lambda x: x}, ("(2, 4, 4, 1)", "[2, d]")),
    ({"root": "/nowhere/expert_0.npz"}, ("/nowhere/gate.npz", "does not exist")),
  ],
)
def test_refusals(keywords, words):
  with pytest.raises(ConfigError) as error:
    build(**keywords).init(jax.random.key(0))
  for word in words:
    assert word in str(error.value), error.value


def test_a_routed_net_is_refused():
  spec, _ = toys.stream()
  with pytest.raises(ConfigError, match="config.net.name='mlp'"):
    METHODS["expert_gate"](toys.routed(spec), optax.adam(0.01), spec)


def test_feature_functions():
  x = jnp.arange(2 * 4 * 4, dtype=jnp.float32).reshape(2, 4, 4, 1)
  np.testing.assert_array_equal(FEATURES["halves"](x)[0], [2.5, 4.5, 10.5, 12.5])
  assert sorted(map(int, FEATURES["border"](x)[0])) == [0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 14, 15]
  assert feature_function("halves", (5, 5, 3))[1] == 12
  found = run(*toys.stream((30, 23)), phi="halves").state.gates
  assert found.store["params"]["encoder"]["kernel"].shape == (3, 4, 6)


def test_constant_features_are_reported():
  spec, data = toys.stream((30, 23))
  x = data.bank.x.copy()
  x[:, 0] = 9
  data = data._replace(bank=Bank(x, data.bank.y))
  data = data._replace(
    tasks=data.tasks._replace(train=data.tasks.train._replace(warp=None), valid=data.tasks.valid._replace(warp=None))
  )
  found = run(spec, data)
  assert int(found.carry.reports["constant_features"][0, -1]) == 4
  assert np.isfinite(found.state.gates.valid_error[:2]).all()


def test_a_task_without_validation_rows_stops_the_run():
  spec, data = toys.stream((30, 23))
  empty = data.tasks.valid._replace(count=np.zeros(2, np.int32))
  with pytest.raises(ConfigError, match="config.stream.valid_per_task"):
    run(spec, data._replace(tasks=data.tasks._replace(valid=empty)))


def test_gates_that_diverge_stop_the_run():
  spec, data = toys.stream((30, 23))
  x = data.bank.x.astype(np.float32)
  x[::3] = np.nan
  with pytest.raises(ConfigError, match="config.method.autoencoder_lr"):
    run(spec, data._replace(bank=Bank(x, data.bank.y)))


def test_several_experts_average_where_their_labels_coincide():
  """Two copies of one task, of equal labels: the answer is the mean of both; with other labels it is the best alone."""
  spec, data = subspaces([0, 0])
  found = run(spec, data, activate="several", activate_above=0.0, **LONG)
  method, state = found.experiment.method, found.state
  x = decode(data.bank.x[:20])
  each = [jax.nn.softmax(method.apply(state, x, jnp.full(20, k)).logits) for k in range(2)]
  together = jax.nn.softmax(method.apply(state, x, None).logits)
  np.testing.assert_allclose(together, (each[0] + each[1]) / 2, atol=1e-5)
  apart = state.replace(experts=state.experts.replace(labels=state.experts.labels.at[1].add(4)))
  out = method.apply(apart, x, None)
  best = jnp.where((out.task == 0)[:, None], each[0], each[1])
  np.testing.assert_allclose(jax.nn.softmax(out.logits), best, atol=1e-5)


def test_a_root_expert_is_a_parent_and_never_an_answer(tmp_path):
  split = {"tasks": 2, "valid_per_task": 60}
  train(toys.config_of(toys.SMALL_GATE, **split), tmp_path / "first", quiet=True)
  root = f"{tmp_path}/first/parts/seed_1/expert_1.npz"
  outcome = train(toys.config_of({**toys.SMALL_GATE, "root": root}, **split), quiet=True)
  state = outcome.state
  stored = np.load(root)
  np.testing.assert_array_equal(state.experts.store["first"]["kernel"][0, 2], stored["['net']['first']['kernel']"])
  related = outcome.arrays["relatedness"][0, -1]
  assert np.isfinite(related[0, 2]) and outcome.arrays["parent"][0, -1, 0] == 2
  assert np.array(outcome.result["task_confusion"]).shape == (2, 2, 2)
  with pytest.raises(ConfigError) as error:
    train(toys.config_of({**toys.SMALL_GATE, "root": root, "code": 9}, **split), quiet=True)
  assert "(8, 64)" in str(error.value) and "(9, 64)" in str(error.value)
