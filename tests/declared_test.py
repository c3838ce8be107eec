"""Keywords with their range: no value of any of them ends in a traceback, from Python and from a config."""

import functools
import inspect
import math
import sys
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from cljax.config import complete, default
from cljax.data import STREAMS, bank
from cljax.data.folder import Shape
from cljax.data.pictures import Pictures
from cljax.declared import REQUIRED, Bound, above, at_least, declared, fields, kinds_of, one_of
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.nets import MLP, NETS, RoutedMLP, Stack
from cljax.pieces.gates import GATES
from cljax.pieces.guards import GUARDS
from cljax.pieces.guards.examples import Answer
from cljax.pieces.optimizers import OPTIMIZERS, sgd
from cljax.recipe import build_stream, recipe
from cljax.types import Method, Spec
from tests.tiers import at_release

WRONG = (
  *(-5, 0, -1, 1, 2**40, 10**400, -(2**40)),
  *(-0.5, 0.0, 1e30, -1e300, 1e300, math.nan, math.inf, -math.inf),
  *("", "no such word", None, True, (), (0,), (-1, 2), ("a",), ((),), (math.nan,), [1.5], {}, {"name": "x"}, object()),
)
GIVEN = {"stream": 2, "net": 0, "optimizer": 1, "method": 3, "guard": 2, "gate": 1}
TABLES = {"stream": STREAMS, "net": NETS, "optimizer": OPTIMIZERS, "method": METHODS, "guard": GUARDS, "gate": GATES}
FACTORIES = [(section, name) for section, table in TABLES.items() for name in sorted(table)]


class Pace(NamedTuple):
  rows: Annotated[int, at_least(1, "a step", 100)] = 10
  rate: Annotated[float | None, above(0, "of learning")] = None


@declared("method", given=1)
def toy(
  net: str,
  *,
  k: Annotated[int | Sequence[int], at_least(1, "active")] = 4,
  pace: Pace = Pace(),
  how: Annotated[str, one_of(("this", "that"), "of two")] = "this",
) -> tuple:
  return net, k, pace, how


def test_a_record_stands_for_its_fields():
  assert toy("n", rows=3, k=[1, 2]) == ("n", (1, 2), Pace(3), "this")
  assert toy("n", pace=Pace(7), rate=1) == ("n", 4, Pace(7, 1.0), "this")
  assert list(inspect.signature(toy).parameters) == ["net", "k", "rows", "rate", "how"]
  assert {name: field.default for name, field in fields(toy, 1).items()} == {
    "k": 4,
    "rows": 10,
    "rate": None,
    "how": "this",
  }


@pytest.mark.parametrize(
  ("keywords", "message"),
  [
    ({"k": 0}, "config.method.k=0 is too small; the least is 1"),
    ({"k": ()}, "config.method.k=() holds 0 values where the least is 1"),
    ({"k": (2, -1)}, r"config.method.k=(2, -1) is too small; the least is 1"),
    ({"k": True}, "config.method.k=True must be a whole number or several of them"),
    ({"rows": 1.5}, "config.method.rows=1.5 must be a whole number"),
    ({"rows": 10**400}, f"config.method.rows=1{'0' * 59}... is too large; the most is 100"),
    ({"rows": 101}, "config.method.rows=101 is too large; the most is 100"),
    ({"rate": 0}, "config.method.rate=0 is too small; it must be above 0"),
    ({"rate": 1e-50}, "config.method.rate=1e-50 is too small; it must be above 0"),
    ({"rate": math.nan}, "config.method.rate=nan is not a finite number"),
    ({"rate": 1e300}, "config.method.rate=1e+300 is too large; the most is 3e+38"),
    ({"rate": "x"}, "config.method.rate='x' must be a number or none"),
    ({"how": "thsi"}, "config.method.how='thsi' is not known. Did you mean this? Choose one of: this, that"),
    ({"rat": 1}, "config.method field='rat' is not known. Did you mean rate? Choose one of: k, rows, rate, how"),
  ],
)
def test_a_wrong_value_says_what_is_allowed(keywords, message):
  with pytest.raises(ConfigError) as caught:
    toy("n", **keywords)
  assert str(caught.value) == message


def test_traced_numbers_pass():
  assert float(jax.jit(lambda rate: toy("n", rate=rate)[2].rate * 2)(jnp.float32(3))) == 6


def test_a_net_is_checked_when_it_is_made():
  with pytest.raises(ConfigError, match="config.net.hidden"):
    MLP(heads=1, classes=2, hidden=(3, 0))
  assert MLP(heads=1, classes=2, hidden=[3]).clone(heads=2).hidden == (3,)


@pytest.mark.parametrize(("section", "name"), FACTORIES, ids=lambda part: part)
def test_every_keyword_has_its_line_and_its_range(section, name):
  """A number without a range could be anything; a keyword without a line tells nobody what it is."""
  for key, field in fields(TABLES[section][name], GIVEN[section]).items():
    where = f"{section} {name}: {key}"
    assert isinstance(field.bound, Bound) and field.bound.about, where
    assert field.default is not REQUIRED, where
    if str in kinds_of(field.kind) and not callable(field.default):
      assert field.bound.words or not set(field.bound.about.split()).isdisjoint({"file", "function", "rule"}), where


def own_fields(section, name):
  """The keywords of a factory; those that all streams share stand at one of them."""
  known = fields(TABLES[section][name], GIVEN[section])
  homes = {"split": Pictures._fields, "datasets": Shape._fields} if section == "stream" else {}
  shared = {key for home, keys in homes.items() if home != name for key in keys}
  return {key: field for key, field in known.items() if key not in shared}


@functools.cache
def digits():
  return bank.load("digits")


def made(section, name, **keywords):
  """What the factory makes, as the engine calls it; a method's state too, in shapes only."""
  spec = Spec((8, 8, 1), 3, 4, 3)
  factory = TABLES[section][name]
  if section == "stream":
    small = {"examples_per_task": 20} if "examples_per_task" in fields(factory, 2) else {}
    return factory(digits(), jax.random.key(0), **{**small, **keywords})
  if section == "net":
    net = factory(heads=3, classes=4, **keywords)
    gates = [[jnp.ones((1, net.experts))] * len(net.widths)] if hasattr(net, "experts") else []
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32), *gates)
  if section == "optimizer":
    return jax.eval_shape(factory(0.1, **keywords).init, {"w": jnp.zeros(3)})
  if section == "guard":
    return factory(Answer(lambda params, collections, batch: batch.y, {}), spec, **keywords)
  if section == "gate":
    return factory(spec, **keywords)
  method: Method = factory(*arguments(factory), **keywords)
  return (
    jax.eval_shape(method.init, jax.random.key(0)) if any(has_a_size(factory, 3, key) for key in keywords) else method
  )


@functools.cache
def arguments(factory):
  """What a method is given before its keywords: a net and heads that it takes."""
  spec = Spec((8, 8, 1), 3, 4, 3)
  for heads in (3, 1):
    own = spec._replace(heads=heads)
    for net in (MLP(heads, 4, (8, 8)), RoutedMLP(heads, 4, (3, 3), 6), Stack(heads, 4, (3, 3), pools=(2, 1))):
      given = net, 0.1 if list(inspect.signature(factory).parameters)[1] == "lr" else sgd(0.1), own
      try:
        factory(*given)
      except ConfigError:
        continue  # this method takes another net or other heads
      return given
  raise AssertionError("no net of these fits the method")


def has_a_size(factory, given, key):
  """Whether a keyword may decide about a shape; no rate does."""
  kinds = kinds_of(fields(factory, given)[key].kind)
  return bool({int, bool, tuple} & {getattr(kind, "__origin__", kind) for kind in kinds})


@pytest.mark.parametrize(("section", "name"), FACTORIES, ids=lambda part: part)
def test_no_value_of_any_keyword_ends_in_a_traceback(section, name):
  """Each keyword with each wrong value: it is taken, or refused in words."""
  known = own_fields(section, name)
  refused = 0
  for key in known:
    for value in WRONG:
      try:
        made(section, name, **{key: value})
      except ConfigError as error:
        refused += 1
        assert key in str(error) or "config." in str(error), (key, value, str(error))
      except Exception as error:
        raise AssertionError(f"{section} {name}: {key}={value!r} ended in {type(error).__name__}: {error}") from error
  assert refused or not known


# A word of each kind that the parser of flags tells apart; the values themselves are walked above.
TYPED = ("1", "-5", "1e30", "nan", "1" * 400, "", "None", "no such word", "()", "('a',)")
GOES_WITH = {
  "apd": ("stack", "split"),
  "darts": ("stack", "split"),
  "den": ("stack", "split"),
  "lasem": ("stack", "split"),
  "progressive": ("stack", "split"),
  "routing": ("routed_mlp", "permuted"),
  "subnetwork": ("mlp", "subsets"),
}


def typed(monkeypatch, section, name, key, word):
  """What a launcher does with `--config.<section>.<key>=word`, up to the method and the data."""
  method = name if section == "method" else "finetune"
  net, stream = GOES_WITH.get(method, ("mlp", "split"))
  if name == "routed_mlp":
    method, net = "routing", name
  config = default()
  config.net = {"name": name if section == "net" else net}
  config.stream = {"name": name if section == "stream" else stream, "source": "digits"}
  config.method = {"name": method} | ({"guard": {"name": name}} if section == "guard" else {})
  config.gate = {"name": name if section == "gate" else "none"}
  place = {"guard": "method.guard"}.get(section, section)
  line = ["launch", f"--config.{place}.{key}={word}"]
  monkeypatch.setattr(ConfigDict, "__str__", object.__repr__)  # the text of a default, which nobody reads, took longest
  monkeypatch.setattr(sys, "argv", line)  # where ml_collections looks for overrides
  words = flags.FlagValues()
  config_flags.DEFINE_config_dict("config", complete(config), flag_values=words)
  words(line)
  config = complete(words.config)
  if section == "stream":
    return build_stream(config, (0,), None)
  made = recipe(config, Spec((8, 8, 1), 3, 4, 1 if method == "subnetwork" else 3))({})
  sized = has_a_size(TABLES[section][name], GIVEN[section], key)
  return jax.eval_shape(made.init, jax.random.key(0)) if sized else made


ON_A_LINE = [(section, name) for section, name in FACTORIES if section != "optimizer"]  # whose keys stand in configs
FIRST = ("er", "lasem", "routing")  # of methods, with all kinds of keywords between them
SOME = [case for case in ON_A_LINE if case[0] != "method" or case[1] in FIRST]
OTHERS = at_release(*(case for case in ON_A_LINE if case not in SOME))


@pytest.mark.parametrize(("section", "name"), [*SOME, *OTHERS], ids=lambda part: part)
def test_no_word_of_a_command_line_ends_in_a_traceback(monkeypatch, section, name):
  """The same from the shell: parsed, completed and built, or refused by the flags or in words."""
  refused = taken = 0
  for key, field in own_fields(section, name).items():
    if key == "guard":
      continue  # a section of its own
    for word in (*TYPED, *(field.bound.words or ())[:1]):
      try:
        typed(monkeypatch, section, name, key, word)
        taken += 1
      except flags.UnrecognizedFlagError as error:
        raise AssertionError(f"{section} {name}: {key} cannot be set") from error
      except (ConfigError, flags.Error):
        refused += 1
      except Exception as error:
        raise AssertionError(f"{section} {name}: {key}={word} ended in {type(error).__name__}: {error}") from error
  assert refused and taken
