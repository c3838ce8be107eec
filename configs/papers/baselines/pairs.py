r"""What composes with what: methods under guards and behind gates, on two streams of the embedded digits.

COMMAND, all pairs (resumable; 126 short runs of three seeds):
  python -m launch.train --config=configs/papers/baselines/pairs.py --workdir=W
COMMAND, one of them:
  python -m launch.train --config=configs/papers/baselines/pairs.py:stream=digits_split,method=er,guard=ewc --workdir=W

The heat maps of W/report.html show accuracy after the last task, each task with a head of its own. A guard has one
strength for all methods, its default or a weaker one at which none of them diverges, so that a map says what can be
combined and roughly what comes of it, not which is best.
"""

from ml_collections import ConfigDict

from cljax.config import complete, default, variant
from cljax.nets.routed import match_width
from cljax.pieces.gates import GATES
from cljax.pieces.guards import GUARDS
from configs.papers.baselines.table1 import PRESETS

PRESET = "pairs"
STREAMS = ("digits_permuted", "digits_split")
GUARDED = ("finetune", "er", "derpp", "single", "routing")  # methods that take a guard
GATED = ("routing", "packnet", "hat", "wsn", "ewc", "single")  # methods that are told their task
STRENGTHS = {"mas": 0.001, "si": 0.01, "online_ewc": 0.1}  # where routing at its rate of .5 diverges at the default
NONE = "none"
KEYS = ("stream", "method", "guard", "gate")


def pins(arg: str) -> dict[str, str]:
  """The keys that `arg` pins."""
  methods = tuple(dict.fromkeys(GUARDED + GATED))
  choices = {"stream": STREAMS, "method": methods, "guard": (NONE, *GUARDS), "gate": (NONE, *GATES)}
  return variant(arg, **choices, preset=(PRESET, *PRESETS))


def sweep(arg: str = "") -> list[dict[str, str]]:
  """The cells that `arg` leaves open; none of another preset."""
  asked = pins(arg)
  if asked.pop("preset", PRESET) != PRESET:
    return []
  pairs = [(method, guard, NONE) for method in GUARDED for guard in (NONE, *GUARDS)]
  pairs += [(method, NONE, gate) for method in GATED for gate in GATES]
  cells = [dict(zip(KEYS, (stream, *pair), strict=True)) for stream in STREAMS for pair in pairs]
  return [cell for cell in cells if all(cell[key] == value for key, value in asked.items())]


def get_config(arg: str = "") -> ConfigDict:
  """One cell; what `arg` leaves open is fine-tuning on permuted digits, without guard and gate."""
  pinned = {"stream": STREAMS[0], "method": "finetune", "guard": NONE, "gate": NONE} | pins(arg)
  stream, method, guard, gate = (pinned[key] for key in KEYS)
  config = default()
  words = "+".join([method, *(word for word in (guard, gate) if word != NONE)])
  config.paper, config.preset, config.cell = "baselines", PRESET, f"{stream}/{words}"
  config.num_seeds = 3
  config.evaluate = "seen"
  config.stream = {"name": stream.removeprefix("digits_"), "source": "digits", "tasks": 5}
  config.stream.update({"scenario": "task", "valid_per_task": 40})
  config.net = {"name": "mlp", "hidden": (100, 100)}
  config.optimizer.lr = 0.1
  config.method = {"name": method, "batch_size": 10, "epochs": 3}
  if method in ("er", "derpp", "routing"):
    config.method.update({"replay": 10, "capacity": 200})
  if method == "routing":
    shared = (64 + 1) * 100 + (100 + 1) * 100 + 10 * (100 + 1)
    width = match_width(shared, inputs=64, heads=5, tasks=5)
    config.net = {"name": "routed_mlp", "widths": (width, width), "experts": 20}
    config.method.update({"k": 4, "sample": "none", "noise": 0.0})
    config.optimizer.lr = 0.5
  if guard != NONE:
    config.method.guard = {"name": guard, **({"strength": STRENGTHS[guard]} if guard in STRENGTHS else {})}
  config.gate = {"name": gate}
  return complete(config)
