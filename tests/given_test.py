"""What Python gives to `fit` and `train`: a wrong kind is one line that names the argument, before anything is made."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

import cljax
from cljax import run
from cljax.data.bank import load
from cljax.errors import ConfigError, choose
from cljax.experiment import assemble
from cljax.methods import METHODS
from launch import cells

X, Y = np.arange(640, dtype=np.uint8).reshape(40, 4, 4), np.arange(40) % 4
PAIRS = [(X[:20], Y[:20]), (X[20:], Y[20:])]
SPEC, STREAM = cljax.from_arrays(PAIRS, PAIRS)


class Flat(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x.reshape(len(x), -1)


METHOD = cljax.METHODS["finetune"](cljax.headed(Flat(), SPEC), optax.sgd(0.1), SPEC)
WRONG = [
  ({"seeds": 3}, "seeds=3 must be whole numbers"),
  ({"seeds": "12"}, "seeds='12' must be whole numbers"),
  ({"seeds": np.zeros((2, 2), int)}, "seeds=array.* must be whole numbers"),
  ({"seeds": (0, 1, 0)}, "seeds=.* names a seed twice"),
  ({"hyper": 3}, "hyper=3 must be a mapping"),
  ({"axes": 3}, "axes=3 must be a stream of 0 or None"),
  ({"readouts": "task"}, "readouts='task' must be several words"),
  ({"readouts": 3}, "readouts=3 must be several words"),
  ({"labels": ("a",)}, "labels=.* must be cljax.settings.Labels"),
  ({"labels": cljax.run.UNNAMED._replace(cell="../x")}, "config.cell='../x' must be a short word"),
  ({"labels": cljax.run.UNNAMED._replace(preset="a\nb")}, "config.preset=.* must be a short word"),
  ({"workdir": 3}, "workdir=3 must be a path"),
  ({"workdir": b"x"}, "workdir=b'x' must be a path"),
  ({"workdir": "a\0b"}, "workdir=.* must be a path"),
  ({"workdir": ""}, "workdir='' must be a path"),
  ({"on_row": 3}, "on_row=3 must be a function"),
  ({"stop_asked": None}, "stop_asked=None must be a function"),
  ({"quiet": "no"}, "quiet='no' must be True or False"),
  ({"quiet": None}, "quiet=None must be True or False"),
  ({"data_hash": 3}, "data_hash=3 must be a word that tells the data apart"),
  ({"data_hash": "a\nb"}, "data_hash='a.*nb' must be a word"),
  ({"data_hash": np.zeros(2)}, "data_hash=array.* must be a word"),
  ({"method": 3}, "method=3 is no method"),
  ({"method": None}, "method=None is no method"),
  ({"method": cljax.METHODS["er"]}, r"method=er is a factory: call it, er\(net, tx, spec\)"),
  ({"method": lambda hyper: 3}, "a function that gives int"),
  ({"spec": 3}, "spec and stream are int and Stream"),
  ({"spec": STREAM, "stream": SPEC}, "spec and stream are Stream and Spec"),
  ({"stream": STREAM._replace(test=None)}, "or parts of them are missing"),
  ({"spec": SPEC._replace(heads=0)}, "spec.heads must be a whole number of at least 1"),
  ({"spec": SPEC._replace(x_shape=(4, 4.0, 1))}, r"spec.x_shape\[1\] must be a whole number"),
]


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
  monkeypatch.setattr(run, "perform", lambda *args: pytest.fail("it was taken"))


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_fit_refuses_what_is_of_another_kind(changes, words):
  with pytest.raises(ConfigError, match=words) as caught:
    cljax.fit(**{"method": METHOD, "spec": SPEC, "stream": STREAM, **changes})
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stream", [3, (1, 2), (SPEC,), (STREAM, SPEC)])
def test_train_refuses_what_is_no_spec_and_stream(stream):
  with pytest.raises(ConfigError, match="spec and stream are"):
    cljax.train(cljax.default(), stream=stream)


def test_train_refuses_changes_that_are_no_mapping():
  with pytest.raises(ConfigError, match="overrides=3 must be a mapping"):
    cljax.train(cljax.default(), overrides=3)


@pytest.mark.parametrize("data_dir", [5, b"x", "a\0b", ("a",)])
def test_a_data_dir_that_is_no_path_is_refused(data_dir):
  for source in ("digits", "mnist"):
    config = cljax.default()
    config.stream = {"name": "split", "source": source}
    with pytest.raises(ConfigError, match="data_dir=.* must be a path, as a word"):
      cljax.train(config, data_dir=data_dir)
  for given in ({"data_dir": data_dir}, {"cache_dir": data_dir}):
    with pytest.raises(ConfigError, match=f"{next(iter(given))}=.* must be a path"):
      load("mnist", **given)


def test_a_long_word_is_shown_by_its_beginning():
  with pytest.raises(ConfigError) as caught:
    cljax.fit(METHOD, SPEC, STREAM, **{"x" * 5000: 1})
  assert len(str(caught.value)) < 300
  for command in ("", "cljax list methods"):
    with pytest.raises(ConfigError) as caught:
      choose("config.method.name", "y" * 5000, METHODS, command)
    assert len(str(caught.value)) < 600 and "'yyy" in str(caught.value)


def test_a_hash_of_one_s_own_is_a_word():
  assert assemble(METHOD, SPEC, STREAM, data_hash="mine").data_hash == "mine"
  whole = assemble(METHOD, SPEC, STREAM, data_hash=None).data_hash
  assert whole == assemble(METHOD, SPEC, STREAM, data_hash="").data_hash and len(whole) == 64


@pytest.mark.parametrize("key", ["paper", "preset", "cell"])
def test_a_config_s_words_stay_in_one_line_and_below_their_folder(key):
  for word in ("a\nb", "a\tb", "x" * 300, *(("..", "/", "/etc", "a//b", "a/./b") if key != "preset" else ())):
    config = cljax.default()
    config[key] = word
    with pytest.raises(ConfigError, match=f"config.{key}=.* must be a short word"):
      cljax.train(config)


def test_types_that_jax_would_not_mix_are_refused():
  with jax.numpy_dtype_promotion("strict"), pytest.raises(ConfigError, match="JAX_NUMPY_DTYPE_PROMOTION=strict"):
    cljax.fit(METHOD, SPEC, STREAM)


def test_seeds_may_be_an_array_and_stand_twice_beside_other_numbers():
  assert assemble(METHOD, SPEC, STREAM, seeds=np.arange(2)).seeds == (0, 1)
  made = assemble(lambda hyper: METHOD, SPEC, STREAM, seeds=(0, 0), hyper={"lr": (0.1, 0.2)})
  assert made.seeds == (0, 0)


def test_cells_that_are_alike_are_no_two_cells():
  one, other = cljax.default(), cljax.default()
  one.cell, other.cell = "er", "finetune"
  with pytest.raises(ConfigError, match="the cells 'er' and 'finetune' are one and the same"):
    cells.check_apart({"er": one}, {"finetune": other})
  other.num_seeds = 2
  cells.check_apart({"er": one}, {"finetune": other})
  for section, name in (("method", "joint"), ("stream", "rotated")):  # the only difference of many cells
    other = cljax.default()
    other[section].name = name
    cells.check_apart({"er": one}, {"finetune": other})
  with pytest.raises(ConfigError, match="'er' and 'er' are one and the same"):
    cells.check_apart({"er": one}, {"er": other})
