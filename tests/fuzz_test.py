"""Every field of every section for every method, with all kinds of words, as the command line parses them: each is
refused in one line, or makes an experiment whose run is finite."""

import contextlib
import itertools
import json

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from cljax.config import complete, default
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.methods import METHODS
from cljax.overrides import relabel
from cljax.run import train
from cljax.workdir import flatten
from launch import config_flag
from tests.declared_test import GOES_WITH

WORDS = (
  *("0", "1", "2", "-1", "-5", "2147483647", "2147483648", "1000000000", "100000000000000000000", "7" * 400),
  *("3.5", "1e-3", "1e30", "-1e30", "1e400", "nan", "inf"),
  *("", "None", "true", "no such word", "a,b", "../x", "{seed}", "{x}"),
  *("()", "(1,)", "(0,0)", "(2.5,1)", "('a',)", "((1,2),(3,4))", "((1,1),())", "[1]", "{}", "{'name':'x'}"),
)
SAMPLED = 601  # a prime: one of so many cases is walked in the suite
NETS = {"stack": {"channels": (3, 3), "pools": (2, 1), "hidden": (4,)}, "mlp": {"hidden": (8, 8)}}
NETS["routed_mlp"] = {"widths": (3, 3), "experts": 4}
QUICK = {"autoencoder_epochs": 1, "gate_epochs": 1, "code": 4}


def config_of(method: str) -> ConfigDict:
  """Two seeds of a small net on few digits."""
  net, stream = GOES_WITH.get(method, ("mlp", "split"))
  it = default()
  it.num_seeds = 2
  it.net = {"name": net, **NETS[net]}
  it.stream = {"name": stream, "source": "digits", "examples_per_task": 40, "valid_per_task": 10}
  it.method = {"name": method}
  found = complete(it)
  for key, value in QUICK.items():
    if key in found.method:
      found.method[key] = value
  return found


CONFIGS = {method: config_of(method) for method in METHODS}
CASES = [
  (method, key, word)
  for method, config in CONFIGS.items()
  for key, word in itertools.product(sorted(flatten(config.to_dict())), WORDS)
]


def parsed(method: str, key: str, word: str) -> ConfigDict:
  """The config after `--config.<key>=word`, as `launch.train` has it."""
  line = ["launch", f"--config.{key}={word}"]
  words = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    "config", complete(CONFIGS[method]), lock_config=True, flag_values=words, sys_argv=line
  )
  words(line)
  relabel(words.config, config_flags.get_override_values(words["config"]))
  return complete(words.config)


def refusal_of(method: str, key: str, word: str, whole: bool = False) -> str | None:
  """Why a word is refused; None where it is not.

  Args:
    whole: what is not refused is trained, cut short.
  """
  where = f"{method}: --config.{key}={word[:60]}"
  try:
    config = parsed(method, key, word)
    assert json.dumps(config.to_dict())
    if not whole:
      build(config)
      return None
    config.debug = True
    outcome = train(config, quiet=True)
  except flags.UnrecognizedFlagError as error:
    raise AssertionError(f"{where} cannot be set") from error
  except (ConfigError, flags.Error) as error:
    assert len(str(error).splitlines()) == 1, f"{where}: {error}"
    return str(error)
  except Exception as error:
    raise AssertionError(f"{where} ended in {type(error).__name__}: {error}") from error
  for one in outcome.sweep or (outcome,):
    assert np.isfinite(one.result["metrics"]["ACC"]["mean"]), where
  return None


@pytest.fixture(autouse=True)
def sixteen_gibibytes(monkeypatch):
  assert config_flag.by_attribute is not config_flag.config_path._get_item_or_attribute  # as the mains have it
  monkeypatch.setattr("cljax.memory.device_bytes", lambda device: 2**34)
  monkeypatch.setattr(ConfigDict, "__str__", object.__repr__)  # the text of a default, which nobody reads


def test_words_of_a_command_line_are_refused_or_make_an_experiment():
  found = [refusal_of(*case) for case in CASES[::SAMPLED]]
  assert len(found) > 50 and 0.5 < np.mean([each is not None for each in found]) < 0.98


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_all_words_of_all_fields(method):
  for case in CASES:
    if case[0] == method:
      refusal_of(*case)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_extremes_that_are_taken_are_finite_runs(method):
  """Of each of the method's own fields: the last of the words that make an experiment, run."""
  for key in sorted(flatten(CONFIGS[method].to_dict())):
    if not key.startswith("method."):
      continue
    for word in reversed(WORDS):
      if refusal_of(method, key, word) is None:
        with contextlib.suppress(ConfigError):
          refusal_of(method, key, word, whole=True)
        break
