"""Losses that are no numbers: noted with their place, told once, kept over a resume, and a reason to stop if asked."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cljax import divergence
from cljax.errors import ConfigError
from cljax.journal import Noted
from cljax.monitor import Monitor
from cljax.report import pages, tables
from tests.results import fake, leave
from tests.subjects import Subject, compiled, finished

NAN, INF = float("nan"), float("inf")


def test_the_first_step_without_a_finite_loss_is_noted():
  """Two chunks: what lies beyond a seed's own steps says nothing, and what was found once stays."""
  found = divergence.blank(3)
  info = {"loss": np.array([[1, 2, NAN, NAN], [1, INF, 2, 2], [1, 2, 3, NAN]])}
  assert divergence.note(found, (1, 0, (10, 20, 30)), (4, 4, 3), info) == [0, 1]
  assert found.tolist() == [[1, 0, 12], [1, 0, 21], [-1, -1, -1]]
  assert divergence.note(found, (2, 1, (0, 0, 0)), (1, 1, 1), {"loss": np.full((3, 1), -INF)}) == [2]
  assert found.tolist() == [[1, 0, 12], [1, 0, 21], [2, 1, 0]]
  assert divergence.told(found)[0] == {"task": 1, "phase": 0, "step": 12}
  assert divergence.note(divergence.blank(1), (0, 0, (0,)), (1,), {"accuracy": np.array([[NAN]])}) == []


def broken(carry):
  """Seed 1's floats are no numbers."""

  def spoil(leaf):
    return leaf.at[1].set(jnp.nan) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  carry.state = jax.tree.map(spoil, carry.state)


def half(subject):
  """(a carry in the midst of the first task, its next chunk)."""
  units = subject.units()
  chunk = next(i for i, unit in enumerate(units) if unit.kind == "chunk")
  carry = subject.run(units[:chunk])
  return carry, units[chunk]


def test_it_is_told_with_seed_task_phase_and_step(caplog):
  subject = compiled("er")
  carry, chunk = half(subject)
  broken(carry)
  carry = subject.run([chunk], carry=carry)
  assert carry.diverged.tolist() == [[-1, -1, -1], [0, 0, 0]]
  (record,) = [record.getMessage() for record in caplog.records]
  assert record.startswith("toy: seed 1, task 1, fit, step 0: the loss is not a finite number") and ".lr" in record
  subject.run([chunk], carry=carry)
  assert len(caplog.records) == 1  # once


def test_a_run_stops_there_if_that_is_asked_for():
  subject = compiled("er")
  settings = subject.experiment.settings._replace(on_divergence="stop")
  stopping = Subject(subject.experiment._replace(settings=settings), subject, new=())
  stopping.compiled = subject.compiled
  carry, chunk = half(stopping)
  broken(carry)
  with pytest.raises(ConfigError, match="seed 1, task 1, fit, step 0.*on_divergence=stop"):
    stopping.run([chunk], carry=carry)


def test_a_checkpoint_keeps_it(tmp_path):
  """What was found before a stop is in the result of the run that goes on."""
  subject = compiled("er")

  def spoil(checkpoints):
    save = checkpoints.save

    def saved(arrays, cursor):
      cursor["diverged"] = [[-1, -1, -1], [1, 0, 7]]
      save(arrays, cursor)

    checkpoints.save = saved

  subject.session(epath.Path(tmp_path), on_open=spoil)
  carry = subject.session(epath.Path(tmp_path))
  assert carry.diverged.tolist() == [[-1, -1, -1], [1, 0, 7]]
  assert (finished("er").diverged == -1).all()


def test_metrics_are_strict_json(tmp_path):
  monitor = Monitor(epath.Path(tmp_path), 1, 0, Noted(), "toy", quiet=True)
  monitor.write({"loss": [NAN, INF, 1.0], "accuracy": NAN})
  monitor.close()

  def refuse(word):
    raise AssertionError(word)

  row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
  assert row["loss"] == [None, None, 1.0] and row["accuracy"] is None


def test_tables_say_so(tmp_path):
  bad = fake("er", diverged=[None, {"task": 0, "phase": 0, "step": 3}])
  _, table = tables.rows([bad, fake("routing"), fake("joint", diverged=None)], {})
  assert [line[1] for line in table] == ["er [diverged: 1 of 2 seeds]", "joint [oracle]", "routing"]
  leave(tmp_path / "er", bad)
  pages.write_report(tmp_path)
  assert "[diverged]:" in (tmp_path / "report.md").read_text()
