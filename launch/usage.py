"""What a main says of itself: examples, its own flags, and what an unknown one may have meant.

A main owns the flags that it defines, and those of the files of launch/ that it declares to be key flags; libraries
define a hundred others, which --helpfull shows.
"""

import re
import shutil
import sys
import textwrap

from absl import flags

from cljax.errors import near
from launch.commands import CALLED
from launch.config_files import keys_of, meant

ASKED = ("help", "helpshort", "h", "?")
OF_CONFIGS = """Each key of the config is a flag too, --config.KEY=VALUE. `cljax list` shows methods, guards, gates,
nets, streams, optimizers and settings, `cljax list FILE.py` all keys of a config."""


def own_flags() -> list[flags.Flag]:
  """The flags of the main that runs, in alphabetical order."""
  return sorted(flags.FLAGS.get_key_flags_for_module(sys.argv[0]), key=lambda flag: flag.name)


def typed(flag: flags.Flag) -> str:
  """How a flag is typed, with its default."""
  if flag.boolean:
    return f"--[no]{flag.name}"
  values = getattr(flag.parser, "enum_values", None)
  shown = "|".join(values) if values else "" if flag.default in (None, [], "") else str(flag.default)
  return f"--{flag.name}={shown}"


def command() -> str:
  """The main as a person calls it: `cljax train`, or `python -m launch.train`."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  return CALLED[0] if CALLED else f"python -m {spec.name}" if spec else sys.argv[0]


def about() -> list[str]:
  """The paragraphs of the main's docstring, its examples first."""
  doc = (sys.modules["__main__"].__doc__ or "").strip()
  if CALLED:
    doc = re.sub(r"python -m launch\.(?=\w)", "cljax ", doc)
  parts = [part for part in doc.split("\n\n") if part.strip()]
  examples = [part for part in parts if part.lstrip().startswith(("python -m ", "cljax "))]
  return [textwrap.indent(textwrap.dedent(part), "  ") for part in examples] + [p for p in parts if p not in examples]


def text() -> str:
  """What --help prints: examples, what the main does, its own flags."""
  width = min(shutil.get_terminal_size().columns, 120)
  parts, lines = about(), []
  for flag in own_flags():
    told = re.sub(r"^<[^>]*>: ", "", " ".join((flag.help or "").split()))  # the values, which stand there already
    if getattr(flag.parser, "enum_values", None) and flag.default:
      told += f" Default: {flag.default}."
    lines += [f"  {typed(flag)}", textwrap.fill(told, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
  parts += ["\n".join(["Flags:", *lines])] if lines else []
  parts += [OF_CONFIGS] if "config" in {flag.name for flag in own_flags()} else []
  return "\n\n".join(["For example:", *parts, "--helpfull shows the flags of JAX and of the other libraries, too."])


def asked(argv: list[str]) -> bool:
  """Whether a command line asks for help."""
  return any(word.startswith("-") and word.lstrip("-") in ASKED for word in argv[1:])


def unknown(flag: str, argv: list[str]) -> str:
  """What is said of a flag that does not exist: the nearest, and what shows all."""
  if hint := meant(flag, argv):
    return f"unknown flag --{flag}.{hint}"
  known = [*(f"--{own.name}" for own in own_flags()), *(f"--config.{key}" for key in keys_of(argv))]
  return f"unknown flag --{flag}.{near('--' + flag, known)} `{command()} --help` shows all flags"
