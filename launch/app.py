"""What every main shares: flags without tracebacks, errors for the person who caused them, and stopping politely."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from cljax.disk import remedy
from cljax.drive import Stopped
from cljax.errors import Busy, ConfigError, in_short
from cljax.paths import located
from launch import usage
from launch.config_files import check_overrides, config_first

USAGE, STORAGE, REQUEUE = 2, 74, 75  # exit codes: a mistake in the command; the disk; run the same command again

SMALLER = "lower config.method.batch_size, config.evaluate_group, the widths of config.net or config.num_seeds"

WORKDIR = flags.DEFINE_string("workdir", "", "The folder of the run, or of the table: begun, or gone on with.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Prepared data sets; else TFDS_DATA_DIR, else TFDS's default.")
MAX_HOURS = flags.DEFINE_float(
  "max_hours", None, "Saves and exits with code 75 after so many hours: the same command goes on.", lower_bound=0
)
flags.register_validator("max_hours", lambda hours: hours == hours, "is no number of hours, such as 0.5")  # noqa: PLR0124
PARSERS = {  # what the parsers of flags say of a word, and how it is said here
  r"invalid literal for int\(\) with base 10: .*": "it must be a whole number",
  r"could not convert string to float: .*": "it must be a number",
  r"\('Non-boolean argument to boolean flag', .*\)": "it must be true or false",
}
_stop, _in_loop = [False], [False]
_began = time.monotonic()


def stop_asked() -> bool:
  """Whether SIGTERM or SIGINT came or --max_hours are over: the run saves at the chunk's end and exits with code 75.

  Asked for the first time, a loop has begun that will ask again; until then a signal ends the process at once.
  """
  _in_loop[0] = True
  return _stop[0] or (MAX_HOURS.value is not None and time.monotonic() - _began > 3600 * MAX_HOURS.value)


def begins() -> None:
  """Another run begins in this process: until its loop asks, a signal ends the process at once."""
  _in_loop[0] = False


def _on_signal(number: int, frame) -> None:
  if number == signal.SIGINT and (_stop[0] or not _in_loop[0]):
    raise KeyboardInterrupt  # the second Ctrl-C does not wait
  _stop[0] = True
  os.write(2, b"stopping: saving at the end of this chunk\n")


def _end_at_once(signals: int) -> None:
  """Ends the process at SIGTERM where no loop has begun that would save, even while it compiles or reads data."""
  while numbers := os.read(signals, 1):
    if numbers[0] == signal.SIGTERM and not _in_loop[0]:
      os.write(2, b"stopped before the first chunk, nothing is lost: the same command goes on from here\n")
      os._exit(REQUEUE)


def _handle_signals() -> None:
  """SIGTERM and SIGINT from now on."""
  seen, tell = os.pipe()
  os.set_blocking(tell, False)
  signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
  threading.Thread(target=_end_at_once, args=(seen,), daemon=True).start()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _on_signal)


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags, or prints those of the main; a mistake in them, in a config or in its overrides is one message."""
  typed, argv = sys.argv, list(argv)
  if usage.asked(argv):
    print(usage.text())
    sys.exit(0)
  try:
    argv = config_first(argv)
    check_overrides(argv)
    sys.argv = argv  # where ml_collections reads overrides
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    sys.exit(refuse(ConfigError(usage.unknown(error.flagname, argv))))
  except (ConfigError, flags.Error, ValueError) as error:  # the last one of a flag that takes no value
    sys.exit(refuse(ConfigError(in_words(str(error)))))
  finally:
    sys.argv = typed


def in_words(text: str) -> str:
  """What a parser of flags says, without the names of Python's functions."""
  for pattern, words in PARSERS.items():
    text = re.sub(f"{pattern}$", words, text)
  return text


def workdir() -> str:
  """The whole path of the folder that --workdir names.

  Raises:
    ConfigError: none was given.
  """
  if not WORKDIR.value:
    raise ConfigError("--workdir is missing: the folder of the run, for example --workdir=runs/first")
  return os.fspath(located(WORKDIR.value))


def refuse(error: BaseException) -> int:
  """Prints an error for the person who caused it; the exit code."""
  logging.flush()
  place = ""
  if isinstance(error, OSError) and error.errno and error.filename is None:
    place = f"; {remedy(error)}, the work was in --workdir={WORKDIR.value}"
  elif isinstance(error, OSError) and error.errno and error.strerror == os.strerror(error.errno):
    place = f"; {remedy(error)}"
  print(f"error: {error}{place}", file=sys.stderr)
  if isinstance(error, Busy):
    return REQUEUE
  return STORAGE if isinstance(error, OSError) else USAGE


def run(main: Callable[..., int | None], words: int = 0) -> None:
  """Runs a main without tracebacks for mistakes: exit code 2 for the command, 74 for the disk, 75 to be run again,
  because it was stopped or because another process has the work dir.

  Args:
    main: takes what stands on the command line without dashes.
    words: at most so many of these.
  """

  def guarded(argv):
    if argv[1 + words :]:
      sys.exit(refuse(ConfigError(f"unknown argument {argv[1 + words]!r}; flags begin with --, see --help")))
    if not any(word.lstrip("-").startswith(("verbosity", "v=")) for word in sys.argv):
      logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows what the libraries tell
    _handle_signals()
    try:
      code = main(*argv[1:])
    except Stopped:
      print("stopped and saved: the same command goes on from here", file=sys.stderr)
      code = REQUEUE
    except KeyboardInterrupt:
      code = 128 + signal.SIGINT
    except (ConfigError, OSError) as error:
      code = refuse(error)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
      if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
        raise
      code = refuse(ConfigError(f"the memory is full ({in_short(error, 200)}): {SMALLER}"))
    sys.exit(code or 0)

  jax.config.config_with_absl()
  app.run(guarded, flags_parser=parse)
