"""A state that no device can hold is refused before anything is made."""

import jax
import jax.numpy as jnp
import pytest

from cljax.config import complete, default
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.memory import bytes_of, device_bytes


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
