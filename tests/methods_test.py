"""Conformance: every method of METHODS through the same properties, sharing one compiled toy a method.

A new method needs no entry here: its toy has a small MLP and the defaults of its keywords. Its golden row is written by
`CLJAX_UPDATE_GOLDEN=missing python -m pytest tests/methods_test.py`, and by its name in place of `missing` anew.
"""

import functools
import json
import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.data.sample import fetch
from cljax.errors import ConfigError
from cljax.methods import METHODS, WITHOUT_BOUNDARIES
from cljax.pieces.optimizers import sgd
from cljax.types import Bank, Clock, Place, View
from tests import toys
from tests.subjects import Subject, first

GOLDEN = Path(__file__).parent / "golden"


def short_mlp(spec):
  return toys.mlp(spec).clone(hidden=(8,))


def short_wide_mlp(spec):
  return toys.mlp(spec).clone(hidden=(24,))


def short_stack(spec):
  """One convolution: programs grow with the layers."""
  return toys.stack(spec).clone(channels=(4,), pools=(2,))


# How the toy of a method is built where the defaults do not do: net, and keywords that make it small.
SMALL_GATE = {"batch_size": 10, "warmup_epochs": 2, "code": 4, "autoencoder_batch": 10, "autoencoder_epochs": 3}
TOYS = {
  "agem": (toys.mlp, {"guard": {"name": "agem", "per_task": 6, "drawn_rows": 9}}),
  "apd": (toys.stack, {}),
  "cat": (short_wide_mlp, {"batch_size": 10, "largest_slope": 20.0, "sparsity": 0.1, "compare_epochs": 3}),
  "confident": (short_mlp, {"batch_size": 10, "warmup_epochs": 0}),
  "darts": (short_stack, {}),
  "den": (short_stack, {"added_units": 2, "split_thresholds": (0.2, 0.2)}),
  "der": (toys.mlp, {"replay": 4, "capacity": 12}),
  "derpp": (toys.mlp, {"replay": 4, "capacity": 12, "alpha": 0.1, "beta": 0.2}),
  "discriminative": (
    short_mlp,
    {"batch_size": 10, "warmup_epochs": 0, "hidden": 6, "gate_batch": 10, "gate_epochs": 3},
  ),
  "er": (toys.mlp, {"replay": 4, "capacity": 12}),
  "expert_gate": (short_mlp, SMALL_GATE),
  "gem": (toys.mlp, {"guard": {"name": "gem", "per_task": 6, "margin": 0.1}}),
  "hat": (short_wide_mlp, {"batch_size": 10, "largest_slope": 20.0, "sparsity": 0.1}),
  "lasem": (short_stack, {}),
  "learned_rule": (short_mlp, {"batch_size": 10, "alpha": 0.3, "hidden": 4, "hidden_vectors": 3}),
  "lwf": (short_mlp, {"batch_size": 10, "warmup_epochs": 2}),
  "mas": (toys.mlp, {"guard": {"name": "mas", "strength": 0.01}}),
  "mer": (short_mlp, {"batch_size": 10, "replay": 4, "reptile_batches": 2, "capacity": 12, "beta": 0.5}),
  "ogd": (toys.mlp, {"guard": {"name": "ogd", "per_task": 6}}),
  "progressive": (short_stack, {}),
  "si": (toys.mlp, {"guard": {"name": "si", "strength": 0.01}}),  # at .1 this small stream diverges
  "routing": (lambda spec: toys.routed(spec, width=8), {"replay": 4, "capacity": 12, "k": 3, "noise": 0.1}),
  "spg": (short_mlp, {"batch_size": 10}),
  "subnetwork": (
    short_wide_mlp,
    {"batch_size": 10, "retrain": 60, "experts": 3, "fractions": (0.2, 0.2, 0.3), "capacity_hidden": 0.7},
  ),
  "supsup": (short_wide_mlp, {"batch_size": 10, "infer": "oneshot"}),
  "wsn": (short_wide_mlp, {"batch_size": 10, "winning_share": 0.3}),
}
STREAMS = {"subnetwork": {"heads": 1}}  # other than the default toy
# Keywords at which a method's own strength is zero, so that it must equal fine-tuning bit for bit.
AT_ZERO = {
  "agem": {"guard": {"name": "agem", "per_task": 0}},
  "der": {"capacity": 0},
  "derpp": {"capacity": 0},
  "er": {"capacity": 0},
  "ewc": {"guard": {"name": "ewc", "strength": 0.0}},
  "gem": {"guard": {"name": "gem", "per_task": 0}},
  "mas": {"guard": {"name": "mas", "strength": 0.0}},
  "ogd": {"guard": {"name": "ogd", "per_task": 0}},
  "si": {"guard": {"name": "si", "strength": 0.0}},
}
EPOCHS, CHUNK = 30, 24


def build(name, spec, **changes):
  net, keywords = TOYS.get(name, (toys.mlp, {}))
  takes_lr = name == "routing"
  return METHODS[name](net(spec), 0.3 if takes_lr else sgd(0.3), spec, **{"epochs": EPOCHS, **keywords, **changes})


def compiled(name, chunk=CHUNK, like=None, **changes):
  spec, data = toys.stream(**STREAMS.get(name, {}))
  return Subject(toys.experiment(build(name, spec, **changes), spec, data, chunk=chunk, every_task=True), like)


@functools.cache
def toy(name):
  return compiled(name)


@functools.cache
def finished(name):
  return toy(name).run()


def accuracy(name):
  return finished(name).right["task"] / toy(name).experiment.test_rows[:, None]


@pytest.fixture(params=sorted(METHODS))
def name(request):
  return request.param


def test_no_toy_is_of_a_method_that_is_gone():
  assert {*TOYS, *STREAMS, *AT_ZERO} <= set(METHODS)


def test_state_is_a_fixed_point(name):
  """Shapes, dtypes and weak types come back from every edge and chunk, or each would compile twice."""
  finished(name)
  for event, function in toy(name).compiled.items():
    if event != "keys":
      assert function._cache_size() == 1, event
  state = jax.eval_shape(toy(name).method.init, jax.random.key(0))
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def scattered(leaf, key):
  """A leaf of any values of its type, small ones where they may be indices."""
  if leaf.dtype == bool:
    return jax.random.bernoulli(key, 0.5, leaf.shape)
  whole = jnp.issubdtype(leaf.dtype, jnp.integer)
  return jax.random.randint(key, leaf.shape, 0, 2, leaf.dtype) if whole else jax.random.normal(key, leaf.shape)


def test_a_method_that_answers_by_slot_says_so(name):
  """Or the readouts that tell no task would ask it about the first one, whatever rows they show."""
  spec, _ = toys.stream(heads=1)
  try:
    method = build(name, spec)
  except ConfigError as error:
    assert "scenario='task'" in str(error)
    method = toy(name).method
    assert method.told
    return

  @jax.jit
  def answers(key):
    leaves, structure = jax.tree.flatten(jax.eval_shape(method.init, key))
    keys = jax.random.split(key, len(leaves))
    state = jax.tree.unflatten(structure, [scattered(leaf, k) for leaf, k in zip(leaves, keys, strict=True)])
    x = jax.random.uniform(key, (4, *spec.x_shape))
    return [method.apply(state, x, jnp.full(4, t, jnp.int32)).logits for t in range(spec.T)]

  first, *others = answers(jax.random.key(0))
  alike = all(np.array_equal(first, other, equal_nan=True) for other in others)
  assert alike == (not (method.told or method.slots))


def test_the_steps_that_a_factory_is_told_are_those_of_the_timeline(name):
  """Of every phase in every task; a phase that counts steps takes as many in each."""
  spec, timeline = toy(name).spec, toy(name).experiment.timeline
  for p, phase in enumerate(timeline.phases):
    steps = [phase.steps] * spec.T if phase.steps else spec.steps(phase.batch, phase.epochs, phase.joint)
    assert [int(timeline.phase_steps(t, p).max()) for t in range(spec.T)] == list(steps)


def test_those_that_need_no_boundaries_are_listed(name):
  """The refusal of the others names them."""
  assert (name in WITHOUT_BOUNDARIES) == (not toy(name).method.needs_boundaries)


def test_any_cutting_gives_the_same_bits(name):
  """A chunk may end after any step, or after any block."""
  subject = toy(name)
  random = np.random.default_rng(0)
  block = subject.method.phases[0].block
  size = block.size if block else 1
  units = []
  for unit in subject.units():
    done, left = np.array(unit.at.step), max(unit.stop, default=0)
    if unit.kind != "chunk":
      units.append(unit)
    while unit.kind == "chunk" and left:
      take = min(left, size * int(random.integers(1, 1 + -(-left // size))))
      at = unit.at._replace(step=tuple(int(n) for n in done))
      units.append(unit._replace(at=at, stop=(take,) * len(unit.stop)))
      done, left = done + take, left - take
  chex.assert_trees_all_equal(subject.run(units=units).state, finished(name).state)


def test_a_block_equals_its_steps(name):
  """To 1e-5 over 42 steps, as rounding grows from step to step; the engine's own reference is `Phase.step`."""
  subject = toy(name)
  if subject.method.phases[0].block is None:
    return  # a method need not offer one
  units = [unit for unit in subject.units() if unit.kind not in ("evaluate", "save")]
  first, second = [i for i, unit in enumerate(units) if unit.kind == "chunk"][:2]
  assert max(units[first].stop) == CHUNK
  units = [*units[:second], units[second]._replace(stop=(42 - CHUNK,) * len(units[second].stop))]
  plain = compiled(name, subject.experiment.timeline.chunk, subject, block=1)
  assert plain.method.phases[0].block is None
  chex.assert_trees_all_close(subject.run(units=units).state, plain.run(units=units).state, atol=1e-5)


def test_going_on_from_every_cursor_gives_the_same_bits(name):
  """One run that is left and taken up again at every save."""
  subject = toy(name)
  units, carry = subject.units(), subject.start()
  cursors = [unit.at for unit in units if unit.kind == "save"]
  for cursor in cursors:
    end = next(i for i, unit in enumerate(units) if unit.kind == "save" and unit.at == cursor)
    subject.run(units[: end + 1], carry=carry)
    carry.view = None
    units = list(subject.experiment.timeline.units(cursor, carry.row))
  subject.run(units, carry=carry)
  chex.assert_trees_all_equal(carry.state, finished(name).state)
  np.testing.assert_array_equal(carry.right["task"], finished(name).right["task"])


def test_it_cannot_peek(name):
  """Garbage in the tables of later tasks and in all test rows changes nothing in the state after each task."""
  subject = toy(name)
  random = np.random.default_rng(5)
  whole = subject.units()
  for t in range(subject.spec.T - 1):
    last = max(i for i, unit in enumerate(whole) if unit.at.task <= t and unit.kind not in ("evaluate", "save"))
    units = [unit for unit in whole[: last + 1] if unit.kind != "evaluate"]

    def spoil(leaf, t=t):
      leaf = np.array(leaf)
      leaf[t + 1 :] = random.permutation(leaf[t + 1 :].ravel()).reshape(leaf[t + 1 :].shape)
      return leaf

    tasks = jax.tree.map(spoil, subject.data.tasks)
    test_bank = Bank(255 - subject.data.test_bank.x, subject.data.test_bank.y[::-1].copy())
    spoiled = subject.data._replace(tasks=tasks, test_bank=test_bank)
    chex.assert_trees_all_equal(subject.run(units, data=spoiled).state, subject.run(units).state)


@pytest.mark.parametrize("name", sorted(AT_ZERO))
def test_at_strength_zero_it_is_fine_tuning(name):
  subject = compiled(name, **AT_ZERO[name])
  state = subject.run([unit for unit in subject.units() if unit.kind not in ("evaluate", "save")]).state
  chex.assert_trees_all_equal(state.params, finished("finetune").state.params)


def test_it_learns(name):
  """Right after a task the accuracy on it is far above the chance of one in four."""
  diagonal = np.diagonal(accuracy(name)[:, 1:], axis1=1, axis2=2)
  assert diagonal.mean() > 0.6, diagonal


def without_numbers(leaf):
  return jnp.full_like(leaf, jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def test_a_loss_that_is_no_number_is_noted(name):
  """Weights that are not finite after the task's start: the first step tells, of every seed."""
  subject = toy(name)
  units = subject.units()
  chunk = next(i for i, unit in enumerate(units) if unit.kind == "chunk")
  carry = subject.run(units[:chunk])
  carry.state = jax.tree.map(without_numbers, carry.state)
  carry = subject.run([units[chunk]], carry=carry)
  at = units[chunk].at
  assert carry.diverged.tolist() == [[at.task, at.phase, 0]] * len(subject.experiment.seeds)
  assert (finished(name).diverged == -1).all()


def test_report_and_faults_have_fixed_keys(name):
  method, state = toy(name).method, first(finished(name).state)
  before, after = jax.eval_shape(method.init, jax.random.key(0)), state
  reports = [jax.eval_shape(method.report, state) for state in (before, after)]
  assert {"parameters", "memory_bytes"} <= set(reports[0])
  chex.assert_trees_all_equal_shapes_and_dtypes(*reports)
  faults = [jax.eval_shape(method.faults, state) for state in (before, after)]
  assert set(faults[0]) == set(faults[1])


@functools.cache
def asked(name):
  """state, slot -> Outputs of six test rows."""
  apply = jax.jit(toy(name).method.apply)
  x = jnp.asarray(toy(name).data.test_bank.x[:6] / np.float32(255))
  return lambda state, slot=MIXED: apply(state, x, jnp.array(slot))


MIXED = (0, 1, 2, 2, 1, 0)


def test_apply_answers_rows_by_their_own_slot(name):
  """A mixed batch gives each row what a batch of its task alone gives."""
  state = first(finished(name).state)
  mixed = asked(name)(state)
  for slot in range(3):
    own, alone = (
      [leaf[np.equal(MIXED, slot)] for leaf in jax.tree.leaves(out)] for out in (mixed, asked(name)(state, [slot] * 6))
    )
    chex.assert_trees_all_close(own, alone, atol=1e-5)
  assert mixed.features.shape[0] == 6 and mixed.logits.shape == (6, toy(name).spec.C)


def test_a_batch_without_a_live_row_changes_nothing_learnt(name):
  subject = toy(name)
  state = first(finished(name).state)
  phase = subject.method.phases[0]
  view_tasks = subject.compiled["view"](jax.device_put(subject.data.tasks), jnp.int32(1))
  view = View(jax.device_put(subject.data.bank), view_tasks, jnp.int32(1))
  width = phase.batch + TOYS.get(name, (None, {}))[1].get("replay", 0)
  clock = Clock(*(jnp.int32(n) for n in (0, 0, 3, 0)))

  @jax.jit
  def step(state, view):
    place = Place(jnp.ones(width, jnp.int32), jnp.arange(width))
    batch = fetch(view, place)._replace(live=jnp.zeros(width, bool))
    return phase.step(jax.random.key(0), state, batch, clock, view)

  after, info = step(state, view)
  before, after = (asked(name)(it, [1] * 6).logits for it in (state, after))
  chex.assert_trees_all_equal(before, after)
  assert float(info["loss"]) == 0


def test_golden_row(name):
  """The matrix and a checksum of the last state of the toy, as they were when the method was accepted."""
  path = GOLDEN / f"{name}.json"
  state = finished(name).state
  sizes = [float(np.abs(np.asarray(leaf, np.float64)).mean()) for leaf in jax.tree.leaves(state) if leaf.size]
  found = {"right": finished(name).right["task"].tolist(), "mean_sizes": sizes}
  wanted = os.environ.get("CLJAX_UPDATE_GOLDEN", "")
  if wanted == name or (wanted == "missing" and not path.exists()):
    path.write_text(json.dumps(found) + "\n")
  assert path.exists(), f"{name} has no golden row; CLJAX_UPDATE_GOLDEN=missing pytest tests/methods_test.py writes it"
  expected = json.loads(path.read_text())
  why = (
    "the numbers of this method moved. If no change of the algorithm was meant, something else moved them: keys by "
    "position, order of rows, an optimizer's default. If one was meant, write a `numerics:` entry in the CHANGELOG and "
    "run CLJAX_UPDATE_GOLDEN=<its name> pytest tests/methods_test.py"
  )
  np.testing.assert_allclose(found["mean_sizes"], expected["mean_sizes"], rtol=2e-2, err_msg=why)
  np.testing.assert_allclose(found["right"], expected["right"], atol=4, err_msg=why)
