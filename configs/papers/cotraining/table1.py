r"""Table 1 of Collier et al. 2020: MNIST-Perm and MNIST-Rot, with and without replay, routing and co-training.

COMMAND, one cell:
  python -m launch.train --workdir=W \
    --config=configs/papers/cotraining/table1.py:stream=mnist_perm,method=routing_cotrain
COMMAND, the table (resumable, finished cells are skipped):
  python -m launch.reproduce --paper=cotraining --preset=paper --workdir=W

Presets: `paper`, all 60,000 examples of each task in one pass; `gem1000`, 1,000 of them; `smoke`, three short tasks of
the embedded digits in place of MNIST, to see that everything works. README.md beside this file has the numbers.

HOURS, on two free CPU cores with 15 seeds: `paper` 1.25 (nine minutes a cell with replay), `gem1000` .3, `smoke` .02.
EXPECT, ACC at `paper`: er .915 (MNIST-Perm) and .914 (MNIST-Rot), routing .925 and .899, routing_cotrain .924 and .916.

Beside the four rows of the table: `joint` (the oracle), `single` (a network for each task) and `routing_frozen`
(co-training with the router left at its random start); `ewc`, `gem` and `mer`, which the paper says a mixture goes
together with, and co-training under a guard, `cotrain_ewc`, `cotrain_si`, `cotrain_agem`, `cotrain_gem`. Memories hold
1,000 rows in all, whosever they are. MER is a method of its own and guards nothing.
"""

from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, default, variant

STREAMS = {"mnist_perm": "permuted", "mnist_rot": "rotated"}
TABLE = ("finetune", "er", "routing", "routing_cotrain")
GUARDS: dict[str, dict[str, Any]] = {
  "ewc": {"name": "ewc"},
  "si": {"name": "si"},
  "agem": {"name": "agem", "per_task": 50, "drawn_rows": 50},
  "gem": {"name": "gem", "per_task": 50},
}
GUARDED = {f"cotrain_{name}": name for name in GUARDS}  # co-training under each
METHODS = (*TABLE, "joint", "single", "routing_frozen", "ewc", "gem", "mer", *GUARDED)
PRESETS = ("paper", "gem1000", "smoke")
ROUTED = ("routing", "routing_cotrain", "routing_frozen", *GUARDED)
MER = {"name": "mer", "batch_size": 1, "replay": 25, "reptile_batches": 5, "capacity": 1000}  # as its authors run it

# Learning rates by preset; README.md has the searches behind them.
RATES = {
  "paper": dict.fromkeys(METHODS, 0.1),
  "gem1000": dict.fromkeys(METHODS, 0.1) | dict.fromkeys(ROUTED, 0.5),
  "smoke": dict.fromkeys(METHODS, 0.1) | dict.fromkeys(ROUTED, 0.5),
}
STRENGTHS = {  # of guards at `gem1000`, by the same searches; elsewhere they stand at their defaults
  "mnist_perm": {"ewc": 0.1, "cotrain_ewc": 1.0, "cotrain_si": 0.03},
  "mnist_rot": {"ewc": 100.0, "cotrain_ewc": 0.1, "cotrain_si": 0.01},
}


def pins(arg: str) -> dict[str, str]:
  """The keys of the table that `arg` pins."""
  return variant(arg, preset=PRESETS, stream=tuple(STREAMS), method=METHODS)


def told(stream: str, preset: str) -> str:
  """What a stream is called in tables: by its data."""
  return stream.replace("mnist", "digits") if preset == "smoke" else stream


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells that `arg` leaves open: two streams by the four methods of the table."""
  pinned = {"preset": "paper"} | pins(arg)
  streams = [pinned["stream"]] if "stream" in pinned else list(STREAMS)
  methods = [pinned["method"]] if "method" in pinned else TABLE
  return [{"preset": pinned["preset"], "stream": stream, "method": method} for stream in streams for method in methods]


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is MNIST-Perm with co-training, preset `paper`."""
  pinned = {"preset": "paper", "stream": "mnist_perm", "method": "routing_cotrain"} | pins(arg)
  preset, stream, method = pinned["preset"], pinned["stream"], pinned["method"]
  config = default()
  config.paper, config.preset, config.cell = "cotraining", preset, f"{told(stream, preset)}/{method}"
  config.num_seeds = 15
  config.evaluate = "seen"
  config.stream = {"name": STREAMS[stream], "source": "mnist", "tasks": 20}
  config.optimizer.lr = RATES[preset][method]
  config.net = {"name": "mlp", "hidden": (256, 256)}
  base = "routing" if method in ROUTED else "finetune" if method in GUARDS else method
  config.method = {"name": base, "batch_size": 10, "epochs": 1, **(MER if method == "mer" else {})}
  if method in ("er", *ROUTED):
    config.method.update({"replay": 10, "capacity": 1000})
  if method in ROUTED:
    config.net = {"name": "routed_mlp", "widths": (19, 19), "experts": 20}  # match_width(318152) = 19
    config.method.update({"k": 4, "sample": "none", "noise": 0.0, "cotrain": method != "routing"})
    if method == "routing_frozen":
      config.method.router_lr = 0.0
  if guard := GUARDED.get(method, method if method in GUARDS else ""):
    found = {"strength": STRENGTHS[stream][method]} if preset == "gem1000" and method in STRENGTHS[stream] else {}
    config.method.guard = {**GUARDS[guard], **found}
  if preset == "gem1000":
    config.stream.examples_per_task = 1000
  if preset == "smoke":
    config.num_seeds = 2
    config.stream.update({"source": "digits", "tasks": 3, "examples_per_task": 300})
    config.method.epochs = 3
  return complete(config)
