"""Predicts with a finished run, loading the gate and then one expert at a time.

  python -m launch.predict --workdir=runs/gate --pictures=pictures.npy
  python -m launch.predict --workdir=runs/gate --count=20       # of each task's test rows

Prints the expert and the label of each picture, and which parts were read at how many bytes.
"""

import numpy as np
from absl import flags
from etils import epath

from cljax.config import completed
from cljax.errors import ConfigError
from cljax.files import read_json, telling
from cljax.predict import Predictor
from cljax.recipe import build_stream
from launch import app, hosts

PICTURES = flags.DEFINE_string("pictures", "", "A .npy file of pictures [N, height, width, channels], uint8 or 0 to 1.")
SEED = flags.DEFINE_integer("seed", 0, "Which seed of the run answers.", lower_bound=0)
COUNT = flags.DEFINE_integer("count", 10, "Without --pictures: so many test rows of each task.", lower_bound=1)


def pictures() -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
  """(pictures, their tasks, their labels); the latter two only where they are the run's own test rows."""
  if PICTURES.value:
    try:
      return np.load(PICTURES.value), None, None
    except (OSError, ValueError) as error:
      raise ConfigError(f"--pictures={PICTURES.value} cannot be read as .npy: {error}") from error
  path = epath.Path(app.workdir()) / "config.json"
  told = read_json(path)
  with telling(path):
    config = completed(told)
  _, stream, _, _ = build_stream(config, (SEED.value,), app.DATA_DIR.value)
  warp, tables = stream.test.warp, stream.test
  if warp is not None:
    raise ConfigError("the run's tasks change their pictures; give --pictures as the tasks show them")
  rows = [tables.idx[t, : min(COUNT.value, int(tables.count[t]))] for t in range(len(tables.count))]
  at = np.concatenate(rows)
  return stream.test_bank.x[at], np.repeat(np.arange(len(rows)), list(map(len, rows))), stream.test_bank.y[at]


def main() -> None:
  hosts.use_platform()
  predictor = Predictor(app.workdir(), SEED.value)
  x, tasks, labels = pictures()
  answers = predictor(x)
  for i, (slot, label) in enumerate(zip(answers.slot, answers.label, strict=True)):
    sure = answers.probabilities[i, slot] if slot >= 0 else 0.0
    true = "" if tasks is None or labels is None else f"   truly task {tasks[i] + 1}, label {labels[i]}"
    told = f"expert {slot + 1} ({sure:.2f}), label {label}" if slot >= 0 else "no gate knows it"
    print(f"picture {i}: {told}{true}")
  if tasks is not None and labels is not None:
    print(f"right expert {np.mean(answers.slot == tasks):.3f}, right label {np.mean(answers.label == labels):.3f}")
  print("read: " + ", ".join(f"{name} {size:,} bytes" for name, size in predictor.loaded.items()))


if __name__ == "__main__":
  app.run(main)
