"""Asks a run again under other settings of its evaluation; nothing is trained.

  python -m launch.evaluate --workdir=runs/pairs --over=evaluate_group=1,8,32,128 --rows=1000
  python -m launch.evaluate --workdir=runs/pairs --over=evaluate_group=1,32 --over=method.infer=entropy,hamming
  python -m launch.evaluate --workdir=runs/pairs --over=method.infer=entropy,hamming --split=valid

The state is that of the newest checkpoint. Every readout is asked about all tasks under every combination of the
values; a run with a sweep of its own gives a row for each of its values. Prints a table and keeps the rows in
`<workdir>/evaluations.json`, where the same setting asked again replaces its row.
"""

import sys

import jax
from absl import flags

from cljax.errors import ConfigError
from cljax.evaluation import check_note, evaluations, name_of, note
from cljax.report.tables import evaluation_table
from launch import app, hosts

flags.adopt_module_key_flags(hosts)
for name in ("workdir", "data_dir", "max_hours"):
  flags.declare_key_flag(name)

OVER = flags.DEFINE_multi_string(
  "over", [], "KEY=V1,V2,...: a key of the config and the values to ask under; repeatable."
)
ROWS = flags.DEFINE_integer(  # launch.bench has a flag of this name: whoever imports both mains runs neither
  "rows", 0, "At most the first N rows of each task; 0: all.", lower_bound=0, allow_override=True
)
SPLIT = flags.DEFINE_string("split", "test", "Whose rows are asked: test, or valid, on which a setting may be chosen.")


def over() -> dict[str, list[str]]:
  """The values by key.

  Raises:
    ConfigError: no KEY=VALUES, or a key twice.
  """
  found: dict[str, list[str]] = {}
  for word in OVER.value:
    key, _, values = word.partition("=")
    if not key or not all(values.split(",")):
      raise ConfigError(f"--over={word} is not KEY=V1,V2,...; for example --over=evaluate_group=1,8,32,128")
    if key in found:
      raise ConfigError(f"--over={key} stands there twice; give all its values at once, --over={key}=V1,V2,...")
    found[key] = values.split(",")
  return found


def main() -> int | None:
  hosts.use_platform()
  hosts.use_compilation_cache()
  if jax.process_index() == 0:
    check_note(app.workdir())
  entries = []
  for entry in evaluations(app.workdir(), over(), ROWS.value, app.DATA_DIR.value, SPLIT.value):
    entries.append(entry)
    if jax.process_index() == 0:
      path = note(app.workdir(), [entry])  # at once, so that a long list of settings loses nothing
      print(f"asked: {name_of(entry)}", file=sys.stderr)
    if app.stop_asked():
      break
  if jax.process_index() == 0:
    print(evaluation_table(entries))
    print(f"written: {path}")
  if app.stop_asked():
    print("stopped: the settings above are written, the same command asks them and the others", file=sys.stderr)
    return app.REQUEUE
  return None


if __name__ == "__main__":
  app.run(main)
