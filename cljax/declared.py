"""Keywords with their range and a line about each, where they are declared.

  @declared("method", given=3)
  def er(net, tx, spec, *, capacity: Annotated[int, at_least(0, "rows of the memory")] = 1000, fit: Fit = Fit()):

A keyword whose default is a NamedTuple stands for the fields of that record, which are annotated in the same way: a
caller gives `batch_size=10` or `fit=Fit(batch_size=10)`. A keyword that is `chosen` from a table is a mapping of a name
and of the keywords of what the name picks. Every value is checked when the factory is called, from Python and from a
config alike; traced numbers pass.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from cljax.errors import ConfigError, choose, shown
from cljax.passed import check_passed, made_for

LARGEST = {int: 2**31 - 1, float: 3e38}  # what int32 and float32 hold
SMALLEST = 1.2e-38  # what float32 tells from 0
PLAIN = (bool, int, float, str)  # what a config holds; a bool is an int, too
REQUIRED = inspect.Parameter.empty
Made = TypeVar("Made", bound=Callable[..., Any])


class Bound(NamedTuple):
  """What a keyword may be."""

  about: str  # a line for the person who sets it
  low: float = -math.inf
  high: float = math.inf
  open: bool = False  # `low` itself is refused
  words: tuple[str, ...] | None = None
  least: int = 0  # entries, where it holds several
  table: Callable[[], Mapping[str, Any]] | None = None  # that it is `chosen` from


class Field(NamedTuple):
  """One keyword of a factory."""

  kind: Any  # its type: int, float, bool, str, tuple[int, ...], a union of these, or anything else
  bound: Bound
  default: Any  # REQUIRED where there is none


def at_least(low: float, about: str, high: float = math.inf, least: int = 1) -> Bound:
  """A number of `low` or more, up to `high`; or several, at least `least` of them."""
  return Bound(about, low, high, least=least)


def above(low: float, about: str, high: float = math.inf) -> Bound:
  """A number over `low`, up to `high`."""
  return Bound(about, low, high, open=True, least=1)


def any_number(about: str) -> Bound:
  """Any finite number, or several."""
  return Bound(about)


def one_of(words: Sequence[str], about: str) -> Bound:
  """One of these words."""
  return Bound(about, words=tuple(words))


def free(about: str) -> Bound:
  """Any word, true or false, or what only the factory can judge."""
  return Bound(about)


def chosen(table: Callable[[], Mapping[str, Any]], about: str) -> Bound:
  """A mapping {"name": a name of the table, and keywords of the declared factory that it picks}."""
  return Bound(about, table=table)


def is_record(default: Any) -> bool:
  """Whether a default is a NamedTuple, which stands for its fields."""
  return isinstance(default, tuple) and hasattr(default, "_fields")


def field_of(annotation: Any, default: Any) -> Field:
  """The field of an annotation, `Annotated[kind, bound]` or a kind alone."""
  if typing.get_origin(annotation) is typing.Annotated:
    kind, *extras = typing.get_args(annotation)
    bound = next((extra for extra in extras if isinstance(extra, Bound)), free(""))
    nothing = default is None or default is REQUIRED  # of a choice from a table: it may be left out
    return Field(kind, bound, {"name": "none"} if bound.table and nothing else default)
  return Field(annotation, free(""), default)


def hints_of(factory: Any) -> dict[str, Any]:
  """The annotations of a function or a class; {} where they name what cannot be found, as in some libraries."""
  try:
    return typing.get_type_hints(inspect.unwrap(factory), include_extras=True)
  except (NameError, TypeError, AttributeError):
    return {}


@functools.cache
def fields(factory: Any, given: int = 0) -> Mapping[str, Field]:
  """The keywords of a factory or of a net's class, without the first `given` that the engine passes; records opened."""
  return types.MappingProxyType(fields_of(factory, given))


def fields_of(factory: Any, given: int) -> dict[str, Field]:
  """The same, read anew."""
  if isinstance(factory, type) and not hasattr(factory, "_fields"):
    skipped = ("parent", "name", "heads", "classes")
    hints = typing.get_type_hints(factory, include_extras=True)
    own = getattr(factory, "__dataclass_fields__", {})
    return {
      name: field_of(hints[name], REQUIRED if field.default.__class__.__name__ == "_MISSING_TYPE" else field.default)
      for name, field in own.items()
      if name not in skipped and field.init
    }
  target = inspect.unwrap(factory)
  hints = typing.get_type_hints(target, include_extras=True)
  found: dict[str, Field] = {}
  for name, parameter in list(inspect.signature(target).parameters.items())[given:]:
    if is_record(parameter.default):
      kinds = typing.get_type_hints(type(parameter.default), include_extras=True)
      found |= {key: field_of(kinds[key], getattr(parameter.default, key)) for key in parameter.default._fields}
    elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
      found[name] = field_of(hints.get(name, Any), parameter.default)
  return found


def kinds_of(kind: Any) -> tuple[Any, ...]:
  """The alternatives of a union, or the kind alone."""
  return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def expected(kind: Any) -> str:
  """A kind in words."""
  words = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "none"}
  kinds = [one for one in kinds_of(kind) if one is not Any]
  if len(kinds) == 1 and typing.get_origin(kinds[0]) is tuple:
    inner = typing.get_args(kinds[0])[0]
    below = {
      int: "whole numbers such as (2, 1)",
      float: "numbers such as (0.5, 0.1)",
      str: "words, such as ('a', 'b')",
    }
    return f"several of them, {below.get(inner, 'tuples such as ((0, 1), (2, 3))')}"
  found = [words.get(typing.get_origin(one) or one, "several of them") for one in kinds]
  return " or ".join(dict.fromkeys(found))


def check(name: str, value: Any, field: Field, whole: Any = None) -> Any:
  """The value if the field may have it, a list as a tuple and a whole number as the float that is asked for.

  Args:
    whole: what the message shows, where the value is one of several.

  Raises:
    ConfigError: another type, or outside the bound; says what is allowed.
  """
  kinds = kinds_of(field.kind)
  plain = {one for one in kinds if one in (bool, int, float, str)}
  several = [one for one in kinds if typing.get_origin(one) in (tuple, list, Sequence)]
  if (value is None and type(None) in kinds) or field.bound.table or isinstance(value, jax.core.Tracer):
    return value
  if isinstance(value, jax.Array | np.ndarray) and (plain or several):
    if float in plain and value.shape == ():
      number = number_of(value)
      check_one(name, number, number, field.kind, field.bound)
      return value  # it may be one of the numbers that a program is compiled for
    value = value.tolist()
  if several and isinstance(value, tuple | list):
    inner = Field(typing.get_args(several[0])[0], field.bound, REQUIRED)
    if len(value) < field.bound.least:
      text = shown(value if whole is None else whole)
      raise ConfigError(f"{name}={text} holds {len(value)} values where the least is {field.bound.least}")
    return tuple(check(name, each, inner, value) for each in value)
  if not plain and not several:
    return value
  return check_one(name, value if whole is None else whole, value, field.kind, field.bound)


def number_of(array: Any) -> Any:
  """What an array of one number holds, in the digits of its type: the .3 of float32, a little more than the plain .3,
  is within a bound of .3."""
  if isinstance(array, jax.Array) and not jax.dtypes.issubdtype(array.dtype, np.number):
    return array.tolist() if array.dtype == bool else array  # keys of random numbers hold none
  number = np.asarray(array)[()]
  return float(str(number)) if jax.dtypes.issubdtype(number.dtype, np.floating) else number.item()


def digits(number: float) -> str:
  """A bound, a whole number with all its digits unless it has very many."""
  return str(int(number)) if number == int(number) and abs(number) < 1e15 else f"{number:g}"


def check_one(name: str, whole: Any, value: Any, kind: Any, bound: Bound) -> Any:
  """One value of a field whose text is `whole`, as `check`."""
  kinds, text = kinds_of(kind), shown(whole)
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
    value = float(value) if abs(value) <= LARGEST[float] else math.inf
  if callable(value) and any(typing.get_origin(one) is Callable for one in kinds):
    return value
  if type(value) not in kinds:
    raise ConfigError(f"{name}={text} must be {expected(kind)}")
  if bound.words is not None and isinstance(value, str):
    return choose(name, value, bound.words)
  if isinstance(value, bool) or not isinstance(value, int | float):
    return value
  if isinstance(value, float) and not math.isfinite(value):
    raise ConfigError(f"{name}={text} is not a finite number")
  if value < bound.low or (bound.open and (value == bound.low or value < bound.low + SMALLEST)):
    least = f"it must be above {digits(bound.low)}" if bound.open else f"the least is {digits(bound.low)}"
    raise ConfigError(f"{name}={text} is too small; {least}")
  high = min(bound.high, LARGEST[type(value)])
  if abs(value) > high if value < 0 else value > high:
    raise ConfigError(f"{name}={text} is too large; the most is {digits(high)}")
  return value


def checked(section: str, known: Mapping[str, Field], given: Mapping[str, Any], command: str = "") -> dict[str, Any]:
  """The keywords of a section, each checked.

  Args:
    command: what lists them, see `choose`.

  Raises:
    ConfigError: an unknown keyword or a wrong value; named as `config.<section>.<keyword>`.
  """
  for name in given:
    choose(f"config.{section} field", name, known, command)
  return {name: check(f"config.{section}.{name}", value, known[name]) for name, value in given.items()}


def declared(section: str, given: int = 0) -> Callable[[Made], Made]:
  """A factory whose keywords, after the first `given` parameters, are checked and may stand for fields of records."""

  def declare(factory: Made) -> Made:
    parameters = list(inspect.signature(factory).parameters.values())
    records = {p.name: p.default for p in parameters[given:] if is_record(p.default)}
    home = {field: name for name, default in records.items() for field in default._fields}
    known, passed = fields(factory, given), [p.name for p in parameters[:given]]

    @functools.wraps(factory)
    def call(*args: Any, **keywords: Any) -> Any:
      keywords |= dict(zip([p.name for p in parameters[given:]], args[given:], strict=False))
      args = args[:given]
      check_passed(section, factory, passed, args)
      whole = {name: keywords.pop(name) for name in records if is_record(keywords.get(name))}
      opened = {key: value for record in whole.values() for key, value in record._asdict().items()}
      keywords = checked(section, known, {**opened, **keywords})
      for name, default in records.items():
        own = {key: keywords.pop(key) for key in default._fields if key in keywords}
        keywords[name] = default._replace(**own)
      return made_for(factory(*args, **keywords), args)

    flat = [*parameters[:given]]
    for parameter in parameters[given:]:
      names = records[parameter.name]._fields if parameter.name in records else (parameter.name,)
      for name in names:
        flat.append(inspect.Parameter(name, parameter.kind, default=known[name].default))
    call.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    call.homes = home  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]

  return declare


class Checked:
  """A net's class whose fields are checked when it is made: a base beside `nn.Module`, before it."""

  def __post_init__(self) -> None:
    known: Any = type(self)  # mypy takes the class for one without a hash
    for name, field in fields(known).items():
      object.__setattr__(self, name, check(f"config.net.{name}", getattr(self, name), field))
    super().__post_init__()  # type: ignore[misc]
