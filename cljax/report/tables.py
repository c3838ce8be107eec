"""Results as tables: ours as mean ± standard deviation, the published number beside it, a verdict by a written rule."""

from collections.abc import Mapping, Sequence
from typing import Any

from cljax.report.apart import MARK, marks
from cljax.report.exhibits import NO_EXHIBITS, Exhibits, Result, columns_of
from cljax.report.published import SHOWN, Published, changed, published_value, remarks, verdict

HEADINGS = {
  "ACC": "ACC (last)",
  "BWT": "BWT",
  "forgetting": "forgetting",
  "learning_accuracy": "learning accuracy (average)",
}
PEAK = "peak (test at best validation)"
SIZE = "memory, MB"  # of one seed: its state, and the rows that it stores
SECOND = {  # how other readouts than the main one are called; those that have columns of their own are not here
  "task": "task given",
  "class": "task not given, classes so far",
  "domain": "classes of all tasks alike",
  "valid": "validation rows",
  "before_exit": "before each task's end",
}


def cell_text(summary: Mapping[str, Any]) -> str:
  """`0.9120 ± 0.0040`, `0.9120` for one seed, `-` where undefined."""
  if summary["mean"] is None:
    return "-"
  mean = f"{summary['mean']:.4f}"
  return mean if summary["std"] is None else f"{mean} ± {summary['std']:.4f}"


def method_name(result: Result, published: Published, label: str) -> str:
  """The method's name as the paper has it, with its label here; marked: oracles, diverged seeds, changed settings."""
  shown = published.get("methods", {}).get(result["method"])
  name = f"{shown} ({label})" if shown else label
  bad = sum(where is not None for where in result["diverged"] or ())
  marks = ["oracle"] if result["oracle"] else []
  marks += [f"diverged: {bad} of {len(result['seeds'])} seeds"] if bad else []
  other = changed(result, published)
  marks += [f"changed: {', '.join(other)}"] if other else []
  return " ".join([name, *(f"[{mark}]" for mark in marks)])


def order(results: Sequence[Result], published: Published) -> list[int]:
  """Positions of the results with streams and methods as the paper has them, others after these by name."""

  def place(kind, name):
    names = list(published.get(kind, {}))
    return (names.index(name) if name in names else len(names), name)

  def key(i):
    result = results[i]
    return result["preset"], place("streams", result["stream"]), place("methods", result["method"]), i

  return sorted(range(len(results)), key=key)


def rows(
  results: Sequence[Result],
  published: Published,
  names: Sequence[str] | None = None,
  exhibits: Exhibits = NO_EXHIBITS,
  costs: bool = False,
) -> tuple[list[str], list[list[str]]]:
  """(headings, rows of texts): ours, and where the paper has a number that number and, at its own preset, a verdict.

  Args:
    published: the paper's published.json and what is `changed`, or {}.
    names: of each result, see `labels`; None are its methods.
    exhibits: whose columns come last, of those results that meet their needs.
    costs: columns for the other readouts, parameters, memory and time, too.
  """
  compared = [m for m in SHOWN if any(published_value(r, m, published) is not None for r in results)]
  several = len({result["preset"] for result in results}) > 1
  apart = marks(results)
  mark = apart.pop(MARK, None)
  headings = [*(["preset"] if several else []), "stream", "method", "seeds", *apart]
  for metric in SHOWN:
    headings += [HEADINGS[metric], *(["published", "verdict"] if metric in compared else [])]
  infers = any("inferred" in result["readouts"] for result in results)
  headings += ["ACC, task inferred", "task recognition"] if infers else []
  watched = any(result["peak"] for result in results)
  headings += [PEAK] if watched else []
  sized = any(result["state_bytes"] for result in results)  # unknown to older results
  headings += [SIZE] if sized else []
  beside = beside_of(results) if costs else {}
  headings += beside
  own = [columns_of(result, exhibits, results) for result in results]
  extra = list(dict.fromkeys(heading for found in own for heading in found))
  table = []
  for i in order(results, published):
    result = results[i]
    stream = published.get("streams", {}).get(result["stream"], result["stream"])
    name = method_name(result, published, names[i] if names else result["method"])
    line = [*([result["preset"]] if several else []), stream, name, str(len(result["seeds"]))]
    line += [texts[i] for texts in apart.values()]
    for metric in SHOWN:
      summary = result["metrics"][metric]
      line.append(cell_text(summary))
      if metric in compared:
        value = published_value(result, metric, published)
        line.append("-" if value is None else f"{value:.3f}")
        mean, std = summary["mean"], summary["std"]
        line.append("-" if value is None or mean is None else verdict(metric, mean, std, value))
    line += inferred_texts(result) if infers else []
    line += [cell_text(result["peak"]) if result["peak"] else "-"] if watched else []
    whole = result["state_bytes"] and result["state_bytes"] + result["memory_bytes"]
    line += [f"{whole / 1e6:.3g}" if whole else "-"] if sized else []
    line += [texts[i] for texts in beside.values()]
    for heading in extra:
      told = own[i].get(heading, "-")
      line.append(told if isinstance(told, str) else cell_text(told))
    table.append([*line, *([mark[i]] if mark else [])])
  return [*headings, *extra, *([MARK] if mark else [])], table


def beside_of(results: Sequence[Result]) -> dict[str, list[str]]:
  """{heading: a text for each result}: accuracy by the other readouts, and what it cost to learn."""
  found = {}
  for readout, said in SECOND.items():
    others = [result["readouts"].get(readout) for result in results]
    if any(others):
      found[f"ACC, {said}"] = [cell_text(other["metrics"]["ACC"]) if other else "-" for other in others]
  spent = [sum(r["timing"][f"{part}_seconds"] for part in ("compile", "train", "eval")) / 60 for r in results]
  return {
    **found,
    "parameters": [str(result["parameters"]) for result in results],
    "of it stored examples, MB": [f"{result['memory_bytes'] / 1e6:.3g}" for result in results],
    "minutes, all seeds": [f"{minutes:.3g}" for minutes in spent],
  }


def inferred_texts(result: Result) -> list[str]:
  """Accuracy where the method finds the task by itself, and how often it finds the right one; or dashes."""
  found = result["readouts"].get("inferred")
  if found is None:
    return ["-", "-"]
  known = found.get("task_recognition")
  return [cell_text(found["metrics"]["ACC"]), cell_text(known) if known else "-"]


def markdown(headings: Sequence[str], table: Sequence[Sequence[str]]) -> str:
  """A table for a README or report.md."""
  lines = [headings, ["---"] * len(headings), *table]
  return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def aligned(headings: Sequence[str], table: Sequence[Sequence[str]]) -> str:
  """For a terminal."""
  lines = [headings, *table]
  widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
  return "\n".join(
    "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
  )


def text_table(
  results: Sequence[Result],
  published: Published | None = None,
  names: Sequence[str] | None = None,
  exhibits: Exhibits = NO_EXHIBITS,
) -> str:
  """The table that a launch ends with: mean ± s.d. over seeds, beside the published number where there is one."""
  called = names or [result["method"] for result in results]
  return "\n".join(
    [aligned(*rows(results, published or {}, names, exhibits)), *remarks(results, published or {}, called)]
  )


def evaluation_table(entries: Sequence[Mapping[str, Any]]) -> str:
  """Entries of `cljax.evaluation`, all of one run: a line each, the settings first; an unfinished run is told."""
  keys = list(dict.fromkeys(key for entry in entries for key in (*entry["sweep"], *entry["setting"])))
  readouts = list(dict.fromkeys(name for entry in entries for name in entry["readouts"]))
  headings = [*keys, f"{entries[0]['split']} rows a task", "seeds", *(f"ACC, {name}" for name in readouts)]
  headings += ["strict ACC, inferred", "task recognition"] if "inferred" in readouts else []
  table = []
  for entry in entries:
    asked, found = {**entry["sweep"], **entry["setting"]}, entry["readouts"]
    counts = sorted({count for seed in entry["test_rows"] for count in seed})
    rows_text = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    line = [*(str(asked[key]) for key in keys), f"first {rows_text}" if entry["rows"] else f"all {rows_text}"]
    line += [str(len(entry["seeds"])), *(cell_text(found[name]["ACC"]) if name in found else "-" for name in readouts)]
    if "inferred" in readouts:
      inferred = found.get("inferred", {})
      line += [cell_text(inferred[name]) if inferred else "-" for name in ("strict_ACC", "task_recognition")]
    table.append(line)
  T, done = len(entries[0]["test_rows"][0]), entries[0]["after_tasks"]
  early = f"\nThe run is not finished: its newest checkpoint has {done} of {T} tasks behind it." if done < T else ""
  return aligned(headings, table) + early


def provenance(results: Sequence[Result]) -> str:
  """What made the results: commits, devices, time in all."""
  commits = sorted({r["environment"]["git_commit"] or "unknown" for r in results})
  short = [commit[:10] + ("+" if commit.endswith("+") else "") for commit in commits]  # +: with local changes
  devices = sorted({", ".join(r["environment"]["devices"]) for r in results})
  seconds = sum(r["timing"][f"{part}_seconds"] for r in results for part in ("compile", "train", "eval"))
  spent = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
  return f"Mean ± standard deviation over seeds. Commit {', '.join(short)}; {'; '.join(devices)}; {spent} in all."


def readme_table(
  results: Sequence[Result],
  published: Published,
  exhibits: Exhibits = NO_EXHIBITS,
  searched: Sequence[Result] = (),
) -> str:
  """Ours as markdown, with what made it and what `published.remarks` says below a table."""
  beside = remarks(results, published, [result["method"] for result in results], searched)
  told = [markdown(*rows(results, published, exhibits=exhibits)), provenance(results)]
  return "\n\n".join([*told, *(["\n".join(f"- {line}" for line in beside)] if beside else [])])


def splice(text: str, name: str, table: str) -> str:
  """`text` with the part between the markers of `name` replaced.

  Raises:
    ValueError: no such markers.
  """
  begin, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
  before, found, rest = text.partition(begin)
  inside, closed, after = rest.partition(end)
  if not (found and closed):
    raise ValueError(f"the text has no part {begin} ... {end}")
  return f"{before}{begin}\n\n{table}\n\n{end}{after}"
