"""One's own arrays as a stream: the same numbers as the built-in one, and one clear line for what does not fit."""

import importlib
import shutil

import chex
import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import cljax
from cljax.data import STREAMS, from_arrays
from cljax.data.bank import Source
from cljax.errors import ConfigError
from cljax.evaluation import evaluate_again
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.run import fit
from cljax.types import Bank

DIGITS = load_digits()
X = (DIGITS.images[:600, ..., None] * 15).astype(np.uint8)
Y = DIGITS.target[:600].astype(np.int64)
CUT = 400


def of_task(labels, part):
  x, y = (X[:CUT], Y[:CUT]) if part == "train" else (X[CUT:], Y[CUT:])
  own = np.isin(y, labels)
  return x[own], y[own]


PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


def pairs(part, tasks=PAIRS):
  return [of_task(labels, part) for labels in tasks]


def mlp(spec):
  return NETS["mlp"](heads=spec.heads, classes=spec.C, hidden=(16,))


def accuracy(spec, stream, **settings):
  method = METHODS["er"](mlp(spec), optax.sgd(0.1), spec, capacity=20)
  return fit(method, spec, stream, quiet=True, **settings).result


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_pairs_are_the_stream_that_the_built_in_split_lays(scenario):
  """The same spec, labels and rows of each task in the same order; the banks lie in another order."""
  source = Source(Bank(X[:CUT], Y[:CUT].astype(np.int32)), Bank(X[CUT:], Y[CUT:].astype(np.int32)), np.arange(10), "")
  known = STREAMS["split"](source, jax.random.key(0), tasks=5, scenario=scenario)
  own = from_arrays(pairs("train"), pairs("test"), scenario=scenario)
  assert own[0] == known[0]
  for name in ("label_map", "label_unmap", "classes"):
    np.testing.assert_array_equal(getattr(own[1].tasks, name), getattr(known[1].tasks, name))
  (_, a), (_, b) = own, known
  for t in range(5):
    splits = ((a.tasks.train, b.tasks.train, a.bank, b.bank), (a.test, b.test, a.test_bank, b.test_bank))
    for rows, others, bank, other in splits:
      count = rows.count[t]
      assert count == others.count[t]
      np.testing.assert_array_equal(bank.x[rows.idx[t, :count]], other.x[others.idx[t, :count]])
      np.testing.assert_array_equal(bank.y[rows.idx[t, :count]], other.y[others.idx[t, :count]])


def test_one_pair_and_lists_of_rows_is_the_same_stream():
  parts = [(X[:CUT], Y[:CUT]), (X[CUT:], Y[CUT:])]
  lists = [(x, y, [np.flatnonzero(np.isin(y, labels)) for labels in PAIRS]) for x, y in parts]
  a, b = from_arrays(*lists), from_arrays(pairs("train"), pairs("test"))
  assert a[0] == b[0]
  for t in range(5):
    rows = [s.tasks.train.idx[t, : s.tasks.train.count[t]] for _, s in (a, b)]
    np.testing.assert_array_equal(a[1].bank.x[rows[0]], b[1].bank.x[rows[1]])


def test_three_tasks_of_pairs_are_no_pair_with_rows():
  for kind in (tuple, list):
    assert from_arrays([kind(of_task([c], "train")) for c in range(3)], pairs("test", [[0], [1], [2]]))[0].T == 3
  few = [X[0] / 255, X[1] / 255], [0, 1], [[0, 1]]
  assert from_arrays(few, few)[0].rows == (2,)


def test_float_vectors_of_tasks_with_different_numbers_of_classes_are_learnt():
  """Two and three classes under two heads, validation rows, and what a stored row takes."""
  draw = np.random.default_rng(0)

  def blobs(labels, n):
    y = np.repeat(labels, n)
    return draw.normal(size=(len(y), 6)) * 0.3 + 3 * np.eye(6)[y % 6], y

  tasks = [(7, 9), (0, 1, 2)]
  given = {split: [blobs(labels, n) for labels in tasks] for split, n in (("train", 60), ("test", 20), ("valid", 10))}
  spec, stream = from_arrays(**given)
  assert (spec.T, spec.C, spec.heads, spec.x_shape, spec.rows) == (2, 3, 2, (6,), (120, 180))
  assert stream.bank.x.dtype == np.float32 and stream.tasks.classes.tolist() == [[True, True, False], [True] * 3]
  result = accuracy(spec, stream, looks=("valid",))
  assert result["memory_bytes"] == 20 * (6 * 4 + 8)
  assert min(result["accuracy"][0][2]) > 0.9 and min(result["readouts"]["valid"]["accuracy"][0][2]) > 0.9
  other = from_arrays(**{**given, "train": [(x + 1, y) for x, y in given["train"]]})[1]
  assert result["data_hash"] not in ("", accuracy(spec, other)["data_hash"])


def test_a_task_of_the_domain_scenario_is_tested_on_its_own_rows():
  """The same two labels in both tasks; the second's pictures are the first's upside down."""
  x, y = of_task((0, 7), "train")
  tx, ty = of_task((0, 7), "test")
  spec, stream = from_arrays([(x, y), (x[:, ::-1], y)], [(tx, ty), (tx[:3, ::-1], ty[:3])], scenario="domain")
  assert (spec.C, spec.heads) == (2, 1) and stream.test.count.tolist() == [len(ty), 3]
  np.testing.assert_array_equal(stream.test_bank.x[stream.test.idx[1, :3]], tx[:3, ::-1])
  assert stream.tasks.classes.all() and stream.tasks.label_map[:, [0, 7]].tolist() == [[0, 1]] * 2
  missing = y != 7
  part, _ = from_arrays([(x, y), (x[missing], y[missing])], [(tx, ty)] * 2, scenario="domain")  # known by the other
  assert part.C == 2


def config(**changes):
  it = cljax.default()
  it.update_from_flattened_dict({"num_seeds": 1, "method.name": "er", **changes})
  it.method.capacity, it.net.hidden, it.paper, it.cell = 20, (16,), "cotraining", "mnist_perm/er"
  return it


def test_a_config_trains_on_them_in_place_of_its_stream(tmp_path):
  """The same numbers as `fit`; the work dir goes on with these arrays alone, and its result is of no paper's table."""
  spec, stream = from_arrays(pairs("train"), pairs("test"))
  outcome = cljax.train(config(), tmp_path / "run", stream=(spec, stream), quiet=True)
  result = outcome.result
  alone = accuracy(spec, stream)
  assert result["accuracy"] == alone["accuracy"] and result["data_hash"] == alone["data_hash"]
  assert (result["paper"], result["cell"], result["stream"], result["readout"]) == ("", "", "own", "task")
  again = cljax.train(config(), tmp_path / "run", stream=(spec, stream), quiet=True)
  assert again.result == result
  chex.assert_trees_all_equal(again.state, outcome.state)  # of its checkpoint
  with pytest.raises(ConfigError, match="arrays given from Python"):
    evaluate_again(tmp_path / "run", {})
  other = stream._replace(bank=stream.bank._replace(x=stream.bank.x // 2))
  with pytest.raises(ConfigError, match=r"config\.stream\.hash"):
    cljax.train(config(), tmp_path / "run", stream=(spec, other), quiet=True)
  places = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
  for place in (places[-1], places[0].parent):  # of the run's end, and then all of them
    shutil.rmtree(place)
    with pytest.raises(ConfigError, match="no checkpoint of the run's end any more, so what it learnt has gone"):
      cljax.train(config(), tmp_path / "run", stream=(spec, stream), quiet=True).state  # noqa: B018


def test_names_that_people_import():
  for name, room in cljax.EXPORTS.items():
    assert getattr(cljax, name) is getattr(importlib.import_module(f"cljax.{room}"), name) and name in dir(cljax)
  with pytest.raises(AttributeError, match="no attribute 'fitt'"):
    cljax.fitt  # noqa: B018


def test_grey_pictures_get_a_channel_and_uint8_stays():
  spec, stream = from_arrays([(X[:50, ..., 0], Y[:50])], [(X[:50, ..., 0], Y[:50])])
  assert spec.x_shape == (8, 8, 1) and stream.bank.x.dtype == np.uint8 and spec.x_bytes == 1


GOOD = (X[:50], Y[:50])
WRONG = {
  "no pairs": (X, [GOOD], {}, ["train is ndarray", "list of pairs"]),
  "empty": ([], [GOOD], {}, ["train is list", "list of pairs"]),
  "two tasks and one": ([GOOD, GOOD], [GOOD], {}, ["test has 1 tasks", "train has 2"]),
  "another shape": ([GOOD], [(X[:50, :4], Y[:50])], {}, ["(4, 8, 1)", "(8, 8, 1)"]),
  "shapes within": ([GOOD, (X[:50, :4], Y[:50])], [GOOD, GOOD], {}, ["different shapes"]),
  "another type": ([GOOD], [(X[:50] / 255, Y[:50])], {}, ["float32", "uint8"]),
  "labels as floats": ([(X[:50], Y[:50] / 1.0)], [GOOD], {}, ["train, task 1", "float64", "whole numbers"]),
  "negative label": ([(X[:50], Y[:50] - 1)], [GOOD], {}, ["from -1"]),
  "huge label": ([(X[:50], Y[:50] + 10**9)], [GOOD], {}, ["1000000"]),
  "one-hot": ([(X[:50], np.eye(10)[Y[:50]])], [GOOD], {}, ["train"]),
  "lengths": ([(X[:49], Y[:50])], [GOOD], {}, ["[49, 8, 8, 1]", "[50]"]),
  "int64 pictures": ([(X[:50].astype(int), Y[:50])], [GOOD], {}, ["int64", "uint8"]),
  "nan": ([(np.full((50, 3), np.nan), Y[:50])], [GOOD], {}, ["not finite"]),
  "no row": ([GOOD, (X[:0], Y[:0])], [GOOD, GOOD], {}, ["task 2 has no rows in train"]),
  "no test row": ([GOOD, GOOD], [GOOD, (X[:0], Y[:0])], {}, ["task 2 has no rows in test"]),
  "unknown label": ([(X[:50], Y[:50] * 0)], [GOOD], {}, ["test, task 1 has the labels [1, 2"]),
  "row beyond": ((*GOOD, [[0, 50]]), [GOOD], {}, ["rows from 0 to 50", "50 examples"]),
  "column of labels": ([(X[:50], Y[:50, None])], [GOOD], {}, ["train, task 1: x [50, 8, 8, 1] and y [50, 1]"]),
  "words as labels": ([(X[:50], Y[:50].astype(str))], [GOOD], {}, ["train, task 1: y is <U"]),
  "one pair alone": (GOOD, [GOOD], {}, ["train, task 1 is no pair (x, y)"]),
  "a mask": ((*GOOD, [Y[:50] < 5]), [GOOD], {}, ["rows are a mask [50]", "np.flatnonzero"]),
  "a number of rows": ((*GOOD, 5), [GOOD], {}, ["train has int in place of a list of row numbers"]),
  "no task": ((*GOOD, []), [GOOD], {}, ["train has list in place of"]),
  "ragged": ([([[1.0, 2.0], [3.0]], [0, 1])], [GOOD], {}, ["train, task 1: x is no array"]),
  "rows as floats": ((*GOOD, [[0.5]]), [GOOD], {}, ["float64"]),
  "scenario": ([GOOD], [GOOD], {"scenario": "clas"}, ["clas", "Did you mean class?"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_one_clear_line(case):
  train, test, options, expected = WRONG[case]
  with pytest.raises(ConfigError) as caught:
    from_arrays(train, test, **options)
  text = str(caught.value)
  assert all(word in text for word in expected) and "\n" not in text, text


@pytest.mark.slow
def test_experts_trained_on_them_answer_alone(tmp_path):
  """The parts of a finished run, read without the arrays."""
  it = cljax.default()
  small = {"batch_size": 10, "warmup_epochs": 1, "code": 4, "autoencoder_batch": 10, "autoencoder_epochs": 2}
  it.method, it.net, it.num_seeds = {"name": "expert_gate", **small}, {"name": "mlp", "hidden": (8,)}, 1
  half = [pairs("train", PAIRS[:2]), pairs("test", PAIRS[:2])]
  cljax.train(it, tmp_path, stream=from_arrays(*half, valid=half[1]), quiet=True)
  assert len(cljax.Predictor(tmp_path)(half[1][0][0][:3]).label) == 3
