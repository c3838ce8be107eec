"""What holds for the unit lists of all runs, whatever their phases, rows and saves."""

import numpy as np
import pytest

from cljax.errors import ConfigError
from tests.timelines import BEFORE_EXIT, BESIDE, EPOCH, edge, phase, timeline


def random_timelines(count=40):
  random = np.random.default_rng(7)
  for _ in range(count):
    S, T = random.integers(1, 4), random.integers(1, 5)
    boundaries = bool(random.integers(3))
    rows = random.integers(1, 60, (S, T)) if random.integers(2) else np.tile(random.integers(1, 60, T), (S, 1))
    phases = []
    for p in range(random.integers(1, 4) if boundaries else 1):
      edges = {name: edge for name in ("enter", "exit") if random.integers(2)}
      if boundaries and random.integers(2):
        edges["tick"] = edge
      by_steps = boundaries and "tick" not in edges and random.integers(2)
      length = {"steps": int(random.integers(1, 30))} if by_steps else {"epochs": int(random.integers(1, 4))}
      phases.append(phase(f"p{p}", int(random.integers(1, 12)), joint=bool(random.integers(2)), **length, **edges))
    looks = [it for it in ((BESIDE, EPOCH, BEFORE_EXIT) if boundaries else (BESIDE,)) if random.integers(2)]
    yield timeline(
      phases, rows, int(random.integers(1, 12)), int(random.integers(0, 4)), boundaries, looks=tuple(looks)
    )


def test_going_on_is_the_tail():
  """From every save the units are a `view`, then what was left, whatever the calendar of saves says."""
  for it in random_timelines(20):
    units = [unit._replace(due=False) for unit in it.units(None, 0)]
    row = 0
    for i, unit in enumerate(units):
      row = unit.row + 1 if unit.kind == "evaluate" else row
      if unit.kind != "save":
        continue
      rest = [unit._replace(due=False) for unit in it.units(unit.at, row)]
      tail = units[i + 1 :]
      if rest and tail[:1] != rest[:1]:
        assert rest[0].kind == "view" and rest[0].at.task == unit.at.task
        rest = rest[1:]
      assert rest == tail, (it, unit)


def test_every_step_is_taken_once_and_in_order():
  """Chunks join without a gap, never pass `chunk`, and end at each phase's length; rows of the matrix count up."""
  for it in random_timelines():
    done, rows = {}, []
    for unit in it.units(None, 0):
      where = unit.at.task, unit.at.phase
      if unit.kind == "chunk":
        assert done.get(where, (0,) * len(unit.stop)) == unit.at.step
        assert 0 < max(unit.stop) <= it.chunk and min(unit.stop) >= 0
        done[where] = tuple(a + b for a, b in zip(unit.at.step, unit.stop, strict=True))
      if unit.kind == "evaluate":
        rows.append(unit.row)
    for (task, p), steps in done.items():
      np.testing.assert_array_equal(steps, it.phase_steps(task, p))
    assert rows == list(range(it.spec.T + 1))
    longest = sum(np.array(steps) for steps in done.values()).max()
    assert it.steps() == longest


def test_no_save_between_an_edge_and_the_units_that_belong_to_it():
  """A save never follows the end of an epoch before its tick, nor `exit` before the evaluation."""
  for it in random_timelines():
    units = list(it.units(None, 0))
    for before, now in zip(units, units[1:], strict=False):
      if now.kind == "tick":
        assert before.kind in ("chunk", "look")
      if now.kind == "save":
        assert before.kind in ("chunk", "tick", "evaluate", "look")
    for before, now in zip(units, units[1:], strict=False):
      if now.kind == "look":
        assert before.kind != "save" or now.look is BEFORE_EXIT
      if now.kind == "enter":
        assert before.kind in ("view", "exit", "save") and not any(now.at.step)


@pytest.mark.parametrize("boundaries", [True, False])
@pytest.mark.parametrize("joint", [False, True])
def test_steps_are_told_ahead(boundaries, joint):
  """As the timeline counts them: with a last batch that is not full, of the longest seed, of a whole hidden stream."""
  rows = [[30, 23, 41], [30, 21, 35]]
  it = timeline([phase(epochs=3, joint=joint)], rows, boundaries=boundaries)
  spec = it.spec._replace(rows=(30, 23, 41))
  told = spec.steps(10, 3, joint)
  assert told == tuple(int(it.phase_steps(t, 0).max()) for t in it.segments())
  assert told == ((30,) if not boundaries else (9, 18, 30) if joint else (9, 9, 15))
  with pytest.raises(ConfigError, match=r"spec.rows=\(\)"):
    it.spec.steps(10, 3)
