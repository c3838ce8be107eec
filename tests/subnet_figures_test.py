"""What tables and figures tell of frozen subnetworks and of onsets, from results made by hand."""

import numpy as np
import pytest

from cljax.methods.exhibits import EXHIBITS
from cljax.methods.subnetwork import exhibits as subnets
from cljax.methods.subnetwork.exhibits import Onsets, match
from cljax.report import gallery, tables
from cljax.report.exhibits import columns_of
from tests.results import fake

ROWS = np.array([[100, 90, 110], [100, 90, 110]])  # with a batch of 20 the edges lie in batches 5 and 9


def arrays(onset_step=((6, 10, -1), (5, -1, -1))):
  share = np.zeros((2, 3, 2, 3))  # [S, T, E, L]
  share[:, :, 0] = [0.1, 0.2, 0.4]
  share[:, 2, 1] = [0.3, 0.4, 0.8]
  return {
    "parameters": np.ones((2, 3), int),
    "frozen_share": share,
    "frozen_hidden": share[..., :2].mean(axis=-1),
    "expert": np.array([[[0, -1, -1], [0, 0, -1], [0, 0, 1]]] * 2),
    "onset_step": np.broadcast_to(np.array(onset_step)[:, None], (2, 3, 3)),
    "trace_loss": np.ones((2, 3, 256)),
    "trace_score": np.ones((2, 3, 256)),
  }


def result(**changes):
  R = np.array([[-1, -1, -1], [100, -1, -1], [90, 98, -1], [88, 95, 99]])
  fields = {
    "right": {"task": np.array([R, R])},
    "report": arrays(),
    "train_rows": ROWS,
    "config": {"method": {"batch_size": 20}, "stream": {}},
  }
  return fake("subnetwork_detected", "pairs", "robust", **(fields | changes))


@pytest.mark.parametrize(
  ("decided", "found"),
  [
    ([6, 10], Onsets((1, 1), 0, 0)),
    ([5, 9], Onsets((0, 0), 0, 0)),
    ([10], Onsets((1,), 1, 0)),  # the first one was missed
    ([2, 6, 10], Onsets((1, 1), 0, 1)),  # one before any edge is false
    ([6, 7, 10], Onsets((1, 1), 0, 1)),  # so is a second one for the same edge
    ([], Onsets((), 2, 0)),
  ],
)
def test_decisions_and_edges(decided, found):
  assert match([5, 9], decided) == found


def test_onsets_of_a_result():
  assert subnets.onsets_of(result()) == [Onsets((1, 1), 0, 0), Onsets((0,), 1, 0)]
  assert "onsets" in columns_of(result(), EXHIBITS)
  assert "onsets" not in columns_of({**result(), "train_rows": None}, EXHIBITS)
  assert "onsets" not in columns_of(result(config={"method": {"phases": []}}), EXHIBITS)  # begun from Python
  assert columns_of(fake(), EXHIBITS) == {}


def test_the_hidden_share_is_that_of_the_experts_in_use():
  np.testing.assert_allclose(subnets.hidden_frozen(result()), [0.25, 0.25])  # (.15 + .35) / 2
  one = result(report=arrays() | {"expert": np.zeros((2, 3, 3), int)})
  np.testing.assert_allclose(subnets.hidden_frozen(one), [0.15, 0.15])


def test_forgetting_counts_from_the_consolidated_row():
  """Task 1: whole .100, consolidated .90, end .88; task 2: whole .98, consolidated and at the end .95."""
  lost, given_up = subnets.after_consolidation(result())
  np.testing.assert_allclose(lost, [0.02, 0.02])
  np.testing.assert_allclose(given_up, [(0.10 + 0.03) / 2] * 2)


def test_the_table_has_the_columns_where_a_method_tells_them():
  table = tables.text_table([result(), fake("finetune", "pairs", "robust", train_rows=ROWS)], exhibits=EXHIBITS)
  head, first, second = table.splitlines()[:3]
  assert "hidden weights frozen" in head and "onsets" in head
  told, other = (first, second) if "subnetwork" in first else (second, first)
  assert "3 of 4, 0 false, delay 0 to 1" in told and "0.2500" in told and "0.0200" in told
  assert "of 4" not in other
  assert "onsets" not in tables.text_table([fake()], exhibits=EXHIBITS)


def test_figures_are_drawn_from_what_is_there():
  found = gallery.run_figures(result(), arrays(), EXHIBITS)
  assert {"frozen_share", "task_lines", "onsets"} <= set(found)
  lines = found["frozen_share"].axes[0].get_lines()
  np.testing.assert_allclose(lines[0].get_ydata(), [10, 10, 20])  # mean of the experts in use
  marks = [line.get_xdata()[0] for line in found["onsets"].axes[0].get_lines()[1:]]
  assert marks == [6, 10]
  told = {name: value for name, value in arrays().items() if not name.startswith(("onset", "trace"))}
  assert "onsets" not in gallery.run_figures(result(report=told), told, EXHIBITS)
  assert "frozen_share" not in gallery.run_figures(fake(), {}, EXHIBITS)
  assert "onsets" not in gallery.run_figures(result(config={"method": {"phases": []}}), arrays(), EXHIBITS)
