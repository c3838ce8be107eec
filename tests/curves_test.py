"""Figures of what was asked inside tasks."""

import numpy as np

from cljax.report import store
from cljax.report.curves import OUTPUT_WITHIN, over_steps, table_figures
from tests.report_test import fake

N = None


def curve(seeds=1):
  """Two tasks: two places in the first, three in the second; ten test rows each."""
  done = np.array([[[50, 80, -1], [50, 100, 120]]] * seeds)
  right = np.array([[[[4, 1], [8, 2], [-1, -1]], [[7, 5], [6, 8], [5, 9]]]] * seeds)
  return store.curve_of({"within": right, "done": done, "right_rows": np.full((seeds, 2), 10)})


def test_counts_become_shares_and_what_was_not_asked_is_null():
  found = store.plain(curve())
  assert found["steps"] == [[[50, 80, N], [50, 100, 120]]]
  assert found["accuracy"] == [[[[0.4, 0.1], [0.8, 0.2], [N, N]], [[0.7, 0.5], [0.6, 0.8], [0.5, 0.9]]]]


def test_steps_go_on_over_tasks_and_only_tasks_that_have_begun_are_told():
  result = {**fake("er"), "curves": {"output_within": store.plain(curve(2))}}
  at, first, later = over_steps("output_within", result)
  assert at.tolist() == [50, 80, 130, 180, 200]
  np.testing.assert_allclose(first, [[0.4, 0.8, 0.7, 0.6, 0.5]] * 2)
  np.testing.assert_allclose(later, [[np.nan, np.nan, 0.5, 0.8, 0.9]] * 2)
  figure = table_figures("output_within", [result], [{}])["output_within"]
  lines = [axis.get_lines()[0].get_xydata().tolist() for axis in figure.axes]
  np.testing.assert_allclose(lines[0], np.stack([at, first[0]], axis=1))
  np.testing.assert_allclose(lines[1], np.stack([at, later[0]], axis=1)[2:])


def test_bands_are_left_out_where_there_are_too_many():
  result = {**fake("er"), "curves": {"output_within": store.plain(curve(2))}}
  for count, bands in ((7, 7), (8, 0)):
    axis = table_figures("output_within", [result] * count, [{}] * count)["output_within"].axes[0]
    assert (len(axis.get_lines()), len(axis.collections)) == (count, bands)


def test_it_is_shown_where_a_run_was_asked():
  assert not OUTPUT_WITHIN.met({**fake("er"), "curves": {}}, {})
  assert OUTPUT_WITHIN.met({**fake("er"), "curves": {"output_within": store.plain(curve())}}, {})
