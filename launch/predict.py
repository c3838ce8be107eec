"""Predicts with a finished run, loading the gate and then one expert at a time.

  python -m launch.predict --workdir=runs/gate --pictures=pictures.npy
  python -m launch.predict --workdir=runs/gate --count=20       # of each task's test rows

Prints the expert and the label of each picture, and which parts were read at how many bytes.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from cljax.config import completed
from cljax.data.pictures import one_for_all
from cljax.errors import ConfigError
from cljax.paths import located
from cljax.predict import Predictor
from cljax.recipe import build_stream
from cljax.recorded import found_again
from cljax.report.store import check_data
from launch import app, hosts

flags.adopt_module_key_flags(hosts)
for name in ("workdir", "data_dir"):
  flags.declare_key_flag(name)

PICTURES = flags.DEFINE_string("pictures", "", "A .npy file of pictures [N, height, width, channels], uint8 or 0 to 1.")
SEED = flags.DEFINE_integer("seed", 0, "Which seed of the run answers.", lower_bound=0)
COUNT = flags.DEFINE_integer("count", 10, "Without --pictures: so many test rows of each task.", lower_bound=1)


def pictures(config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
  """(pictures, their tasks, their labels); the latter two only where they are the run's own test rows."""
  if PICTURES.value:
    path = located(PICTURES.value)
    try:
      found = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError) as error:
      raise ConfigError(f"--pictures={path} cannot be read as .npy: {error}") from error
    return found, None, None
  own = completed(found_again(located(app.workdir()), config))
  _, stream, _, data_hash = build_stream(own, (SEED.value,), app.DATA_DIR.value)
  check_data(located(app.workdir()), data_hash)
  warp, tables = stream.test.warp, stream.test
  if warp is not None and not (one_for_all(warp, (SEED.value,)) and warp.warp is None):  # the predictor normalises
    raise ConfigError("the run's tasks change their pictures; give --pictures as the tasks show them")
  rows = [tables.idx[t, : min(COUNT.value, int(tables.count[t]))] for t in range(len(tables.count))]
  at = np.concatenate(rows)
  return stream.test_bank.x[at], np.repeat(np.arange(len(rows)), list(map(len, rows))), stream.test_bank.y[at]


def main() -> None:
  hosts.use_platform()
  predictor = Predictor(app.workdir(), SEED.value)
  x, tasks, labels = pictures(predictor.config)
  answers = predictor(x)
  for i, (slot, label) in enumerate(zip(answers.slot, answers.label, strict=True)):
    sure = answers.probabilities[i, slot] if slot >= 0 else 0.0
    true = "" if tasks is None or labels is None else f"   truly task {tasks[i] + 1}, label {labels[i]}"
    unknown = "no gate knows it" if np.isfinite(x[i]).all() else "it holds NaN or infinity, and gets no answer"
    told = f"expert {slot + 1} ({sure:.2f}), label {label}" if slot >= 0 else unknown
    print(f"picture {i}: {told}{true}")
  if tasks is not None and labels is not None:
    print(f"right expert {np.mean(answers.slot == tasks):.3f}, right label {np.mean(answers.label == labels):.3f}")
  print("read: " + ", ".join(f"{name} {size:,} bytes" for name, size in predictor.loaded.items()))


if __name__ == "__main__":
  app.run(main)
