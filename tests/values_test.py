"""Configs as a person writes them in Python: numbers of numpy and JAX are plain ones, mistakes are refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import required_placeholder

from cljax.config import OUTER, complete, default
from cljax.data import STREAMS
from cljax.declared import Field, at_least, check, fields
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.pieces.guards import GUARDS
from cljax.pieces.optimizers import OPTIMIZERS, sgd
from cljax.values import plain


def config(**changes):
  """Any values under dotted names."""
  it = default().to_dict()
  it["stream"] = {"name": "split", "source": "digits"}
  return changed(it, **changes)


def changed(it, **changes):
  """The config with these values set by hand."""
  for key, value in changes.items():
    *sections, field = key.split("__")
    place = it
    for name in sections:
      place = place[name]
    place[field] = value
  return it


GIVEN = {
  "num_seeds": (np.int64(2), jnp.int32(2), np.array(2), 2),
  "seed": (np.uint8(3), 3),
  "debug": (np.bool_(True), jnp.array(True), True),
  "looks": (["before_exit"], ("before_exit",)),
  "stream__tasks": (np.int32(5), jnp.array(5), 5),
  "stream__scenario": (np.str_("class"), "class"),
  "net__hidden": (np.array([8, 4]), jnp.array([8, 4]), [np.int64(8), 4], [8, 4], (8, 4)),
  "optimizer__lr": (np.float64(0.25), np.float32(0.25), jnp.float32(0.25), 0.25),
  "method__epochs": (np.int8(2), jnp.int32(2), 2),
  "sweep__lr": (np.array([0.5, 0.25]), [jnp.float32(0.5), 0.25], (0.5, 0.25)),
}


@pytest.mark.parametrize("key", GIVEN)
def test_numbers_of_numpy_and_jax_are_plain(key):
  told = [complete(config(**{key: value})).to_dict() for value in GIVEN[key]]
  told += [complete(changed(complete(config()), **{key: value})).to_dict() for value in GIVEN[key]]  # of a ConfigDict
  assert json.dumps(told[0]) and all(each == told[-1] for each in told)
  found = told[0]
  for name in key.split("__"):
    found = found[name]
  assert type(found) is type(GIVEN[key][-1]) and found == GIVEN[key][-1]


def test_a_whole_number_is_the_number_that_is_asked_for():
  """So a flag may give half of it afterwards."""
  it = complete(config(optimizer__lr=1))
  it.optimizer.lr = 0.5
  assert complete(it).optimizer.lr == 0.5


MISTAKES = [
  ({"num_seed": 3}, "config key='num_seed' is not known. Did you mean num_seeds?"),
  ({"mehtod": {"name": "er"}}, "config key='mehtod' is not known. Did you mean method?"),
  ({"method__epoch": 3}, "config.method field='epoch' is not known. Did you mean epochs?"),
  ({"method__epochs": "3"}, "config.method.epochs='3' must be a whole number"),
  ({"method__epochs": 2.0}, "config.method.epochs=2.0 must be a whole number"),
  ({"method__epochs": lambda: 3}, "is of type function, but a config holds numbers"),
  ({"method": {"name": "er", "capacity": 1e3}}, "config.method.capacity=1000.0 must be a whole number"),
  ({"method": {"name": "er", "guard": "ewc"}}, "config.method.guard='ewc' must be a mapping, such as {'name': 'ewc'}"),
  (
    {"method": {"name": "er", "guard": {"name": "ewc", "strength": "strong"}}},
    "config.method.guard.strength='strong' must be a number",
  ),
  ({"method": {"name": "er", "guard": None}}, "config.method.guard=None must be a mapping, such as {'name': 'ewc'}"),
  (
    {"method": {"name": "er", "guard": {"name": "none", "strength": 3.0}}},
    "config.method.guard.strength=3.0 means nothing to config.method.guard.name='none', set config.method.guard.",
  ),
  ({"stream__tasks": "two"}, "config.stream.tasks='two' must be a whole number"),
  ({"stream__source": 3}, "config.stream.source=3 must be a word"),
  ({"stream": {"name": "split", "source": None}}, "config.stream.source=None must be a word"),
  ({"stream": "split"}, "config.stream='split' must be a mapping, such as {'name': 'permuted', 'source': 'digits'}"),
  ({"net__hidden": 100}, "config.net.hidden=100 must be several of them, whole numbers such as (2, 1)"),
  ({"net__hidden": "abc"}, "config.net.hidden='abc' must be several of them"),
  ({"net__hidden": (64.5,)}, "config.net.hidden=(64.5,) must be a whole number"),
  ({"net__hidden": ((64,),)}, "config.net.hidden=((64,),) must be a whole number"),
  ({"optimizer": {"name": "adam"}}, "config.optimizer.lr is missing: the learning rate, for example 0.1"),
  ({"optimizer": {"name": "adm", "lr": 0.1}}, "config.optimizer.name='adm' is not known. Did you mean adam?"),
  ({"optimizer__lr": "fast"}, "config.optimizer.lr='fast' must be a number"),
  ({"optimizer__momentun": 0.9}, "config.optimizer field='momentun' is not known. Did you mean momentum?"),
  ({"sweep__lr": 0.1}, "config.sweep.lr=0.1 must be several values, such as (0.1, 0.03)"),
  ({"sweep": (0.1, 0.3)}, "config.sweep=(0.1, 0.3) must be a mapping, such as {'lr': (0.1, 0.03)}"),
  ({"seed": 2**31}, "config.seed=2147483648 is too large; the most is 2147473647"),
  ({"seed": 1.7e9}, "config.seed=1700000000.0 must be a whole number"),
  ({"chunk": "long"}, "config.chunk='long' must be a whole number"),
  ({"num_seeds": {"a": 1}}, "config.num_seeds={'a': 1} must be a whole number"),
  ({"cell": 3}, "config.cell=3 must be a word"),
  ({"matmul_precision": "higest"}, "config.matmul_precision='higest' is not known. Did you mean highest?"),
  ({"net__hidden": {8, 4}}, "is of type set, but a config holds numbers"),
  ({"stream__x": {1: 2}}, "config.stream.x has the key 1, but keys are words"),
]


@pytest.mark.parametrize(("changes", "words"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_in_a_config_is_one_line(changes, words):
  with pytest.raises(ConfigError) as caught:
    complete(config(**changes))
  assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_config_is_refused():
  with pytest.raises(ConfigError, match="a config is a ConfigDict"):
    complete("configs/quickstart.py")
  it = default()
  it.stream = {"name": "split", "source": "digits", "tasks": required_placeholder(int)}
  with pytest.raises(ConfigError, match="lacks a value"):
    complete(it)


def test_a_key_of_random_numbers_is_no_number():
  with pytest.raises(ConfigError, match=r"x=.* is of type"):
    plain("x", jax.random.key(0))


def test_arrays_are_checked_where_a_factory_is_called_from_python():
  field = fields(METHODS["er"], 3)["capacity"]
  assert check("capacity", jnp.int32(5), field) == 5 and type(check("capacity", np.array(5), field)) is int
  with pytest.raises(ConfigError, match="must be a whole number"):
    check("capacity", np.array([5, 6]), field)
  with pytest.raises(ConfigError, match=r"config.optimizer.momentum=.* must be a number"):
    sgd(0.1, momentum=np.array([0.5, 0.5]))
  with pytest.raises(ConfigError, match=r"config.optimizer.momentum=<function .* must be a number"):
    sgd(0.1, momentum=lambda count: 0.5)


@pytest.mark.parametrize(
  ("value", "words"),
  [
    (jnp.float32(-1), "strength=-1.0 is too small; the least is 0"),
    (np.array(-1.0), "strength=-1.0 is too small; the least is 0"),
    (np.array(np.nan), "strength=nan is not a finite number"),
    (np.array(np.inf, np.float32), "strength=inf is not a finite number"),
    (np.array(True), "strength=True must be a number"),
    (np.array("x"), "strength='x' must be a number"),
    (np.array(1j), "strength=1j must be a number"),
    (jax.random.key(0), "strength=.* must be a number"),
  ],
)
def test_an_array_of_one_number_is_within_the_range_too(value, words):
  with pytest.raises(ConfigError, match=f"config.method.guard.{words}") as caught:
    GUARDS["ewc"](None, None, strength=value)
  assert "\n" not in str(caught.value)


def test_an_array_of_one_number_stays_one_and_rounding_is_no_step_over_a_bound():
  """The .3 of float32 is a little more than .3."""
  for array in (np.array(0.3, np.float32), jnp.float32(0.3), np.array(0.3, np.float16), np.array(0.3)):
    assert check("share", array, Field(float, at_least(0, "", 0.3), 0.1)) is array


@pytest.mark.parametrize("k", [(4, 3), 5])
def test_a_field_of_one_or_several_takes_both(k):
  it = default()
  it.stream, it.net = {"name": "permuted", "source": "digits", "tasks": 2}, {"name": "routed_mlp", "widths": (4, 4)}
  it.method = {"name": "routing", "k": k}
  it = complete(it)
  assert it.method.k == k
  it.method.k = (4, 2)
  assert build(complete(it)).config["method"]["k"] == (4, 2)


def test_no_keyword_hides_behind_a_method_of_the_config_class():
  """Flags reach `update` (launch/config_flag.py, and declared_test.py sets it); Python reads it as method["update"]."""
  tables = ((STREAMS, 2), (NETS, 0), (OPTIMIZERS, 1), (METHODS, 3), (GUARDS, 2))
  names = {key for table, given in tables for factory in table.values() for key in fields(factory, given)}
  assert {"update"} == ({*names, *OUTER, *default()} & set(dir(ConfigDict)))
