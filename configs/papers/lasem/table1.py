r"""LASEM (Lee, Behpour and Eaton 2021) and its comparators: which layers to share.

COMMAND, one cell:
  python -m launch.train --workdir=W \
    --config=configs/papers/lasem/table1.py:preset=quick,stream=cifar100_10,sharing=hps,method=lasem
COMMAND, all cells of a table or figure (resumable, finished cells are skipped):
  python -m launch.train --workdir=W --config=configs/papers/lasem/table1.py:preset=quick,table=controls

Tables: `table1`, Office-Home; `table2`, the residual net in groups; `table3`, all sharings; `figure1`, fixed
configurations; `figure4`, LASEM among them; `figure5`, the layers that LASEM shares; `figure6`, a fixed posterior;
`controls`, LASEM in its forms beside single tasks, all layers shared and a random configuration for each task.
Presets: `paper`, the authors' epochs; `longer` 500, `long` 150 and `quick` 20 epochs at a rate of 2e-3; `smoke`, digits
in a minute. README.md beside this file has the numbers.
"""

from typing import Any

from ml_collections import ConfigDict

from cljax.config import complete, default, variant

PRESETS = ("paper", "longer", "long", "quick", "smoke")
STREAMS = ("cifar100_10", "cifar100_40", "office_home", "stl10")
NETS = ("cnn", "resnet", "resnet_4g", "resnet_5g", "resnet_6g", "resnet_7g")
SHARINGS = ("hps", "tf", "df_cnn")
FIXED = ("all", "alternating", "top_1", "top_2", "top_3", "bottom_1", "bottom_2", "bottom_3")
FIXED_STL = ("all", "alternating", *(f"{end}_{k}" for end in ("top", "bottom") for k in range(1, 6)))
LEANING = ("fixed_50", "fixed_60", "fixed_70", "fixed_80", "fixed_90", "fixed_100")
FORMS = ("lasem", "release", "amortised", "until")
CONTROLS = ("lasem", "release", "amortised", "all", "alternating", "single", "random")
OWN: dict[str, dict[str, Any]] = {  # methods that share in a way of their own
  "apd": {"name": "apd"},
  "apd_original": {"name": "apd", "form": "original", "consolidate_every": 5},
  "den": {"name": "den"},
  "progressive": {"name": "progressive"},
}
DARTS: dict[str, dict[str, Any]] = {
  "darts": {"name": "darts"},
  "darts_second": {"name": "darts", "unrolled": True, "alpha_rows": "valid"},
}
METHODS = (*FORMS, "no_roll_back", "single", "random", "search", *DARTS, *FIXED_STL, *LEANING, *OWN)
TABLES = ("table1", "table2", "table3", "figure1", "figure4", "figure5", "figure6", "controls")

LISTS: dict[str, dict[str, Any]] = {
  "cifar100_10": {"name": "class_lists", "source": "cifar100", "lists": "cifar100_10"},
  "cifar100_40": {"name": "class_lists", "source": "cifar100", "lists": "cifar100_40"},
  "office_home": {
    "name": "class_lists",
    "source": "office_home",
    "lists": "office_home",
    "train_share": 0.6,
    "valid_share": 0.1,
    "standardise": "none",
  },
  "stl10": {"name": "noisy_subsets", "source": "stl10"},
}
CNNS: dict[str, dict[str, Any]] = {
  "cifar": {"channels": (32, 32, 64, 64), "windows": (3,), "pools": (1, 2, 1, 2), "hidden": (64,)},
  "office_home": {
    "channels": (64, 256, 256, 256),
    "windows": (11, 5, 3, 3),
    "pools": (3, 3, 2, 2),
    "hidden": (256, 64),
  },
  "stl10": {
    "channels": (32, 32, 64, 64, 128, 128),
    "windows": (3,),
    "pools": (1, 3, 1, 3, 1, 3),
    "hidden": (128, 16),
  },
}
RESNET: dict[str, Any] = {
  "channels": (64,) * 5 + (128,) * 4 + (256,) * 4 + (512,) * 4,
  "windows": (7,) + (3,) * 16,
  "pools": tuple(2 if l in (0, 5, 9, 13) else 1 for l in range(17)),
  "skips": tuple({2: 0, 4: 2, 8: 6, 12: 10, 16: 14}.get(l, -1) for l in range(17)),
  "hidden": (1000,),
}
GROUPS = {
  "resnet_4g": (5, 4, 4, 4),
  "resnet_5g": (5, 4, 4, 2, 2),
  "resnet_6g": (5, 4, 2, 2, 2, 2),
  "resnet_7g": (5, 2, 2, 2, 2, 2, 2),
}
BASES = {  # depths and middles of DF-CNN
  "cifar": ((16, 24, 32, 36), (24, 48, 64, 72)),
  "office_home": ((24, 64, 64, 64), (48, 128, 128, 128)),
  "stl10": ((12, 24, 32, 48, 64, 96), (24, 48, 64, 96, 128, 192)),
}
TRAINING: dict[str, dict[str, Any]] = {  # of preset `paper`
  "cifar": {"epochs": 2000, "batch_size": 10, "lr": 1e-4, "decay": 1 / 4000},
  "office_home": {"epochs": 1000, "batch_size": 16, "lr": 2e-5, "decay": 1e-4},
  "stl10": {"epochs": 500, "batch_size": 10, "lr": 1e-4, "decay": 0.0},
}
EPOCHS = {"longer": 500, "long": 150, "quick": 20}


def pins(arg: str) -> dict[str, str]:
  """The keys of the table that `arg` pins."""
  return variant(arg, preset=PRESETS, stream=STREAMS, net=NETS, sharing=SHARINGS, method=METHODS, table=TABLES)


def cells_of(table: str) -> list[dict[str, str]]:
  """The cells of a table or figure."""
  cifar, office, stl = ({"stream": stream} for stream in ("cifar100_10", "office_home", "stl10"))
  if table == "table1":
    found = [office | {"sharing": sharing, "method": "lasem"} for sharing in SHARINGS]
    found = [office | {"sharing": sharing, "method": "darts"} for sharing in ("hps", "df_cnn")] + found
    return [*(office | {"method": method} for method in ("den", "apd", "progressive")), *found]
  if table == "table2":
    long = [("resnet", "all"), *((net, "lasem") for net in ("resnet_4g", "resnet_5g", "resnet_6g"))]
    ten, forty = ([*long, ("resnet_7g", "lasem")], long)
    return [
      {"stream": stream, "net": net, "method": method}
      for stream, nets in (("cifar100_10", ten), ("cifar100_40", forty))
      for net, method in nets
    ]
  if table == "table3":
    three = ("lasem", "search", "all")
    return [data | {"sharing": s, "method": m} for data in (cifar, office) for s in SHARINGS for m in three]
  if table == "figure1":
    return [data | {"sharing": s, "method": m} for data in (cifar, office) for s in ("hps", "df_cnn") for m in FIXED]
  if table == "figure4":
    four = [d | {"sharing": s, "method": m} for d in (cifar, office) for s in SHARINGS for m in ("lasem", *FIXED)]
    return four + [stl | {"sharing": s, "method": m} for s in SHARINGS for m in ("lasem", *FIXED_STL)]
  if table == "figure5":
    return [data | {"sharing": s, "method": "lasem"} for data in (cifar, office, stl) for s in SHARINGS]
  if table == "figure6":
    return [office | {"sharing": "df_cnn", "method": m} for m in ("lasem", *LEANING)]
  small = ("amortised", "all", "random")
  return [cifar | {"sharing": s, "method": m} for s in SHARINGS for m in (CONTROLS if s == "hps" else small)]


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells of the table that `arg` names, `controls` if it names none, as far as its other keys allow them."""
  pinned = pins(arg)
  cells = cells_of(pinned.pop("table", "controls"))
  preset = pinned.pop("preset", "paper")
  if "method" in pinned and not any(cell["method"] == pinned["method"] for cell in cells):
    return [{"preset": preset, **pinned}]
  kept = [cell for cell in cells if all(cell.get(key, value) == value for key, value in pinned.items())]
  return [{"preset": preset, **cell, **pinned} for cell in kept]


def choice(method: str) -> dict[str, Any]:
  """The keywords of the method by its name in the table."""
  if method.startswith("fixed"):
    return {"choose": "fixed", "layers": "top_2", "posterior_weight": int(method.removeprefix("fixed_")) / 100}
  known: dict[str, dict[str, Any]] = {
    "lasem": {},
    "release": {"likelihood": "mean", "prior": "posteriors"},
    "amortised": {"m_step": "best", "e_every": 8},
    "until": {"m_step": "until"},
    "no_roll_back": {"roll_back": False},
    "random": {"choose": "random"},
    "search": {"choose": "search"},
    "single": {"choose": "static", "layers": "none"},
  }
  return known.get(method, {"choose": "static", "layers": method})


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is LASEM with hard sharing on ten tasks of CIFAR-100, preset `paper`."""
  pinned = {"preset": "paper", "stream": "cifar100_10", "net": "cnn", "sharing": "hps", "method": "lasem"} | pins(arg)
  preset, stream, net, sharing, method = (pinned[key] for key in ("preset", "stream", "net", "sharing", "method"))
  data = "cifar" if stream.startswith("cifar") else stream
  config = default()
  config.paper, config.preset = "lasem", preset
  told = "digits" if preset == "smoke" else stream
  config.cell = f"{told}/{sharing if net == 'cnn' else net}_{method}"
  if method in OWN:
    config.cell = f"{told}/{method if net == 'cnn' else f'{net}_{method}'}"
  config.num_seeds = 5
  config.evaluate = "ends"
  config.looks = ("valid", "trials" if method == "search" else "watch", "before_exit")
  config.stream = LISTS[stream]
  config.net = {"name": "stack", "dropout": 0.5, **(CNNS[data] if net == "cnn" else RESNET)}
  if data == "stl10" and sharing == "tf":
    config.net.hidden = (128,)
  training = dict(TRAINING[data])
  lr = training.pop("lr")
  chosen = DARTS.get(method) or {"name": "lasem", **choice(method)}
  config.method = {**chosen, "sharing": sharing, **training}
  if sharing == "df_cnn":
    config.method.base_depths, config.method.base_middles = BASES[data]
  if net in GROUPS:
    config.method.groups = GROUPS[net]
  if method in OWN:
    config.method = {**OWN[method], **training}
  if method == "darts_second":
    config.method.ahead = 2e-3 if preset in EPOCHS or preset == "smoke" else lr
  if preset in EPOCHS:
    lr, config.method.decay, config.method.epochs, config.num_seeds = 2e-3, 0.0, EPOCHS[preset], 3
  if preset == "smoke":
    lr, config.method.decay, config.method.epochs, config.num_seeds = 2e-3, 0.0, 15, 2
    config.stream = {"name": "class_lists", "source": "digits", "lists": "consecutive", "train_per_class": 40}
    config.stream.valid_per_class = 20
    config.net = {"name": "stack", "channels": (8, 8, 16, 16), "pools": (1, 2, 1, 2), "hidden": (16,), "dropout": 0.5}
  if method == "den":
    config.method.proximal_rate = lr
    config.method.added_units = 2 if preset == "smoke" else 32 if data == "office_home" else 16
  # RMSProp as TensorFlow 1 has it
  config.optimizer = {"name": "rmsprop", "lr": lr, "decay": 0.9, "eps": 1e-10, "initial_scale": 1.0}
  return complete(config)
