"""Results as tables: ours as mean ± standard deviation, the published number beside it, a verdict by a written rule.

The rule: `reproduced` where the means differ by at most .01 plus our standard deviation over seeds; beyond that
`better` or `short`, in the metric's good or bad direction. It is applied only to results of the preset that the
published numbers belong to.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from cljax.metrics import METRICS

Result = Mapping[str, Any]
Published = Mapping[str, Any]  # a published.json, or {}

SHOWN = ("ACC", "BWT", "forgetting", "learning_accuracy")
HEADINGS = {
  "ACC": "ACC (last)",
  "BWT": "BWT",
  "forgetting": "forgetting",
  "learning_accuracy": "learning accuracy (average)",
}
TOLERANCE = 0.01
RULE = (
  "Verdict: `reproduced` if the means differ by at most .01 plus our standard deviation over seeds; beyond that "
  "`better` or `short` in the metric's good or bad direction."
)


def verdict(metric: str, ours: float, std: float | None, published: float) -> str:
  """`reproduced`, `better` or `short`; std None (one seed) counts as 0."""
  difference = ours - published
  if abs(difference) <= TOLERANCE + (std or 0.0) + 1e-9:
    return "reproduced"
  return "better" if (difference > 0) == (METRICS[metric].better == "higher") else "short"


def cell_text(summary: Mapping[str, Any]) -> str:
  """`.912 ± .004`, `.912` for one seed, `-` where undefined."""
  if summary["mean"] is None:
    return "-"
  mean = f"{summary['mean']:.4f}"
  return mean if summary["std"] is None else f"{mean} ± {summary['std']:.4f}"


def method_name(result: Result, published: Published) -> str:
  """The method's name as the paper has it, with oracles marked."""
  name = published.get("methods", {}).get(result["method"], result["method"])
  name = name if name == result["method"] else f"{name} ({result['method']})"
  return f"{name} [oracle]" if result["oracle"] else name


def ordered(results: Sequence[Result], published: Published) -> list[Result]:
  """Streams and methods in the order of the paper, others after them by name."""

  def place(kind, name):
    names = list(published.get(kind, {}))
    return (names.index(name) if name in names else len(names), name)

  return sorted(results, key=lambda r: (r["preset"], place("streams", r["stream"]), place("methods", r["method"])))


def published_value(result: Result, metric: str, published: Published) -> float | None:
  return published.get("values", {}).get(result["stream"], {}).get(result["method"], {}).get(metric)


def rows(results: Sequence[Result], published: Published) -> tuple[list[str], list[list[str]]]:
  """(headings, rows of texts): ours, and where the paper has a number that number and, at its own preset, a verdict."""
  compared = [m for m in SHOWN if any(published_value(r, m, published) is not None for r in results)]
  headings = ["stream", "method", "seeds"]
  for metric in SHOWN:
    headings += [HEADINGS[metric], *(["published", "verdict"] if metric in compared else [])]
  table = []
  for result in ordered(results, published):
    stream = published.get("streams", {}).get(result["stream"], result["stream"])
    line = [stream, method_name(result, published), str(len(result["seeds"]))]
    for metric in SHOWN:
      summary = result["metrics"][metric]
      line.append(cell_text(summary))
      if metric in compared:
        value = published_value(result, metric, published)
        due = value is not None and result["preset"] == published["preset"] and summary["mean"] is not None
        line += ["-" if value is None else f"{value:.3f}"]
        line += [verdict(metric, summary["mean"], summary["std"], value) if due else "-"]
    table.append(line)
  return headings, table


def markdown(headings: Sequence[str], table: Sequence[Sequence[str]]) -> str:
  lines = [headings, ["---"] * len(headings), *table]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_html(headings: Sequence[str], table: Sequence[Sequence[str]]) -> str:
  head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
  body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in line) + "</tr>" for line in table)
  return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def aligned(headings: Sequence[str], table: Sequence[Sequence[str]]) -> str:
  """For a terminal."""
  lines = [headings, *table]
  widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
  return "\n".join(
    "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
  )


def text_table(results: Sequence[Result], published: Published | None = None) -> str:
  """The table that a launch ends with."""
  return aligned(*rows(results, published or {}))


def readme_table(results: Sequence[Result], published: Published) -> str:
  """Ours as markdown, with what made it; without published numbers where these belong to another preset."""
  same = [result for result in results if result["preset"] == published.get("preset")]
  shown = published if same else {**published, "values": {}}
  made = sorted({(r["environment"]["git_commit"] or "")[:10] for r in results})
  devices = sorted({", ".join(r["environment"]["devices"]) for r in results})
  hours = sum(r["timing"][f"{part}_seconds"] for r in results for part in ("compile", "train", "eval")) / 3600
  notes = (
    f"Mean ± standard deviation over seeds. Commit {', '.join(made)}; {', '.join(devices)}; {hours:.1f} hours in all."
  )
  return markdown(*rows(results, shown)) + "\n\n" + notes


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
