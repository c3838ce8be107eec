r"""Expert Gate (Aljundi et al. 2017) and its comparators: a stream of data sets, split MNIST, and related copies.

COMMAND, one cell:
  python -m launch.train --workdir=W \
    --config=configs/papers/expert_gate/table1.py:stream=datasets,method=expert_gate
COMMAND, all cells (resumable, finished cells are skipped):
  python -m launch.reproduce --paper=expert_gate --preset=paper --workdir=W

Streams: `datasets`, MNIST, Fashion-MNIST, USPS and CIFAR-10 in grey, one a task; `split_mnist`, five tasks of two
digits; `copies`, seven relabelled and turned copies of MNIST, then Fashion-MNIST. Presets: `paper`, all rows; `smoke`,
the embedded digits, to see that everything works. README.md beside this file has the numbers.
"""

from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, default, variant

STREAMS = ("datasets", "split_mnist", "copies")
PRESETS = ("paper", "smoke")
TABLE = ("joint", "experts_finetune", "experts_lwf", "finetune", "lwf", "confident", "discriminative", "expert_gate")
COPIES = ("expert_gate", "experts_finetune", "experts_lwf", "experts_ewc")  # whose parents and modes are looked at
METHODS = (*TABLE, "experts_ewc", "expert_gate_paper")


def pins(arg: str) -> dict[str, str]:
  """The keys of the table that `arg` pins."""
  return variant(arg, preset=PRESETS, stream=STREAMS, method=METHODS)


def told(stream: str, preset: str) -> str:
  """What a stream is called in tables: by its data."""
  return f"digits_{stream.removesuffix('_mnist')}" if preset == "smoke" else stream


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells that `arg` leaves open: each stream by the methods of its table."""
  pinned = {"preset": "paper"} | pins(arg)
  streams = [pinned["stream"]] if "stream" in pinned else list(STREAMS)
  cells = []
  for stream in streams:
    methods = [pinned["method"]] if "method" in pinned else list(COPIES if stream == "copies" else TABLE)
    cells += [{"preset": pinned["preset"], "stream": stream, "method": method} for method in methods]
  return cells


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is Expert Gate on the stream of data sets, preset `paper`."""
  pinned = {"preset": "paper", "stream": "datasets", "method": "expert_gate"} | pins(arg)
  preset, stream, method = pinned["preset"], pinned["stream"], pinned["method"]
  config = default()
  config.paper, config.preset, config.cell = "expert_gate", preset, f"{told(stream, preset)}/{method}"
  config.num_seeds = 5
  config.evaluate = "ends"
  streams: dict[str, dict[str, Any]] = {
    "datasets": {"name": "datasets", "source": "mnist+fashion_mnist+usps+cifar10"},
    "split_mnist": {"name": "split", "source": "mnist", "tasks": 5, "valid_per_task": 1000},
    "copies": {"name": "copies", "source": "mnist+fashion_mnist"},
  }
  config.stream = streams[stream]
  config.optimizer = {"name": "adam", "lr": 1e-3}
  config.net = {"name": "mlp", "hidden": (256, 256)}
  methods: dict[str, dict[str, Any]] = {
    "joint": {"name": "joint"},
    "finetune": {"name": "finetune"},
    "lwf": {"name": "lwf"},
    "confident": {"name": "confident"},
    "discriminative": {"name": "discriminative"},
    "expert_gate": {"name": "expert_gate"},
    "experts_finetune": {"name": "expert_gate", "mode": "finetune"},
    "experts_lwf": {"name": "expert_gate", "mode": "lwf"},
    "experts_ewc": {"name": "expert_gate", "mode": "ewc", "ewc_strength": 1.0},  # of eight, README.md
    "expert_gate_paper": {
      "name": "expert_gate",
      "center": False,
      "autoencoder_init": "sparse",
      "autoencoder_optimizer": "adagrad",
      "autoencoder_lr": 1e-2,
      "autoencoder_decay": 5e-4,
    },
  }
  config.method = {"batch_size": 64, "epochs": 5, **methods[method]}
  if preset == "smoke":
    config.num_seeds = 2
    config.method.epochs = 2
    config.stream.source = "digits"
    if stream == "datasets":
      config.stream.update({"name": "split", "tasks": 2, "valid_per_task": 60})
    if stream == "split_mnist":
      config.stream.valid_per_task = 30
    if stream == "copies":
      config.stream.update({"angles": (0.0, 0.0, 18.0), "examples_per_task": 300, "size": 8})
    if config.method.name == "expert_gate":
      config.method.update({"code": 8, "autoencoder_epochs": 10})
  return complete(config)
