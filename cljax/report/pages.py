"""The report of a work dir, from result files only: a section for each paper and preset.

`report.md` and `report.html` for people, `report.csv` and `report.tex` for programs and papers, pictures in `figures/`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from cljax import files
from cljax.metrics import METRICS
from cljax.paths import located
from cljax.report import apart, formats, gallery, plots, store, tables, web
from cljax.report.exhibits import NO_EXHIBITS, Exhibits
from cljax.report.losses import curves_of
from cljax.report.published import SHOWN, remarks

Found = tuple[str, dict[str, Any], epath.Path]  # as store.find_results has them
PublishedOf = Callable[[str], tables.Published]


def unpublished(paper: str) -> tables.Published:
  """No published numbers: ours stand alone."""
  return {}


def read_published(paper: str, configs: Path | None) -> dict[str, Any]:
  """The published.json of a paper; {} where the results belong to none, or the paper has none.

  Raises:
    ConfigError: a damaged file.
  """
  path = configs / "papers" / paper / "published.json" if configs and paper else None
  if path is None or not path.exists():
    return {}
  return files.read_json(path, "restore it from the checkout")


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


def as_markdown(title: str, table: tuple, beside: Sequence[str], pictures: Sequence[web.Picture]) -> str:
  """A section of report.md; pictures by their path from there."""
  lines = "\n".join(f"- {line}" for line in beside)
  images = [f"![{path.stem}](figures/{path.name})\n\n{caption}" for path, caption in pictures]
  return "\n\n".join([f"## {title}", tables.markdown(*table), lines, *images])


def without(found: Sequence[Found]) -> list[str]:
  """A line about results whose report.npz is not there."""
  lost = store.without_arrays([(result, folder) for _, result, folder in found])
  told = f"{len(lost)} of {len(found)} results have no report.npz, and no part in the figures made from it."
  return [told] if lost else []


def write_report(
  workdir: epath.Path | str, published_of: PublishedOf = unpublished, exhibits: Exhibits = NO_EXHIBITS
) -> list[epath.Path]:
  """Writes report.md (pictures in figures/), report.html (pictures inside), report.csv and report.tex into a work dir.

  Args:
    published_of: a paper's folder of configs -> its published numbers, as `launch.presets.published_of` has them.
    exhibits: what methods show beside the columns and figures of all results.

  Returns:
    The four files.

  Raises:
    ConfigError: no results, or a damaged file.
    OSError: the work dir cannot be written.
  """
  root = located(workdir)
  files.tidy([root, root / "figures"])
  first = store.unfinished(root)
  text, page, all_rows = ["# Results", *first], [], {}
  for (paper, preset), found in sections(store.find_results(root)).items():
    published = published_of(paper)
    found = [found[i] for i in tables.order([result for _, result, _ in found], published)]
    results, folders = [result for _, result, _ in found], [folder for _, _, folder in found]
    names = apart.names(results, [path for path, _, _ in found])
    arrays, curves = [store.read_report_arrays(folder) for folder in folders], [curves_of(one) for one in folders]
    figures = gallery.table_figures(results, arrays, names, exhibits, curves)
    figures = {plots.file_name(f"{paper or 'runs'}_{preset}_{name}"): figure for name, figure in figures.items()}
    title = f"{paper or 'runs'}, preset {preset}" if preset else paper or "runs"
    all_rows[title] = tables.rows(results, published, names, exhibits, costs=True)
    beside = [*notes(results, published, names), *without(found)]
    captions = [plots.caption_of(figure) for figure in figures.values()]
    pictures = list(zip(plots.save(root / "figures", figures), captions, strict=True))
    text.append(as_markdown(title, all_rows[title], beside, pictures))
    page.append(web.section(title, all_rows[title], beside, pictures))
  contents = {
    "report.md": "\n\n".join(text) + "\n",
    "report.html": web.whole(page, first),
    "report.csv": formats.as_csv(all_rows),
    "report.tex": formats.as_latex(all_rows),
  }
  for name, content in contents.items():
    files.write_atomically(root / name, content.encode())
  return [root / name for name in contents]
