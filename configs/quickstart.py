"""Co-training on permuted digits: the main job on data that comes with scikit-learn.

COMMAND: python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
One method: --config=configs/quickstart.py:method=routing_cotrain

About a minute on two cores. 1,797 small pictures need rates and epochs of their own; all four methods were tuned over
the same grid, see `RATES`.
"""

from ml_collections import ConfigDict

from cljax.config import complete, default, variant
from cljax.nets.routed import match_width

METHODS = ("finetune", "er", "routing", "routing_cotrain")
TASKS, HIDDEN = 10, 100
# The best of lr .05, .1, .2, .5, 1 by ACC over seeds 0 to 2, with 3 epochs for all.
RATES = {"finetune": 0.05, "er": 0.1, "routing": 0.5, "routing_cotrain": 0.5}


def sweep(arg: str = "") -> list[dict[str, str]]:
  """One cell for each method."""
  pinned = variant(arg, method=METHODS)
  return [{"method": method} for method in METHODS if method == pinned.get("method", method)]


def get_config(arg: str = "") -> ConfigDict:
  """The config of one method; without one, of the paper's."""
  method = variant(arg, method=METHODS).get("method", "routing_cotrain")
  config = default()
  config.paper, config.preset, config.cell = "cotraining", "quickstart", method
  config.stream = {"name": "permuted", "source": "digits", "tasks": TASKS}
  config.optimizer.lr = RATES[method]
  config.method = {"name": method.removesuffix("_cotrain"), "batch_size": 10, "epochs": 3}
  if method != "finetune":
    config.method.update({"replay": 10, "capacity": 200})
  if method.startswith("routing"):
    shared = (64 + 1) * HIDDEN + (HIDDEN + 1) * HIDDEN + TASKS * (HIDDEN + 1) * 10
    width = match_width(shared, inputs=64, heads=TASKS, tasks=TASKS)
    config.net = {"name": "routed_mlp", "widths": (width, width), "experts": 20}
    config.method.update({"k": 4, "sample": "none", "noise": 0.0, "cotrain": method == "routing_cotrain"})
  else:
    config.net = {"name": "mlp", "hidden": (HIDDEN, HIDDEN)}
  return complete(config)
