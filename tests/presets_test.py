"""Published numbers stand beside the preset's own settings alone: a changed row says in what, and has no verdict."""

import json

import pytest

from cljax.report import published, tables
from launch import presets
from launch.config_files import load_config
from tests.results import ROOT, fake

CELL = "preset=paper,stream=mnist_perm,method=routing_cotrain"


def result(method="routing_cotrain", **changes):
  """A result of the cell with its own config, but for `changes` by dotted name, `__` for a dot."""
  config = load_config("configs/papers/cotraining/table1.py").get_config(CELL).to_dict()
  for key, value in changes.items():
    *sections, field = key.split("__")
    place = config
    for section in sections:
      place = place[section]
    place[field] = value
  return fake(method, config=json.loads(json.dumps(config)))


def row(*results):
  headings, table = tables.rows(results, presets.published_of("cotraining"))
  return [dict(zip(headings, line, strict=True)) for line in table]


def test_the_preset_s_own_settings_have_a_verdict():
  (line,) = row(result(num_seeds=2, seed=7, looks=("valid",), log_every_steps=5))  # which move no number
  assert line["published"] == "-0.038" and line["verdict"] and "changed" not in line["method"]


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"net__widths": (19, 31)}, "widths=(19,31)"),
    ({"net__widths": (19, 19.0)}, ""),
    ({"method__epochs": 2}, "epochs=2"),
    ({"optimizer__lr": 0.1000001}, "lr=0.1000001"),
    ({"optimizer__schedule": "cosine"}, "schedule=cosine"),
    ({"stream__tasks": 5}, "tasks=5"),
    ({"stream__source": "/data/mnist.npz"}, "source=.../data/mnist.npz"),
    ({"method__guard": {"name": "ewc", "strength": 10.0}}, "method.guard.name=ewc, fisher_rows=0, labels=data"),
    ({"steps_per_task": 10}, "steps_per_task=10"),
    ({"start_from": "net.npz"}, "start_from=net.npz"),
    ({"given_tasks": 1}, "given_tasks=1"),
    ({"matmul_precision": "default"}, "matmul_precision=default"),
    ({"method__name": "nonsense"}, "method.name=nonsense"),
    ({"method__unknown": 3}, "unknown=3"),
  ],
)
def test_other_settings_are_marked_and_have_none(changes, said):
  one = result(**changes)
  (line,) = row(one)
  numbers = presets.published_of("cotraining")
  if not said:
    assert "verdict" in line
    return
  assert f"[changed: {said}" in line["method"] and "published" not in line and "verdict" not in line
  assert "[changed] settings" in published.not_compared([one], numbers)
  assert published.rankings([one, result("er")], numbers) == []


def test_beside_own_rows_a_changed_one_has_dashes_and_no_part_in_the_order_as_configured():
  own, wide = row(result(), result(net__widths=(19, 31)))
  assert (own["published"], wide["published"], wide["verdict"]) == ("-0.038", "-", "-")


def test_a_run_without_a_config_or_of_no_cell_is_compared_with_nothing():
  numbers = presets.published_of("cotraining")
  by_hand = fake(config={"method": {"of": "routing"}, "spec": {}})
  assert published.changed(by_hand, numbers) and not published.comparable(by_hand, numbers)
  assert not published.comparable(result("er"), numbers)  # called er, and its config another cell's
  assert published.changed(fake("joint"), numbers) == []  # the paper has no number for it
  assert "changed" not in presets.published_of("lasem")  # nor for anything there


def test_committed_results_of_published_presets_are_their_presets():
  """So that no table of a README loses its verdicts unseen."""
  for paper in ("cotraining", "subnetwork"):
    numbers = presets.published_of(paper)
    for path in (ROOT / "results" / paper / "paper").glob("**/result.json"):
      assert published.changed(json.loads(path.read_text()), numbers) == [], path
