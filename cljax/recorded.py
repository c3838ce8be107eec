"""What a work dir tells of its run, read again: its config, and files of one's own where they lie now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from cljax import files
from cljax.config import completed
from cljax.errors import ConfigError
from cljax.files import read_json
from cljax.named import OWN_FILES, digest, own_names, path_of
from cljax.workdir import recorded


def told_by(folder: epath.Path) -> Mapping[str, Any]:
  """The config of a work dir: its config.json, or what its checkpoints tell.

  Raises:
    ConfigError: it has none; names the runs below or above it.
  """
  if told := recorded(folder):
    source, found = next(iter(told.items()))
    found = found_again(folder, found)
    with files.telling(folder / source):
      completed(found)
    return found
  near = [folder.parent] if (folder.parent / "config.json").exists() else []
  for pattern in ("*/config.json", "*/*/config.json") if folder.is_dir() else ():
    near += sorted(each.parent for each in folder.glob(pattern))
  hint = "python -m launch.train --config=... --workdir=... makes one"
  if near:
    hint = "give that of a run, for example " + ", ".join(f"--workdir={each}" for each in near[:5])
  raise ConfigError(f"--workdir={folder} holds no config.json, so it is no run's work dir; {hint}")


def found_again(folder: epath.Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """The config with the whole path of each file of one's own: as it was typed, or else where environment.json has it.

  A file that is not as the run knew it is told by a warning.

  Args:
    folder: of the run, which holds environment.json.
  """
  found: dict[str, Any] = files.plain(config)
  for keys, name in own_names(config).items():
    path = path_of(name)
    before = told_of(folder, name)
    if path is None or not before:
      continue
    near = [each for each in (path, Path(before["path"])) if each.is_file()]
    same = [each for each in near if digest(each) == before["sha256"]]
    if near and not same:
      logging.warning("%s is not what the run in %s was trained with: its answers may mean nothing", near[0], folder)
    place = found
    for key in keys[:-1]:
      place = place[key]
    place[keys[-1]] = f"{(same or near or [path])[0]}:{name.rpartition(':')[2]}"
  return found


def told_of(folder: epath.Path, name: str) -> dict[str, str]:
  """What environment.json of a run tells of a file of one's own: its `path` and `sha256`; {} where it tells nothing."""
  path = folder / "environment.json"
  told = read_json(path).get(OWN_FILES, {}) if path.exists() else {}
  one = told.get(name) if isinstance(told, dict) else None
  return one if isinstance(one, dict) and {"path", "sha256"} <= set(one) else {}
