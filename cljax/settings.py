"""What the engine is told beside a method and its data: how a run is computed, asked about and saved, and its names."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from cljax.declared import at_least, check, fields, free, one_of, shown
from cljax.errors import ConfigError, choose
from cljax.looks import LOOKS
from cljax.mesh import EXECUTORS

EVALUATE = ("all", "seen", "ends")
ASKED = "pairs of tasks asked: all, those that any metric needs (seen), or the diagonal and the last row (ends)"
LONGEST_LABEL = 200  # characters, of which the names of folders and files are made
PRECISIONS = ("highest", "high", "default")


class Settings(NamedTuple):
  """Keywords of `fit` and `assemble`, and keys of every config; an error names them as `config.<setting>`."""

  every_task: Annotated[bool, free("an oracle trains anew at every task; else once, at the last")] = False
  evaluate: Annotated[str, one_of(EVALUATE, ASKED)] = "all"
  looks: Annotated[tuple[str, ...], one_of(tuple(LOOKS), "what is asked beside the readouts")] = ()
  look_every_steps: Annotated[int, at_least(1, "between looks inside a task's training", 100_000_000)] = 100
  evaluate_group: Annotated[int, at_least(1, "test rows a batch", 1_000_000)] = 500
  chunk: Annotated[int, at_least(0, "steps of one compiled call; 0 chooses", 1_000_000)] = 0
  checkpoint_every_chunks: Annotated[int, at_least(0, "besides every task's end; 0: at task ends only")] = 20
  log_every_steps: Annotated[int, at_least(1, "steps between rows of metrics.jsonl")] = 100
  start_from: Annotated[
    str, free("file of a network's params to begin with; {seed} in it is each seed, {seed%3} one of three; '' is none")
  ] = ""
  given_tasks: Annotated[int, at_least(0, "leading tasks that it knows already: their edges run, and no step")] = 0
  steps_per_task: Annotated[int, at_least(0, "of the phase `fit`, in place of its epochs; 0: epochs")] = 0
  on_divergence: Annotated[str, one_of(("warn", "stop"), "where a loss is not a finite number")] = "warn"
  seed_executor: Annotated[str, one_of(("auto", *EXECUTORS), "how seeds run on a device")] = "auto"
  data_devices: Annotated[int, at_least(1, "devices that share each batch; the others share the seeds")] = 1
  matmul_precision: Annotated[str, one_of(PRECISIONS, "of matrix products")] = "highest"


class Labels(NamedTuple):
  """What a result is called, in tables and beside published numbers."""

  paper: str = ""  # a folder of configs/papers
  preset: str = ""  # scale of the run
  cell: str = ""  # `stream/method`, or `method`
  method: str = ""  # where the cell does not tell it
  stream: str = ""  # where the cell does not tell it


UNNAMED = Labels()
PLACES = ("paper", "cell")  # of these, which are folders


def check_label(name: str, text: Any) -> str:
  """A word that a table prints in one line and that, as a folder, stays below its own.

  Raises:
    ConfigError: it is none.
  """
  elsewhere = name in PLACES and text != "" and any(part in ("", ".", "..") for part in str(text).split("/"))
  if not isinstance(text, str) or not text.isprintable() or elsewhere or len(text) > LONGEST_LABEL:
    raise ConfigError(f"config.{name}={shown(text)} must be a short word such as 'stream/method', without line breaks")
  return text


def check_labels(labels: Any) -> Labels:
  """
  Raises:
    ConfigError: no labels, or a wrong one.
  """
  if not isinstance(labels, Labels):
    raise ConfigError(f"labels={shown(labels)} must be cljax.settings.Labels(cell='stream/method')")
  for name, text in labels._asdict().items():
    check_label(name, text)
  return labels


KNOWN = fields(Settings)


def settings_of(given: Mapping[str, Any]) -> Settings:
  """The settings with those that are given.

  Raises:
    ConfigError: an unknown setting, or a wrong value.
  """
  for name in given:
    choose("setting", name, KNOWN, "cljax list settings")
  return Settings(**{name: check(f"config.{name}", value, KNOWN[name]) for name, value in given.items()})
