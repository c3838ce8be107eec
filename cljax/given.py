"""What `assemble` is given from Python: seeds, numbers by row of the seed axis, a method or what makes one of them, and
what is asked of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.errors import FlaxError

from cljax.declared import shown
from cljax.errors import ConfigError, choose, in_short
from cljax.pieces.gates import GATES
from cljax.settings import LONGEST_LABEL
from cljax.start import MakeFn, answering, field_of
from cljax.types import Method, Spec

READOUTS = ("task", "class", "domain", "inferred")


def check_jax() -> None:
  """
  Raises:
    ConfigError: a setting of JAX under which nothing here can be computed.
  """
  promotion = jax.numpy_dtype_promotion.value
  if promotion != "standard":
    raise ConfigError(
      f"JAX_NUMPY_DTYPE_PROMOTION={promotion} refuses sums of whole numbers and others, which are taken here: leave it "
      "out of the environment, or set it to standard"
    )


def rows_of_hyper(hyper: Mapping[str, Any], seeds: int) -> dict[str, np.ndarray]:
  """The numbers as one row for each seed.

  Raises:
    ConfigError: no finite numbers, or not one for each seed.
  """
  if not isinstance(hyper, Mapping):
    raise ConfigError(f"hyper={shown(hyper)} must be a mapping, such as {{'lr': 0.1}}")
  found = {}
  for name, value in hyper.items():
    rows = np.asarray(value)
    if not np.issubdtype(rows.dtype, np.number) or rows.shape not in ((), (seeds,)) or not np.isfinite(rows).all():
      raise ConfigError(f"hyper[{name!r}]={value!r} must be a finite number, or one for each of {seeds} seeds")
    found[name] = np.broadcast_to(rows, (seeds,)).astype(np.float64)
  return found


def check_seeds(seeds: Sequence[int], again: bool) -> tuple[int, ...]:
  """The seeds as plain numbers.

  Args:
    again: whether a seed may stand there twice, with other numbers.

  Raises:
    ConfigError: none, no whole numbers from 0 on, or one twice.
  """
  each = list(seeds) if isinstance(seeds, Sequence | np.ndarray) and np.ndim(seeds) == 1 else []
  if not each or any(isinstance(s, bool) or not isinstance(s, int | np.integer) or not 0 <= s < 2**31 for s in each):
    raise ConfigError(f"seeds={shown(seeds)} must be whole numbers from 0 to {2**31 - 1}, at least one of them")
  if len(set(each)) < len(each) and not again:
    raise ConfigError(f"seeds={shown(seeds)} names a seed twice, whose runs would be the same")
  return tuple(map(int, each))


def check_hash(data_hash: Any) -> str:
  """The word that tells data apart; '' where none is given.

  Raises:
    ConfigError: no word.
  """
  if data_hash is None:
    return ""
  if not isinstance(data_hash, str) or not data_hash.isprintable() or len(data_hash) > LONGEST_LABEL:
    raise ConfigError(
      f"data_hash={shown(data_hash)} must be a word that tells the data apart, such as a checksum; leave it out, and "
      "it is that of the arrays"
    )
  return data_hash


def check_method(method: Any) -> None:
  """
  Raises:
    ConfigError: neither a method nor a function, or a factory of METHODS that was not called.
  """
  name = getattr(method, "__name__", type(method).__name__)
  if not isinstance(method, Method) and not callable(method):
    raise ConfigError(f"method={shown(method)} is no method: give what a factory of cljax.METHODS makes")
  if hasattr(method, "homes"):
    raise ConfigError(f"method={name} is a factory: call it, {name}(net, tx, spec)")


def check_made_for(method: Method, spec: Spec, name: str) -> None:
  """
  Args:
    spec: of the stream.
    name: of the method, for a message.

  Raises:
    ConfigError: a method that was made for other pictures, classes, heads or fewer tasks.
  """
  made = method.made_for or spec
  alike = [field for field in ("x_shape", "C", "boundaries") if getattr(made, field) != getattr(spec, field)]
  short = [field for field in ("T", "heads") if getattr(made, field) < getattr(spec, field)]
  apart = ["heads"] if made.heads > spec.heads == 1 < spec.T else []  # tasks would be told apart where none is told
  if wrong := [*alike, *short, *apart]:
    told = [", ".join(f"{field}={getattr(one, field)}" for field in wrong) for one in (made, spec)]
    raise ConfigError(
      f"{name} was made for a spec of {told[0]}, and that of the stream has {told[1]}: make it with the spec that "
      "stands beside the stream"
    )


def check_answers(method: Method, spec: Spec, name: str) -> tuple[str, ...]:
  """The fields of its state that a method answers by where it is told the task.

  Args:
    spec: of the stream.
    name: of the method, for a message.

  Raises:
    ConfigError: a method that cannot answer to the stream's pictures, or does not by logits of its classes.
  """
  try:
    logits, paths = answering(method, spec)
  except (TypeError, ValueError, AttributeError, FlaxError) as error:
    raise ConfigError(f"{name} cannot answer to pictures of {spec.x_shape}: {in_short(error)}") from error
  if np.shape(logits) != (2, spec.C):
    raise ConfigError(
      f"{name} answers to two pictures by logits of {list(np.shape(logits))} where the stream's {spec.C} classes need "
      f"[2, {spec.C}]: make it, and its net, with the spec that stands beside the stream"
    )
  return tuple(sorted(set(map(field_of, paths))))


def check_report(method: Method, name: str) -> None:
  """
  Args:
    name: of the method, for a message.

  Raises:
    ConfigError: a report without what every result says.
  """
  told = jax.eval_shape(method.report, jax.eval_shape(method.init, jax.random.key(0)))
  for one in ("parameters", "memory_bytes", *(("slot",) if method.slots else ())):
    if not isinstance(told, Mapping) or one not in told or told[one].shape:
      raise ConfigError(
        f"{name} has no number {one!r} in its report: let `report(state)` of the Method give a dict of 'parameters' "
        "(cljax.ops.trees.parameters(state.params)), 'memory_bytes' (0 where it stores no example) and, where it has "
        "slots of its own, 'slot'"
      )


def at_numbers(method: Method | MakeFn, numbers: Mapping[str, np.ndarray]) -> tuple[Method, MakeFn]:
  """(the method at the first row's numbers, what makes it of the numbers of any row).

  Raises:
    ConfigError: a wrong number, or numbers for a method that is finished.
  """
  if isinstance(method, Method):
    if numbers:
      raise ConfigError(f"hyper={sorted(numbers)} is for a function hyper -> method; this method is finished")
    return method, lambda hyper: method
  own = {name: float(rows[0]) for name, rows in numbers.items()}
  if not isinstance(made := method(own), Method):  # a wrong number is refused here
    raise ConfigError(f"method is a function that gives {type(made).__name__} for hyper={own}, and no method")
  # What is static about the method must not hang on a 0 of the first row, a strength say: a least number stands for it.
  least = np.finfo(np.float32).tiny
  return method({name: np.asarray(value or least, np.float32) for name, value in own.items()}), method


def readouts_of(wanted: Sequence[str], spec: Spec, method: Method) -> tuple[str, ...]:
  """What is asked after each task, the main one first; without a wish what the heads allow.

  `class` and `domain` ask without a word of the task, and so never a method that answers by what belongs to one: where
  it finds the task by itself they are `inferred`, beside `task`.

  Raises:
    ConfigError: an unknown one, or one without the task for a method that has to be told it.
  """
  if not isinstance(wanted, tuple | list):
    raise ConfigError(f"readouts={shown(wanted)} must be several words, such as ('task', 'class')")
  by_slot = method.told or method.slots > 0
  main = tuple(wanted) or (("task",) if spec.heads > 1 or by_slot else ("domain",))
  for name in main:
    choose("readouts", name, READOUTS)
  if by_slot and (untold := [name for name in main if name in ("class", "domain")]):
    if not method.infers:
      raise ConfigError(
        f"this method answers by what belongs to a task, and {untold[0]!r} does not tell it which: set "
        "config.stream.scenario='task' (readouts=('task',)), or let a gate find it, "
        f"config.gate.name={' | '.join(GATES)}"
      )
    main = ("task", *(name for name in main if name not in (*untold, "task")))
  if "inferred" in main and not method.infers:
    raise ConfigError("readouts: this method does not find the task by itself, so 'inferred' cannot be asked")
  return main + (("inferred",) if method.infers and "inferred" not in main else ())
