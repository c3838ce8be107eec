"""What the output forgot against what the representation did, from result files made by hand."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from cljax.methods.exhibits import EXHIBITS
from cljax.report import gallery, plots, tables
from cljax.report.exhibits import columns_of
from cljax.report.representation import LEAST, READOUT, READOUT_ADAM, over_tasks
from tests.results import RIGHT, S, T, fake

ROWS = np.full((S, T), 100)
PROBE = np.array(
  [
    [[50, 50, 50], [92, 50, -1], [90, 94, 60], [88, 93, 91]],
    [[50, 50, 50], [90, 50, -1], [85, 96, 60], [80, 90, 84]],
  ]
)


def asked(right=PROBE, look="readout", **changes):
  return fake(looked={look: {"right": right, "right_rows": ROWS}}, **changes)


def test_columns_are_those_by_hand():
  """Of tasks 1 and 2 from right after them to the end: the output drops .90 to .70 and .95 to .85 with the first seed,
  the probe .92 to .88 and .94 to .93."""
  found = columns_of(asked(), EXHIBITS)
  assert found["readout ACC"]["values"] == pytest.approx([np.mean([88, 93, 91]) / 100, np.mean([80, 90, 84]) / 100])
  assert found["forgetting (output)"]["values"] == pytest.approx([0.15, 0.25])
  assert found["forgetting (readout)"]["values"] == pytest.approx([0.025, 0.08])
  share = found["share in the representation (readout)"]
  assert share["values"] == pytest.approx([0.025 / 0.15, 0.08 / 0.25]) and share["std"] is not None
  headings, ((*_, cell),) = tables.rows([asked()], {}, exhibits=EXHIBITS)
  assert headings[-1] == "share in the representation (readout)" and cell.startswith("0.2433 ± ")


def test_no_share_where_the_output_forgot_as_good_as_nothing():
  """Of one seed that forgot a point there is one; the other columns stay."""
  still = np.where(np.arange(T + 1)[:, None] > 0, 90, RIGHT)
  still[0, T, 0] -= 2
  result = {**asked(), "accuracy": fake(right={"task": still})["accuracy"]}
  found = columns_of(result, EXHIBITS)
  share = found["share in the representation (readout)"]
  assert share["values"] == [pytest.approx(0.025 / 0.01), None] and share["mean"] is share["std"] is None
  assert found["forgetting (output)"]["values"] == pytest.approx([0.01, 0]) and found["readout ACC"]["mean"] > 0
  assert LEAST == 0.005


def test_both_probes_stand_side_by_side_and_none_where_none_was_asked():
  both = {look: {"right": PROBE, "right_rows": ROWS} for look in ("readout", "readout_adam")}
  found = columns_of(fake(looked=both), EXHIBITS)
  assert found["readout ACC"] == found["readout by Adam ACC"]
  assert not any("readout" in heading for heading in columns_of(fake(), EXHIBITS))
  assert READOUT.met(asked(), {}) and not READOUT_ADAM.met(asked(), {})


def lines(axis):
  return {line.get_label(): (line.get_xdata().tolist(), np.round(line.get_ydata(), 6).tolist()) for line in axis.lines}


def test_the_figure_shows_the_first_task_and_the_old_ones():
  figure = over_tasks("readout", [asked()], "t")
  first, old = (lines(axis) for axis in figure.axes)
  name = "routing_cotrain"
  assert first[f"{name}, output"] == ([1, 2, 3], [0.9, 0.8, 0.65])
  assert first[f"{name}, readout"] == ([1, 2, 3], [0.91, 0.875, 0.84])
  assert old[f"{name}, output"] == ([2, 3], [0.8, (70 + 85 + 60 + 75) / 400])
  assert old[f"{name}, readout"] == ([2, 3], [0.875, (88 + 93 + 80 + 90) / 400])


def test_output_and_probe_of_a_method_share_a_colour():
  figure = over_tasks("readout", [asked(), asked(method="er")], "t")
  drawn = [(line.get_label(), to_hex(line.get_color()), line.get_linestyle()) for line in figure.axes[0].lines]
  assert [style for *_, style in drawn] == ["-", "--", "-", "--"]
  colours = [colour for _, colour, _ in drawn]
  assert colours[0] == colours[1] != colours[2] == colours[3]
  assert drawn[3][0] == "er, readout"


def test_figures_of_runs_and_tables():
  results = [asked(), asked(method="er"), fake("finetune")]
  found = gallery.table_figures(results, [{}] * 3, exhibits=EXHIBITS)
  assert {name for name in found if name.endswith("readout")} == {
    "mnist_perm_readout",
    "mnist_perm_routing_cotrain_readout",
    "mnist_perm_er_readout",
  }
  assert len(found["mnist_perm_readout"].axes[0].lines) == 4
  assert plots.png(gallery.run_figures(results[0], {}, EXHIBITS)["readout"])


def test_one_task_and_few_pairs_have_a_figure_too():
  """Nothing is old after one task; with the pairs of `ends` the curve has its first and its last point."""
  one = {"right": RIGHT[:, :2, :1], "right_rows": ROWS[:, :1]}
  single = fake(right={"task": RIGHT[:, :2, :1]}, rows=ROWS[:, :1], train_rows=ROWS[:, :1], looked={"readout": one})
  assert columns_of(single, EXHIBITS)["forgetting (readout)"]["mean"] is None
  assert plots.png(over_tasks("readout", [single], "t"))
  ends = np.where(np.eye(T + 1, T, -1) + (np.arange(T + 1) == T)[:, None] > 0, PROBE, -1)
  first, old = (lines(axis) for axis in over_tasks("readout", [asked(ends)], "t").axes)
  assert first["routing_cotrain, readout"][0] == [1, 3] and old["routing_cotrain, readout"][0] == [3]
  assert columns_of(asked(ends), EXHIBITS)["forgetting (readout)"]["values"] == pytest.approx([0.025, 0.08])
