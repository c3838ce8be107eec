"""metrics.jsonl and TensorBoard: no row and no point lost in silence or told twice, and no damage stops a run."""

import json
import os

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from cljax.files import as_json
from cljax.journal import Noted, divide
from cljax.monitor import Monitor
from cljax.report.losses import curves_of


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path)


def session(folder, noted, done, steps, later=()):
  """A process that goes on from a checkpoint, writes a row and a point for each step, and notes where it stands before
  the later ones."""
  monitor = Monitor(folder, 100, done, noted, "toy", quiet=True)

  def write(steps):
    for step in steps:
      monitor.done = step
      monitor.write({"step": step})
      monitor.scalars({"loss": step / 10})

  write(steps)
  monitor.flush()
  found = monitor.noted()
  write(later)
  monitor.close()
  return Noted.of(found.lines, as_json(found.proof()))


def rows(folder):
  return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(path):
  """The events of a file."""
  content, found = path.read_bytes(), []
  while content:
    length = int.from_bytes(content[:8], "little")
    found.append(Event.FromString(content[12 : 12 + length]))
    content = content[16 + length :]
  return found


def points(folder):
  """The steps that a reader of the files finds, in their order, and what readers are told to forget."""
  found = [event for path in sorted(folder.glob("events.*")) for event in events(path)]
  return [e.step for e in found if e.summary.value], [e.step for e in found if e.HasField("session_log")]


def test_rows_and_points_go_on_where_the_checkpoint_stands(folder):
  """What came after the checkpoint is told once; the point at the checkpoint itself stands."""
  noted = session(folder, Noted(), 0, [0, 5, 10], [11, 13])
  session(folder, noted, 10, [12, 15])  # and dies
  assert rows(folder) == [0, 5, 10, 12, 15]
  last = session(folder, noted, 10, [12, 20])
  assert rows(folder) == [0, 5, 10, 12, 20] and points(folder) == ([0, 5, 10, 12, 20], [0, 11])
  assert last.lines == 5 and last.size == (folder / "metrics.jsonl").stat().length
  session(folder, Noted(), 0, [0, 3])  # begins anew
  assert rows(folder) == [0, 3] and points(folder) == ([0, 3], [0])


def test_a_checkpoint_that_counted_lines_only(folder):
  session(folder, Noted(), 0, [0, 5, 10])
  session(folder, Noted.of(2, None), 5, [7])
  assert rows(folder) == [0, 5, 7] and points(folder) == ([0, 5, 10, 7], [0, 6])


DAMAGES = {
  "deleted": lambda content: None,
  "empty": lambda content: b"",
  "cut inside a row": lambda content: content[:-9],
  "a broken byte": lambda content: content.replace(b'"step": 5', b'"s\xffep": 5'),
  "a broken end of a row": lambda content: content.replace(b"}\n", b"}\x00", 1),
  "another number": lambda content: content.replace(b'"step": 5', b'"step": 6'),
  "a row of another kind": lambda content: b"[]\n" + content,
}
LEFT = {"deleted": [], "empty": [], "cut inside a row": [0, 5], "a broken byte": [0, 10], "a broken end of a row": [10]}
LEFT |= {"another number": [0, 6, 10], "a row of another kind": [0, 5]}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_told_and_the_run_goes_on(folder, damage, older, caplog):
  """What can be read stays, what was there is put aside, and the next checkpoint counts what is there."""
  noted = session(folder, Noted(), 0, [0, 5, 10])
  path = folder / "metrics.jsonl"
  content = DAMAGES[damage](path.read_bytes())
  path.unlink() if content is None else path.write_bytes(content)
  last = session(folder, Noted.of(noted.lines, None) if older else noted, 10, [12])
  if not (older and damage == "another number"):  # which a count of lines does not see
    assert f"{path} is damaged or cut" in caplog.text
    lost = 3 - len(LEFT[damage])
    assert (f"{lost} of the 3 rows" in caplog.text) == bool(lost)
    assert (folder / "damaged_metrics.jsonl").exists() == bool(content)
  assert rows(folder) == [*LEFT[damage], 12] and last.lines == len(LEFT[damage]) + 1
  caplog.clear()
  session(folder, last, 12, [15])
  assert rows(folder) == [*LEFT[damage], 12, 15] and not caplog.text


def test_a_second_damage_keeps_the_first(folder):
  noted = session(folder, Noted(), 0, [0, 5])
  for content in (b"one", b"other"):
    (folder / "metrics.jsonl").write_bytes(content)
    session(folder, noted, 5, [])
  assert {path.read_bytes() for path in folder.glob("damaged_metrics.jsonl*")} == {b"one", b"other"}


def test_an_error_names_its_file(folder, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monitor = Monitor(folder, 10, 0, Noted(), "toy", quiet=True)
  monitor.write({"step": 0})
  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match=r"No space left.*make room.*metrics\.jsonl"):
    monitor.flush()
  monkeypatch.undo()
  monitor.close()


def test_each_value_of_a_sweep_has_the_steps_of_its_own_seeds(folder):
  """Seeds 3 and 4 under three values; of step 1 only one seed is left. A line that is cut is passed by."""
  whole = {
    "event": "step",
    "task": 0,
    "step": 0,
    "seeds": [3, 4, 3, 4, 3, 4],
    "loss": [1, 2, 3, None, 5, 6],
    "phase": "fit",
  }
  late = {"event": "step", "task": 0, "step": 1, "seeds": [4, 4, 4], "loss": [7, 8, 9], "phase": "fit"}
  lines = [json.dumps(row) for row in (whole, {"event": "evaluate", "accuracy": []}, late, {"event": "step"})]
  (folder / "metrics.jsonl").write_text("\n".join(lines))
  divide(folder, [folder / name for name in "abc"])
  kept = [json.loads(line) for line in (folder / "b" / "metrics.jsonl").read_text().splitlines()]
  assert kept == [{**whole, "seeds": [3, 4], "loss": [3, None]}, {**late, "seeds": [4], "loss": [8]}]
  assert curves_of(folder / "c")["fit"].tolist() == [[0, 1], [5.5, 9]]


@pytest.mark.parametrize(
  "damage",
  [
    b"\xff\xfe",
    b'{"event":"step","loss":[1.0],"step":3}',
    b'{"event":"step","task":0,"phase":"fit","step":3,"loss":"a"}',
  ],
)
def test_a_damaged_row_takes_no_other_with_it_out_of_a_figure(tmp_path, damage):
  rows = [{"event": "step", "task": 0, "phase": "fit", "step": step, "loss": [1.0, None]} for step in (1, 5)]
  lines = [json.dumps(row).encode() for row in rows]
  (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], damage, lines[1]]))
  assert curves_of(tmp_path)["fit"].tolist() == [[1.0, 5.0], [1.0, 1.0]]
