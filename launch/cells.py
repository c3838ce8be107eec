"""A config file's `sweep()` as runs: each cell in a folder of its own, finished ones skipped, the table at the end."""

import json
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cljax.errors import ConfigError
from cljax.files import write_atomically
from cljax.methods.exhibits import EXHIBITS
from cljax.outcome import names_of
from cljax.overrides import changed, relabel
from cljax.recipe import check_steps
from cljax.report.apart import names
from cljax.report.overview import Panels, points, side_by_side
from cljax.report.pages import write_report
from cljax.report.plots import png
from cljax.report.store import find_results, unfinished
from cljax.report.tables import order, readme_table, splice, text_table
from cljax.run import train
from cljax.sweep import cells
from launch.app import begins, stop_asked
from launch.config_files import ROOT, installed
from launch.presets import of_cell, published_of
from launch.shards import Shard, alone, reported, share


def cell_config(module: ModuleType, cell: Mapping[str, str], overrides: Mapping[str, Any]) -> ConfigDict:
  """The config of one cell with the user's changes.

  Raises:
    ConfigError: the cell has no such key.
  """
  config = of_cell(module, cell)
  try:
    return changed(config, overrides)
  except ConfigError as error:
    narrow = ",".join(f"{key}={value}" for key, value in cell.items())
    raise ConfigError(
      f"the cell {config.cell!r}: {error}. Narrow the config to one cell, for example by :{narrow}"
    ) from error


def spread(config: ConfigDict, overrides: Mapping[str, Any]) -> dict[str, ConfigDict]:
  """{folder below the work dir: config} of one cell, or of each value of its sweep that is a run of its own."""
  found = cells(config, overrides)
  names = names_of([values for values, _ in found])
  return {"/".join(filter(None, (config.cell, name))): own for name, (_, own) in zip(names, found, strict=True)}


def check_apart(cells: Mapping[str, ConfigDict], more: Mapping[str, ConfigDict]) -> None:
  """
  Raises:
    ConfigError: a cell whose folder or whose config is that of another one.
  """

  def told(config: ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("paper", "preset", "cell")}

  for folder, config in more.items():
    same = [other for other in cells if other == folder or told(cells[other]) == told(config)]
    if same:
      raise ConfigError(
        f"the cells {same[0]!r} and {folder!r} are one and the same with these flags: narrow the config to one of them "
        "(`:method=...`), or leave out the flag that makes them alike"
      )


def run_cells(
  module: ModuleType,
  cells: list[dict[str, str]],
  workdir: str,
  overrides: Mapping[str, Any],
  data_dir: str | None,
  shard: Shard | None = None,
) -> None:
  """Runs all cells into `<workdir>/<cell>/`, then prints and writes the table of the work dir.

  Args:
    shard: the share of this process, where several work at the table.
  """
  # All of them first: a mistake costs no run.
  found: dict[str, ConfigDict] = {}
  for cell in cells:
    own = spread(cell_config(module, cell, overrides), overrides)
    check_apart(found, own)
    found |= own
  run_configs(found, workdir, overrides, data_dir, shard)


def run_configs(
  configs: Mapping[str, ConfigDict],
  workdir: str,
  overrides: Mapping[str, Any],
  data_dir: str | None,
  shard: Shard | None = None,
) -> None:
  """Runs each config into its folder below the work dir, then prints and writes the table of the work dir.

  Raises:
    ConfigError: choices of one of them do not go together; nothing has begun.
  """
  for config in configs.values():
    check_steps(config)
  root = epath.Path(workdir)

  def run(i: int, folder: str) -> None:
    print(f"cell {i + 1} of {len(configs)}: {folder}", file=sys.stderr)
    relabel(configs[folder], overrides)
    begins()
    train(configs[folder], root / folder, data_dir=data_dir, overrides=overrides, stop_asked=stop_asked)

  if shard is not None:
    share(root, list(configs), shard, run, stop_asked)
    alone(root, lambda: finish(workdir, not reported(root)), stop_asked)
    return
  for i, folder in enumerate(configs):
    run(i, folder)
  if jax.process_index() == 0:
    finish(workdir)


def write_readme(workdir: str, name: str, search: str | None) -> None:
  """Writes the table of a work dir into docs/results.md and into the README of its paper's folder, wherever the markers
  `<!-- results:NAME -->` stand.

  Args:
    search: folder of results of other settings, for the orderings at the best of each method.

  Raises:
    ConfigError: neither has such markers, or this is no checkout.
  """
  if installed():
    raise ConfigError(f"--readme={name} writes into the README files of a checkout, and this is an installed package")
  results = [result for _, result, _ in find_results(workdir)]
  paper = results[0]["paper"]
  searched = [result for _, result, _ in find_results(search)] if search else []
  table = readme_table(results, published_of(paper), EXHIBITS, searched)
  written = 0
  for path in (ROOT / "docs" / "results.md", ROOT / "configs" / "papers" / paper / "README.md"):
    if path.exists() and f"<!-- results:{name} -->" in path.read_text():
      path.write_text(splice(path.read_text(), name, table))
      written += 1
  if not written:
    raise ConfigError(f"--readme={name}: no page has a part <!-- results:{name} --> ... <!-- /results:{name} -->")


def panels_of(workdir: str, folders: Sequence[str]) -> Panels:
  """The results below each of the folders, by stream, under the names that their papers have for them.

  Raises:
    ConfigError: a folder holds no result.
  """
  panels: dict[str, tuple[list[Any], list[str]]] = {}
  for folder in folders:
    paths, results, _ = zip(*find_results(epath.Path(workdir) / folder), strict=True)
    published = published_of(results[0]["paper"])
    methods, streams = published.get("methods", {}), published.get("streams", {})
    called = names(results, paths)
    for i in order(results, published):
      shown, beside = panels.setdefault(streams.get(results[i]["stream"], results[i]["stream"]), ([], []))
      shown.append(results[i])
      beside.append(methods.get(called[i], called[i]))
  return panels


def draw(workdir: str, folders: Sequence[str], path: epath.Path | str) -> None:
  """Writes accuracy against forgetting of some folders of a work dir as one PNG, its numbers in its description.

  Raises:
    ConfigError: a folder holds no result.
    OSError: it cannot be written.
  """
  panels, path = panels_of(workdir, folders), epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, png(side_by_side(panels), json.dumps(points(panels))))


def finish(workdir: str, write: bool = True) -> None:
  """Prints the table of the results under a work dir and, unless that stands there, writes its report."""
  paths, results, _ = zip(*find_results(workdir), strict=True)
  papers = {result["paper"] for result in results}
  published = published_of(papers.pop()) if len(papers) == 1 else {}
  print("\n".join([text_table(results, published, names(results, paths), EXHIBITS), *unfinished(workdir)]))
  if write:
    print("written: " + ", ".join(str(path) for path in write_report(workdir, published_of, EXHIBITS)))
