"""A program of devices_test.py for four devices: the same run with and without a data axis.

Prints the largest difference between the params at its end, and the number of steps.
"""

import json

import jax
import numpy as np

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
  states = []
  for data in (1, 2):
    it = load_config(CONFIG).get_config(CELL)
    it.update_from_flattened_dict({**FIELDS, "num_seeds": 2, "data_devices": data})
    outcome = train(it, quiet=True)
    assert dict(outcome.experiment.mesh.shape) == {"seed": 2, "data": data}
    states.append(outcome.state.params)
  differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *states)
  print(json.dumps([max(jax.tree.leaves(differences)), outcome.experiment.timeline.steps()]))


if __name__ == "__main__":
  main()
