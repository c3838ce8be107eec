r"""Mixture of experts by subnetwork selection and masking (Kulkarni): six pairs of MNIST digits under one head of ten.

COMMAND, one cell:
  python -m launch.train --config=configs/papers/subnetwork/table1.py:preset=robust,method=subnetwork --workdir=W
COMMAND, the table (resumable, finished cells are skipped):
  python -m launch.reproduce --paper=subnetwork --preset=robust --workdir=W

Presets: `paper`, scores from 32 rows and no retraining, as the released code has them; `robust`, from 512 rows and with
retraining; `smoke`, the embedded digits in place of MNIST. README.md beside this file has the numbers.
"""

from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, default, variant

PRESETS = ("paper", "robust", "smoke")
METHODS = ("subnetwork", "finetune", "er")


def pins(arg: str) -> dict[str, str]:
  return variant(arg, preset=PRESETS, method=METHODS)


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells that `arg` leaves open: the method and two baselines."""
  pinned = {"preset": "robust"} | pins(arg)
  methods = [pinned["method"]] if "method" in pinned else METHODS
  return [{"preset": pinned["preset"], "method": method} for method in methods]


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is the method in the preset `robust`."""
  pinned = {"preset": "robust", "method": "subnetwork"} | pins(arg)
  preset, method = pinned["preset"], pinned["method"]
  config = default()
  config.paper, config.preset, config.cell = "subnetwork", preset, f"pairs/{method}"
  config.num_seeds = 3
  config.evaluate_group = 128  # the batch from which the task is inferred
  config.stream = {"name": "subsets", "source": "mnist"}
  config.optimizer = {"name": "adam", "lr": 1e-3}
  config.net = {"name": "mlp", "hidden": (500, 500)}
  methods: dict[str, dict[str, Any]] = {
    "subnetwork": {"name": "subnetwork", "epochs": 5},
    "finetune": {"name": "finetune", "epochs": 5},
    "er": {"name": "er", "epochs": 5, "replay": 32},
  }
  config.method = {"batch_size": 32, **methods[method]}
  if preset == "paper":
    config.method.epochs = 10
    if method == "subnetwork":
      config.method.update({"score_rows": 32, "retrain": 0})
  if preset == "smoke":
    config.num_seeds = 2
    config.stream.source = "digits"
    config.net.hidden = (64, 64)
    config.method.epochs = 15
    if method == "subnetwork":
      config.method.fractions = (0.1, 0.1, 0.1)
  return complete(config)
