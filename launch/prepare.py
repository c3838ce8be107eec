"""Downloads a data set and writes it as array_record, which training reads without TensorFlow and without a network.

  python -m launch.prepare --dataset=mnist [--data_dir=DIR]

Needs a network and `pip install 'cljax[prepare]'`, both only here.
"""

import difflib
import importlib.util
import socket
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from absl import app, flags

from cljax.data import bank
from cljax.types import ConfigError

DATASET = flags.DEFINE_string("dataset", None, "A TFDS name, such as mnist or emnist/letters.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where to; else TFDS_DATA_DIR, else TFDS's default.")

HOST = "storage.googleapis.com"  # where most of the catalogue comes from


def unreachable() -> str:
  """Why the network cannot be used, '' where it can; tfds itself would try for minutes. Takes 10 seconds at most."""
  reason = [f"{HOST} does not answer"]  # looking up a name has no time limit of its own, hence the thread

  def attempt():
    proxy = urllib.parse.urlsplit(urllib.request.getproxies().get("https", ""))
    try:
      socket.create_connection((proxy.hostname or HOST, proxy.port or 443), timeout=5).close()
      reason[0] = ""
    except (OSError, ValueError) as error:
      reason[0] = f"{proxy.hostname or HOST}: {error}"

  thread = threading.Thread(target=attempt, daemon=True)
  thread.start()
  thread.join(10)
  return reason[0]


def check_name(name: str) -> None:
  """Raises ConfigError unless the catalogue has that data set and config."""
  import tensorflow_datasets as tfds

  base, _, config = name.partition("/")
  names = tfds.list_builders(with_community_datasets=False)
  allowed = [f"{base}/{other}" for other in tfds.builder_cls(base).builder_configs] if base in names else names
  if name not in names and name not in allowed:
    near = difflib.get_close_matches(name.lower(), [*allowed, *names], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(f"--dataset={name} is not in the catalogue of tensorflow_datasets.{hint}")


def prepare(name: str, root: Path) -> str:
  """Prepares a data set, unless it is there; what to tell.

  Raises:
    ConfigError: it cannot be done here, with every reason.
  """
  there = bank.versions(root / name)
  if there and "array_record" in bank.formats(name, there[-1], root):
    return f"{name} is already prepared in {there[-1]}"
  if there:
    raise ConfigError(f"{there[-1]} holds {name}, but not as array_record: delete that folder first")
  check_name(name)
  obstacles = []
  missing = [part for part in ("tensorflow", "importlib_resources") if importlib.util.find_spec(part) is None]
  if missing:
    obstacles.append(f"{' and '.join(missing)} not installed: pip install 'cljax[prepare]'")
  try:
    root.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=root).close()
  except OSError as error:
    obstacles.append(f"{root} cannot be written: {error.strerror}")
  if reason := unreachable():
    obstacles.append(f"no network ({reason})")
  if obstacles:
    raise ConfigError(f"{name} cannot be prepared here: {'; '.join(obstacles)}")
  import tensorflow_datasets as tfds

  # What Google has prepared is tfrecord.
  download = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    builder.download_and_prepare(download_config=download, file_format="array_record")
  except Exception as error:  # downloads, disks and generators fail in many ways
    raise ConfigError(f"{name} could not be prepared: {type(error).__name__}: {' '.join(str(error).split())[:400]}") from error
  return f"{name} is prepared in {builder.data_path}"


def main(argv: list[str]) -> None:
  try:
    if argv[1:]:
      raise ConfigError(f"unknown argument {argv[1]!r}; flags begin with --, see --help")
    print(prepare(DATASET.value, bank.folder_of(DATA_DIR.value, "TFDS_DATA_DIR", "~/tensorflow_datasets").absolute()))
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit("error: interrupted")


if __name__ == "__main__":
  flags.mark_flag_as_required("dataset")
  app.run(main)
