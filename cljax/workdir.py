"""The folder of one run: whose it is, what stands in it, and refusing to mix two runs."""

import contextlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath

from cljax.errors import ConfigError
from cljax.files import as_json, flatten, read_json, write_json
from cljax.named import OWN_FILES, check_own_files
from cljax.seals import told

COMPUTES = "computes"  # the key, of a method that Python gave, of the checksums of what it computes
ANSWERS = "answers_by"  # the key of environment.json that tells which fields of its state a method answers by
SHOWN = "pictures"  # the key of environment.json that tells what the net is given of one
Keys = tuple[str, ...]  # from the outside in
Older = Callable[[Mapping[str, Any]], Mapping[str, Any]]

# What decides which random numbers are drawn, and in which precision anything is computed.
SWITCHES = (
  "jax_enable_x64",
  "jax_default_matmul_precision",
  "jax_numpy_dtype_promotion",
  "jax_default_prng_impl",
  "jax_enable_custom_prng",
  "jax_threefry_partitionable",
  "jax_random_seed_offset",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "cljax")


def environment(own: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Versions, devices, commit and command of this process, and the files of one's own that a run has read."""
  devices = jax.devices()
  return {
    "python": platform.python_version(),
    "platform": platform.platform(),
    "packages": {name: version(name) for name in PACKAGES},
    "backend": jax.default_backend(),
    "devices": sorted({device.device_kind for device in devices}),
    "device_count": len(devices),
    "switches": switches(),
    "git_commit": git_commit(),
    "command": command(),
    **({OWN_FILES: dict(own)} if own else {}),
  }


def switches() -> dict[str, Any]:
  """The settings of JAX that two processes of one run must share."""
  return {name: getattr(jax.config, name) for name in SWITCHES if hasattr(jax.config, name)}


def check_switches(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
  """
  Raises:
    ConfigError: the run began under other settings of JAX.
  """
  changed = [name for name in here if name in there and there[name] != here[name]]
  if changed:
    raise ConfigError(
      "the run began with "
      + ", ".join(f"{name}={there[name]} and not {here[name]}" for name in changed)
      + ": other numbers would be drawn or rounded. Nothing was changed; set "
      + " ".join(f"{name.upper()}={there[name]}" for name in changed)
      + " in the environment, or use another --workdir"
    )


def identity(config: Any, data_hash: str) -> dict[str, Any]:
  """Whose checkpoint it is: all that the process that goes on must share."""
  return {"config": config, "data_hash": data_hash, "switches": switches()}


def check_identity(cursor: Mapping[str, Any], data_hash: str) -> None:
  """
  Raises:
    ConfigError: a checkpoint of other data or other settings of JAX; older ones do not tell.
  """
  check_switches(cursor.get("switches", {}), switches())
  if cursor.get("data_hash", data_hash) != data_hash:
    raise ConfigError(
      f"the run was trained on other data (sha256 {str(cursor['data_hash'])[:12]}... there, {data_hash[:12]}... "
      "here); nothing was changed: give it that data again, see --data_dir, or use another --workdir"
    )


def command() -> str:
  """This process as a person would type it."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  return shlex.join([*(["python", "-m", spec.name] if spec else sys.argv[:1]), *sys.argv[1:]])


def version(package: str) -> str | None:
  """The version of an installed package; None where it is not installed."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def git_commit() -> str | None:
  """The commit of the checkout that this file lies in, with `+` where it has local changes; None outside git.

  A file that git does not know is an installed one, in an environment that lies inside another repository.
  """

  def git(*words):
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout

  try:
    git("ls-files", "--error-unmatch", Path(__file__).name)
    return git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  """One line for each key whose value differs."""
  there, here = flatten(there), flatten(here)
  missing = "(absent)"
  return [
    f"config.{key}: {there.get(key, missing)!r} there, {here.get(key, missing)!r} here"
    for key in sorted({*there, *here})
    if there.get(key, missing) != here.get(key, missing)
  ]


def recorded(folder: epath.Path) -> dict[str, Mapping[str, Any]]:
  """{where it stands: the config of the run that the folder belongs to}; {} where it belongs to none.

  It stands in config.json and in each checkpoint.

  Raises:
    ConfigError: config.json is damaged.
  """
  found: dict[str, Mapping[str, Any]] = {}
  if (folder / "config.json").exists():
    found["config.json"] = read_json(folder / "config.json")
  cursor = told(folder / "checkpoints", only_sealed=bool(found))
  if isinstance(cursor.get("config"), dict):
    found["its checkpoints"] = cursor["config"]
  return found


def of_result(folder: epath.Path) -> dict[str, Mapping[str, Any]]:
  """What `recorded` gives, of a folder that holds a result alone."""
  found = {}
  for name in ("result.json", "meta.json"):
    if (folder / name).exists():
      result = read_json(folder / name, "delete it, and the same command computes it again")
      if isinstance(result.get("config"), dict):
        found[name] = result["config"]
  return found


def leaves(config: Mapping[str, Any], prefix: Keys = ()) -> dict[Keys, Any]:
  """The values of a nested config by their keys from the outside in."""
  found: dict[Keys, Any] = {}
  for key, value in config.items():
    found |= leaves(value, (*prefix, key)) if isinstance(value, Mapping) else {(*prefix, key): value}
  return found


def gone(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[Keys, Any]:
  """What stands in a config of before and has no key today, though every section around it names the same choice."""

  def same_choice(path: Keys) -> bool:
    old, new = there, here
    for key in path[:-1]:
      old, new = old[key], new.get(key, {})
      if not isinstance(new, Mapping) or old.get("name") != new.get("name"):
        return False
    return path[:2] not in (("method", "state"), ("method", COMPUTES))  # told of a method from Python, and no keys

  now = leaves(here)
  return {path: value for path, value in leaves(there).items() if path not in now and same_choice(path)}


def without(config: Mapping[str, Any], paths: Collection[Keys]) -> dict[str, Any]:
  """A nested config without some of its values; each path is one of `leaves`."""
  kept = {}
  for key, value in config.items():
    below = {path[1:] for path in paths if path[0] == key}
    if () not in below:
      rest = without(value, below) if below else value
      if rest or not below:  # a section of which nothing is left goes, too
        kept[key] = rest
  return kept


def changes(there: Mapping[str, Any], here: Mapping[str, Any], older: Older, commit: str) -> list[str]:
  """A line for each key in which the config of a folder's run differs from today's.

  A key that did not exist then is none where it stands at its default. One that is gone is told with what to do.

  Args:
    older: completes a config with what came later.
    commit: of the version that began the run.
  """
  there, here = as_json(there), as_json(here)
  lost, full = gone(there, here), there
  try:
    full = as_json(older(there))
    lost = {path: value for path, value in lost.items() if path in leaves(full)}  # the others it knows what to do with
  except Exception:  # a key that is gone, or values of another kind
    with contextlib.suppress(Exception):  # what cannot be completed is another config, as the differences tell
      full = as_json(older(without(there, lost)))
  lines = [
    f"config.{'.'.join(path)}: {value!r} there, a key that this version of cljax no longer has: go on with the version "
    f"that began the run{commit}"
    for path, value in sorted(lost.items())
  ]
  return lines + differences(without(full, lost), here)


def begun_by(folder: epath.Path) -> str:
  """The commit that environment.json names, for a sentence; '' where it names none."""
  with contextlib.suppress(ConfigError, OSError):
    commit = read_json(folder / "environment.json").get("git_commit")
    return f", commit {commit}" if commit else ""
  return ""


def check_claim(folder: epath.Path, config: Mapping[str, Any], older: Older = lambda there: there) -> None:
  """
  Raises:
    ConfigError: the folder belongs to a run with another config; the differences are listed.
  """
  sources = recorded(folder) or of_result(folder)
  lines = {source: changes(there, config, older, begun_by(folder)) for source, there in sources.items()}
  if lines.get("config.json") and lines.get("its checkpoints") == []:
    raise ConfigError(
      f"{folder / 'config.json'} is damaged or was changed: its checkpoints have this command's config, and it not:\n  "
      + "\n  ".join(lines["config.json"])
      + "\nDelete it, and it is written anew."
    )
  for source, found in lines.items():
    if found:
      told_by = "" if source == "config.json" else f", as told by {source}"
      raise ConfigError(
        f"--workdir={folder} belongs to a run with another config{told_by}:\n  "
        + "\n  ".join(found)
        + "\nUse another --workdir, or the config of that run."
      )


def claim(
  folder: epath.Path,
  config: Mapping[str, Any],
  overrides: Mapping[str, Any],
  older: Older = lambda there: there,
) -> None:
  """Makes the folder this run's, or checks that it is.

  Args:
    older: the config that stands there, with the defaults of keys that did not exist when it was written.

  Raises:
    ConfigError: it belongs to a run with another config; the differences are listed.
    OSError: it cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  check_claim(folder, config, older)
  if not (folder / "config.json").exists():
    write_json(folder / "overrides.json", dict(overrides))
    write_json(folder / "config.json", config)


def note_environment(folder: epath.Path, now: Mapping[str, Any]) -> None:
  """Writes environment.json; warns where a resume may give other bits than the run that began.

  Raises:
    ConfigError: the run has begun under other settings of JAX, or the file is damaged.
  """
  path = folder / "environment.json"
  if path.exists():
    before = read_json(path, "delete it, and it is written anew")
    if told(folder / "checkpoints", only_sealed=False):
      then = before.get("switches")
      check_switches(then if isinstance(then, dict) else {}, as_json(now.get("switches", {})))
      began = before.get(OWN_FILES)
      check_own_files(began if isinstance(began, dict) else {}, now.get(OWN_FILES, {}))
    changed = [
      name for name in ("packages", "backend", "devices", "platform") if before.get(name) != as_json(now)[name]
    ]
    if changed:
      logging.warning("this run began on other %s: its results may differ in the last bits", " and ".join(changed))
  write_json(path, dict(now))
