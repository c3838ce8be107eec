"""The maps of what composes with what: which results make them, what their cells are."""

import numpy as np
import pytest

from cljax.report import gallery, pairs
from cljax.report.plots import caption_of
from configs.papers.baselines import pairs as configs
from tests.results import RIGHT, fake


def combined(method, guard="none", gate="none"):
  own = {"name": method, **({"guard": {"name": guard}} if method != "packnet" else {})}
  right = {"task": RIGHT, **({"inferred": RIGHT // 3} if gate != "none" else {})}
  return fake(method, config={"method": own, "gate": {"name": gate}}, right=right)


def test_cells_are_accuracies_at_the_end():
  results = [combined("er"), combined("er", "ewc"), combined("packnet"), combined("packnet", gate="means")]
  told = np.mean(results[0]["metrics"]["ACC"]["values"])
  assert pairs.under_guards(results) == pytest.approx({("er", "none"): told, ("er", "ewc"): told})
  inferred = np.mean(results[3]["readouts"]["inferred"]["metrics"]["ACC"]["values"])
  found = pairs.behind_gates(results)
  assert found == pytest.approx({("packnet", "means"): inferred, ("packnet", pairs.TOLD): told}) and inferred < told


def test_two_methods_with_two_combinations_each_make_a_map():
  one = [combined("er"), combined("er", "ewc"), combined("finetune")]
  assert pairs.figures(one) == {}
  two = [*one, combined("finetune", "si")]
  (figure,) = pairs.figures(two).values()
  (image,) = figure.axes[0].images
  shown = np.ma.filled(image.get_array(), np.nan)
  assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["none", "ewc", "si"]
  np.testing.assert_array_equal(np.isnan(shown), [[False, False, True], [False, True, False]])
  assert any("under_guards" in name for name in gallery.table_figures(two, [{}] * 4, ["a", "b", "c", "d"]))


def test_a_pair_that_was_run_with_several_settings_has_no_number():
  """A map could show one of them only, and would not say which."""
  several = combined("er", "ewc")
  several["config"]["optimizer"] = {"name": "sgd", "lr": 0.01}
  results = [combined("er"), combined("er", "ewc"), several, combined("finetune"), combined("finetune", "ewc")]
  for result in results:
    result["config"].setdefault("optimizer", {"name": "sgd", "lr": 0.1})
  found = pairs.under_guards(results)
  assert np.isnan(found["er", "ewc"]) and not np.isnan(found["finetune", "ewc"])
  (figure,) = pairs.figures(results).values()
  caption = caption_of(figure)
  assert "with several settings: er with ewc" in caption and "Runs differ in optimizer.lr, too" in caption


def test_all_pairs_have_a_cell_of_their_own():
  cells = [configs.get_config(",".join(f"{k}={v}" for k, v in cell.items())).cell for cell in configs.sweep()]
  assert len(set(cells)) == len(cells) == 2 * (len(configs.GUARDED) * 9 + len(configs.GATED) * 3)
  assert configs.sweep("preset=paper") == []
