r"""Well-known baselines on the streams that published numbers of them exist on.

COMMAND, one cell:
  python -m launch.train --workdir=W --config=configs/baselines.py:method=ewc,stream=mnist_split
COMMAND, all of them (resumable, finished cells are skipped):
  python -m launch.reproduce --paper=baselines --preset=paper --workdir=W
COMMAND, the search behind a strength or a rate, judged by validation rows:
  python -m launch.train --workdir=W --config=configs/baselines.py:method=ewc,stream=mnist_permuted,search=yes

Streams:
  mnist_permuted, mnist_rotated  20 tasks of 1,000 pictures, seen once in batches of 10, an MLP of 100-100 under one
                                 head (Lopez-Paz and Ranzato 2017; Riemer et al. 2019); with heads for those in HEADS
  mnist_permuted10               10 tasks of all 60,000 pictures, 20 epochs of 256 rows under Adam, the same MLP under
                                 one head (Nguyen et al. 2018)
  mnist_split                    5 tasks of two digits, some 2,000 steps of 128 rows each under Adam, an MLP of 400-400,
                                 `scenario=task|domain|class` (van de Ven and Tolias 2019)
  cifar100_split                 20 tasks of five classes, seen once in batches of 10, a residual net with GroupNorm, a
                                 head a task (Chaudhry et al. 2019); for an accelerator

Presets: `paper`; `smoke`, the embedded digits, three short tasks, without a claim, where mnist_permuted10 is the same
as mnist_permuted.
"""

from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, default, variant
from cljax.sections import numbers_of

PRESETS = ("paper", "smoke")
STREAMS = ("mnist_permuted", "mnist_rotated", "mnist_permuted10", "mnist_split", "cifar100_split")
ASKED_FOR = ("stream=cifar100_split",)  # which `sweep` has where it is asked for: it takes an accelerator
LONG = ("mnist_permuted10", "mnist_split")  # twenty times the steps and more, at a published rate
SCENARIOS = ("task", "domain", "class")
GUARDS = ("ewc", "online_ewc", "si", "mas", "agem", "gem", "ogd")  # fine-tuning under each
REPLAY = ("er", "er_ring", "er_balanced", "der", "derpp")
MER = {"batch_size": 1, "replay": 25, "reptile_batches": 5, "capacity": 5_120}  # rows one by one, as the paper has them
PLAIN_SGD = ("mer", "ogd")  # whose papers have no moments
HEADS = ("hat", "cat", "packnet", "wsn", "supsup", "spg", "single")  # are told the task, whatever the stream
METHODS = ("finetune", *GUARDS, "lwf", *REPLAY, "mer", *HEADS, "joint")
SEARCH = ("no", "yes")
RATES = (0.01, 0.03, 0.1)  # of a search
DECADES = (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)  # strengths on split MNIST, where a Fisher at the end is tiny
THREES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # where plain SGD sees a stream once, and diverges soon
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MARGINS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
ALPHAS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
SEARCHED = {  # method -> (the number that a search varies beside the rate, its values on split MNIST, elsewhere)
  **dict.fromkeys(("ewc", "online_ewc", "mas"), ("guard_strength", DECADES, THREES)),
  "si": ("guard_strength", tuple(each / 1e4 for each in DECADES), tuple(each / 10 for each in THREES)),
  "lwf": ("distill_weight", WEIGHTS, WEIGHTS),
  "gem": ("guard_margin", MARGINS, MARGINS),
  **dict.fromkeys(("der", "derpp"), ("alpha", ALPHAS, ALPHAS)),
}
TUNED: dict[str, dict[str, tuple[float, float | None]]] = {  # README.md has the searches
  # cell of a stream -> method -> (rate, the number of its search)
  "mnist_permuted": {
    **{"finetune": (0.03, None), "ewc": (0.1, 1.0), "si": (0.03, 1.0), "lwf": (0.03, 1.0)},
    **{"er": (0.1, None), "derpp": (0.1, 0.1), "agem": (0.03, None), "mer": (0.03, None)},
    **dict.fromkeys(("er_ring", "er_balanced", "packnet", "hat", "supsup", "wsn"), (0.1, None)),
  },
  "mnist_rotated": {
    **{"finetune": (0.01, None), "ewc": (0.01, 10.0), "si": (0.01, 3.0), "lwf": (0.03, 30.0)},
    **{"er": (0.1, None), "derpp": (0.1, 0.3), "agem": (0.01, None), "mer": (0.03, None)},
    **dict.fromkeys(("er_ring", "er_balanced", "packnet", "hat", "supsup"), (0.1, None)),
  },
  "mnist_permuted10": {"ewc": (1e-3, 10.0), "si": (1e-3, 0.1)},
  "mnist_split_task": {"ewc": (1e-3, 1e9), "online_ewc": (1e-3, 1e9), "si": (1e-3, 10.0)},
  "mnist_split_domain": {"ewc": (1e-3, 1e8), "online_ewc": (1e-3, 1e6), "si": (1e-3, 1e4)},
  "mnist_split_class": {  # but for LwF those of `domain`; not searched
    **{"ewc": (1e-3, 1e8), "online_ewc": (1e-3, 1e6), "si": (1e-3, 1e4), "lwf": (1e-3, 1.0)}
  },
}
ROWS = 5_120  # of a memory, as in Riemer et al.; 256 a task for those that keep some of each task


def pins(arg: str) -> dict[str, str]:
  """The keys that `arg` pins."""
  return variant(arg, preset=PRESETS, stream=STREAMS, scenario=SCENARIOS, method=METHODS, search=SEARCH)


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells that `arg` leaves open: MNIST permuted, rotated, and split in its three scenarios."""
  pinned = {"preset": "paper"} | pins(arg)
  usual_streams = [each for each in STREAMS[:-1] if pinned["preset"] == "paper" or each != "mnist_permuted10"]
  cells = []
  for stream in (pinned["stream"],) if "stream" in pinned else usual_streams:
    for name in (pinned["method"],) if "method" in pinned else METHODS:
      usual = SCENARIOS if stream == "mnist_split" else ("task",) if stream == "cifar100_split" else ("domain",)
      asked = (pinned["scenario"],) if "scenario" in pinned else ("task",) if name in HEADS else usual
      cells += [{**pinned, "stream": stream, "scenario": scenario, "method": name} for scenario in asked]
  return cells


def data_of(stream: str, scenario: str, smoke: bool) -> dict[str, Any]:
  """The fields of config.stream."""
  source, name = stream.removesuffix("10").split("_")
  source = "digits" if smoke else source
  found = {"name": name, "source": source, "scenario": scenario, "tasks": 5 if name == "split" else 20}
  if stream == "mnist_permuted10":
    found["tasks"] = 10
  elif name != "split":
    found["examples_per_task"] = 1000
  if source == "cifar100":
    found["tasks"] = 20
  return {**found, **({} if name == "split" else {"tasks": 3, "examples_per_task": 200})} if smoke else found


def method_of(name: str) -> dict[str, Any]:
  """The fields of config.method but for length and batch."""
  if name in GUARDS:
    kept = {"per_task": 256} if name in ("agem", "gem") else {"per_task": 20} if name == "ogd" else {}
    return {"name": "finetune", "guard": {"name": name, **kept}}
  if name in REPLAY:
    memory = {"er_ring": "ring", "er_balanced": "class_balanced"}.get(name)
    return {"name": name.split("_")[0], "capacity": ROWS, **({"memory": memory} if memory else {})}
  return {"name": name, **({"warmup_epochs": 0} if name == "lwf" else {})}


def tuned(config: ConfigDict, cell: str, method: str) -> None:
  """Sets the rate, and the number of the method's search, where TUNED has them for a stream's cell."""
  rate, number = TUNED.get(cell, {}).get(method, (config.optimizer.lr, None))
  config.optimizer.lr = rate
  if number is not None:
    *sections, field = numbers_of(config)[SEARCHED[method][0]].place
    home = config.method
    for section in sections:
      home = home[section]
    home[field] = number


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is fine-tuning on permuted MNIST, in the domain scenario."""
  pinned = {"preset": "paper", "stream": "mnist_permuted", "method": "finetune", "search": "no"} | pins(arg)
  preset, stream, method = pinned["preset"], pinned["stream"], pinned["method"]
  split = stream.endswith("split")
  scenario = pinned.get("scenario", "task" if split or method in HEADS else "domain")
  config = default()
  cell = f"{stream}_{scenario}" if split and stream != "cifar100_split" else stream
  told = cell.replace("mnist", "digits").replace("cifar100", "digits") if preset == "smoke" else cell
  config.paper, config.preset, config.cell = "baselines", preset, f"{told}/{method}"
  config.num_seeds = 2 if preset == "smoke" else 5
  config.evaluate = "seen"
  config.stream = data_of(stream, scenario, preset == "smoke")
  config.net = {"name": "mlp", "hidden": (400, 400) if split else (100, 100)}
  config.method = {**method_of(method), "batch_size": 10, "epochs": 1}
  config.optimizer = {"name": "sgd", "lr": 0.1}
  if stream in LONG:
    config.optimizer = {"name": "adam", "lr": 1e-3}
    # 12,000 rows a task: some 2,000 steps
    config.method.update({"batch_size": 128, "epochs": 21} if split else {"batch_size": 256, "epochs": 20})
    if method in PLAIN_SGD:
      config.optimizer = {"name": "sgd", "lr": 0.03}
  if stream == "cifar100_split" and preset == "paper":
    config.net, config.optimizer.lr = {"name": "resnet", "depth": 20}, 0.03
  if method == "cat":  # which tasks are similar is judged by these
    config.stream.valid_per_task = 20 if preset == "smoke" else 1000 if split else 200
  if method in REPLAY:
    config.method.replay = config.method.batch_size
  if method == "mer":
    config.method.update({**MER, "epochs": 1})
  if method == "lwf" and stream == "mnist_split" and scenario != "task":  # as the published numbers have it
    config.method.update({"weigh_by_tasks": True, "distill_temperature": 2.0, "distill_weight": 2.0**2})
    config.method.rivals = "seen" if scenario == "class" else "old"
  tuned(config, cell, method)
  if preset == "smoke":
    config.method.epochs = 3
    if method == "er_ring":  # as many rows for each task
      config.method.capacity -= ROWS % config.stream.tasks
  if pinned["search"] == "yes":
    config.stream.valid_per_task, config.looks = (200 if not split else 1000) if preset == "paper" else 20, ("valid",)
    long = stream in LONG
    # other seeds than those of the table
    config.seed, config.num_seeds, config.evaluate = 100, 1 if long else 2, "ends"
    config.sweep = {"lr": (config.optimizer.lr,) if long else RATES}
    if method in SEARCHED:
      name, on_split, elsewhere = SEARCHED[method]
      config.sweep[name] = on_split if stream == "mnist_split" else elsewhere
  return complete(config)
