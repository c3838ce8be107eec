r"""A new task learnt by a rule that was trained to forget little, beside plain SGD at many rates and other baselines
(Xiong, Ren and Urtasun 2020, Figures 3 to 5): readout accuracy on the old task and on the new one.

COMMANDS, a meta-training of lstm, static, maml, rep and hat, each in a folder of its name, then all cells (resumable):
  python -m launch.meta --config=configs/papers/metateacher/meta.py:preset=reduced,rule=lstm --workdir=M/lstm
  python -m launch.train --config=configs/papers/metateacher/table1.py:preset=reduced,meta=M --workdir=W
COMMAND, one cell:
  python -m launch.train --config=configs/papers/metateacher/table1.py:preset=reduced,meta=M,method=ewc_100 --workdir=W

Every cell begins with the networks of the meta-training, which know the old task, and takes as many steps on the rows
of the new task that no rule was trained on. Those of `hat` learnt the old task with its gates, from the same weights,
in the same batches and by the same optimizer. Three networks and rules, each on three orders of the rows. Rates of
`sgd_x` are shares of the rule's alpha, as are those of other rows whose names end in a number below 1.
"""

from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, default, variant
from configs.papers.metateacher import meta

PRESETS = meta.PRESETS
SHARES = ("0.5", "0.33", "0.2", "0.1", "0.05")
METHODS = ("sgd", *(f"sgd_{share}" for share in SHARES), "lwf", "lwf_0.5", "ewc_1", "ewc_100", "ewc_100_0.33")
METHODS = (*METHODS, *meta.STARTS, "hat_0.33", "teacher", *meta.RULES)
STEPS = ("meta", "twice")
NETWORKS, ORDERS = 3, 3
FISHER_ROWS = 5000
MOST_ROWS = {"reduced": 32_000, "small_cifar": 32_000, "smoke": 2_000, "paper": 50_000}  # of a task; none is left out


def pins(arg: str) -> dict[str, str]:
  """The keys of the table that `arg` pins; `meta` is a folder with the work dirs of meta-trainings."""
  parts = arg.split(",")
  folder = [part.removeprefix("meta=") for part in parts if part.startswith("meta=")]
  others = ",".join(part for part in parts if not part.startswith("meta="))
  pinned = variant(others, preset=PRESETS, method=METHODS, steps=STEPS, experiment=meta.EXPERIMENTS)
  return pinned | ({"meta": folder[-1]} if folder else {})


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells that `arg` leaves open."""
  pinned = pins(arg)
  return [pinned | {"method": method} for method in METHODS if pinned.get("method", method) == method]


def of_method(name: str, alpha: float, batch: int, parts: str, old_rows: int) -> tuple[dict[str, Any], float]:
  """(the fields of config.method, the learning rate) of a row; `parts` is the folder of what its meta-training left."""
  base, _, share = name.partition("_")
  training: dict[str, Any] = {"batch_size": batch, "epochs": 1}
  if base == "ewc":
    strength, _, share = share.partition("_")
    guard = {"name": "ewc", "strength": float(strength), "fisher_rows": FISHER_ROWS}
    training = {"name": "ewc", **training, "guard": guard}
  elif base == "lwf":
    training |= {"name": "lwf", "warmup_epochs": 0, "distill_weight": 1.0, "distill_temperature": 1.0}
  elif base == "teacher":
    training |= {"name": "er", "memory": "kept", "update": "union", "replay": batch, "capacity": old_rows}
  elif base == "hat":
    training |= {"name": "hat", **meta.HAT, "gates_from": f"{parts}/embeddings.npz"}
  elif base in meta.RULES:
    training |= {"name": "learned_rule", "form": base, "theta": f"{parts}/theta.npz"}
    training |= {"alpha": alpha, "count_multipliers": True}
  else:
    training |= {"name": "finetune"}
  return training, alpha * float(share or 1)


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is plain SGD in the preset `reduced`."""
  pinned = {"preset": "reduced", "method": "sgd", "steps": "meta", "meta": "runs/metateacher"} | pins(arg)
  preset, method, folder = pinned["preset"], pinned["method"], pinned["meta"]
  asked = f"preset={preset}" + (f",experiment={pinned['experiment']}" if "experiment" in pinned else "")
  trained = meta.get_config(asked)
  data, alpha, steps = trained.data, trained.inner.alpha, trained.curriculum.steps
  config = default()
  config.paper, config.preset = "metateacher", preset
  networks = trained.num_seeds
  config.num_seeds = networks * ORDERS
  seed = f"seed_{{seed%{networks}}}"
  trained_by = method.partition("_")[0]
  rule = trained_by if trained_by in meta.RULES + meta.STARTS else "static"  # rules have the same networks
  parts = f"{folder}/{rule}/parts/{seed}"
  config.start_from, config.given_tasks = f"{parts}/start.npz", 1
  config.steps_per_task = steps * (2 if pinned["steps"] == "twice" else 1)
  config.looks, config.look_every_steps = ("readout", "readout_within"), max(steps // 10, 1)
  classes = 0 if len(data.new) == data.classes * data.tasks else data.classes
  half = {"all": "all", "first": "second", "second": "first"}[data.half]
  stream = {"name": "transfer", "source": data.source, "old": data.old, "new": held_out(data.new, classes)}
  if pinned.get("experiment") == "4" and preset == "paper":  # classes of a data set that meta-training never saw
    stream |= {"source": "cifar10+tiny_imagenet", "new": tuple(range(10, 210))}
  config.cell = f"{stream['source'].replace('+', '_')}/{method}"
  config.stream = {**stream, "new_tasks": data.tasks, "new_classes": classes, "half": half}
  config.net = trained.net.to_dict()
  kept = (1 + data.tasks) * MOST_ROWS[preset]
  config.method, config.optimizer.lr = of_method(method, alpha, trained.inner.new_batch, parts, kept)
  for name in ("hidden", "hidden_vectors", "cell", "inputs") if method in meta.RULES else ():
    config.method[name] = trained.rule[name]
  if method in meta.RULES and data.tasks > 1:  # as in its episodes
    config.method.memory = "keep"
  return complete(config)


def held_out(pool: tuple[int, ...], drawn: int) -> tuple[int, ...]:
  """The classes of the new tasks: those of meta-training, or, where they are drawn, the fifty that it never saw."""
  return tuple(range(max(pool) + 1, max(pool) + 51)) if drawn else pool
