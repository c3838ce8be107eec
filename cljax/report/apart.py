"""What sets the results of one table apart: the config keys in which they differ, as names, columns and marks; and the
content of their data and of one's own files, where one name stands for two.

A key is compared among the results that have it; of `stream.*`, among those of one stream, and the method's name among
those that a table calls the same. What a table tells anyway (`TOLD`) and the values beside which a sweep ran are left
out.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cljax.files import flatten
from cljax.report.exhibits import Result

TOLD = ("paper", "preset", "cell", "num_seeds")
MARK = "differs in"
COLUMNS = 4  # at most so many keys are columns of their own
AS_COLUMNS = ("stream.", "optimizer.", "seed", "debug", "steps_per_task", "given_tasks")  # beginnings of their keys
OFF = ("false", "()", "none", "all", "0")  # as values are written
NO_MATTER = (  # keys that move no number: what a run is called, its seeds, what is asked and kept, how it is computed
  *("paper", "preset", "cell", "seed", "num_seeds", "evaluate", "looks", "look_every_steps", "log_every_steps"),
  *("checkpoint_every_chunks", "chunk", "seed_executor", "data_devices", "on_divergence"),
)


def written(value: Any) -> str:
  """A value as it is typed behind a flag: 0.05, (4,3), true; twelve digits, as products end in rounding."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, Sequence) and not isinstance(value, str):
    return f"({','.join(map(written, value))}{',' if len(value) == 1 else ''})"
  if isinstance(value, str) and value.startswith("/"):  # of a file on some machine its end says enough
    return "/".join(["...", *value.strip("/").split("/")[-4:]])
  if isinstance(value, float):
    return f"{value:g}" if float(f"{value:g}") == value else f"{value:.12g}"
  return str(value)


def settings(result: Result) -> dict[str, Any]:
  """The config of a result under dotted names, without what its table tells anyway; beside it what a config cannot
  tell: `data` and `own_files`, by the first digits of their hashes, and JAX's `switches`."""
  flat, made = flatten(result["config"]), result["environment"]
  there = {key: value for key, value in flat.items() if value is not None}  # keywords of a choice that was not taken
  flat = {key: value for key, value in there.items() if key not in TOLD and not key.startswith("sweep.")}
  own = {name.rpartition(":")[2]: f"version {told['sha256'][:8]}" for name, told in made.get("own_files", {}).items()}
  own = {f"own_files.{name}": version for name, version in own.items()}
  switches = {f"switches.{name}": value for name, value in made.get("switches", {}).items()}
  return {**flat, "data": result["data_hash"][:8], **own, **switches}


def group_of(key: str, result: Result) -> Any:
  """Those of one group are compared in `key`."""
  table = (result["paper"], result["preset"])
  if key == "method.name":
    return (*table, result["method"])
  source = result["config"].get("stream", {}).get("source")
  return (*table, source) if key == "data" else (*table, result["stream"]) if key.startswith("stream.") else table


def differing(results: Sequence[Result]) -> dict[str, list[str | None]]:
  """{key: the value of each result as text, None where it has no such key} of the keys in which results differ."""
  each = [settings(result) for result in results]
  found: dict[str, list[str | None]] = {}
  for key in sorted({key for flat in each for key in flat}):
    groups: dict[Any, set[str]] = {}
    texts = [written(flat[key]) if key in flat else None for flat in each]
    for result, text in zip(results, texts, strict=True):
      if text is not None:
        groups.setdefault(group_of(key, result), set()).add(text)
    if any(len(values) > 1 for values in groups.values()):
      found[key] = texts
  return found


def short(keys: Sequence[str]) -> dict[str, str]:
  """{key: its last part, where no other key ends so and it says something; else the whole}."""
  ends = Counter(["name", "name", *(key.rpartition(".")[2] for key in keys)])
  return {key: key.rpartition(".")[2] if ends[key.rpartition(".")[2]] == 1 else key for key in keys}


def unusual(values: Sequence[str | None]) -> list[str | None]:
  """The values, None in place of one that more than half of those that there are share."""
  counts = Counter(value for value in values if value is not None)
  usual, count = counts.most_common(1)[0]
  return [None if value == usual and 2 * count > counts.total() else value for value in values]


def names(results: Sequence[Result], paths: Sequence[str]) -> list[str]:
  """A name for each of several results: its method, and where that is not unique in its stream, what it differs in.

  Args:
    paths: of each result; told where results of one name differ in nothing that their configs say.
  """
  found = [result["method"] or "fit" for result in results]
  kinds: dict[Any, list[int]] = {}
  for i, result in enumerate(results):
    kinds.setdefault((result["paper"], result["preset"], result["stream"], result["method"]), []).append(i)
  for places in kinds.values():
    if len(places) == 1:
      continue
    alike = [results[i] for i in places]
    keys = differing(alike)
    called = short(list(keys))
    told = {called[key]: unusual(values) for key, values in keys.items()}
    said = [", ".join(f"{key}={values[n]}" for key, values in told.items() if values[n]) for n in range(len(places))]
    for n, i in enumerate(places):
      found[i] = ", ".join(filter(None, [found[i], said[n], f"in {paths[i]}" if said.count(said[n]) > 1 else ""]))
  return found


def marks(results: Sequence[Result]) -> dict[str, list[str]]:
  """{heading: a text for each result}: columns of the keys in which results differ, and one of marks.

  A key of `AS_COLUMNS` is a column, at most `COLUMNS` of them. All others are marks, in a last column: `key=value` of
  the values that no majority of the rows with that key shares.
  """
  keys = differing(results)
  own = [key for key in keys if key.startswith(AS_COLUMNS)][:COLUMNS]
  called = short(list(keys))
  found = {called[key]: ["-" if text is None else text for text in keys[key]] for key in own}
  rest = {called[key]: unusual(values) for key, values in keys.items() if key not in own}
  said = [", ".join(f"{key}={values[i]}" for key, values in rest.items() if values[i]) for i in range(len(results))]
  return {**found, **({MARK: [text or "-" for text in said]} if rest else {})}


def scenario(result: Result) -> str:
  """How labels are given to the tasks of its stream: task, class or domain."""
  told = result["config"].get("stream", {}).get("scenario", "all")
  return str(result["readout"] if told == "all" else told)


def streams(results: Sequence[Result]) -> dict[tuple[str, str], list[int]]:
  """{(stream, scenario): places of its results}: what may stand in one figure."""
  found: dict[tuple[str, str], list[int]] = {}
  for i, result in enumerate(results):
    found.setdefault((result["stream"], scenario(result)), []).append(i)
  return found


def learnt(result: Result) -> tuple[tuple[str, str], ...]:
  """All settings that move a number, as text; results that share them are runs of one thing."""
  flat = {key: written(value) for key, value in settings(result).items() if key not in NO_MATTER}
  return tuple(sorted((key, text) for key, text in flat.items() if text not in OFF))


def problem(result: Result) -> tuple[Any, ...]:
  """What results must share for one of them to be called the best: the stream with all its keys, and its length. A key
  that is off is as good as one that did not exist yet."""
  flat = {key: written(value) for key, value in settings(result).items()}
  asked = {key: flat[key] for key in flat if key.startswith("stream.") or key in ("debug", "given_tasks", "data")}
  asked = {key: text for key, text in asked.items() if text not in OFF}
  return result["paper"], result["preset"], result["stream"], tuple(sorted(asked.items()))
