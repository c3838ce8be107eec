r"""What methods forget, and what of it is gone from their representation (the question of Figure 1 of Xiong, Ren and
Urtasun 2019, asked of the methods of this library): accuracy by the output against readout accuracy over five tasks.

COMMAND, one cell:
  python -m launch.train --workdir=W --config=configs/papers/metateacher/figure1.py:stream=mnist,method=er
COMMAND, all cells (resumable, finished cells are skipped):
  python -m launch.train --workdir=W --config=configs/papers/metateacher/figure1.py

Streams: `mnist` and `cifar10`, two classes a task in label order, a head for each task. On CIFAR-10 the net convolves,
which the mixtures do not. Presets: `full`, all rows; `smoke`, the embedded digits, to see that everything works.

MINUTES a seed on one free core: MNIST one, CIFAR-10 two to three. README.md beside this file has the numbers.
"""

from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, default, variant
from cljax.nets.routed import match_width

PRESETS = ("full", "smoke")
STREAMS = ("mnist", "cifar10")
CONVOLVING = ("finetune", "er", "lwf")
METHODS = (*CONVOLVING, "routing", "routing_cotrain")
TASKS, HIDDEN = 5, 256


def pins(arg: str) -> dict[str, str]:
  """The keys of the figure that `arg` pins."""
  return variant(arg, preset=PRESETS, stream=STREAMS, method=METHODS)


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells that `arg` leaves open: all methods on MNIST, those whose net may convolve on CIFAR-10."""
  pinned = {"preset": "full"} | pins(arg)
  cells = [("mnist", method) for method in METHODS] + [("cifar10", method) for method in CONVOLVING]
  cells = [cell for cell in cells if pinned["preset"] != "smoke" or "stream" in pinned or cell[0] == "mnist"]
  found = [{"preset": pinned["preset"], "stream": stream, "method": method} for stream, method in cells]
  return [cell for cell in found if all(cell[key] == value for key, value in pinned.items())] or [pinned]


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is fine-tuning on MNIST, preset `full`."""
  pinned = {"preset": "full", "stream": "mnist", "method": "finetune"} | pins(arg)
  preset, stream, method = pinned["preset"], pinned["stream"], pinned["method"]
  config = default()
  told = "digits" if preset == "smoke" else stream
  config.paper, config.preset, config.cell = "metateacher", preset, f"{told}/{method}"
  config.num_seeds = 3
  config.evaluate, config.looks = "seen", ("readout",)
  config.stream = {"name": "split", "source": stream, "tasks": TASKS}
  training = {"batch_size": 10, "epochs": 1} if stream == "mnist" else {"batch_size": 32, "epochs": 2}
  memory = {"replay": training["batch_size"], "capacity": 1000}
  config.optimizer.lr = 0.1 if stream == "mnist" else 0.05
  own: dict[str, Any] = {} if method in ("finetune", "lwf") else memory
  config.method = {"name": method.removesuffix("_cotrain"), **training, **own}
  config.net = {"name": "mlp", "hidden": (HIDDEN, HIDDEN)} if stream == "mnist" else {"name": "cnn"}
  if preset == "smoke":
    config.num_seeds, config.stream.source = 2, "digits"
    config.net = {"name": "mlp", "hidden": (HIDDEN, HIDDEN)}
    config.method.epochs = 3
  if method not in CONVOLVING:
    inputs = 64 if preset == "smoke" else 784 if stream == "mnist" else 3072
    size = (inputs + 1) * HIDDEN + (HIDDEN + 1) * (HIDDEN + TASKS * 2)
    width = match_width(size, inputs=inputs, heads=TASKS, tasks=TASKS, classes=2)
    config.net = {"name": "routed_mlp", "widths": (width, width), "experts": 20}
    config.method.update({"k": 4, "sample": "none", "noise": 0.0, "cotrain": method == "routing_cotrain"})
  return complete(config)
