"""Damage to side files, results and arrays is noticed: no flipped bit is read, and the error names the file."""

import contextlib
import errno
import json
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from cljax import files
from cljax.config import default
from cljax.errors import ConfigError
from cljax.evaluation import check_note, evaluate_again, note, noted
from cljax.predict import Predictor
from cljax.report import store
from launch import evaluate
from tests.results import fake, flipped, report_arrays

# Side files.


@pytest.mark.parametrize(
  "text", ["[]", "3", "{", "", "{}", '{"x_shape": 3, "T": "a", "config": []}', '{"config": {"stream": 3}}']
)
def test_a_spec_of_another_kind_is_one_error_that_names_it(tmp_path, text):
  (tmp_path / "parts" / "seed_0").mkdir(parents=True)
  (tmp_path / "parts" / "spec.json").write_text(text)
  with pytest.raises(ConfigError, match=r"spec\.json is damaged|begun from Python") as caught:
    Predictor(tmp_path)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "text", ["[]", "{", '{"stream": 3, "num_seeds": {}}', '{"stream": {"name": []}, "num_seeds": 1}']
)
def test_a_config_of_another_kind_is_one_error_that_names_it(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ConfigError, match=r"config\.json( is damaged|: config\.stream)"):
    evaluate_again(tmp_path, {})


def test_evaluations_of_another_kind_are_one_error(tmp_path):
  for text in ("[]", "{", '{"schema": 1}', '{"schema": 1, "evaluations": 3}'):
    (tmp_path / "evaluations.json").write_text(text)
    with pytest.raises(ConfigError, match=r"evaluations\.json is (damaged|no list)"):
      note(tmp_path, [])


def test_no_flipped_bit_of_evaluations_is_read(tmp_path):
  (tmp_path / "evaluations.json").write_text('{"schema": 1, "evaluations": {"rows=all": {"rows": 3}}}')
  path = note(tmp_path, [])  # of a version that wrote no checksum
  content, found = path.read_bytes(), json.loads(path.read_bytes())["evaluations"]
  for bit in range(0, 8 * len(content), 7):
    path.write_bytes(flipped(content, bit))
    with contextlib.suppress(ConfigError):
      assert noted(path) == found, bit


def test_evaluations_that_cannot_be_written_are_found_out_first(tmp_path, monkeypatch):
  (tmp_path / "config.json").write_text(json.dumps(default().to_dict()))
  check_note(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
  with pytest.raises(ConfigError, match="holds no config.json"):
    check_note(tmp_path / "nowhere")

  def refuse(self, content):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", refuse)
  with pytest.raises(OSError, match=r"evaluations\.json could not be written: see that you may read and write there"):
    check_note(tmp_path)
  monkeypatch.setattr(evaluate, "evaluations", lambda *words: pytest.fail("asked before"))
  monkeypatch.setattr(evaluate, "app", SimpleNamespace(workdir=lambda: str(tmp_path)))
  monkeypatch.setattr(evaluate, "hosts", SimpleNamespace(use_platform=int, use_compilation_cache=int))
  with pytest.raises(OSError, match="could not be written"):
    evaluate.main()


# Results and arrays.


def test_no_flipped_bit_of_a_result_is_read(tmp_path):
  path = tmp_path / "result.json"
  files.write_sealed(path, fake())
  content = path.read_bytes()
  assert store.read_result(path) == fake() and json.loads(content)["checksum"]
  found = random.Random(0)
  for bit in [
    *range(8 * (len(content) - 90), 8 * (len(content) - 2)),
    *(found.randrange(8 * len(content)) for _ in range(300)),
  ]:
    path.write_bytes(flipped(content, bit))
    try:
      assert store.read_result(path) == fake(), bit  # spaces and the like
    except ConfigError as error:
      assert str(path) in str(error)
  for end in range(0, len(content) - 2, 97):
    path.write_bytes(content[:end])
    with pytest.raises(ConfigError, match="is damaged"):
      store.read_result(path)


def test_no_flipped_bit_of_any_sealed_object_is_read(tmp_path):
  """Nor one in the name of the checksum, which would make it one of an older version."""
  path, value = tmp_path / "meta.json", {"paper": "", "seeds": [0, 1], "loss": 0.25}
  files.write_sealed(path, value)
  content = path.read_bytes()
  for bit in range(8 * len(content)):
    path.write_bytes(flipped(content, bit))
    try:
      assert files.read_sealed(path, "") == value, bit
    except ConfigError as error:
      assert f"{path} is damaged" in str(error)


def test_no_flipped_bit_and_no_cut_of_a_zip_is_read(tmp_path):
  path = tmp_path / "report.npz"
  store.write_report_arrays(path, report_arrays())
  content = path.read_bytes()
  found = random.Random(0)
  ends = [*range(60), *range(len(content) - 120, len(content))]  # the headers
  bits = [8 * byte + bit for byte in ends for bit in range(8)] + [found.randrange(8 * len(content)) for _ in range(500)]
  for bit in bits:
    path.write_bytes(flipped(content, bit))
    with pytest.raises(ConfigError, match=r"report\.npz is damaged"):
      store.read_report_arrays(tmp_path)
  for end in [*range(len(content) - 100, len(content)), *range(0, len(content), 50)]:
    path.write_bytes(content[:end])
    with pytest.raises(ConfigError, match=r"report\.npz is damaged"):
      store.read_report_arrays(tmp_path)


def test_a_zip_of_an_older_version_is_read_and_its_headers_are_told(tmp_path):
  path = tmp_path / "report.npz"
  np.savez_compressed(path, **report_arrays())
  content = path.read_bytes()
  assert set(store.read_report_arrays(tmp_path)) == set(report_arrays())
  for bit in [*range(8 * 30), *range(8 * (len(content) - 90), 8 * len(content))]:
    path.write_bytes(flipped(content, bit))
    try:
      store.read_report_arrays(tmp_path)  # its times, for example, have no checksum
    except ConfigError as error:
      assert "is damaged" in str(error)
