"""What a method keeps beyond the choice of a learning rate: by hand, seed by seed, and where there is no frontier."""

import numpy as np
import pytest

from cljax.metrics import spread
from cljax.report import frontier
from cljax.report.exhibits import columns_of, table_figures_of

EXHIBITS = {"frontier": frontier.FRONTIER}
OWN = "old task beyond the rate's frontier"


def result(name, old, new, lr=0.1, **method):
  """Two tasks, two seeds."""
  last = np.stack([old, new], axis=1)  # [S, T]
  matrix = np.stack([last * 0, last * 0, last], axis=1).tolist()
  config = {"optimizer": {"name": "sgd", "lr": lr}, "method": {"name": "plain", **method}, "cell": name}
  config["stream"] = {"old": (0, 1)}
  shown = {"readouts": {"readout": {"accuracy": matrix, "metrics": {}}}, "config": config, "report": {}}
  return {**shown, "seeds": [0, 1], "stream": "s", "method": name}


BASE = [
  result("fast", [0.5, 0.6], [0.9, 0.8], 0.4),
  result("slow", [0.9, 0.8], [0.5, 0.6], 0.1),
  result("middle", [0.8, 0.7], [0.7, 0.7], 0.2),
]
OTHER = result("other", [0.75, 0.9], [0.8, 0.95], kind="rule")


def test_the_distance_by_hand():
  """Seed 0: at .8 the frontier is halfway from (.7, .8) to (.9, .5); seed 1 lies beyond its end (.8, .6)."""
  found = columns_of(OTHER, EXHIBITS, [*BASE, OTHER])
  assert found[OWN]["values"] == pytest.approx([0.75 - 0.65, 0.9 - 0.6])
  assert found["old task, readout"]["mean"] == pytest.approx(0.825)
  assert found["new tasks, readout"] == spread([0.8, 0.95])
  assert OWN not in columns_of(BASE[0], EXHIBITS, [*BASE, OTHER])  # the frontier itself


def test_late_places_count_where_all_were_asked_there():
  """Seed 0 ends at .75 as before; over its last three places it keeps .1 more, and so does the line."""

  def within(one, more):
    last = np.array(one["readouts"]["readout"]["accuracy"])[:, -1]
    places = np.stack([last * 0, last + 2 * more, last + more, last], axis=1)  # [S, M, T]
    accuracy = np.stack([places * np.nan, places], axis=1)
    return {**one, "curves": {"readout_within": {"accuracy": accuracy.tolist(), "steps": []}}}

  base = [within(one, np.array([0.1, 0])) for one in BASE]
  own = within(OTHER, np.array([0.2, 0]))
  found = columns_of(own, EXHIBITS, [*base, own])
  late = found[f"{OWN} (mean of the last 3 places)"]["values"]
  assert late == pytest.approx([0.75 - 0.65 + 0.1, 0.9 - 0.6 + 0.1]) and OWN not in found
  assert columns_of(own, EXHIBITS, [*BASE, own])[OWN]["values"] == pytest.approx([0.75 - 0.65, 0.9 - 0.6])


@pytest.mark.parametrize(
  "others",
  [BASE[:2], [*BASE[:2], result("twin", [0.5, 0.6], [0.9, 0.8], 0.4)], [*BASE[:2], {**BASE[2], "seeds": [0, 2]}]],
  ids=["two", "two rates", "other seeds"],
)
def test_too_few_rates_are_no_frontier(others):
  assert OWN not in columns_of(OTHER, EXHIBITS, [*others, OTHER])


def test_a_group_differs_in_the_rate_alone():
  apart = result("momentum", [0.1, 0.1], [0.6, 0.6], 0.3)
  apart["config"]["optimizer"]["momentum"] = 0.9
  assert frontier.frontier_of([OTHER, apart, *BASE]) == BASE


def test_the_plane_shows_every_result():
  results = [*BASE, OTHER, result("third", [0.7, 0.7], [0.8, 0.8], kind="other")]
  (figure,) = table_figures_of(results, [{}] * 5, EXHIBITS).values()
  axis = figure.axes[0]
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ["learning rates alone", "other", "third"]
  np.testing.assert_allclose(axis.lines[0].get_xydata(), [[0.55, 0.85], [0.7, 0.75], [0.85, 0.55]])
