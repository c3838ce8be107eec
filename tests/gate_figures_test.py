"""Figures of methods that infer the task, from results and report arrays alone."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from cljax.methods.exhibits import EXHIBITS
from cljax.methods.expert_gate.exhibits import parent_relatedness, transfer_figures
from cljax.report import plots
from cljax.run import train
from tests import toys


@pytest.fixture(scope="module")
def runs():
  found = []
  for mode in ("finetune", "lwf"):
    method = {"name": "expert_gate", "mode": mode, "epochs": 1, "code": 4, "autoencoder_epochs": 2}
    copies = {"name": "copies", "angles": (0.0, 0.0, 20.0), "examples_per_task": 100, "size": 8}
    found.append(train(toys.config_of(method, (8,), keys={"evaluate": "ends"}, **copies), quiet=True))
  return found


def test_a_run_has_its_gate_s_figures(runs):
  found = plots.run_figures(runs[0].result, runs[0].arrays, EXHIBITS)
  assert {"gate_confusion", "relatedness", "turned"} <= set(found)
  line = found["turned"].axes[0].lines[0]
  np.testing.assert_array_equal(line.get_xdata(), [0, 20])
  np.testing.assert_allclose(line.get_ydata(), runs[0].arrays["relatedness"][0, -1, 1:3, 0])
  image = found["gate_confusion"].axes[0].images[0].get_array()
  np.testing.assert_allclose(image.sum(axis=1), 1)


def test_a_table_shows_what_lwf_gave(runs):
  results, arrays = [run.result for run in runs], [run.arrays for run in runs]
  found = plots.table_figures(results, arrays, ["tuned", "held"], EXHIBITS)
  figure = next(figure for name, figure in found.items() if name.endswith("_transfer"))
  points = figure.axes[0].collections[0].get_offsets()
  expected = 100 * (np.array(results[1]["accuracy"], float) - np.array(results[0]["accuracy"], float))[:, -1]
  shown = np.asarray(points)[~np.isnan(np.asarray(points)[:, 0].astype(float))]
  np.testing.assert_allclose(np.sort(shown[:, 1]), np.sort(expected[:, 1:].ravel()), atol=1e-9)
  assert transfer_figures(results[:1], arrays[:1]) == {}
  assert all(isinstance(figure, Figure) for figure in found.values())


def test_the_relatedness_of_parents():
  arrays = {"relatedness": np.array([[[[np.nan] * 3, [0.9, np.nan, np.nan]]]]), "parent": np.array([[[-1, 0]]])}
  np.testing.assert_array_equal(parent_relatedness(arrays), [[np.nan, 0.9]])
