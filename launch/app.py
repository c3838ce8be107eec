"""What every main shares: flags without tracebacks, errors for the person who caused them, and stopping politely."""

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import jax
from absl import app, flags, logging
from etils import epath

from cljax.drive import Stopped
from cljax.errors import ConfigError, choose
from cljax.workdir import flatten

USAGE, STORAGE, REQUEUE = 2, 74, 75  # exit codes: a mistake in the command; the disk; saved, run it again
ROOT = Path(__file__).resolve().parent.parent  # of the checkout: configs/ lies beside launch/

WORKDIR = flags.DEFINE_string("workdir", "", "The folder of the run, or of the table: begun, or gone on with.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared data sets; else TFDS_DATA_DIR, else TFDS's default.")
PLATFORM = flags.DEFINE_enum("platform", "auto", ["auto", "cpu", "gpu", "tpu"], "Where to run; auto takes the best.")
COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache", "auto", "Folder of compiled programs; auto is beside the work dir, off is none."
)

MAX_HOURS = flags.DEFINE_float(
  "max_hours", None, "Saves and exits with code 75 after so many hours: the same command goes on.", lower_bound=0
)
DISTRIBUTED = flags.DEFINE_enum(
  "distributed", "auto", ["off", "auto", "on"], "One run over several hosts; auto: where the environment names them."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; Cloud TPU and Slurm tell it.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes; with --coordinator.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "The number of this one, from 0; with --coordinator.", lower_bound=0)

_stop = [False]
_began = time.monotonic()


def stop_asked() -> bool:
  """Whether SIGTERM or SIGINT came or --max_hours are over: the run saves at the chunk's end and exits with code 75."""
  return _stop[0] or (MAX_HOURS.value is not None and time.monotonic() - _began > 3600 * MAX_HOURS.value)


def several_hosts() -> bool:
  """Whether the environment names more than one host: Cloud TPU, Slurm, Open MPI, or JAX's own variables."""
  workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  counts = [os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")]
  return len(workers) > 1 or any(count.isdigit() and int(count) > 1 for count in counts)


def join_hosts() -> None:
  """Joins the processes of one run, before anything asks for devices.

  Raises:
    ConfigError: they do not find each other, or the flags contradict.
  """
  given = {"--coordinator": COORDINATOR.value, "--processes": PROCESSES.value, "--process": PROCESS.value}
  missing = [name for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise ConfigError(f"{', '.join(missing)} missing: --coordinator, --processes and --process go together")
  if DISTRIBUTED.value == "off" or (DISTRIBUTED.value == "auto" and missing and not several_hosts()):
    return
  try:
    jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    raise ConfigError(
      f"--distributed={DISTRIBUTED.value}: the processes did not find each other ({reason}); on one host use "
      "--distributed=off, elsewhere give --coordinator=HOST:PORT --processes=N --process=I"
    ) from error


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
  join_hosts()
  wanted = PLATFORM.value
  forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if getattr(jax.config, "jax_num_cpu_devices", 0) < 0 and not forced:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", cores)  # on a CPU each core takes a share of the seeds
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
  beside = epath.Path(workdir()).parent / "jax_cache"
  jax.config.update("jax_compilation_cache_dir", os.fspath(beside) if folder == "auto" else folder)
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
