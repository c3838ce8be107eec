"""A config file's `sweep()` as runs: each cell in a folder of its own, finished ones skipped, the table at the end."""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cljax.config import relabel
from cljax.errors import ConfigError
from cljax.files import flatten
from cljax.methods.exhibits import EXHIBITS
from cljax.report.apart import names
from cljax.report.pages import read_published, write_report
from cljax.report.store import find_results
from cljax.report.tables import readme_table, splice, text_table
from cljax.run import train
from launch.app import begins, stop_asked
from launch.config_files import ROOT, written_in


def cell_config(module: ModuleType, cell: Mapping[str, str], overrides: Mapping[str, Any]) -> ConfigDict:
  """The config of one cell with the user's changes.

  Raises:
    ConfigError: the cell has no such key.
  """
  with written_in(str(module.__file__)):
    config = module.get_config(",".join(f"{key}={value}" for key, value in cell.items()))
  known = flatten(config.to_dict())
  for key, value in overrides.items():
    if key not in known:
      raise ConfigError(
        f"--config.{key} does not exist in the cell {config.cell!r}; narrow the config to one cell, "
        f"for example by :{','.join(f'{k}={v}' for k, v in cell.items())}"
      )
    config.update_from_flattened_dict({key: value})
  return config


def run_cells(
  module: ModuleType, cells: list[dict[str, str]], workdir: str, overrides: Mapping[str, Any], data_dir: str | None
) -> None:
  """Runs all cells into `<workdir>/<cell>/`, then prints and writes the table of the work dir."""
  configs = [cell_config(module, cell, overrides) for cell in cells]  # all of them first: a mistake costs no run
  for i, config in enumerate(configs):
    print(f"cell {i + 1} of {len(configs)}: {config.cell}", file=sys.stderr)
    folder = epath.Path(workdir) / config.cell
    relabel(config, overrides)
    begins()
    train(config, folder, data_dir=data_dir, overrides=overrides, stop_asked=stop_asked)
  if jax.process_index() == 0:
    finish(workdir)


def write_readme(workdir: str, name: str, search: str | None) -> None:
  """Writes the table of a work dir into README.md and into that of its paper's folder, wherever the markers
  `<!-- results:NAME -->` stand.

  Args:
    search: folder of results of other settings, for the orderings at the best of each method.

  Raises:
    ConfigError: neither has such markers.
  """
  results = [result for _, result, _ in find_results(workdir)]
  paper = results[0]["paper"]
  searched = [result for _, result, _ in find_results(search)] if search else []
  table = readme_table(results, read_published(paper, ROOT / "configs"), EXHIBITS, searched)
  written = 0
  for path in (ROOT / "README.md", ROOT / "configs" / "papers" / paper / "README.md"):
    if path.exists() and f"<!-- results:{name} -->" in path.read_text():
      path.write_text(splice(path.read_text(), name, table))
      written += 1
  if not written:
    raise ConfigError(f"--readme={name}: no README has a part <!-- results:{name} --> ... <!-- /results:{name} -->")


def finish(workdir: str) -> None:
  """Prints the table of the results under a work dir and writes its report."""
  configs = ROOT / "configs"
  paths, results, _ = zip(*find_results(workdir), strict=True)
  papers = {result["paper"] for result in results}
  published = read_published(papers.pop(), configs) if len(papers) == 1 else {}
  print(text_table(results, published, names(results, paths), EXHIBITS))
  print("written: " + ", ".join(str(path) for path in write_report(workdir, configs, EXHIBITS)))
