r"""Meta-training of "Learning to Remember from a Multi-Task Teacher" (Xiong, Ren and Urtasun 2020).

COMMAND, resumable:
  python -m launch.meta --config=configs/papers/metateacher/meta.py:preset=reduced --workdir=W
Then any stream by the rule, through the method that reads W/parts/seed_N/theta.npz.

Presets: `reduced`, MNIST 0-4 to 5-9 with an MLP, about ten minutes a seed on a CPU; `small_cifar`, CIFAR-10 with three
convolutions, longer; `smoke`, the embedded digits in less than a minute, without a claim; `paper`, one of the five
experiments by `experiment=1..5`, for an accelerator.
Rules: `lstm`, and `static`, its control without a network; `maml`, `rep` and `hat` train a network to begin with in
place of a rule: by the loss of a new head after ten steps, on the meta-training classes too, and with gates.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cljax.config import completed_net, variant
from cljax.meta.settings import default

PRESETS = ("reduced", "small_cifar", "smoke", "paper")
RULES = ("lstm", "static")
STARTS = ("maml", "rep", "hat")  # networks to begin with; of the first two, under plain SGD
HAT = {"largest_slope": 3.0, "sparsity": 0.75}  # s_max and lambda
EXPERIMENTS = ("1", "2", "3", "4", "5")
CIFAR100 = tuple(range(10, 60))  # the first fifty classes of CIFAR-100, counted on from CIFAR-10's ten
LONGER = {"threshold_most": 50.0, "truncation_most": 17}
RESNET32, RESNET14 = {"name": "resnet", "depth": 32}, {"name": "resnet", "depth": 14}

EXPERIMENT: dict[str, dict[str, Any]] = {
  "1": {"data": {"source": "cifar10"}, "length": {"episodes": 900}},
  "2": {"data": {"source": "cifar10+cifar100", "new": CIFAR100, "half": "all"}, "curriculum": LONGER},
  "3": {
    "data": {"source": "cifar10+cifar100", "new": CIFAR100, "half": "all"},
    "curriculum": LONGER,
    "start": {"networks": 100},
  },
  "4": {"data": {"source": "cifar10+cifar100", "new": CIFAR100, "half": "all"}, "curriculum": LONGER},
  "5": {
    "net": RESNET14,
    "data": {
      "source": "cifar10+cifar100",
      "old": tuple(range(10)),
      "new": CIFAR100,
      "classes": 10,
      "tasks": 2,
      "half": "all",
    },
    "curriculum": {**LONGER, "truncation": 2, "steps": 300},
    "inner": {"loss_scale": 200.0},
  },
}

SHARES_OF_SGD = {  # from .3 to .6 of plain SGD's loss in 160 episodes
  "unit": "sgd",
  "threshold": 0.3,
  "threshold_raise": 0.0375,
  "threshold_most": 0.6,
  "later": 0.0,
  "every": 20,
  "truncation": 5,
  "truncation_raise": 0,
  "truncation_most": 5,
}

PRESET: dict[str, dict[str, Any]] = {
  "reduced": {
    "num_seeds": 3,
    "net": {"name": "mlp", "hidden": (64, 64, 64, 16)},
    "data": {"source": "mnist"},
    "inner": {"alpha": 0.3},
    "curriculum": SHARES_OF_SGD,
    "length": {"segments": 6500},
  },
  "small_cifar": {
    "num_seeds": 3,
    "net": {"name": "normed_cnn", "widths": (16, 32, 64)},
    "data": {"source": "cifar10"},
    "start": {"epochs": 20, "last_epochs": 5},
    "curriculum": SHARES_OF_SGD,
    "length": {"segments": 3000},
  },
  "smoke": {
    "net": {"name": "mlp", "hidden": (32, 16)},
    "data": {"source": "digits"},
    "start": {"epochs": 4, "batch_size": 32},
    "rule": {"hidden": 16, "hidden_vectors": 8},
    "inner": {"alpha": 0.3, "old_batch": 16, "new_batch": 16},
    "curriculum": {
      "steps": 60,
      "threshold": 60.0,
      "threshold_most": 100.0,
      "every": 20,
      "truncation": 3,
      "truncation_raise": 0,
      "truncation_most": 3,
    },
    "length": {"segments": 40, "call": 10, "log_every": 2},
  },
  "paper": {
    "num_seeds": 5,
    "net": RESNET32,
    "start": {"epochs": 100, "last_epochs": 30},
    "inner": {"update": "step", "remat": False},
    "outer": {"clip": 0.0, "constant": 1.0},
    "length": {"segments": 1_000_000, "episodes": 2000},
  },
}


def merged(config: dict[str, Any], changes: dict[str, Any]) -> None:
  """Puts the changes of sections into a config."""
  for name, value in changes.items():
    config[name] = {**config[name], **value} if isinstance(value, dict) and name != "net" else value


def get_config(arg: str = "") -> ConfigDict:
  """One meta-training; what `arg` leaves open is `reduced` with the LSTM."""
  pinned = {"preset": "reduced", "rule": "lstm", "experiment": "1"}
  pinned |= variant(arg, preset=PRESETS, rule=RULES + STARTS, experiment=EXPERIMENTS)
  config = default()
  merged(config, PRESET[pinned["preset"]])
  if pinned["preset"] == "paper":
    merged(config, EXPERIMENT[pinned["experiment"]])
  if pinned["rule"] in RULES:
    config["rule"]["form"] = pinned["rule"]
  elif pinned["rule"] == "maml":  # ten steps of a head, then the query; no network but one is trained
    ten = {"truncation": 10, "truncation_raise": 0, "truncation_most": 10}
    merged(config, {"trains": "start", "curriculum": ten, "start": {"networks": 1}})
  elif pinned["rule"] == "rep":
    merged(config, {"trains": "nothing", "start": {"of": "both", "networks": 1}})
  else:
    merged(config, {"trains": "nothing", "start": {"networks": 1}})
    config["method"] = {"name": "hat", **HAT}
  config["net"] = completed_net(config["net"])
  config["paper"], config["preset"] = "metateacher", pinned["preset"]
  config["length"]["scale"] = placeholder(float)
  return ConfigDict(config)
