"""`report.md` and `report.html` of a work dir, from result files only: a section for each paper and preset."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from cljax import files
from cljax.errors import ConfigError
from cljax.metrics import METRICS
from cljax.paths import located
from cljax.report import apart, plots, store, tables
from cljax.report.exhibits import NO_EXHIBITS, Exhibits
from cljax.report.published import SHOWN, remarks

STYLE = (
  "body{font:15px/1.5 sans-serif;max-width:72em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
  "th,td{padding:.25em .7em;border-bottom:1px solid #ccc;text-align:left}img{max-width:100%}"
)
Found = tuple[str, dict[str, Any], epath.Path]  # as store.find_results has them


def read_published(paper: str, configs: Path | None) -> dict[str, Any]:
  """The published.json of a paper; {} where the results belong to none, or the paper has none.

  Raises:
    ConfigError: a damaged file.
  """
  path = configs / "papers" / paper / "published.json" if configs and paper else None
  if path is None or not path.exists():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(f"{path} is damaged ({error})") from error


def notes(results: Sequence[tables.Result], published: tables.Published, names: Sequence[str]) -> list[str]:
  """What a reader must know beside the table, a line each."""
  lines = [f"{name}: {METRICS[name].meaning}." for name in SHOWN]
  if any(result["oracle"] for result in results):
    lines.append("[oracle]: trains on the rows of all tasks at once.")
  if any(where for result in results for where in result["diverged"] or ()):
    lines.append("[diverged]: seeds whose loss stopped being a finite number; their numbers are in the means.")
  if published:
    link = f" ({published['link']})" if "link" in published else ""
    lines.append(f"Published: {published['table']} of {published['paper']}; {published['source']}{link}.")
    lines.append(f"Certainty of the published numbers: {published['certainty']}.")
  lines += remarks(results, published, names)
  commands = sorted({result["environment"]["command"] for result in results})
  return [*lines, tables.provenance(results), *(f"Command: {command}" for command in commands)]


def sections(found: Sequence[Found]) -> dict[tuple[str, str], list[Found]]:
  """{(paper, preset): its results}, sorted."""
  parts: dict[tuple[str, str], list[Found]] = {}
  for one in found:
    parts.setdefault((one[1]["paper"], one[1]["preset"]), []).append(one)
  return dict(sorted(parts.items()))


def as_markdown(title: str, table: tuple, beside: Sequence[str], pictures: Sequence[epath.Path]) -> str:
  """A section of report.md; pictures by their path from there."""
  lines = "\n".join(f"- {line}" for line in beside)
  images = [f"![{path.stem}](figures/{path.name})" for path in pictures]
  return "\n\n".join([f"## {title}", tables.markdown(*table), lines, *images])


def as_page(title: str, table: tuple, beside: Sequence[str], pictures: Sequence[epath.Path]) -> str:
  """A section of report.html; pictures inside."""
  page = [f"<h2>{html.escape(title)}</h2>", tables.as_html(*table), "<ul>"]
  page += [*(f"<li>{html.escape(line)}</li>" for line in beside), "</ul>"]
  for path in pictures:
    name, content = html.escape(path.stem), base64.b64encode(path.read_bytes()).decode()
    page.append(f"<h3>{name}</h3><img alt='{name}' src='data:image/png;base64,{content}'>")
  return "\n".join(page)


def write_report(
  workdir: epath.Path | str, configs: Path | None = None, exhibits: Exhibits = NO_EXHIBITS
) -> list[epath.Path]:
  """Writes report.md (pictures in figures/) and report.html (pictures inside) into the work dir.

  Args:
    configs: the folder of configs whose published numbers stand beside ours; None shows ours alone.
    exhibits: what methods show beside the columns and figures of all results.

  Returns:
    The two files.

  Raises:
    ConfigError: no results, or a damaged file.
    OSError: the work dir cannot be written.
  """
  root = located(workdir)
  files.tidy([root, root / "figures"])
  text, page = ["# Results"], [f"<style>{STYLE}</style></head>\n<body><h1>Results</h1>"]
  for (paper, preset), found in sections(store.find_results(root)).items():
    published = read_published(paper, configs)
    found = [found[i] for i in tables.order([result for _, result, _ in found], published)]
    results = [result for _, result, _ in found]
    names = apart.names(results, [path for path, _, _ in found])
    arrays = [store.read_report_arrays(folder) for _, _, folder in found]
    figures = plots.table_figures(results, arrays, names, exhibits)
    figures = {f"{paper or 'runs'}_{preset}_{name}": figure for name, figure in figures.items()}
    title = f"{paper or 'runs'}, preset {preset}" if preset else paper or "runs"
    table, beside = tables.rows(results, published, names, exhibits), notes(results, published, names)
    pictures = plots.save(root / "figures", figures)
    text.append(as_markdown(title, table, beside, pictures))
    page.append(as_page(title, table, beside, pictures))
  head = "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Results</title>"
  written = [root / "report.md", root / "report.html"]
  files.write_atomically(written[0], ("\n\n".join(text) + "\n").encode())
  files.write_atomically(written[1], "\n".join([head, *page, "</body></html>\n"]).encode())
  return written
