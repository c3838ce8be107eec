"""A program of devices_test.py for four devices: a run with a data axis.

Writes the params at its end to the folder that it is given, and prints the number of steps.
"""

import json
import sys

from etils import epath

from cljax import artifacts
from cljax.run import train
from launch.config_files import load_config

CONFIG = "configs/papers/cotraining/table1.py"
CELL = "preset=smoke,stream=mnist_perm,method=er"
FIELDS = {
  "num_seeds": 3,
  "chunk": 20,
  "evaluate": "ends",
  "stream.tasks": 2,
  "net.hidden": (16, 16),
  "method.epochs": 1,
}  # of a small run


def main() -> None:
  it = load_config(CONFIG).get_config(CELL)
  it.update_from_flattened_dict({**FIELDS, "num_seeds": 2, "data_devices": 2})
  outcome = train(it, quiet=True)
  assert dict(outcome.experiment.mesh.shape) == {"seed": 2, "data": 2}
  artifacts.write(epath.Path(sys.argv[1]), {"params": outcome.state.params})
  print(json.dumps(outcome.experiment.timeline.steps()))


if __name__ == "__main__":
  main()
