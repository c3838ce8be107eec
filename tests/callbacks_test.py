"""Numbers of one's own, told at each row of the accuracy matrix by `on_row`."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.callbacks import asked
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.run import fit
from tests import toys

SPEC, DATA = toys.stream((20, 20))
SEEDS = (0, 3)


def run(on_row, workdir=None, method="finetune"):
  made = METHODS[method](toys.mlp(SPEC).clone(hidden=(4,)), optax.sgd(0.1), SPEC)
  return fit(made, SPEC, DATA, seeds=SEEDS, on_row=on_row, workdir=workdir, quiet=True)


def size(carry):
  return jnp.abs(carry.state.params["head"]["kernel"]).sum(axis=(1, 2))


def lines(folder):
  found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return {line["row"]: line["values"] for line in found if line["event"] == "own"}


def test_an_error_loses_nothing_and_the_numbers_are_those_of_a_run_without(tmp_path):
  rows = []

  def on_row(carry, row):
    rows.append(row)
    if row == 1 and rows.count(1) == 1:
      return {"size": 1 / 0}
    return {"size": size(carry), "known": row, "holes": [np.nan, float("inf")]}

  with pytest.raises(
    ConfigError, match=r"^on_row failed at row 1 \(ZeroDivisionError: division by zero\); nothing lear"
  ):
    run(on_row, tmp_path)
  outcome = run(on_row, tmp_path)
  assert rows == [0, 1, 1, 2]  # row 1 again, and row 0 not
  written = lines(tmp_path)
  assert set(written) == {0, 1, 2} and written[2]["holes"] == [None, None] and written[0]["known"] == [0, 0]
  assert outcome.result["report"]["known"] == [2, 2] and outcome.result["report"]["holes"] == [None, None]
  np.testing.assert_array_equal(outcome.arrays["size"].T, [written[1]["size"], written[2]["size"]])
  np.testing.assert_array_equal(outcome.arrays["size"][:, 1], size(outcome))
  again = run(on_row, tmp_path)
  assert rows == [0, 1, 1, 2] and again.arrays["size"].tolist() == outcome.arrays["size"].tolist()


def test_in_memory_a_run_goes_on_after_an_error(caplog):
  def on_row(carry, row):
    return {"size": size(carry)} if row != 1 else carry.nothing

  outcome = run(on_row)
  assert "on_row failed at row 1 (AttributeError" in caplog.text and caplog.text.count("on_row") == 1
  assert np.isnan(outcome.arrays["size"][:, 0]).all() and np.isfinite(outcome.arrays["size"][:, 1]).all()

  def wrong(carry, row):
    raise RuntimeError("two\nlines")

  with pytest.raises(ConfigError, match=r"row 0 \(RuntimeError: two lines\)"):
    run(wrong)  # before anything was trained


@pytest.mark.parametrize(
  ("told", "message"),
  [
    (3.5, "gave a float at row 4"),
    ({"x y": 1}, "the name 'x y'"),
    ({"parameters": 1}, "'parameters', which is a method's own"),
    ({"x": [1, 2, 3]}, r"int64 \[3\] as 'x'"),
    ({"x": "high"}, "as 'x'"),
    ({"x": [[1], [2, 3]]}, "no numbers as 'x'"),
  ],
)
def test_what_is_no_number_of_each_seed_is_refused(told, message):
  carry = SimpleNamespace(slot_of=np.zeros((2, 5)), reports={"parameters": 0})
  with pytest.raises(ConfigError, match=message):
    asked(lambda carry, row: told, carry, 4)
