r"""Mixture of experts by subnetwork selection and masking (Kulkarni): tasks of two digits under one head of ten.

COMMAND, one cell:
  python -m launch.train --workdir=W \
    --config=configs/papers/subnetwork/table1.py:preset=robust,stream=pairs,method=subnetwork
COMMAND, all cells of a preset (resumable, finished cells are skipped):
  python -m launch.reproduce --paper=subnetwork --preset=robust --workdir=W

Streams: `pairs`, the paper's six tasks (1,5) (2,6) (3,7) (4,8) (5,9) (0,2) of MNIST; `long`, twenty tasks, five pairs
of MNIST and five of Fashion-MNIST, then all ten through a permutation of the pixels, under one head of twenty, for a
net of 200 and 200 units with a tenth of each layer for a task, which fills up;
`fashion`, five pairs of Fashion-MNIST for a small convolutional net.

Methods: `subnetwork` is told where tasks begin; `subnetwork_detected` is not, nor are `detected_pseudo` (scores by the
net's own answers), `detected_last` (the mask of the task before) and `detected_loss` (the loss is watched).
`one_expert` puts all tasks into one expert, as PackNet does; `each_own` opens an expert for each task; finetune and er
are one network. hat, cat, packnet, wsn, supsup and spg have heads and are told the task; a gate finds it from a batch,
by the entropy of their answers.

Presets: `robust`, scores from 512 rows, and retraining; `paper`, from 32 rows without retraining, ten epochs, as the
released code has them; `smoke`, the embedded digits in place of MNIST. README.md beside this file has the numbers.
"""

from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, default, variant

PRESETS = ("robust", "paper", "smoke")
STREAMS = ("pairs", "fashion", "long")
DETECTED: dict[str, dict[str, Any]] = {
  "subnetwork_detected": {},
  "detected_pseudo": {"pseudo_labels": True},
  "detected_last": {"watch": "last"},
  "detected_loss": {"watch": "loss"},
}
SHARED: dict[str, dict[str, Any]] = {
  "one_expert": {
    "experts": 1,
    "overlap_from": 0.0,
    "deviation_up_to": 1e9,
    "capacity_hidden": 1.0,
    "capacity_output": 1.0,
    "recurring_below": 0.0,
  },
  "each_own": {"overlap_from": 1.1, "recurring_below": 0.0},
}
MASKS = ("hat", "cat", "packnet", "wsn", "supsup", "spg")  # are told the task, and find it behind a gate
BASELINES: dict[str, dict[str, Any]] = {
  "finetune": {"name": "finetune"},
  "er": {"name": "er", "replay": 32},
  **{name: {"name": name} for name in MASKS},
}
METHODS = ("subnetwork", *DETECTED, *SHARED, *BASELINES)
ROWS = {
  "pairs": METHODS,
  "fashion": ("subnetwork", "subnetwork_detected", "finetune"),
  "long": ("subnetwork", "subnetwork_detected", *SHARED, *BASELINES),
}
PAIRS = tuple((label, label + 1) for label in range(0, 20, 2))


def pins(arg: str) -> dict[str, str]:
  """The keys of the table that `arg` pins."""
  return variant(arg, preset=PRESETS, stream=STREAMS, method=METHODS)


def told(stream: str, preset: str) -> str:
  """What a stream is called in tables: by its data."""
  return f"digits_{stream.replace('fashion', 'cnn')}" if preset == "smoke" else stream


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells that `arg` leaves open."""
  pinned = {"preset": "robust"} | pins(arg)
  preset = pinned["preset"]
  streams = [pinned["stream"]] if "stream" in pinned else STREAMS if preset == "robust" else ["pairs"]
  cells = []
  for stream in streams:
    rows = ROWS[stream] if preset == "robust" else ("subnetwork", "subnetwork_detected")
    methods = [pinned["method"]] if "method" in pinned else rows
    cells += [{"preset": preset, "stream": stream, "method": method} for method in methods]
  return cells


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is the method with given boundaries on the paper's tasks, preset `robust`."""
  pinned = {"preset": "robust", "stream": "pairs", "method": "subnetwork"} | pins(arg)
  preset, stream, method = pinned["preset"], pinned["stream"], pinned["method"]
  config = default()
  config.paper, config.preset, config.cell = "subnetwork", preset, f"{told(stream, preset)}/{method}"
  config.num_seeds = 3
  config.evaluate_group = 128  # the batch from which the task is inferred
  config.optimizer = {"name": "adam", "lr": 1e-3}
  config.net = {"name": "mlp", "hidden": (500, 500)}
  config.stream = {"name": "subsets", "source": "mnist"}
  own = {"name": "subnetwork", **DETECTED.get(method, {}), **SHARED.get(method, {})}
  config.method = {"batch_size": 32, "epochs": 5, **(BASELINES.get(method) or own)}
  if stream == "fashion":
    config.stream.update({"source": "fashion_mnist", "classes": PAIRS[:5]})
    config.net = {"name": "cnn"}
    if method not in BASELINES:
      config.method.fractions = (0.3, 0.15, 0.04, 0.1)
  if stream == "long":
    config.evaluate = "ends"
    config.stream.update({"source": "mnist+fashion_mnist", "classes": PAIRS, "permuted_rounds": 1})
    config.method.epochs = 3
    config.net.hidden = (200, 200)
    if method not in BASELINES:
      config.method.fractions = (0.1, 0.1, 0.1)
      config.method.experts = {"one_expert": 1, "each_own": 20}.get(method, 12)
  if method == "each_own" and stream == "pairs":
    config.method.experts = 6
  if preset == "paper":
    config.method.epochs = 10
    if method not in BASELINES:
      config.method.update({"score_rows": 32, "retrain": 0, "onset_factor": 6.0})  # the factor of its table
  if preset == "smoke":
    config.num_seeds = 2
    config.stream.source = "digits"
    config.net.hidden = (64,) if stream == "fashion" else (64, 64)
    if stream == "long":
      config.stream.classes = PAIRS[:5]
    config.method.epochs = 15
    if method not in BASELINES:
      config.method.update(
        {
          "fractions": (0.3, 0.15, 0.1, 0.1) if stream == "fashion" else (0.1, 0.1, 0.1),
          "warmup": 40,
          "onset_history": 20,
        }
      )
  if method in MASKS:
    config.stream.scenario, config.gate = "task", {"name": "entropy", "over": "batch"}
  if method == "cat":  # which tasks are similar is judged by these
    config.stream.valid_per_task = 20 if preset == "smoke" else 500
  if method in DETECTED:
    config.stream.update({"boundaries": False, "passes": config.method.epochs})
    config.method.epochs = 1
  return complete(config)
