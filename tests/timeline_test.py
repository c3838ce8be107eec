"""Units by hand."""

import pytest

from cljax.errors import ConfigError
from cljax.timeline import Position, edges_of
from tests.timelines import BEFORE_EXIT, BESIDE, EPOCH, edge, phase, timeline


def told(units):
  """Units as text: `kind task.phase@step`, a chunk with its length, an evaluation with its row, a look with its name,
  row and epoch, a due save with `!`."""

  def numbers(values):
    return (
      "/".join(str(value) for value in dict.fromkeys(values)) if len(set(values)) == 1 else "/".join(map(str, values))
    )

  lines = []
  for unit in units:
    line = f"{unit.kind} {unit.at.task}.{unit.at.phase}@{numbers(unit.at.step)}"
    line += f"+{numbers(unit.stop)}" if unit.kind == "chunk" else ""
    line += f" row {unit.row}" if unit.kind == "evaluate" else ""
    line += f" {unit.look.name} row {unit.row} epoch {unit.epoch}" if unit.kind == "look" else ""
    lines.append(line + ("!" if unit.due else ""))
  return lines


def test_one_task():
  """25 rows are 3 steps: chunks of 2, a chance to save between them, the only due save at the end."""
  assert told(timeline([phase()], [25], chunk=2).units(None, 0)) == [
    "evaluate 0.0@0 row 0",
    "view 0.0@0",
    "chunk 0.0@0+2",
    "save 0.0@2",
    "chunk 0.0@2+1",
    "save 0.0@3",
    "evaluate 1.0@0 row 1",
    "save 1.0@0!",
  ]


def test_two_tasks_with_ticks():
  """A chunk ends with the epoch; the tick stands before any save; `enter` and `exit` at the phase's ends."""
  it = timeline([phase(epochs=2, enter=edge, tick=edge, exit=edge)], [30, 15], chunk=2)
  assert told(it.units(None, 0)) == [
    "evaluate 0.0@0 row 0",
    "view 0.0@0",
    "enter 0.0@0",
    "chunk 0.0@0+2",
    "save 0.0@2",
    "chunk 0.0@2+1",
    "tick 0.0@3",
    "save 0.0@3",
    "chunk 0.0@3+2",
    "save 0.0@5",
    "chunk 0.0@5+1",
    "tick 0.0@6",
    "save 0.0@6",
    "exit 0.0@6",
    "evaluate 1.0@0 row 1",
    "save 1.0@0!",
    "view 1.0@0",
    "enter 1.0@0",
    "chunk 1.0@0+2",
    "tick 1.0@2",
    "save 1.0@2",
    "chunk 1.0@2+2",
    "tick 1.0@4",
    "save 1.0@4",
    "exit 1.0@4",
    "evaluate 2.0@0 row 2",
    "save 2.0@0!",
  ]


def test_two_phases():
  """The second phase begins at its own step 0; edges that do nothing are no units."""
  it = timeline([phase(exit=edge), phase("retrain", steps=3, enter=edge)], [20])
  assert told(it.units(None, 0)) == [
    "evaluate 0.0@0 row 0",
    "view 0.0@0",
    "chunk 0.0@0+2",
    "save 0.0@2",
    "exit 0.0@2",
    "enter 0.1@0",
    "chunk 0.1@0+3",
    "save 0.1@3",
    "evaluate 1.0@0 row 1",
    "save 1.0@0!",
  ]


def test_a_joint_phase_takes_the_rows_so_far():
  """Every task anew: 2, then 5 steps."""
  it = timeline([phase(joint=True, enter=edge)], [20, 30], chunk=10)
  assert told(it.units(None, 0)) == [
    "evaluate 0.0@0 row 0",
    "view 0.0@0",
    "enter 0.0@0",
    "chunk 0.0@0+2",
    "save 0.0@2",
    "evaluate 1.0@0 row 1",
    "save 1.0@0!",
    "view 1.0@0",
    "enter 1.0@0",
    "chunk 1.0@0+5",
    "save 1.0@5",
    "evaluate 2.0@0 row 2",
    "save 2.0@0!",
  ]
  assert it.steps() == 7
  assert it.total_before(1, 0).tolist() == [2]


def test_an_oracle_that_trains_once():
  """Row 0 before the last task, then the last row alone."""
  it = timeline([phase(joint=True, enter=edge)], [20, 30], chunk=10, tasks=(1,))
  assert told(it.units(None, 0)) == [
    "evaluate 1.0@0 row 0",
    "view 1.0@0",
    "enter 1.0@0",
    "chunk 1.0@0+5",
    "save 1.0@5",
    "evaluate 2.0@0 row 2",
    "save 2.0@0!",
  ]
  assert it.steps() == 5
  assert it.total_before(1, 0).tolist() == [0]


def test_hidden_boundaries():
  """One segment; marks after the last step that no row of the next task is in; the last row after `exit`."""
  it = timeline([phase(enter=edge, exit=edge)], [25, 20, 10], boundaries=False)
  assert told(it.units(None, 0)) == [
    "evaluate 0.0@0 row 0",
    "view 0.0@0",
    "enter 0.0@0",
    "chunk 0.0@0+2",
    "evaluate 0.0@2 row 1",
    "save 0.0@2!",
    "chunk 0.0@2+2",
    "evaluate 0.0@4 row 2",
    "save 0.0@4!",
    "chunk 0.0@4+2",
    "save 0.0@6",
    "exit 0.0@6",
    "evaluate 1.0@0 row 3",
    "save 1.0@0!",
  ]
  assert it.steps() == 6


def test_hidden_boundaries_closer_than_a_batch():
  """Two edges in one step are two rows of the matrix; going on between them asks the second only."""
  it = timeline([phase()], [12, 3, 5], boundaries=False)
  expected = [
    "chunk 0.0@0+1",
    "evaluate 0.0@1 row 1",
    "save 0.0@1!",
    "evaluate 0.0@1 row 2",
    "save 0.0@1!",
    "chunk 0.0@1+1",
    "save 0.0@2",
    "evaluate 1.0@0 row 3",
    "save 1.0@0!",
  ]
  assert told(it.units(None, 0))[2:] == expected
  assert told(it.units(Position(0, 0, (1,)), 2))[1:] == expected[3:]


def test_a_task_of_less_than_a_batch_is_looked_at_before_it():
  it = timeline([phase(enter=edge)], [3, 27], boundaries=False)
  assert told(it.units(None, 0))[2:5] == ["enter 0.0@0", "evaluate 0.0@0 row 1", "save 0.0@0!"]


def test_saves_are_due_every_so_many_chunks():
  units = list(timeline([phase()], [90, 30], chunk=2, save_every=2).units(None, 0))
  due = [line for line in told(units) if line.endswith("!")]
  assert due == ["save 0.0@4!", "save 0.0@8!", "save 1.0@0!", "save 1.0@3!", "save 2.0@0!"]


def test_ragged_seeds():
  """Each seed runs to its own mark; one that is there already waits with 0 steps."""
  it = timeline([phase(tick=edge, epochs=2)], [[20], [40]], chunk=3)
  assert told(it.units(None, 0)) == [
    "evaluate 0.0@0 row 0",
    "view 0.0@0",
    "chunk 0.0@0+2/3",
    "save 0.0@2/3",
    "chunk 0.0@2/3+0/1",
    "tick 0.0@2/4",
    "save 0.0@2/4",
    "chunk 0.0@2/4+2/3",
    "save 0.0@4/7",
    "chunk 0.0@4/7+0/1",
    "tick 0.0@4/8",
    "save 0.0@4/8",
    "evaluate 1.0@0 row 1",
    "save 1.0@0!",
  ]
  assert it.steps() == 8


def test_ticks_cannot_be_counted_in_steps_where_epochs_differ():
  it = timeline([phase(tick=edge, steps=8)], [[20], [40]])
  with pytest.raises(ConfigError, match="'fit'.*differ by seed"):
    list(it.units(None, 0))


def test_a_short_last_epoch_has_no_tick():
  """7 steps of epochs of 3: ticks after 3 and 6."""
  units = timeline([phase(tick=edge, steps=7)], [30], chunk=100).units(None, 0)
  assert [line for line in told(units) if line.startswith(("tick", "chunk"))] == [
    "chunk 0.0@0+3",
    "tick 0.0@3",
    "chunk 0.0@3+3",
    "tick 0.0@6",
    "chunk 0.0@6+1",
  ]


def test_edges_of_a_phase():
  assert edges_of(phase()) == set()
  assert edges_of(phase(tick=edge, exit=edge)) == {"tick", "exit"}


def test_looks_of_ragged_seeds_in_two_phases():
  """Beside every row; after each epoch's tick, and once at the end of the phase that counts steps; before the `exit`
  of the last phase alone. No look stands behind a save that knows of what it looks at."""
  phases = [phase("fit", epochs=2, tick=edge, exit=edge), phase("retrain", steps=3, exit=edge)]
  it = timeline(phases, [[20], [40]], chunk=3, looks=(BESIDE, EPOCH, BEFORE_EXIT))
  expected = [
    "evaluate 0.0@0 row 0",
    "look 0.0@0 row row 0 epoch 0",
    "view 0.0@0",
    "chunk 0.0@0+2/3",
    "save 0.0@2/3",
    "chunk 0.0@2/3+0/1",
    "look 0.0@2/4 epoch row 1 epoch 1",
    "tick 0.0@2/4",
    "save 0.0@2/4",
    "chunk 0.0@2/4+2/3",
    "save 0.0@4/7",
    "chunk 0.0@4/7+0/1",
    "look 0.0@4/8 epoch row 1 epoch 2",
    "tick 0.0@4/8",
    "save 0.0@4/8",
    "exit 0.0@4/8",
    "chunk 0.1@0+3",
    "look 0.1@3 epoch row 1 epoch 1",
    "save 0.1@3",
    "look 0.1@3 exit row 1 epoch 0",
    "exit 0.1@3",
    "evaluate 1.0@0 row 1",
    "look 1.0@0 row row 1 epoch 0",
    "save 1.0@0!",
  ]
  assert told(it.units(None, 0)) == expected
  without = [line for line in expected if not line.startswith("look")]
  assert told(it._replace(looks=()).units(None, 0)) == without
  assert told(it.units(Position(0, 1, (3, 3)), 1)) == ["view 0.0@0", *expected[-5:]]


def test_epochs_are_looked_at_without_a_tick():
  """The chunks end with the epochs, which one that looks at the end alone has no need of."""
  it = timeline([phase(epochs=2), phase("all", batch=20, joint=True, epochs=1)], [30, 20], chunk=9, looks=(EPOCH,))
  assert [line for line in told(it.units(None, 0)) if not line.startswith(("evaluate", "view"))] == [
    "chunk 0.0@0+3",
    "look 0.0@3 epoch row 1 epoch 1",
    "save 0.0@3",
    "chunk 0.0@3+3",
    "look 0.0@6 epoch row 1 epoch 2",
    "save 0.0@6",
    "chunk 0.1@0+2",
    "look 0.1@2 epoch row 1 epoch 1",
    "save 0.1@2",
    "save 1.0@0!",
    "chunk 1.0@0+2",
    "look 1.0@2 epoch row 2 epoch 1",
    "save 1.0@2",
    "chunk 1.0@2+2",
    "look 1.0@4 epoch row 2 epoch 2",
    "save 1.0@4",
    "chunk 1.1@0+3",
    "look 1.1@3 epoch row 2 epoch 1",
    "save 1.1@3",
    "save 2.0@0!",
  ]
  assert "chunk 0.0@0+6" in told(it._replace(looks=(BESIDE, BEFORE_EXIT)).units(None, 0))


def test_a_phase_that_counts_steps_is_looked_at_once():
  """At its end, whether a tick is there as well or not."""
  for steps, last in ((7, "chunk 0.0@6+1"), (6, "chunk 0.0@3+3")):
    lines = told(timeline([phase(tick=edge, steps=steps)], [30], chunk=100, looks=(EPOCH,)).units(None, 0))
    at = lines.index(f"look 0.0@{steps} epoch row 1 epoch 1")
    assert lines[at - 1] == last and sum(line.startswith("look") for line in lines) == 1


def test_a_look_is_told_the_trial_of_its_epoch():
  """Before the tick that begins the next one."""
  it = timeline([phase(tick=edge, epochs=6, trials=3)], [10], looks=(EPOCH,))
  units = [unit for unit in it.units(None, 0) if unit.kind in ("look", "tick")]
  assert [unit.kind for unit in units] == ["look", "tick"] * 6
  assert [unit.trial for unit in units[::2]] == [0, 0, 1, 1, 2, 2]


def test_rows_are_looked_at_where_boundaries_are_hidden():
  it = timeline([phase()], [12, 3, 5], boundaries=False, looks=(BESIDE,))
  assert told(it.units(Position(0, 0, (1,)), 2)) == [
    "view 0.0@0",
    "evaluate 0.0@1 row 2",
    "look 0.0@1 row row 2 epoch 0",
    "save 0.0@1!",
    "chunk 0.0@1+1",
    "save 0.0@2",
    "evaluate 1.0@0 row 3",
    "look 1.0@0 row row 3 epoch 0",
    "save 1.0@0!",
  ]
