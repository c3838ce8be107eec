"""Who else is told of a run's numbers while it trains: `--wandb`."""

from functools import partial

from absl import flags

from cljax import monitor
from cljax.wandb_board import WandbBoard, package

DEFAULT = "cljax"

WANDB: flags.FlagHolder[str | None] = flags.DEFINE_flag(
  flags.Flag(
    flags.ArgumentParser(),
    flags.ArgumentSerializer(),
    "wandb",
    None,
    "Weights & Biases gets the numbers too: --wandb, or --wandb=PROJECT; needs pip install 'cljax[wandb]'.",
    boolean=True,  # so that it stands by itself too
  )
)


def use_wandb() -> None:
  """Runs that begin from now on are shown there, if that was asked for.

  Raises:
    ConfigError: the package is not installed.
  """
  if WANDB.value in (None, "", "false"):
    return
  package()
  monitor.BOARDS.append(partial(WandbBoard, DEFAULT if WANDB.value == "true" else WANDB.value))
