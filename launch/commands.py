"""The launchers as commands: `cljax train --config=...` is `python -m launch.train --config=...`."""

import runpy
import sys

from cljax.errors import ConfigError, choose

COMMANDS = {
  "train": "trains what a config describes, one cell or all of a table",
  "reproduce": "runs a paper's table and reports it",
  "report": "tables and figures from result files; compares two folders",
  "evaluate": "asks a run again under other settings, nothing is trained",
  "predict": "answers pictures with a finished run",
  "export": "writes the weights of one seed into a file of their own",
  "meta": "meta-trains a rule",
  "prepare": "prepares data sets (needs the extra `prepare`)",
  "bench": "measures speed",
  "list": "methods, guards, gates, nets, streams, optimizers, looks, settings, configs; with a name its fields",
}
USAGE = 2
CALLED: list[str] = []  # how a person called the main that runs, where that was by this file


def overview() -> str:
  """What `cljax` prints by itself."""
  lines = [f"  cljax {name:<10} {about}" for name, about in COMMANDS.items()]
  first = "  cljax train --config=configs/quickstart.py --workdir=runs/quickstart"
  return "\n".join(["usage: cljax COMMAND ...; each has --help. To begin with:", first, "", *lines])


def main() -> None:
  """Hands over to the module that the first word names."""
  words = sys.argv[1:]
  if not words or words[0] in ("-h", "--help", "--helpshort", "--helpfull", "help"):
    print(overview())
    sys.exit(0 if words else USAGE)
  try:
    name = choose("the command", words[0], COMMANDS, "cljax --help")
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(USAGE)
  sys.argv = [f"cljax {name}", *words[1:]]
  CALLED[:] = sys.argv[:1]
  runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
