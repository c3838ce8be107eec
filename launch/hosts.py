"""Where a run computes: its hosts, its devices, and the folder of its compiled programs."""

import os
import sys

import jax
from absl import flags
from etils import epath

from cljax.errors import ConfigError, in_short
from cljax.paths import located
from launch import app

PLATFORM = flags.DEFINE_enum("platform", "auto", ["auto", "cpu", "gpu", "tpu"], "Where to run; auto takes the best.")
COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache", "auto", "Folder of compiled programs; auto is beside the work dir, off is none."
)
DISTRIBUTED = flags.DEFINE_enum(
  "distributed", "auto", ["off", "auto", "on"], "One run over several hosts; auto: where the environment names them."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; Cloud TPU and Slurm tell it.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes; with --coordinator.", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "The number of this one, from 0; with --coordinator.", lower_bound=0)


def several_hosts() -> bool:
  """Whether the environment names more than one host: Cloud TPU, Slurm, Open MPI, or JAX's own variables."""
  workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  counts = [os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")]
  return len(workers) > 1 or any(count.isdigit() and int(count) > 1 for count in counts)


def join_hosts(auto: bool) -> None:
  """Joins the processes of one run, before anything asks for devices.

  Args:
    auto: also where only the environment names several.

  Raises:
    ConfigError: they do not find each other, or the flags contradict.
  """
  given = {"--coordinator": COORDINATOR.value, "--processes": PROCESSES.value, "--process": PROCESS.value}
  missing = [name for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise ConfigError(f"{', '.join(missing)} missing: --coordinator, --processes and --process go together")
  if DISTRIBUTED.value == "off" or (DISTRIBUTED.value == "auto" and missing and not (auto and several_hosts())):
    return
  try:
    jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)
  except (RuntimeError, ValueError) as error:
    reason = in_short(error, 200)
    raise ConfigError(
      f"--distributed={DISTRIBUTED.value}: the processes did not find each other ({reason}); on one host use "
      "--distributed=off, elsewhere give --coordinator=HOST:PORT --processes=N --process=I"
    ) from error


def asked_platform(wanted: str) -> str:
  """How the device was asked for, as a person would type it: by --platform, a variable of JAX, or a flag of JAX."""
  if wanted != "auto":
    return f"--platform={wanted}"
  for name in ("jax_platforms", "jax_platform_name"):
    if value := jax.config.values.get(name):
      return f"{name.upper()}={value}" if os.environ.get(name.upper()) == value else f"--{name}={value}"
  return "--platform=auto"


def use_platform(join: bool = True) -> None:
  """Joins the hosts and takes the devices of --platform; says on stderr which.

  Args:
    join: hosts that only the environment names, too.

  Raises:
    ConfigError: the device that was asked for is not there.
  """
  join_hosts(join)
  wanted = PLATFORM.value
  forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if getattr(jax.config, "jax_num_cpu_devices", 0) < 0 and not forced:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", cores)  # on a CPU each core takes a share of the seeds
  try:
    if wanted != "auto":
      jax.config.update("jax_platforms", {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}[wanted])
      jax.config.update("jax_platform_name", "")  # an older way to ask
    devices = jax.devices()
  except (RuntimeError, ValueError, AssertionError) as error:  # the last one where no plugin for GPUs is installed
    reason = in_short(error, 200) or "JAX has no plugin for it"
    raise ConfigError(
      f"{asked_platform(wanted)}: no such device here ({reason}); use --platform=auto or --platform=cpu"
    ) from error
  kinds = sorted({device.device_kind for device in devices})
  print(f"on {len(devices)} device(s) of process {jax.process_index()}: {', '.join(kinds)}", file=sys.stderr)


def use_compilation_cache() -> None:
  """Keeps compiled programs on disk, so that a second start compiles nothing.

  Raises:
    OSError: the folder that was named cannot be made.
  """
  if COMPILATION_CACHE.value == "off":
    return
  folder = COMPILATION_CACHE.value
  beside = epath.Path(app.workdir()).parent / "jax_cache"
  named = beside if folder == "auto" else located(folder, "--compilation_cache")
  if folder != "auto":
    named.mkdir(parents=True, exist_ok=True)  # else JAX warns of it at every program
  jax.config.update("jax_compilation_cache_dir", os.fspath(named))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
