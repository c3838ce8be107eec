"""`report.md` and `report.html` of a work dir, from result files only."""

import base64
import html
import json
from pathlib import Path
from typing import Any

from etils import epath

from cljax.metrics import METRICS
from cljax.report import plots, store, tables

STYLE = (
  "body{font:15px/1.5 sans-serif;max-width:72em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
  "th,td{padding:.25em .7em;border-bottom:1px solid #ccc;text-align:left}img{max-width:100%}"
)


def read_published(paper: str, configs: Path | None) -> dict[str, Any]:
  """The published.json of a paper; {} where the results belong to none."""
  path = configs / "papers" / paper / "published.json" if configs and paper else None
  return json.loads(path.read_text()) if path and path.exists() else {}


def notes(results: list[dict[str, Any]], published: dict[str, Any]) -> list[str]:
  """What a reader must know beside the table."""
  lines = [f"{name}: {metric.meaning}." for name, metric in METRICS.items() if name in tables.SHOWN]
  if published:
    lines += [
      f"Published: {published['table']} of {published['paper']}; {published['source']}; {published['certainty']}."
    ]
    if any(result["preset"] == published["preset"] for result in results):
      lines.append(tables.RULE)
    else:
      lines.append(f"No verdicts: the published numbers belong to the preset {published['preset']!r}.")
  commits = sorted({str(result["environment"]["git_commit"]) for result in results})
  commands = sorted({result["environment"]["command"] for result in results})
  return [*lines, f"Commits: {', '.join(commits)}.", *(f"Command: {command}" for command in commands)]


def write_report(workdir: epath.Path | str, configs: Path | None = None) -> list[epath.Path]:
  """Writes report.md (pictures in figures/) and report.html (pictures inside) into the work dir.

  Args:
    configs: the folder of configs whose published numbers stand beside ours; None shows ours alone.

  Raises:
    ConfigError: no results, or a damaged one.
    OSError: the work dir cannot be written.
  """
  root = epath.Path(workdir)
  found = store.find_results(root)
  by_paper: dict[str, list] = {}
  for _, result, folder in found:
    by_paper.setdefault(result["paper"], []).append((result, store.read_report_arrays(folder)))
  text, page = ["# Results"], [f"<meta charset='utf-8'><title>Results</title><style>{STYLE}</style><h1>Results</h1>"]
  for paper, pairs in sorted(by_paper.items()):
    published = read_published(paper, configs)
    results = [result for result, _ in pairs]
    headings, table = tables.rows(results, published)
    figures = plots.table_figures(results, [arrays for _, arrays in pairs])
    paths = plots.save(root / "figures", figures)
    remarks = notes(results, published)
    text += [f"## {paper or 'runs'}", tables.markdown(headings, table), *(f"- {line}" for line in remarks)]
    text += [f"![{path.stem}](figures/{path.name})" for path in paths]
    page += [f"<h2>{html.escape(paper or 'runs')}</h2>", tables.as_html(headings, table)]
    page += ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in remarks), "</ul>"]
    for name, figure in figures.items():
      picture = base64.b64encode(plots.png(figure)).decode()
      page.append(f"<h3>{html.escape(name)}</h3><img alt='{html.escape(name)}' src='data:image/png;base64,{picture}'>")
  written = [root / "report.md", root / "report.html"]
  store.write_atomically(written[0], ("\n\n".join(text) + "\n").encode())
  store.write_atomically(written[1], "\n".join(page).encode())
  return written
