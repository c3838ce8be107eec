"""configs/baselines.py: every method by name on every stream, its search, its smoke run."""

import pytest

from cljax.experiment import build
from cljax.recipe import recipe
from cljax.types import Spec
from configs import baselines
from configs.papers.baselines.table1 import ASKED_FOR, HEADS, LONG, METHODS, SCENARIOS, SEARCHED, STREAMS
from configs.papers.subnetwork import table1 as subnetwork
from launch.presets import published_of


@pytest.mark.parametrize("stream", STREAMS)
def test_every_method_can_be_asked_for_and_searched(stream):
  for method in METHODS:
    for search in ("no", "yes"):
      config = baselines.get_config(f"stream={stream},method={method},search={search}")
      scenario = config.stream.scenario
      assert config.cell.endswith(f"/{method}") and (scenario == "task" or method not in HEADS)
      spec = Spec((32, 32, 3) if stream == "cifar100_split" else (28, 28, 1), 5, 10, 5 if scenario == "task" else 1)
      assert recipe(config, spec)({}).phases
      swept = {name: len(values) for name, values in config.sweep.items() if values}
      rates = 1 if stream in LONG else 3
      numbers = {SEARCHED[method][0]: 8} if method in SEARCHED else {}
      assert swept == ({} if search == "no" else {"lr": rates, **numbers})
      assert search == "no" or (config.looks == ("valid",) and config.stream.valid_per_task)


def test_a_published_number_has_its_cell():
  asked = [*baselines.sweep(), *baselines.sweep(*ASKED_FOR)]
  cells = {baselines.get_config(",".join(f"{k}={v}" for k, v in cell.items())).cell for cell in asked}
  told = published_of("baselines")["values"]
  assert {f"{stream}/{method}" for stream, own in told.items() for method in own} <= cells
  assert sum(scenario in cell for scenario in SCENARIOS for cell in cells) >= 3 * (len(METHODS) - len(HEADS))


def test_every_smoke_cell_builds_on_digits():
  """With the data that it asks for: validation rows, say."""
  for method in METHODS:
    experiment = build(baselines.get_config(f"preset=smoke,method={method},stream=mnist_split"))
    assert experiment.spec.T == 5 and experiment.readouts[0] == "task"
  for method in subnetwork.BASELINES:
    assert build(subnetwork.get_config(f"preset=smoke,method={method}")).spec.T == 6
  for name in ("er_ring", "gem", "cat"):
    assert build(baselines.get_config(f"preset=smoke,method={name},stream=mnist_rotated")).spec.T == 3
  experiment = build(baselines.get_config("preset=smoke,method=gem,stream=mnist_split,scenario=domain"))
  assert experiment.spec.T == 5 and experiment.readouts == ("domain",)
