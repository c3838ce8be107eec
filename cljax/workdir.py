"""The folder of one run: whose it is, what stands in it, and refusing to mix two runs."""

import contextlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath

from cljax.errors import ConfigError
from cljax.files import as_json, flatten, read_json, write_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "cljax")


def environment() -> dict[str, Any]:
  """Versions, devices, commit and command of this process."""
  devices = jax.devices()
  return {
    "python": platform.python_version(),
    "platform": platform.platform(),
    "packages": {name: version(name) for name in PACKAGES},
    "backend": jax.default_backend(),
    "devices": sorted({device.device_kind for device in devices}),
    "device_count": len(devices),
    "git_commit": git_commit(),
    "command": command(),
  }


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
  """The commit of the checkout that this file lies in, with `+` where it has local changes; None outside git."""

  def git(*words):
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout

  try:
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


def claim(
  folder: epath.Path,
  config: Mapping[str, Any],
  overrides: Mapping[str, Any],
  older: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda there: there,
) -> None:
  """Makes the folder this run's, or checks that it is.

  Args:
    older: the config that stands there, with the defaults of keys that did not exist when it was written.

  Raises:
    ConfigError: it belongs to a run with another config; the differences are listed.
    OSError: it cannot be written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "config.json"
  if path.exists():
    there = read_json(path)
    with contextlib.suppress(ConfigError):  # what cannot be completed is another config, as the differences tell
      there = older(there)
    found = differences(as_json(there), as_json(config))
    if found:
      raise ConfigError(
        f"--workdir={folder} belongs to a run with another config:\n  "
        + "\n  ".join(found)
        + "\nUse another --workdir, or the config of that run."
      )
    return
  write_json(folder / "overrides.json", dict(overrides))
  write_json(path, config)


def note_environment(folder: epath.Path, now: Mapping[str, Any]) -> None:
  """Writes environment.json; warns where a resume may give other bits than the run that began."""
  path = folder / "environment.json"
  if path.exists():
    before = read_json(path)
    changed = [
      name for name in ("packages", "backend", "devices", "platform") if before.get(name) != as_json(now)[name]
    ]
    if changed:
      logging.warning("this run began on other %s: its results may differ in the last bits", " and ".join(changed))
  write_json(path, dict(now))
