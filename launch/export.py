"""Writes the weights of one seed of a run into a file of their own.

  python -m launch.export --workdir=runs/er --seed=1 --out=er_1.npz

They are those of the newest checkpoint. `cljax.artifacts.tree("er_1.npz")` reads them back as what `net.apply` takes,
and another run begins with them by --config.start_from=er_1.npz. What the net must be given of a picture is printed;
where the run normalised, `cljax.artifacts.normalisation("er_1.npz")` has mean and deviation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from cljax import artifacts
from cljax.checkpoint import Checkpoints
from cljax.errors import ConfigError
from cljax.files import pack, read_json, telling, write_atomically
from cljax.paths import located
from cljax.start import OTHERS, PARAMS
from cljax.workdir import ANSWERS, SHOWN, recorded
from launch import app

flags.declare_key_flag("workdir")

SEED = flags.DEFINE_integer("seed", 0, "Whose weights.", allow_override=True)
VALUE = flags.DEFINE_integer("value", 0, "Of a sweep: which of its values, from 0.", lower_bound=0)
OUT = flags.DEFINE_string("out", None, "The file, params.npz in the work dir by default.")
STATE = "['state']"
ENVIRONMENT = "environment.json"
WAY = "delete it, and the weights are written without what it tells of pictures"  # where it is damaged


def newest(folder: epath.Path) -> dict[str, np.ndarray]:
  """The arrays of the newest whole checkpoint by their paths, [S, ...] each.

  Raises:
    ConfigError: there is none.
  """
  place = folder / "checkpoints"
  if place.is_dir():
    checkpoints = Checkpoints(place, writes=False)
    try:
      found = checkpoints.newest()
    finally:
      checkpoints.close()
    if found is not None:
      return found
  raise ConfigError(
    f"{place} holds no checkpoint that can be read; a run in training has its first after its first task"
  )


def row_of(folder: epath.Path, seed: int, value: int) -> int:
  """The place of a seed, and of a value of the run's sweep, on the seed axis.

  Raises:
    ConfigError: no such run, seed or value.
  """
  config: Any = next(iter(recorded(folder).values()), None)
  if config is None:
    raise ConfigError(f"--workdir={folder} is no run's work dir")
  with telling(folder / "config.json"):
    first, count = config.get("seed", 0), config.get("num_seeds", 0)
    seeds = list(config["seeds"]) if "seeds" in config else list(range(first, first + count))
    values = int(np.prod([len(each) for each in config.get("sweep", {}).values() if each], dtype=int))
  if seed not in seeds:
    raise ConfigError(f"--seed={seed}: the run has the seeds {', '.join(map(str, seeds))}")
  if value >= values:
    raise ConfigError(f"--value={value}: the run's sweep has {values} values, from 0 on")
  return value * len(seeds) + seeds.index(seed)


def weights(arrays: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
  """Params and other collections of one row, by their paths below the state.

  Raises:
    ConfigError: the method keeps none under that name.
  """
  behind_gate = any(name.startswith(f"{STATE}.method.params") for name in arrays)  # of a method that it is told to
  start = f"{STATE}.method" if behind_gate else STATE
  own = {name.removeprefix(start): leaf[row] for name, leaf in arrays.items() if name.startswith(start)}
  params = {name.removeprefix(".params"): leaf for name, leaf in own.items() if name.startswith(".params")}
  if not params:
    held = sorted({name.split("[")[0].split(".")[1] for name in own if name.startswith(".")})
    raise ConfigError(
      f"this method keeps no `params` in its state, which holds {', '.join(held)}: from Python the same call on the "
      "work dir trains nothing, and its outcome.state has all of it"
    )
  others = {name.removeprefix("."): leaf for name, leaf in own.items() if name.startswith(".collections")}
  return params | others


def check_alone(folder: epath.Path) -> None:
  """
  Raises:
    ConfigError: the run's method answers by more of its state than the weights of its network.
  """
  path = folder / ENVIRONMENT
  fields = (read_json(path, WAY) if path.exists() else {}).get(ANSWERS, [])  # which older runs do not tell
  if not isinstance(fields, list) or not all(isinstance(field, str) for field in fields):
    raise ConfigError(f"{path} is damaged ({ANSWERS} is no list of words); {WAY}")
  if others := sorted({*fields} - {PARAMS, OTHERS}):
    held = ", ".join(f"`{name}`" for name in others) + (" as well as by `params`" if PARAMS in fields else "")
    raise ConfigError(
      f"this run's method answers by {held}, so that weights alone would not answer as it does: launch.evaluate asks "
      "the run, and from Python the same call on the work dir trains nothing, and its outcome.state has all of it"
    )


def shown_in(folder: epath.Path) -> dict[str, Any]:
  """What the run's net was given of a picture, as `data.pictures.shown_as` tells it; {} of runs that did not tell.

  Raises:
    ConfigError: a damaged file, or one that tells something else there.
  """
  path = folder / ENVIRONMENT
  found = (read_json(path, WAY) if path.exists() else {}).get(SHOWN, {})
  with telling(path, WAY):
    check_shown(found)
  return found


def check_shown(shown: Any) -> None:
  """
  Raises:
    ValueError: not what `data.pictures.shown_as` tells.
  """
  if not isinstance(shown, Mapping):
    raise ValueError(f"{SHOWN} is no JSON object")
  wrong = [name for name in ("type", *({"warp"} & set(shown))) if not isinstance(shown.get(name), str)] if shown else []
  if wrong:
    raise ValueError(f"{SHOWN}.{wrong[0]} is no word")
  if not {"mean", "scale"} & set(shown):
    return
  mean, scale = (np.array(shown.get(name), float) for name in ("mean", "scale"))
  if mean.ndim not in (2, 3) or mean.shape != scale.shape or not np.isfinite([mean, scale]).all() or not scale.all():
    raise ValueError(f"{SHOWN}.mean and {SHOWN}.scale are no numbers of each task's channels")


def normalisation(shown: Mapping[str, Any], row: int) -> dict[str, np.ndarray]:
  """Mean and deviation [T, channels] of one row of the seed axis; {} where nothing is normalised."""
  if "mean" not in shown:
    return {}
  mean, scale = (np.array(shown[name], np.float32) for name in ("mean", "scale"))
  own = [each[row] if each.ndim == 3 else each for each in (mean, 1 / scale)]
  return dict(zip((artifacts.MEAN, artifacts.STD), own, strict=True))


def way_in(shown: Mapping[str, Any], path: epath.Path) -> str:
  """What is x of `net.apply(variables, x, slot)`, as a line of Python."""
  if not shown:
    return "# x: pictures as the run's stream shows them, which this older run does not tell"
  x = "pictures / 255" if shown["type"] == "uint8" else "pictures"
  if "warp" in shown:
    x = f"warp({x})"
  line = f"x = {x}" + (f"  # warp: the {shown['warp']} of task t, stream.test.warp" if "warp" in shown else "")
  if "mean" not in shown:
    return line
  line = line.replace(x, f"({x} - mean[t]) / std[t]", 1)
  return f'mean, std = artifacts.normalisation("{path}")  # of each task t\n{line}'


def main() -> None:
  folder = located(app.workdir())
  row = row_of(folder, SEED.value, VALUE.value)
  check_alone(folder)
  found, shown = weights(newest(folder), row), shown_in(folder)
  path = located(OUT.value) if OUT.value else folder / "params.npz"
  with telling(folder / ENVIRONMENT, WAY):
    scales = normalisation(shown, row)
  write_atomically(path, pack(found | scales))
  numbers = sum(leaf.size for leaf in found.values())
  print(f"written: {path}, {numbers:,} numbers in {len(found)} arrays; to read them:")
  print(f'from cljax import artifacts; variables = artifacts.tree("{path}")')
  print(way_in(shown, path))
  print("net.apply(variables, x, slot)")


if __name__ == "__main__":
  app.run(main)
