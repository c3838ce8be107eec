"""When an episode ends, and how far derivatives go back: both grow with the number of episodes.

Xiong, Ren and Urtasun 2020, section 5 (https://arxiv.org/abs/1910.04650): an episode is begun anew as soon as the loss
passes a threshold. A step count of an episode that its segments do not divide is passed by the last of them.
"""

from typing import Annotated, NamedTuple

import jax.numpy as jnp

from cljax.declared import above, at_least, one_of
from cljax.errors import ConfigError
from cljax.types import Array

MOST_OF_SGD = 10.0  # times the loss of plain SGD, which no student passes


class Curriculum(NamedTuple):
  """The threshold, the truncation and the length of episodes."""

  steps: Annotated[int, at_least(1, "of an episode in each of its new tasks, T", 1_000_000)] = 500
  every: Annotated[int, at_least(1, "episodes until threshold and truncation are raised", 1_000_000)] = 300
  unit: Annotated[
    str, one_of(("loss", "sgd"), "of thresholds: the loss itself, or that of plain SGD after T steps, measured once")
  ] = "loss"
  threshold: Annotated[float, above(0, "of the loss, at first")] = 20.0
  threshold_raise: Annotated[float, at_least(0, "what it is raised by")] = 5.0
  threshold_most: Annotated[float, above(0, "where it stays")] = 30.0
  later: Annotated[float, at_least(0, "added to the threshold in the later new tasks of an episode")] = 5.0
  truncation: Annotated[int, at_least(1, "inner steps of a segment at first, S", 1000)] = 5
  truncation_raise: Annotated[int, at_least(0, "what it is raised by", 1000)] = 2
  truncation_most: Annotated[int, at_least(1, "where it stays", 1000)] = 9
  patience: Annotated[int, at_least(1, "episodes that end in their first segment until one may live on", 1_000_000)] = (
    100
  )

  def checked(self) -> "Curriculum":
    """Itself.

    Raises:
      ConfigError: a most below the first, or thresholds that no episode would pass.
    """
    for name in ("threshold", "truncation"):
      first, most = getattr(self, name), getattr(self, f"{name}_most")
      if most < first:
        raise ConfigError(f"config.curriculum.{name}_most={most:g} is below config.curriculum.{name}={first:g}")
    for name in ("threshold", "threshold_most", "later") if self.unit == "sgd" else ():
      if (value := getattr(self, name)) > MOST_OF_SGD:
        raise ConfigError(
          f"config.curriculum.{name}={value:g} is so many times plain SGD's loss by config.curriculum.unit='sgd', and "
          f"no episode passes it: use {MOST_OF_SGD:g} at most, such as .3 to .6, or set config.curriculum.unit='loss'"
        )
    if self.truncation_most > self.steps:
      raise ConfigError(
        f"config.curriculum.truncation_most={self.truncation_most} is more than the config.curriculum.steps="
        f"{self.steps} of an episode"
      )
    return self

  def threshold_at(self, episode: Array | int, task: Array | int = 1) -> Array:
    """[] the threshold in an episode's new task (1, 2, ...)."""
    raised = self.threshold + self.threshold_raise * (jnp.asarray(episode) // self.every)
    return jnp.minimum(raised, self.threshold_most) + self.later * (jnp.asarray(task) - 1)

  def truncation_at(self, episode: int) -> int:
    """S in an episode."""
    return min(self.truncation + self.truncation_raise * (episode // self.every), self.truncation_most)
