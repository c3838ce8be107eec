"""Any stream, data set, method, net and optimizer by their names, at their defaults.

COMMAND: python -m launch.train --workdir=W --config=configs/any.py:stream=split,source=mnist,method=lwf,net=cnn
Then any key, such as --config.method.distill_weight=2 --config.stream.tasks=5 --config.num_seeds=3.

`cljax list` shows all names; FILE.py:NAME and package.module:NAME are names, too. What is left out: permuted tasks of
the embedded digits, fine-tuning, plain SGD at .1, and the net that the method needs, else `mlp`.
"""

from ml_collections import ConfigDict

from cljax.config import complete, default
from cljax.errors import choose

NEEDS = {"routing": "routed_mlp", **dict.fromkeys(("apd", "darts", "den", "lasem", "progressive"), "stack")}
KEYS = ("stream", "source", "method", "net", "optimizer")


def get_config(arg: str = "") -> ConfigDict:
  """The config that the names in `arg` make."""
  named = {}
  for part in filter(None, arg.split(",")):
    key, _, value = part.partition("=")
    named[choose("the config argument", key, KEYS)] = value
  config = default()
  config.method.name = named.get("method", config.method.name)
  config.net.name = named.get("net", NEEDS.get(config.method.name, config.net.name))
  config.optimizer.name = named.get("optimizer", config.optimizer.name)
  config.stream.name = named.get("stream", config.stream.name)
  config.stream.source = named.get("source", config.stream.source)
  return complete(config)
