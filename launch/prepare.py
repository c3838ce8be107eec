"""Downloads a data set and writes it as array_record: only this needs a network and `pip install 'cljax[prepare]'`.

python -m launch.prepare --dataset=mnist [--data_dir=DIR]
"""

import importlib.util
import signal
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path

import tensorflow_datasets as tfds
from absl import flags

from cljax.data import bank
from cljax.data.tfds import formats, versions
from cljax.errors import ConfigError, in_short, meant
from launch import app

flags.declare_key_flag("data_dir")

DATASET = flags.DEFINE_string("dataset", None, "A TFDS name, such as mnist or emnist/letters.")
HOST = "https://storage.googleapis.com"  # where much of the catalogue comes from


def unreachable() -> str:
  """Why there is no network, '' where there is one; within 10 seconds, where tfds would try for minutes."""
  reason = [f"{HOST} does not answer"]

  def attempt():
    try:
      urllib.request.urlopen(HOST, timeout=5).close()
      reason[0] = ""
    except OSError as error:
      reason[0] = "" if isinstance(error, urllib.error.HTTPError) else f"{HOST}: {error}"  # a refusal is an answer

  thread = threading.Thread(target=attempt, daemon=True)  # looking up a host's name knows no time limit
  thread.start()
  thread.join(10)
  return reason[0]


def check_name(name: str) -> None:
  """Raises ConfigError unless the catalogue has that data set and config."""
  base = name.partition("/")[0]
  names = tfds.list_builders(with_community_datasets=False)
  known = [f"{base}/{other}" for other in tfds.builder_cls(base).builder_configs] if base in names else names
  if name not in [*names, *known]:
    near = "" if name in bank.KNOWN else meant(name, known)
    hint = f" Did you mean {near}?" if near else ""
    raise ConfigError(f"--dataset={name} is not in the catalogue of tensorflow_datasets.{hint}")


def prepare(name: str, root: Path) -> str:
  """Prepares a data set unless it is there; returns what to tell, or raises ConfigError with every reason against."""
  if there := versions(root / name):
    if "array_record" not in formats(name, there[-1], root):
      raise ConfigError(f"{there[-1]} holds {name}, but not as array_record: delete that folder first")
    return f"{name} is already prepared in {there[-1]}"
  check_name(name)
  missing = [part for part in ("tensorflow", "importlib_resources") if importlib.util.find_spec(part) is None]
  obstacles = [f"{' and '.join(missing)} not installed: pip install 'cljax[prepare]'"] if missing else []
  try:
    root.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=root).close()
  except OSError as error:
    obstacles.append(f"{root} cannot be written: {error.strerror}")
  if reason := unreachable():
    obstacles.append(f"no network ({reason})")
  if obstacles:
    raise ConfigError(f"{name} cannot be prepared here: {'; '.join(obstacles)}")
  try:
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  except Exception as error:  # downloads, disks and generators fail in many ways
    reason = in_short(f"{type(error).__name__}: {error}", 400)
    raise ConfigError(f"{name} could not be prepared: {reason}") from error
  return f"{name} is prepared in {builder.data_path}"


def main() -> None:
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)  # there is no chunk to wait for
  folder = bank.folder_of("data_dir", app.DATA_DIR.value, "TFDS_DATA_DIR", bank.DATA_DIR)
  print(prepare(DATASET.value or "", folder.absolute()))


if __name__ == "__main__":
  flags.mark_flags_as_required(["dataset"])
  app.run(main)
