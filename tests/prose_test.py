"""The numbers that the READMEs tell in prose, and in tables written by hand, are those of the result files.

Tables between markers are readme_test.py's. What no committed file holds is left out, and each page of tests/pages says
so: times, sizes and memory of a machine, speeds (benchmarks/README.md has them), published numbers, settings, and what
was run without keeping its results.
"""

import pytest

from tests.pages import baselines, cotraining, expert_gate, lasem, metateacher, project, subnetwork, tables
from tests.prose import runs, uncovered, wrong

PAGES = {  # a page, or the folder of a README: what it tells
  "configs/papers/cotraining": cotraining,
  "configs/papers/expert_gate": expert_gate,
  "configs/papers/subnetwork": subnetwork,
  "configs/papers/lasem": lasem,
  "configs/papers/baselines": baselines,
  "configs/papers/metateacher": metateacher,
  "docs/results.md": tables,
  ".": project,
}


@pytest.mark.parametrize("place", PAGES)
def test_numbers_are_computed(place):
  """Else correct the README, or the phrase in tests/pages."""
  assert wrong(place, PAGES[place].phrases()) == []


@pytest.mark.parametrize("place", PAGES)
def test_every_number_is_accounted_for(place):
  """Else compute it in a phrase of tests/pages, or say in its LEFT_OUT why no file holds it."""
  page = PAGES[place]
  assert uncovered(place, page.phrases(), page.LEFT_OUT) == []


def test_every_run_of_a_search_is_told():
  told = {place for place in cotraining.told() if "/search/" in place}
  assert told == set(runs("cotraining/search"))
