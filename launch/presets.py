"""Beside which results the published numbers of a paper may stand: what the configs of its preset say themselves."""

import contextlib
import functools
import json
from collections.abc import Mapping
from typing import Any

from cljax.config import completed
from cljax.errors import ConfigError
from cljax.files import as_json, flatten
from cljax.report.pages import read_published
from cljax.report.published import Published, deviations
from launch.config_files import ROOT, load_config, written_in


def of_cell(module: Any, cell: Mapping[str, str]) -> Any:
  """The config of one cell of a config file's `sweep()`, as the file has it."""
  with written_in(str(module.__file__)):
    return module.get_config(",".join(f"{key}={value}" for key, value in cell.items()))


@functools.cache
def own_settings(paper: str, preset: str) -> dict[str, dict[str, Any]]:
  """{cell: its config under dotted names} of all cells of a preset, by the config files of the paper: those of their
  `sweep()`, and what a file names as ASKED_FOR.

  Raises:
    ConfigError: a file that is no config.
  """
  found: dict[str, dict[str, Any]] = {}
  for path in sorted((ROOT / "configs" / "papers" / paper).glob("*.py")):
    module = load_config(str(path))
    if hasattr(module, "sweep"):
      asked = ["", *(f",{arg}" for arg in getattr(module, "ASKED_FOR", ()))]
      configs = [of_cell(module, cell) for arg in asked for cell in module.sweep(f"preset={preset}{arg}")]
      found |= {config.cell: flatten(as_json(config.to_dict())) for config in configs}
  return found


def published_of(paper: str) -> Published:
  """The published.json of a paper, with `changed`: in what a result departs from the preset of these numbers.

  Raises:
    ConfigError: a damaged file.
  """
  published = read_published(paper, ROOT / "configs")

  @functools.cache
  def departs(cell: str, text: str) -> list[str]:
    own, config = own_settings(paper, published["preset"]).get(cell), json.loads(text)
    if own is None:
      return [f"cell={cell}"]
    with contextlib.suppress(ConfigError):  # a key that is gone, or no config at all: then its own keys are compared
      config = as_json(completed(config).to_dict())  # keys that came later are at their defaults
    return deviations(flatten(config), own)

  def changed(result: Mapping[str, Any]) -> list[str]:
    return departs(f"{result['stream']}/{result['method']}", json.dumps(result["config"]))

  return {**published, "changed": changed} if published.get("values") else published
