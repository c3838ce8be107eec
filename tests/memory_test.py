"""What no device can hold, or no whole number count, is refused before anything is made."""

import jax
import jax.numpy as jnp
import pytest

from cljax.config import complete, default
from cljax.data import bank, join
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.memory import bytes_of, device_bytes, product_bytes
from cljax.recipe import check_apart
from tests import toys


def test_bytes_of_arrays_and_of_their_shapes():
  tree = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(7, jnp.int8), "c": None}
  assert bytes_of(tree) == bytes_of(jax.eval_shape(lambda: tree)) == 67


def test_the_machine_tells_its_memory():
  assert 2**28 < device_bytes(jax.devices()[0]) < 2**50


def test_too_large_a_state_is_one_clear_line():
  config = default()
  config.stream = {"name": "permuted", "source": "digits", "tasks": 2}
  config.net = {"name": "mlp", "hidden": (1_000_000, 1_000_000)}
  with pytest.raises(ConfigError, match=r"takes [\d,.]+ GiB, but cpu has [\d.]+ GiB: lower the widths"):
    build(complete(config))


ABSURD = [
  ({"method": {"name": "finetune", "batch_size": 10**9}}, r"1000000000 rows of a step take 238.4 GiB, but cpu has"),
  (
    {"method": {"name": "er", "capacity": 10**9}},
    r"its copy where it is saved, take 29.8 GiB",
  ),
  (
    {"method": {"name": "er", "capacity": 10**8, "replay": 10**8}},
    r"100000010 rows of a step and the places of a chunk take .* GiB, but cpu has .*: lower config.method.batch_size",
  ),
  (
    {"keys": {"evaluate_group": 10**6}, "hidden": (10**5,)},
    r"1000000 test rows at once take .* GiB",
  ),
  (
    {"keys": {"chunk": 10**6}, "method": {"name": "finetune", "batch_size": 10**5, "epochs": 10**6}},
    r"chunk take .* GiB",
  ),
  (
    {"method": {"name": "finetune", "epochs": 10**9}},
    r"the run has 147,000,000,000 steps, and the most is",
  ),
  ({"keys": {"steps_per_task": 2**31 - 1}}, "the run has 10,737,418,235 steps, and the most is 2,147,483,647"),
  (
    {"keys": {"steps_per_task": 10**8, "looks": ("output_within",), "look_every_steps": 1}},
    "config.look_every_steps=1 makes 500,000,000 looks of 500,000,000 steps, and the most is 1,000,000: raise it",
  ),
  (
    {"keys": {"looks": ("valid", "watch")}, "valid_per_task": 9, "method": {"name": "finetune", "epochs": 10**6}},
    "phase 'fit' has 1,000,000 epochs in each of 5 tasks with something to do after each",
  ),
]


@pytest.mark.parametrize(("changes", "words"), ABSURD, ids=range(len(ABSURD)))
def test_absurd_sizes_are_refused_with_the_number(monkeypatch, changes, words):
  monkeypatch.setattr("cljax.memory.device_bytes", lambda device: 2**34)
  own = {"method": {"name": "finetune"}, **changes}
  with pytest.raises(ConfigError, match=words):
    build(toys.config_of(own.pop("method"), **own))


def test_products_of_all_layers_are_counted():
  def net(x):
    return jnp.dot(jax.jit(lambda x: jnp.dot(x, jnp.zeros((4, 7))))(x), jnp.zeros((7, 3))).sum()

  assert product_bytes(jax.make_jaxpr(net)(jnp.zeros((2, 4))).jaxpr) == 4 * (2 * 7 + 2 * 3)


def test_pictures_brought_to_an_absurd_size_are_refused(monkeypatch):
  """1,797 digits as 1024x1024x3, twice in memory: 10.5 GiB."""
  monkeypatch.setattr(join, "host_bytes", lambda: 2**33)
  with pytest.raises(ConfigError, match=r"1,797 pictures take 10.5 GiB, but this machine has 8.0 GiB: lower"):
    join.load("digits", None, 1024, 3)


def test_seeds_whose_streams_do_not_fit_are_refused(monkeypatch):
  monkeypatch.setattr("cljax.recipe.host_bytes", lambda: 10_000)
  one, other = ({"own": jnp.full(100, k), "shared": jnp.zeros(10_000)} for k in (0, 1))
  check_apart(one, other, 10)
  with pytest.raises(ConfigError, match="the streams of 13 seeds take"):
    check_apart(one, other, 13)
  assert bank.load("digits").train.x.nbytes > 10_000  # what is shared is not counted


def test_a_chunk_is_no_longer_than_what_there_is_to_do():
  assert build(toys.config_of({"name": "finetune"}, keys={"chunk": 10**6})).timeline.chunk < 100
