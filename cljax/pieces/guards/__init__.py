"""What holds a network to its past: penalties and projections for the methods with a keyword `guard`, which are
`finetune`, those that are fine-tuning under one, `er`, `der`, `derpp`, `single` and `routing`.

A guard is made of `answer`, (params, batch) -> raw logits [B, C], and of the spec; `GUARDS` has them by name. A method
takes one by its keyword `guard`, a mapping {"name": ..., keywords}; a strength of 0 is no guard, nor is a memory of
no row.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import numpy as np

from cljax.declared import chosen, number_of, shown
from cljax.errors import ConfigError
from cljax.named import pick
from cljax.pieces.guards.distillation import lwf
from cljax.pieces.guards.examples import Answer
from cljax.pieces.guards.penalties import ewc, mas, online_ewc, si
from cljax.pieces.guards.projections import agem, gem, ogd
from cljax.types import FREE, Guard, Spec

GUARDS: dict[str, Callable[..., Guard]] = {
  "ewc": ewc,
  "online_ewc": online_ewc,
  "si": si,
  "mas": mas,
  "lwf": lwf,
  "agem": agem,
  "gem": gem,
  "ogd": ogd,
}
NO_GUARD: Mapping[str, Any] = {"name": "none"}
Guarded = Annotated[Mapping[str, Any], chosen(lambda: GUARDS, "what holds the network to its past")]


def is_zero(number: Any) -> bool:
  """Whether it is a 0 of Python, numpy or JAX; what is traced is none."""
  known = isinstance(number, int | float | np.generic | np.ndarray | jax.Array)
  return known and not isinstance(number, jax.core.Tracer) and number_of(number) == 0


def guarding(guard: Mapping[str, Any] | Guard, spec: Spec) -> Callable[[Answer], Guard] | None:
  """What makes the guard that a method was given; None where it is none, or its strength is the number 0.

  Args:
    guard: a mapping of a name of GUARDS (or `none`) and its keywords, or a guard that is made.

  Raises:
    ConfigError: an unknown name or keyword, or a wrong value.
  """
  if isinstance(guard, Guard):
    return None if guard == FREE else lambda answer: guard
  if not isinstance(guard, Mapping):
    raise ConfigError(f"config.method.guard={shown(guard)} must be a name and keywords, as {{'name': 'ewc'}}")
  keywords = dict(guard)
  name = keywords.pop("name", "none")
  keywords = {key: value for key, value in keywords.items() if value is not None}
  if (factory := pick("method.guard", name, {"none": None, **GUARDS}, 2)) is None:
    return None
  # a wrong keyword is refused here and not in a trace
  made = factory(Answer(lambda params, collections, batch: batch.y, {}), spec, **keywords)
  if made == FREE or is_zero(keywords.get("strength")):
    return None
  return lambda answer: factory(answer, spec, **keywords)
