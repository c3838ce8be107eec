"""Expert Gate (Aljundi et al. 2017): what never changes, what decides, when it stops; options and refusals."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax import artifacts
from cljax.cursor import Carry
from cljax.data.sample import view_at
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.nets.features import FEATURES, feature_function
from cljax.pieces.experts import EWC, FINETUNE, LWF
from cljax.types import Clock
from tests import gates, toys
from tests.subjects import Subject

CLOCK = Clock(*(jnp.int32(n) for n in (0, 0, 3, 0)))


class Run(NamedTuple):
  carry: Carry
  events: list  # names of the compiled functions, as they were called
  stores: dict  # by row of the matrix: what was learnt until then
  params: dict  # by kind, task and phase: the expert in training after such a unit

  @property
  def state(self):
    return gates.state_of(self.carry)


@functools.cache
def finished() -> Run:
  """A whole run of the toy, looked at after each unit."""
  base = gates.toy()
  found = Run(base.start(), [], {}, {})

  def spied(name, function):
    def call(*args):
      found.events.append(name)
      return function(*args)

    return call

  compiled = {name: spied(name, function) for name, function in base.compiled.items()}
  for unit in base.units():
    base.run([unit], carry=found.carry, compiled=compiled)
    experts, gate = found.carry.state.experts, found.carry.state.gates
    if unit.kind == "evaluate" and unit.row:
      found.stores[unit.row] = jax.tree.map(np.array, (experts.store, gate.store, found.carry.state.relatedness))
    if unit.kind in ("enter", "chunk") and unit.at.phase == 1:
      found.params[unit.kind, unit.at.task] = jax.tree.map(lambda leaf: np.array(leaf[0]), experts.params)
  return found


def first_two(data=None, **numbers):
  """The state after the training of two tasks."""
  base = gates.at_numbers(gates.toy(), **numbers)
  return gates.state_of(base.run(gates.training(base, 2), data=data))


def changed(data, **parts):
  """The stream with other pictures or tables."""
  return data._replace(**{name: getattr(data, name)._replace(**fields) for name, fields in parts.items()})


def test_nothing_learnt_earlier_ever_changes():
  state = finished().state
  now = (state.experts.store, state.gates.store, state.relatedness)
  assert set(finished().stores) == {1, 2, 3}
  for row, then in finished().stores.items():
    for k in range(row):
      chex.assert_trees_all_equal(
        jax.tree.map(lambda leaf, k=k: leaf[0, k], then), jax.tree.map(lambda leaf, k=k: leaf[k], now)
      )
  early = finished().stores[1][0]
  assert not np.array_equal(early["first"]["kernel"][0, 1], now[0]["first"]["kernel"][1])  # a later slot does


def test_order_of_events():
  """Autoencoder first, then the decision, then the expert; and one compilation for all tasks."""
  wanted = [name for name in finished().events if name.split(".")[0] in ("autoencode", "warmup", "fit")]
  once = [name for i, name in enumerate(wanted) if i == 0 or wanted[i - 1] != name]
  ticks = [name for name in once if not name.endswith((".chunk", ".tick"))]
  assert ticks == ["autoencode.enter", "autoencode.exit", "warmup.enter", "fit.enter", "fit.exit"] * 3
  for first, then in zip(once, once[1:], strict=False):
    if then == "warmup.enter":
      assert first == "autoencode.exit"
  assert all(function._cache_size() == 1 for name, function in gates.toy().compiled.items() if name != "keys")


def test_weight_zero_is_fine_tuning_and_more_is_not():
  tuned, nothing, held = (
    first_two(threshold=threshold, distill_weight=weight).experts
    for threshold, weight in ((9.0, 1.0), (-9e9, 0.0), (-9e9, 1.0))
  )
  assert int(tuned.mode[1]) == FINETUNE and int(nothing.mode[1]) == int(held.mode[1]) == LWF
  chex.assert_trees_all_equal(nothing.store, tuned.store)
  apart = [
    float(np.abs(a[1] - b[1]).max()) for a, b in zip(*map(jax.tree.leaves, (held.store, tuned.store)), strict=True)
  ]
  assert max(apart) > 1e-3
  chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[0], each.store) for each in (held, tuned)))


def test_ewc_stands_in_lwf_s_place_above_the_threshold():
  """One program: at the same threshold strength 0 is fine-tuning to the bit, and more is not."""
  base = gates.subject(*toys.stream(), mode="auto_ewc", ewc_strength=0.0)
  pulled = gates.subject(*toys.stream(), mode="auto_ewc", ewc_strength=1e3)
  plain = first_two(threshold=9.0).experts

  def run_two(base, threshold):
    it = gates.at_numbers(base, threshold=threshold)
    return gates.state_of(it.run(gates.training(it, 2)))

  tuned, nothing = (run_two(base, threshold).experts for threshold in (9.0, -9e9))
  held = run_two(pulled, -9e9).experts
  assert int(tuned.mode[1]) == FINETUNE and int(nothing.mode[1]) == int(held.mode[1]) == EWC
  chex.assert_trees_all_equal(nothing.store, tuned.store, plain.store)
  np.testing.assert_array_equal(held.store["first"]["kernel"][0], tuned.store["first"]["kernel"][0])
  assert np.abs(held.store["first"]["kernel"][1] - tuned.store["first"]["kernel"][1]).max() > 1e-3


def test_warmup_moves_the_new_head_only():
  params = finished().params
  before, behind = params["enter", 1], params["chunk", 1]
  rest = [{k: v for k, v in each["net"].items() if k != "head"} for each in (before, behind)]
  chex.assert_trees_all_equal(rest[0], rest[1])
  chex.assert_trees_all_equal(before["old_head"], behind["old_head"])
  assert not np.array_equal(before["net"]["head"]["kernel"], behind["net"]["head"]["kernel"])
  chex.assert_trees_all_equal(params["enter", 0], params["chunk", 0])  # the first task has no parent


@functools.cache
def deciding(**keywords):
  """(state, stream) -> the state after the enter that decides task 1."""
  spec, _ = toys.stream()
  enter = gates.method_of(spec, **keywords).phases[1].enter

  @jax.jit
  def decided(state, data):
    return enter(jax.random.key(3), state, view_at(data, jnp.int32(1), spec.heads), CLOCK)

  return decided


def test_relatedness_sees_validation_rows_only():
  """Test rows are no part of a view; `test_it_cannot_peek` spoils them."""
  _, data = toys.stream()
  state = finished().state

  def related(x):
    return deciding()(state, changed(data, bank={"x": x})).relatedness[1, 0]

  base = related(data.bank.x)
  x = data.bank.x.copy()
  x[~np.isin(np.arange(len(x)), data.tasks.valid.idx[1])] = 7  # every row but the validation rows of the task
  assert related(x) == base
  assert related(data.bank.x[::-1].copy()) != base


@pytest.mark.parametrize(
  ("keywords", "parent", "mode"),
  [
    ({"mode": "finetune"}, 0, FINETUNE),
    ({"mode": "lwf", "parent": "previous"}, 0, LWF),
    ({"mode": "lwf", "parent": "none"}, -1, 0),
    ({"mode": "ewc", "parent": "none"}, -1, 0),
  ],
)
def test_parent_and_mode_are_as_told(keywords, parent, mode):
  experts = deciding(**keywords)(first_two(), toys.stream()[1]).experts
  assert (int(experts.parent[1]), int(experts.mode[1])) == (parent, mode)


def test_one_task_is_always_found():
  base = gates.toy()
  state = gates.state_of(base.run(gates.training(base, 1)))
  x = jnp.asarray(toys.stream()[1].test_bank.x / np.float32(255))
  assert not jax.jit(base.experiment.method.apply)(state, x, None).task.any()
  assert np.isnan(state.relatedness).all()


def test_before_any_training_no_row_is_routed():
  method = gates.method_of(toys.stream()[0])
  task = jax.jit(lambda key, x: method.apply(method.init(key), x, None).task)(
    jax.random.key(0), jnp.zeros((3, 4, 4, 1))
  )
  np.testing.assert_array_equal(task, [-1] * 3)
  assert finished().carry.right["inferred"][0, 0].sum() == 0  # and none of them is counted right


def test_later_data_does_not_touch_earlier_gates():
  """One standardisation, frozen at the first task: other data in task 1 leaves the errors of gate 0 as they are."""
  spec, data = toys.stream()
  x = data.bank.x.copy()
  own = np.setdiff1d(data.tasks.train.idx[1], np.concatenate([data.tasks.train.idx[0], data.tasks.valid.idx[0]]))
  x[own] = 255 - x[own]
  fixed = jnp.asarray(data.test_bank.x[:5] / np.float32(255))
  method = gates.method_of(spec)
  errors = jax.jit(lambda state: method.serve.route(method.parts(state)["gate"], fixed).errors)
  one, other = (np.asarray(errors(state)) for state in (finished().state, first_two(changed(data, bank={"x": x}))))
  np.testing.assert_array_equal(one[:, 0], other[:, 0])
  assert (one[:, 1] != other[:, 1]).any()


def test_an_early_stop_fires_and_freezes_the_best_epoch():
  """As a run that was given no epochs beyond."""

  def trained(epochs, tasks):
    base = gates.at_numbers(gates.toy(), autoencoder_lr=0.3)
    autoencode, *others = base.experiment.timeline.phases
    phases = (autoencode._replace(epochs=epochs), *others)
    base.experiment = base.experiment._replace(timeline=base.experiment.timeline._replace(phases=phases))
    return gates.state_of(base.run(gates.training(base, tasks, phases=(0,)))).gates

  assert (np.asarray(trained(40, 2).epochs[:2]) < 40).all()
  few = trained(40, 1)
  again = trained(int(few.epochs[0]), 1)
  rested = [(each.autoencoder, each.opt_state, each.store) for each in (few, again)]
  chex.assert_trees_all_equal(*rested)
  own = jax.tree.map(lambda leaf: leaf[0], few.store["params"])
  chex.assert_trees_all_equal(own, few.best.params)
  assert not np.array_equal(own["encoder"]["kernel"], few.autoencoder["params"]["encoder"]["kernel"])


def test_constant_features_are_reported():
  spec, data = toys.stream()
  x = data.bank.x.copy()
  x[:, 0] = 9
  state = first_two(changed(data, bank={"x": x}))
  assert int(gates.method_of(spec).report(state)["constant_features"]) == 4
  assert np.isfinite(state.gates.valid_error[:2]).all()


def test_a_task_without_validation_rows_stops_the_run():
  _, data = toys.stream()
  empty = data.tasks.valid._replace(count=np.zeros(3, np.int32))
  with pytest.raises(ConfigError, match="config.stream.valid_per_task"):
    first_two(changed(data, tasks={"valid": empty}))


def test_gates_that_diverge_stop_the_run():
  with pytest.raises(ConfigError, match="config.method.autoencoder_lr"):
    first_two(autoencoder_lr=1e30)


# Options and refusals.


@pytest.mark.parametrize(
  ("keywords", "words"),
  [
    ({"parent": "nearest"}, ("config.method.parent='nearest'", "related, previous, none")),
    ({"mode": "mas"}, ("config.method.mode='mas'", "auto, auto_ewc, finetune, lwf, ewc")),
    ({"activate": "all"}, ("config.method.activate='all'", "one, several")),
    ({"phi": "flaten"}, ("config.method.phi='flaten'", "Did you mean flatten")),
    ({"autoencoder_optimizer": "sgd"}, ("autoencoder_optimizer='sgd'", "adam, adagrad")),
    ({"autoencoder_init": "zeros"}, ("autoencoder_init='zeros'", "sparse")),
    ({"parent": "none"}, ("config.method.mode='finetune'",)),
    ({"parent": "none", "mode": "auto_ewc"}, ("config.method.mode='finetune'",)),
    ({"phi": lambda x: x}, ("(2, 4, 4, 1)", "[2, d]")),
    ({"gate_temperature": 0}, ("config.method.gate_temperature=0", "above 0")),
    ({"root": "/nowhere/expert_0.npz"}, ("/nowhere/gate.npz", "does not exist")),
    ({"root": "expert_0.npz"}, ("gate.npz does not exist; . holds no part",)),
    ({"root": "/nowhere/gate.npz"}, ("config.method.root='/nowhere/gate.npz'", "W/parts/seed_0/expert_0.npz")),
  ],
)
def test_refusals(keywords, words):
  spec, data = toys.stream()
  with pytest.raises(ConfigError) as error:
    toys.experiment(gates.method_of(spec, **keywords), spec, data)
  for word in words:
    assert word in str(error.value), error.value


def test_a_routed_net_is_refused():
  spec, _ = toys.stream()
  with pytest.raises(ConfigError, match="config.net.name='mlp'"):
    METHODS["expert_gate"](toys.routed(spec), optax.adam(0.01), spec)


def test_feature_functions():
  x = np.arange(2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4, 1)
  np.testing.assert_array_equal(FEATURES["halves"](x)[0], [2.5, 4.5, 10.5, 12.5])
  assert sorted(map(int, FEATURES["border"](x)[0])) == [0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 14, 15]
  assert feature_function("halves", (5, 5, 3))[1] == 12
  state = jax.eval_shape(gates.method_of(toys.stream()[0], phi="halves").init, jax.random.key(0))
  assert state.gates.store["params"]["encoder"]["kernel"].shape == (4, 4, 6)


def test_a_root_expert_is_a_parent_and_never_an_answer(tmp_path):
  spec, data = toys.stream()
  artifacts.write(tmp_path, gates.method_of(spec).parts(finished().state))
  root = f"{tmp_path}/expert_1.npz"
  base: Subject = gates.subject(spec, data, root=root, warmup_epochs=0)
  other = changed(data, bank={"x": 255 - data.bank.x})
  state = gates.state_of(base.run(gates.training(base, 1), data=other))
  stored = np.load(root)
  np.testing.assert_array_equal(state.experts.store["first"]["kernel"][3], stored["['net']['first']['kernel']"])
  np.testing.assert_array_equal(state.gates.standard.mean, finished().state.gates.standard.mean)
  assert np.isfinite(state.relatedness[0, 3]) and int(state.experts.parent[0]) == 3
  x = jnp.asarray(data.bank.x[:9] / np.float32(255))
  np.testing.assert_array_equal(jax.jit(base.experiment.method.apply)(state, x, None).task, [0] * 9)
  gone = gates.method_of(spec, root="/nowhere/expert_1.npz")  # as prediction from a finished run makes it
  assert "gate" in jax.eval_shape(lambda key: gone.parts(gone.init(key)), jax.random.key(0))
  with pytest.raises(ConfigError, match=r"\(6, 16\).*\(9, 16\)"):
    toys.experiment(gates.method_of(spec, root=root, code=9), spec, data)
  with pytest.raises(ConfigError, match="holds 3 autoencoders, and none of expert_7"):
    (tmp_path / "expert_7.npz").write_bytes((tmp_path / "expert_1.npz").read_bytes())
    toys.experiment(gates.method_of(spec, root=f"{tmp_path}/expert_7.npz"), spec, data)
