"""Prediction from the parts of a finished run: one expert at a time, the same answers as the whole state gives."""

import jax
import numpy as np
import pytest

from cljax import artifacts
from cljax.data.sample import decode
from cljax.errors import ConfigError
from cljax.predict import Predictor
from cljax.run import train
from tests import toys


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("gate") / "run"
  return folder, train(toys.config_of(toys.SMALL_GATE, tasks=5, valid_per_task=30), folder, quiet=True)


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


def test_rows_without_a_finite_error_get_no_answer(run):
  folder, _ = run
  x = np.zeros((2, 8, 8, 1), np.float32)
  x[1] = np.nan
  answers = Predictor(folder)(x)
  assert answers.slot[0] >= 0 and answers.label[0] >= 0
  assert answers.slot[1] == -1 == answers.label[1]


def test_a_method_without_parts_leaves_none(tmp_path):
  train(toys.config_of({"name": "finetune"}, tasks=2), tmp_path / "run", quiet=True)
  assert not (tmp_path / "run" / "parts").exists()
