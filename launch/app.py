"""What every main shares: flags without tracebacks, errors for the person who caused them, and stopping politely."""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import jax
from absl import app, flags, logging

from cljax.drive import Stopped
from cljax.types import ConfigError, choose
from cljax.workdir import flatten

USAGE, STORAGE, REQUEUE = 2, 74, 75  # exit codes: a mistake in the command; the disk; saved, run it again
ROOT = Path(__file__).resolve().parent.parent  # of the checkout: configs/ lies beside launch/

WORKDIR = flags.DEFINE_string("workdir", "", "The folder of the run, or of the table: begun, or gone on with.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared data sets; else TFDS_DATA_DIR, else TFDS's default.")
PLATFORM = flags.DEFINE_enum("platform", "auto", ["auto", "cpu", "gpu", "tpu"], "Where to run; auto takes the best.")
COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache", "auto", "Folder of compiled programs; auto is beside the work dir, off is none."
)

_stop = [False]


def stop_asked() -> bool:
  """Whether SIGTERM or SIGINT came: the run saves at the next chunk's end and exits with code 75."""
  return _stop[0]


def _on_signal(number: int, frame) -> None:
  if _stop[0] and number == signal.SIGINT:
    raise KeyboardInterrupt  # the second Ctrl-C does not wait
  _stop[0] = True
  os.write(2, b"stopping: saving at the end of this chunk\n")


def load_config(path: str) -> ModuleType:
  """The module of a config file.

  Raises:
    ConfigError: there is none.
  """
  if not Path(path).is_file():
    near = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.py"))
    raise ConfigError(f"--config={path} is no file (looked in {Path.cwd()}); configs are: {', '.join(near)}")
  spec = importlib.util.spec_from_file_location("cljax_config", path)
  if spec is None or spec.loader is None:
    raise ConfigError(f"--config={path} is no Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--config={path} has no function get_config(arg='')")
  return module


def check_overrides(argv: list[str]) -> None:
  """Refuses `--config.x` for an x that the config does not have, naming the nearest that it has."""
  words = [word.lstrip("-").partition("=") for word in argv if word.startswith("-")]
  chosen = [value for name, _, value in words if name == "config"]
  chosen += [argv[i + 1] for i, word in enumerate(argv[:-1]) if word in ("--config", "-config")]
  if not chosen:
    return
  path, _, arg = chosen[-1].partition(":")
  known = flatten(load_config(path).get_config(arg).to_dict())
  for name, _, _ in words:
    if name.startswith("config."):
      choose("--config key", name.removeprefix("config."), known)


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; a mistake in them, in a config or in its overrides is one message."""
  try:
    check_overrides(list(argv))
    return flags.FLAGS(argv)
  except (ConfigError, flags.Error) as error:
    sys.exit(refuse(error))


def workdir() -> str:
  """
  Raises:
    ConfigError: none was given.
  """
  if not WORKDIR.value:
    raise ConfigError("--workdir is missing: the folder of the run, for example --workdir=runs/first")
  return WORKDIR.value


def refuse(error: BaseException) -> int:
  """Prints an error for the person who caused it; the exit code."""
  logging.flush()
  print(f"error: {error}", file=sys.stderr)
  return STORAGE if isinstance(error, OSError) else USAGE


def use_platform() -> None:
  """
  Raises:
    ConfigError: the device that was asked for is not there.
  """
  wanted = PLATFORM.value
  forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if getattr(jax.config, "jax_num_cpu_devices", 0) < 0 and not forced:
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))  # on a CPU a core takes a share of the seeds
  try:
    if wanted != "auto":
      jax.config.update("jax_platforms", {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}[wanted])
    devices = jax.devices()
  except RuntimeError as error:
    reason = " ".join(str(error).split())[:200]
    asked = f"--platform={wanted}" if wanted != "auto" else f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
    raise ConfigError(f"{asked}: no such device here ({reason}); use --platform=auto or --platform=cpu") from error
  kinds = sorted({device.device_kind for device in devices})
  print(f"on {len(devices)} device(s) of process {jax.process_index()}: {', '.join(kinds)}", file=sys.stderr)


def use_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that a second start compiles nothing."""
  if COMPILATION_CACHE.value == "off":
    return
  folder = COMPILATION_CACHE.value
  jax.config.update(
    "jax_compilation_cache_dir", os.path.join(workdir(), "..", "jax_cache") if folder == "auto" else folder
  )
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def run(main: Callable[[], int | None]) -> None:
  """Runs a main without tracebacks for mistakes: exit code 2 for the command, 74 for the disk, 75 to be run again."""

  def guarded(argv):
    if argv[1:]:
      sys.exit(refuse(ConfigError(f"unknown argument {argv[1]!r}; flags begin with --, see --help")))
    if not any(word.lstrip("-").startswith(("verbosity", "v=")) for word in sys.argv):
      logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows what the libraries tell
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, _on_signal)
    try:
      code = main()
    except Stopped:
      print("stopped and saved: the same command goes on from here", file=sys.stderr)
      code = REQUEUE
    except KeyboardInterrupt:
      code = 128 + signal.SIGINT
    except (ConfigError, OSError) as error:
      code = refuse(error)
    sys.exit(code or 0)

  jax.config.config_with_absl()
  app.run(guarded, flags_parser=parse)
