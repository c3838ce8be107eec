"""The scalars of a run for Weights & Biases, beside TensorBoard's; https://docs.wandb.ai. Never needed.

The package is asked for when a board is first wanted (`pip install 'cljax[wandb]'`). A run that goes on after an
interruption goes on there too: its name there is made of the path of its work dir. Without a network, or an account,
`WANDB_MODE=offline` keeps everything in the folder `wandb` of the work dir, for `wandb sync`.
"""

import hashlib
import importlib
import os
from typing import Any

from etils import epath

from cljax.errors import ConfigError
from cljax.files import read_json


def package() -> Any:
  """The module wandb.

  Raises:
    ConfigError: it is not installed.
  """
  try:
    return importlib.import_module("wandb")
  except ImportError as error:
    raise ConfigError(
      "--wandb needs the package wandb, which is not installed: pip install 'cljax[wandb]', or leave the flag out; "
      "metrics.jsonl and TensorBoard's events have the same numbers"
    ) from error


class WandbBoard:
  """One run of a project, begun or gone on with.

  Args:
    project: its name there.
    folder: the work dir, whose config.json is shown beside the run.
    label: the run's name in lists.
  """

  def __init__(self, project: str, folder: epath.Path, label: str):
    name, config = os.fspath(folder), folder / "config.json"
    self.run = package().init(
      project=project,
      id=hashlib.sha256(name.encode()).hexdigest()[:16],
      name=label,
      notes=name,
      dir=None if "://" in name else name,
      resume="allow",
      reinit="finish_previous",
      config=read_json(config) if config.exists() else {},
    )

  def scalar(self, name: str, value: float, step: int) -> None:
    """One number at a step of the run."""
    self.run.log({name: value}, step=step)

  def flush(self) -> None:
    """Nothing: wandb sends by itself."""

  def close(self) -> None:
    """Ends the run there."""
    self.run.finish()
