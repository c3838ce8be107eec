"""Looks: what they ask against the same questions asked by hand, that training does not notice, and that a stop costs
no bit of what they found."""

import functools
import json
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cljax.config import completed
from cljax.cursor import resume, to_cursor
from cljax.drive import Stopped, ask, start
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.files import write_json
from cljax.journal import Noted
from cljax.looks import LOOKS, fill_row, looks_of, no_row, pairs
from cljax.outcome import outcome_of
from cljax.readout import ANSWERS
from cljax.run import compile_events
from cljax.timeline import Look, Position, Timeline
from cljax.types import Spec
from cljax.workdir import claim
from tests import subjects, toys
from tests.subjects import Subject, assert_same
from tests.tiers import at_release

ALL = tuple(LOOKS)


def two_phases(spec):
  """A phase of two epochs without a tick, then one of four steps, whose exit turns all answers round."""
  method = toys.plain(spec, epochs=2)

  def turn(key, state, view, clock):
    return state.replace(params=jax.tree.map(lambda leaf: -leaf, state.params))

  (first,) = method.phases
  return method._replace(phases=(first, first._replace(name="more", epochs=0, steps=4, exit=turn)))


@functools.cache
def subject(name: str) -> Subject:
  """`stopping`: one phase with ticks, whose exit goes back to the best epoch; or `two_phases`."""
  spec, data = toys.stream()
  if name == "stopping":
    method, like = toys.early_stop(spec), subjects.compiled_stopping()
  else:
    method, like = two_phases(spec), subjects.compiled("plain")
  it = toys.experiment(method, spec, data, chunk=5, looks=ALL)
  return Subject(it, like, (".chunk", ".valid", "more.exit", "newton.task", "adam.task"))


@functools.cache
def looked(name: str):
  """(carry, metrics.jsonl) of a run with all looks."""
  return subject(name).run(), subject(name).rows


def right_now(it: Subject, carry, split: str, tasks, now: int) -> dict[int, np.ndarray]:
  """task -> [S] right answers of the state as it is."""
  return {t: n["right"] for t, n in ask(it.experiment, it.compiled, carry, "task", tasks, now, split)}


@functools.cache
def by_hand(name: str):
  """(valid, before_exit [S, T+1, T], edges {task: [(phase, epoch, valid [S], test [S])]}): the units of the run without
  looks one by one, all questions asked at the places that the words of `Look.when` name."""
  it = subject(name)
  plain = it.experiment.timeline._replace(looks=())
  carry, S, T = it.start(), len(it.experiment.seeds), it.experiment.spec.T
  valid, before = np.full((2, S, T + 1, T), -1)
  edges: dict[int, list] = {t: [] for t in range(T)}
  for unit in subjects.cut(plain.units(None, 0), lambda: 1):
    t, p = unit.at.task, unit.at.phase
    phase = plain.phases[min(p, len(plain.phases) - 1)]
    if unit.kind == "exit" and p == len(plain.phases) - 1:
      before[:, t + 1] = np.stack(list(right_now(it, carry, "test", range(T), t).values()), axis=1)
    it.run([unit], carry=carry)
    done = unit.at.step[0] + (unit.stop[0] if unit.kind == "chunk" else 0)
    epoch = int(plain.epoch_steps(t, p)[0]) if t < T else 0
    ends = done % epoch == 0 if phase.epochs and epoch else epoch and done == phase.steps
    if ends and unit.kind == ("tick" if f"{phase.name}.tick" in it.compiled else "chunk"):
      found = (right_now(it, carry, split, [t], t)[t] for split in ("valid", "test"))
      edges[t].append((p, done // epoch if phase.epochs else 1, *found))
    if unit.kind == "evaluate":
      valid[:, unit.row] = np.stack(list(right_now(it, carry, "valid", range(T), unit.row - 1).values()), axis=1)
  return valid, before, edges, carry


NAMES = pytest.mark.parametrize("name", ["stopping", "two_phases"])


@NAMES
def test_training_does_not_notice(name):
  """State, matrix and reports have the bits of a run that is not asked."""
  assert_same(looked(name)[0], by_hand(name)[-1])


@NAMES
def test_matrices_are_those_asked_by_hand(name):
  """Before an `exit` that goes back to the best epoch the test rows are answered otherwise than after it."""
  carry, (valid, before, _, _) = looked(name)[0], by_hand(name)
  np.testing.assert_array_equal(carry.looked["valid"]["right"], valid)
  np.testing.assert_array_equal(carry.looked["before_exit"]["right"], before)
  assert (before[:, 0] == -1).all() and (before[:, 1:] >= 0).all() and (valid >= 0).all() and valid.max() <= 8
  assert (before[:, 1:] != carry.right["task"][:, 1:]).any()


@NAMES
def test_the_peak_is_the_first_best_epoch(name):
  """For each seed by itself, over the epochs of all phases; its test accuracy is of that epoch."""
  found = looked(name)[0].looked["watch"]
  for task, edges in by_hand(name)[2].items():
    assert len(edges) == {"stopping": 4, "two_phases": 2 + 1}[name]
    for s in range(2):
      phase, epoch, valid, test = max(edges, key=lambda edge, s=s: edge[2][s])  # the first of equals
      of_peak = {"valid": valid[s], "test": test[s], "epoch": epoch, "phase": phase}
      assert {key: int(counts[s, task]) for key, counts in found.items()} == of_peak


def test_the_toy_has_peaks_that_differ():
  """By seed, before the end, and less on test rows than some other epoch: what the test above would not see else."""
  peaks = [looked(name)[0].looked["watch"] for name in ("stopping", "two_phases")]
  assert any((found["epoch"][0] != found["epoch"][1]).any() for found in peaks)
  edges = by_hand("stopping")[2].values()
  best = np.array([[max(edge[3][s] for edge in task) for task in edges] for s in range(2)])
  assert (peaks[0]["test"] < best).any() and (peaks[0]["epoch"] < 4).any() and (peaks[1]["phase"] == 1).any()


def test_test_rows_are_asked_where_some_seed_improves_alone():
  """A line for the validation rows of each epoch, one for the test rows only where the best moved."""
  for name in ("stopping", "two_phases"):
    lines = [row for row in looked(name)[1] if row["event"] == "look" and row["look"] == "watch"]
    best = np.full((2, 3), -1.0)
    for line, after in zip(lines, [*lines[1:], None], strict=True):
      if line["split"] == "valid":
        ((task, accuracy),) = line["accuracy"].items()
        moved = np.array(accuracy) > best[:, int(task)]
        best[:, int(task)] = np.maximum(best[:, int(task)], accuracy)
        assert (after is not None and after["split"] == "test") == moved.any()
    assert sum(line["split"] == "test" for line in lines) < sum(line["split"] == "valid" for line in lines)


def test_the_result_has_readouts_and_a_peak():
  it, carry = subject("stopping"), looked("stopping")[0]
  result = outcome_of(it.experiment, carry).result
  assert list(result["readouts"]) == ["valid", "before_exit", "readout", "readout_adam"]
  rows = np.array([60, 53, 46])
  valid, before = (np.array(result["readouts"][name]["accuracy"], float) for name in ("valid", "before_exit"))
  np.testing.assert_array_equal(valid * 8, carry.looked["valid"]["right"])
  np.testing.assert_allclose(before[:, 1:] * rows, carry.looked["before_exit"]["right"][:, 1:])
  assert np.isnan(before[:, 0]).all() and result["readouts"]["before_exit"]["metrics"]["FWT"]["mean"] is None
  assert result["readouts"]["before_exit"]["metrics"]["ACC"]["values"] == pytest.approx(before[:, 3].mean(axis=1))
  watch = carry.looked["watch"]
  np.testing.assert_allclose(np.array(result["peak"]["test"]) * rows, watch["test"])
  np.testing.assert_allclose(np.array(result["peak"]["valid"]) * 8, watch["valid"])
  assert result["peak"]["mean"] == pytest.approx((watch["test"] / rows).mean())


def test_each_value_of_a_sweep_has_its_own():
  """Two rows of the seed axis as two values with a seed each."""
  it, carry = subject("stopping"), looked("stopping")[0]
  swept = it.experiment._replace(values=({"lr": 0.1}, {"lr": 0.2}), configs=({}, {}))
  for v in range(2):
    result = outcome_of(swept, carry, v).result
    np.testing.assert_array_equal(result["peak"]["epoch"], carry.looked["watch"]["epoch"][v : v + 1])
    valid = np.array(result["readouts"]["valid"]["accuracy"]) * 8
    np.testing.assert_array_equal(valid, carry.looked["valid"]["right"][v : v + 1])


@pytest.mark.parametrize("mode", ["seen", "ends"])
def test_matrices_have_the_pairs_that_config_evaluate_names(mode):
  it = subject("two_phases")
  settings = it.experiment.settings._replace(evaluate=mode)
  other = Subject(it.experiment._replace(settings=settings), it, ()).run()
  asked = np.array([[task in pairs(mode, row, 3, (0, 1, 2)) for task in range(3)] for row in range(4)])
  for name in ("valid", "before_exit"):
    expected = np.where(asked, looked("two_phases")[0].looked[name]["right"], -1)
    np.testing.assert_array_equal(other.looked[name]["right"], expected)
  chex.assert_trees_all_equal(other.looked["watch"], looked("two_phases")[0].looked["watch"])


@pytest.mark.parametrize("name", ["two_phases", *at_release("stopping")])
def test_going_on_from_every_save_finds_the_same(name, tmp_path):
  """Each session goes on from the last one's checkpoint and is stopped at the first chance, until the run is done."""
  folder, sessions, carry = epath.Path(tmp_path), 0, None
  while carry is None:
    sessions += 1
    try:
      carry = subject(name).session(folder, stop_asked=lambda: True)
    except Stopped:
      continue
  assert sessions == 1 + sum(unit.kind == "save" for unit in subject(name).units())
  other, rows = looked(name)
  assert_same(carry, other)
  chex.assert_trees_all_equal(carry.looked, other.looked)
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  assert [{**line, "seconds": 0} for line in lines] == [{**row, "seconds": 0} for row in rows]


def test_any_cutting_finds_the_same():
  units = list(subjects.cut(subject("two_phases").units(), iter([1, 3, 2] * 100).__next__))
  carry = subject("two_phases").run(units)
  chex.assert_trees_all_equal(carry.looked, looked("two_phases")[0].looked)


class Older(NamedTuple):
  """Checkpoints of a version that knew no looks."""

  cursor: dict

  def restore(self, like, check):
    return like, {name: value for name, value in self.cursor.items() if name != "looked"}


def test_a_checkpoint_of_an_older_version_goes_on():
  it = subjects.compiled("plain")
  cursor = to_cursor(Position(1, 0, (0, 0)), it.start(), Noted())
  assert cursor["looked"] == {} and resume(it.start(), Older(cursor), it.experiment)[0].looked == {}


def test_a_work_dir_of_an_older_version_is_its_run_s(tmp_path):
  """Its config.json lacks keys that came later: at their defaults they are no difference, else they are."""
  config = toys.config_of({"name": "finetune"})
  told = config.to_dict()

  def today(there):
    return completed(there).to_dict()

  del told["looks"], told["method"]["epochs"]
  write_json(tmp_path / "config.json", told)
  claim(epath.Path(tmp_path), config.to_dict(), {}, today)
  config.looks = ("valid",)
  with pytest.raises(ConfigError, match=r"another config:\n  config.looks: \[\] there, \['valid'\] here\n[^:]*$"):
    claim(epath.Path(tmp_path), config.to_dict(), {}, today)
  write_json(tmp_path / "config.json", {**told, "method": {"name": "gone"}})
  with pytest.raises(ConfigError, match="config.method.name: 'gone' there, 'finetune' here"):
    claim(epath.Path(tmp_path), config.to_dict(), {}, today)


# Slots of the method's own, further looks, costly pictures.


@functools.cache
def numbering(slot: int) -> Subject:
  """Its method says that the slot in training is this one."""
  spec, data = toys.stream()
  method = toys.plain(spec, epochs=2)

  def report(state):
    return {**method.report(state), "slot": jnp.int32(slot)}

  looks = ("valid", "before_exit", "watch", "trials", "output_within")  # probes: tests/readout_test.py
  it = toys.experiment(method._replace(slots=3, report=report), spec, data, looks=looks)
  if slot < 0:
    return Subject(it, numbering(1), ("report",))
  return Subject(it, subjects.compiled("plain"), (".task", ".valid", "report"))


@pytest.mark.parametrize("slot", [1, -1])
def test_a_method_that_numbers_its_slots_is_asked_by_the_slot_in_training(slot):
  """The slot is reported after the task: inside it is that of the report of that moment; without one nothing counts."""
  it = numbering(slot)
  carry = it.run()
  if slot < 0:
    found = [counts for found in carry.looked.values() for name, counts in found.items() if name != "done"]
    assert all((counts == -1).all() for counts in found)
    return
  before = carry.looked["before_exit"]["right"]
  np.testing.assert_array_equal(before[:, [1, 2, 3], range(3)], carry.right["task"][:, [1, 2, 3], range(3)])
  assert [(before[:, row] >= 0).all(axis=0).tolist() for row in (1, 2, 3)] == [
    [True, False, False],
    [True, True, False],
    [True, True, True],
  ]
  last = it.compiled["evaluate.task.valid"]
  at = it.experiment.numbers(2, 2)
  counts = last(carry.hyper, carry.state, it.experiment.stream, *at, jnp.full(2, slot, jnp.int32), None)
  np.testing.assert_array_equal(carry.looked["valid"]["right"][:, 3, 2], counts["right"])


@NAMES
@pytest.mark.parametrize("every", [3, 100])
def test_curves_are_what_a_run_is_asked_after_so_many_steps(name, every):
  """At every third step of a phase and at its end, or at its end alone: by the units one by one, before any tick."""
  it = subject(name).experiment
  looks = looks_of(("output_within",), it.spec, it.valid_rows, it.method)
  plain = it.timeline._replace(looks=())
  carry = (own := Subject(it._replace(timeline=plain), subject(name), ())).start()
  expected = {t: [] for t in range(it.spec.T)}
  for unit in subjects.cut(plain.units(None, 0), lambda: 1):
    own.run([unit], carry=carry)
    if unit.kind == "chunk":
      t, p, step = unit.at.task, unit.at.phase, unit.at.step[0] + unit.stop[0]
      if step % every == 0 or step == plain.phase_steps(t, p)[0]:
        done = step + sum(plain.phase_steps(t, q)[0] for q in range(p))
        right = np.stack(list(right_now(own, carry, "test", range(it.spec.T), t).values()), axis=1)
        expected[t].append((done, right))
  found = Subject(it._replace(timeline=plain._replace(looks=looks, look_every=every)), subject(name), ()).run()
  curve = found.looked["output_within"]
  assert_same(found, carry)
  for t, places in expected.items():
    n = len(places)
    assert n > (every < 100) * 2 and (curve["done"][:, t, n:] == -1).all() and (curve["within"][:, t, n:] == -1).all()
    np.testing.assert_array_equal(curve["done"][:, t, :n], [[done for done, _ in places]] * 2)
    np.testing.assert_array_equal(curve["within"][:, t, :n], np.stack([right for _, right in places], axis=1))


def test_steps_between_looks_on_either_side_of_an_epochs_end_are_refused():
  """Two seeds of 8 and 20 rows: looked at after 3 steps, one has begun its second epoch and the other has not."""
  ragged, (phase,) = np.array([[8], [20]]), PLAIN.phases
  ticking = phase._replace(batch=4, epochs=2, tick=lambda key, state, view, clock: state)
  timeline = Timeline((ticking,), SPEC._replace(T=1), ragged, (0,), 1, 0, (LOOKS["output_within"],), 0, 3)
  with pytest.raises(ConfigError, match="config.look_every_steps=3 falls on either side of an epoch's end"):
    timeline.marks(0, 0)
  assert [at.tolist() for _, at, _ in timeline._replace(look_every=100).marks(0, 0)] == [[2, 5], [4, 10]]


def test_a_further_look_is_an_entry_of_the_table(monkeypatch):
  """Its answer is compiled, asked, kept and told without a word elsewhere."""

  def mine(method, readout, group, split, state, stream, task, now, slot, x):
    return {"right": task + 10 * now, "strict": task, "confusion": jnp.zeros(stream.tasks.classes.shape[0], jnp.int32)}

  monkeypatch.setitem(ANSWERS, "mine", mine)
  monkeypatch.setitem(LOOKS, "own", Look("own", "test", pairs, "row", no_row, fill_row, "mine"))
  it = subject("two_phases").experiment
  timeline = it.timeline._replace(looks=looks_of(("own",), it.spec, it.valid_rows, it.method))
  carry = Subject(it._replace(timeline=timeline), subject("two_phases"), ("mine.task",)).run()
  expected = np.arange(3) + 10 * np.arange(-1, 3)[:, None]
  np.testing.assert_array_equal(carry.looked["own"]["right"], np.stack([expected, expected]))
  assert_same(carry, looked("two_phases")[0])


def test_costly_pictures_of_validation_rows_are_made_once():
  """Rotations: answers by pictures made ahead are those by pictures made batch by batch."""
  stream = {"name": "rotated", "tasks": 2, "valid_per_task": 30, "examples_per_task": 60}
  it = build(toys.config_of({"name": "finetune"}, keys={"looks": ("valid",)}, **stream))
  compiled = compile_events(it)
  carry = start(it, compiled)
  ahead, batchwise = (
    next(ask(it, functions, carry, "task", [1], 0, "valid"))[1]
    for functions in (compiled, {name: f for name, f in compiled.items() if not name.startswith("pictures")})
  )
  chex.assert_trees_all_equal(ahead, batchwise)
  assert "pictures.valid" in compiled and int(ahead["confusion"].sum()) == 2 * 30


# Refusals.

SPEC, ROWS = Spec((4,), 3, 2, 3), np.full((2, 3), 8)
HIDDEN, PLAIN = SPEC._replace(heads=1, boundaries=False), toys.plain(SPEC)


@pytest.mark.parametrize(
  ("names", "says"),
  [
    (("vlid",), "config.looks='vlid' is not known. Did you mean valid.* one of: valid, before_exit, watch, trials"),
    ((3, None), r"config.looks=\(3, None\) must be a word"),
    (((),), "config.looks=.* must be a word"),
    ("valid", "config.looks='valid' must be several of them"),
    (None, "config.looks=None must be several"),
    (-1.5, "config.looks=-1.5 must be several"),
    (("valid", "watch", "valid"), "names a look twice"),
  ],
)
def test_wrong_names_are_refused(names, says):
  spec, data = toys.stream()
  with pytest.raises(ConfigError, match=says):
    toys.experiment(toys.plain(spec), spec, data, looks=names)


@pytest.mark.parametrize("name", ["valid", "watch"])
def test_validation_rows_are_needed(name):
  """Of every task and seed."""
  rows = ROWS.copy()
  rows[1, 2] = 0
  with pytest.raises(ConfigError, match=f"'{name}'.*task 3 has none: set config.stream.valid_per_task"):
    looks_of((name,), SPEC, rows, PLAIN)
  assert looks_of(("before_exit",), SPEC, rows * 0, PLAIN) == (LOOKS["before_exit"],)


def test_hidden_boundaries_have_no_epochs_and_no_end_of_a_task():
  for name in ("watch", "before_exit"):
    with pytest.raises(ConfigError, match=f"'{name}', and config.stream.boundaries=False"):
      looks_of(("valid", name), HIDDEN, ROWS, PLAIN)
  assert looks_of(["valid"], HIDDEN, ROWS, PLAIN) == (LOOKS["valid"],)
  assert looks_of((), HIDDEN, ROWS * 0, PLAIN) == ()


def test_a_config_is_refused_before_anything_is_trained():
  config = toys.config_of({"name": "finetune"}, keys={"looks": ("watch",)})
  with pytest.raises(ConfigError, match="valid_per_task"):
    build(config)
