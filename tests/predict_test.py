"""A finished run of Expert Gate: prediction from its parts, one expert at a time, and the figures of what it leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure

from cljax import artifacts
from cljax.data.sample import decode
from cljax.errors import ConfigError
from cljax.methods.exhibits import EXHIBITS
from cljax.methods.expert_gate.exhibits import parent_relatedness, transfer_figures
from cljax.outcome import write_outcome
from cljax.pieces.experts import FINETUNE, LWF
from cljax.predict import Predictor, checked_pictures
from cljax.report import gallery
from cljax.run import train
from tests import toys


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gate") / "run"
  return folder, train(
    toys.config_of({**toys.SMALL_GATE, "warmup_epochs": 0}, tasks=5, valid_per_task=30), folder, quiet=True
  )


def test_it_answers_as_the_whole_state_does(run):
  folder, outcome = run
  bank = outcome.experiment.stream.test_bank
  x = np.asarray(bank.x[:60])
  one = jax.tree.map(lambda leaf: leaf[1], outcome.state)
  out = jax.jit(outcome.experiment.method.apply)(one, decode(bank.x[:60]), None)
  answers = Predictor(folder, seed=1)(x)
  np.testing.assert_array_equal(answers.slot, out.task)
  classes, unmap = outcome.experiment.stream.tasks.classes, outcome.experiment.stream.tasks.label_unmap
  classes, unmap = np.asarray(classes), np.asarray(unmap)
  best = np.where(classes[answers.slot], out.logits, -np.inf).argmax(axis=-1)
  np.testing.assert_array_equal(answers.label, unmap[answers.slot, best])
  counts = np.bincount(answers.slot, minlength=5)
  assert (counts > 0).sum() >= 3, "the test needs rows of several experts"
  assert np.mean(answers.label == np.asarray(bank.y[:60])) > 0.5
  np.testing.assert_allclose(answers.probabilities.sum(axis=1), 1, atol=1e-5)


def test_it_reads_the_gate_and_the_chosen_expert_only(run, tmp_path):
  folder, outcome = run
  answers = Predictor(folder)(np.asarray(outcome.experiment.stream.test_bank.x[:60]))
  chosen = int(answers.slot[0])
  copy = tmp_path / "parts"
  (copy / "seed_0").mkdir(parents=True)
  for name in ("spec.json", "seed_0/gate.npz", f"seed_0/expert_{chosen}.npz"):  # no other expert's file is there
    (copy / name).write_bytes((folder / "parts" / name).read_bytes())
  predictor = Predictor(tmp_path)
  rows = np.flatnonzero(answers.slot == chosen)
  again = predictor(np.asarray(outcome.experiment.stream.test_bank.x[:60])[rows])
  np.testing.assert_array_equal(again.label, answers.label[rows])
  files = {name: (copy / "seed_0" / f"{name}.npz").stat().st_size for name in ("gate", f"expert_{chosen}")}
  assert predictor.loaded == files
  with pytest.raises(ConfigError, match=r"does not exist.*holds expert_\d\.npz, gate\.npz"):
    predictor(np.asarray(outcome.experiment.stream.test_bank.x[:60]))


@pytest.mark.parametrize(
  ("what", "words"),
  [
    ("no run", "holds no parts to load"),
    ("no seed", "no parts of seed 7; it has those of the seeds 0, 1"),
    ("damaged", "gate.npz is damaged"),
    ("shape", r"pictures have the shape \(4, 4, 1\), but the run was trained on \(8, 8, 1\)"),
  ],
)
def test_refusals(run, tmp_path, what, words):
  folder, _ = run
  with pytest.raises(ConfigError, match=words):
    if what == "no run":
      Predictor(tmp_path)
    if what == "no seed":
      Predictor(folder, seed=7)
    if what == "damaged":
      artifacts.folder_of(tmp_path, 0).mkdir(parents=True)
      (tmp_path / "parts" / "spec.json").write_bytes((folder / "parts" / "spec.json").read_bytes())
      (artifacts.folder_of(tmp_path, 0) / "gate.npz").write_bytes(b"PK no zip")
      Predictor(tmp_path)
    if what == "shape":
      Predictor(folder)(np.zeros((2, 4, 4, 1)))


ODD = {  # of pictures [4, 8, 8, 1] uint8: what a person may have made of them
  "whole numbers": (lambda x: x.astype(np.int64), "pictures are int64, but the run was trained on uint8: give uint8"),
  "signed bytes": (lambda x: (x // 2).astype(np.int8), "pictures are int8"),
  "true and false": (lambda x: x > 100, "pictures are bool"),
  "words": (lambda x: x.astype(str), "pictures are <U"),
  "objects": (lambda x: x.astype(object), "pictures are object"),
  "not divided": (lambda x: x.astype(np.float32), "pictures hold 0 to 255, but floats of uint8 .* divide them by 255"),
  "centred": (lambda x: x / 127.5 - 1, "pictures hold -1 to 1, but floats .* before they are normalised"),
  "a little over": (lambda x: x / 254, "pictures hold 0 to 1.00394, but floats"),
  "divided twice": (lambda x: x / 255 / 255, "pictures hold 0 to 0.00392157, which is black"),
  "in a shorter type": (lambda x: (x / 255 / 255).astype(np.float32), "which is black for floats of 0 to 1"),
  "normalised": (
    lambda x: (x / 255 - 0.4) / 0.2,
    "-2 to 3, but floats .* before they are normalised, which the run does",
  ),
  "zeros and ones": (lambda x: (x > 100).astype(np.uint8), "pictures hold 0 to 1, which is black for uint8"),
  "none": (lambda x: x[:0], "none at all: give at least one"),
  "one alone": (lambda x: x[0], "pictures have the shape"),
  "a number": (lambda x: 3, "pictures have the shape"),
}


@pytest.fixture(scope="module")
def predictor(run):
  return Predictor(run[0])


@pytest.mark.parametrize("what", ODD)
def test_pictures_of_another_kind_are_refused_in_words(run, predictor, what):
  _, outcome = run
  make, words = ODD[what]
  x = np.array(outcome.experiment.stream.test_bank.x[:4])
  assert x.min() == 0 and x.max() == 255
  with pytest.raises(ConfigError, match=words):
    predictor(make(x))


def test_each_value_of_a_sweep_answers_with_its_own_numbers(run, tmp_path, monkeypatch):
  """The parts' description tells the config of the value, not that of the command."""
  method, outcome = run[1].experiment.method, run[1]
  own = {**outcome.result["config"], "method": {**outcome.result["config"]["method"], "gate_temperature": 9.0}}
  monkeypatch.setattr("cljax.outcome.plots.save", lambda *words: None)
  write_outcome(epath.Path(tmp_path), outcome._replace(result={**outcome.result, "config": own}), method)
  assert Predictor(tmp_path).config["method"]["gate_temperature"] == 9.0


def test_floats_of_0_to_1_are_the_same_pictures(run, predictor):
  x = np.asarray(run[1].experiment.stream.test_bank.x[:4])
  wanted = predictor(x)
  for same in (x / 255, (x / 255).astype(np.float32), jnp.asarray(x)):
    np.testing.assert_array_equal(predictor(same).label, wanted.label)


def test_floats_of_any_scale_are_for_runs_of_floats():
  x = np.random.default_rng(0).normal(size=(3, 2, 2, 1))
  assert checked_pictures(x, (2, 2, 1), "float32").dtype == np.float32
  with pytest.raises(ConfigError, match="pictures are uint8, but the run was trained on float32: give floats of the"):
    checked_pictures(x.astype(np.uint8), (2, 2, 1), "float32")


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_one_number_that_is_not_finite_is_no_picture(run, predictor, odd):
  x = np.asarray(run[1].experiment.stream.test_bank.x[:4]) / 255
  wanted = predictor(x)
  x[2, 3, 3, 0] = odd
  answers = predictor(x)
  assert answers.slot[2] == -1 == answers.label[2]
  np.testing.assert_array_equal(np.delete(answers.label, 2), np.delete(wanted.label, 2))


def test_rows_without_a_finite_error_get_no_answer(run):
  folder, _ = run
  x = np.zeros((2, 8, 8, 1), np.float32)
  x[1] = np.nan
  answers = Predictor(folder)(x)
  assert answers.slot[0] >= 0 and answers.label[0] >= 0
  assert answers.slot[1] == -1 == answers.label[1]


# Figures, from results and report arrays alone.


def test_a_run_has_its_gate_s_figures(run):
  """With `turned`, as if its tasks were turned copies of the first."""
  _, outcome = run
  config = outcome.result["config"]
  result = {**outcome.result, "config": {**config, "stream": {**config["stream"], "angles": (0.0, 0.0, 20.0)}}}
  found = gallery.run_figures(result, outcome.arrays, EXHIBITS)
  assert {"gate_confusion", "relatedness", "turned"} <= set(found)
  line = found["turned"].axes[0].lines[0]
  np.testing.assert_array_equal(line.get_xdata(), [0, 20])
  np.testing.assert_allclose(line.get_ydata(), outcome.arrays["relatedness"][0, -1, 1:3, 0])
  image = found["gate_confusion"].axes[0].images[0].get_array()
  np.testing.assert_allclose(image.sum(axis=1), 1)


def test_a_table_shows_what_lwf_gave(run):
  """Of two results whose modes and accuracies differ."""
  _, outcome = run
  R = np.array(outcome.result["accuracy"], float)
  results = [{**outcome.result, "accuracy": (share * R).tolist()} for share in (0.9, 1.0)]
  arrays = [{**outcome.arrays, "mode": np.where(outcome.arrays["mode"] > 0, mode, 0)} for mode in (FINETUNE, LWF)]
  found = gallery.table_figures(results, arrays, ["tuned", "held"], EXHIBITS)
  figure = next(figure for name, figure in found.items() if name.endswith("_transfer"))
  points = figure.axes[0].collections[0].get_offsets()
  shown = np.asarray(points)[~np.isnan(np.asarray(points)[:, 0].astype(float))]
  np.testing.assert_allclose(np.sort(shown[:, 1]), np.sort(10 * R[:, -1, 1:].ravel()), atol=1e-9)
  assert transfer_figures(results[:1], arrays[:1]) == {}
  assert all(isinstance(figure, Figure) for figure in found.values())


def test_the_relatedness_of_parents():
  arrays = {"relatedness": np.array([[[[np.nan] * 3, [0.9, np.nan, np.nan]]]]), "parent": np.array([[[-1, 0]]])}
  np.testing.assert_array_equal(parent_relatedness(arrays), [[np.nan, 0.9]])
