"""The keywords of LASEM: what each one is and may be."""

import re
from typing import Annotated, NamedTuple

from cljax.declared import at_least, free, one_of
from cljax.errors import ConfigError, choose
from cljax.types import Array

WORDS = ("all", "none", "alternating", "top_K", "bottom_K")
LARGEST_TREE = 4 << 30  # bytes
MOST_SEARCHED = 10  # groups


class Selection(NamedTuple):
  """Which configuration of shared layers a task takes."""

  choose: Annotated[
    str,
    one_of(
      ("em", "fixed", "static", "random", "search"),
      "by EM, by a fixed posterior, `layers` for all tasks, at random for each task, or all tried on validation rows",
    ),
  ] = "em"
  layers: Annotated[
    str,
    free("rule of static and fixed: all, none, alternating, top_K, bottom_K, or a bit a group, lowest first"),
  ] = "all"
  posterior_weight: Annotated[Array | float, at_least(0, "of `layers` in the fixed posterior", 1)] = 0.9
  likelihood: Annotated[
    str, one_of(("product", "mean"), "of a batch: over its rows the product of their probabilities, or the mean")
  ] = "product"
  prior: Annotated[
    str, one_of(("counts", "posteriors"), "smoothed counts of the most probable, or the mean of the posteriors so far")
  ] = "counts"
  lock_in: Annotated[bool, free("allows counts with the mean likelihood, an arbitrary choice")] = False
  m_step: Annotated[
    str,
    one_of(
      ("all", "best", "until"),
      "what an M-step moves: all by their posterior, the best by the prior, or all until the prior is sharp",
    ),
  ] = "all"
  e_every: Annotated[int, at_least(1, "steps to an E-step, where M-steps move the best alone", 10**6)] = 1
  until: Annotated[Array | float, at_least(0, "of the prior's maximum, above which it is sharp", 1)] = 0.5
  m_steps: Annotated[int, at_least(1, "M-steps after an E-step, on the same batch", 1_000)] = 1


def bits(rule: str, count: int) -> tuple[bool, ...]:
  """Which of so many groups are shared, the lowest first.

  Raises:
    ConfigError: a word that is none of the rules, or bits for another number of groups.
  """
  found = re.fullmatch(r"(top|bottom)_(\d{1,3})", rule)
  if rule in ("all", "none"):
    return (rule == "all",) * count
  if rule == "alternating":
    return tuple(g % 2 == 1 for g in range(count))
  if found and int(found[2]) <= count:
    low = tuple(g < int(found[2]) for g in range(count))
    return low if found[1] == "bottom" else low[::-1]
  if found:
    raise ConfigError(
      f"config.method.layers={rule!r}: the net has {count} groups of layers; use at most {found[1]}_{count}"
    )
  if rule and set(rule) <= {"0", "1"}:
    if len(rule) != count:
      raise ConfigError(f"config.method.layers={rule!r} has {len(rule)} bits, and there are {count} groups of layers")
    return tuple(bit == "1" for bit in rule)
  choose("config.method.layers", rule, (*WORDS, "01" * (count // 2) + "0" * (count % 2)))
  raise ConfigError(f"config.method.layers={rule!r}: put a number for K, such as top_2")


def check(selection: Selection, groups: int, activations: list[int]) -> None:
  """
  Args:
    activations: numbers that each group's last layers give for a batch.

  Raises:
    ConfigError: choices that do not go together, or more configurations than there is memory for.
  """
  if selection.likelihood == "mean" and selection.prior == "counts" and not selection.lock_in:
    raise ConfigError(
      "config.method.prior='counts' with config.method.likelihood='mean' settles on an arbitrary configuration: use "
      "prior='posteriors', likelihood='product', or config.method.lock_in=True to have it all the same"
    )
  if selection.m_steps > 1 and selection.m_step != "all":
    raise ConfigError(f"config.method.m_steps={selection.m_steps} goes with config.method.m_step='all'")
  if selection.e_every > 1 and selection.m_step != "best":
    raise ConfigError(f"config.method.e_every={selection.e_every} goes with config.method.m_step='best'")
  if selection.choose == "search" and groups > MOST_SEARCHED:
    raise ConfigError(
      f"config.method.choose='search' would train 2^{groups} = {2**groups} configurations a task; put layers together "
      f"by config.method.groups, {MOST_SEARCHED} groups at most"
    )
  if selection.choose in ("em", "fixed"):
    bytes_ = sum(4 * 2 ** (g + 1) * numbers for g, numbers in enumerate(activations))
    if groups > 20 or bytes_ > LARGEST_TREE:
      raise ConfigError(
        f"{groups} groups of layers have 2^{groups} = {2**groups} configurations, whose activations take {bytes_:.3g} "
        f"bytes for a batch, forwards alone; at most {LARGEST_TREE:.3g}: put layers together by config.method.groups"
      )
