"""What a factory is passed before its keywords: one line for each mistake, whatever the factory."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import cljax
from cljax.errors import ConfigError
from cljax.experiment import assemble
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.passed import check_passed
from cljax.pieces.gates import GATES
from cljax.types import Spec
from tests import toys

SPEC, DATA = toys.stream()
NET, TX = toys.mlp(SPEC), optax.sgd(0.1)
STEPS = [name for name, factory in METHODS.items() if list(inspect.signature(factory).parameters)[1] == "lr"]


class Foreign:
  """A net of another library."""

  def __call__(self, x, slot):
    return x


WRONG = [
  ((SPEC, NET, TX), r"spec=GradientTransformation.* is no cljax.types.Spec"),
  ((NET, SPEC, TX), "is no cljax.types.Spec"),
  ((NET, TX, None), "spec=None is no cljax.types.Spec"),
  ((NET, TX, SPEC._asdict()), "spec={'x_shape': .* is no cljax.types.Spec"),
  ((NET, TX), r"was called without spec: it comes before all keywords"),
  ((NET,), r"was called without (tx|lr): it comes"),
  ((), "was called without net"),
  ((nn.Dense, TX, SPEC), r"net=Dense is a class: call it, Dense\(...\), and give what it makes"),
  ((nn.Dense(4), TX, SPEC), r"net=Dense takes no slot: cljax.headed\(net, spec\) puts heads on it"),
  ((Foreign(), TX, SPEC), "net=<.*Foreign object.* is no flax.linen module"),
  ((Foreign, TX, SPEC), "net=<class .*Foreign.* is no flax.linen module"),
  ((None, TX, SPEC), "net=None is no flax.linen module"),
  ((TX, NET, SPEC), "net=GradientTransformation.* is no flax.linen module"),
  ((MLP(1, 4, (8,)), TX, SPEC), "net=MLP has heads=1 and the spec heads=3: make the net with heads=spec.heads"),
  ((MLP(3, 5, (8,)), TX, SPEC), "net=MLP has classes=5 and the spec C=4: make the net with classes=spec.C"),
]
TXS = [
  ((NET, 0.1, SPEC), r"tx=0.1 is no optax optimizer: give one, such as optax.sgd\(0.1\)"),
  ((NET, optax.sgd, SPEC), r"tx=<function sgd.* is no optax optimizer: give what it makes"),
  ((NET, METHODS["er"](NET, TX, SPEC), SPEC), "tx=Method.* is no optax optimizer"),
]
ROUTED = toys.routed(SPEC)
RATES = [
  ((ROUTED, rate, SPEC), "lr=.* is no rate of plain SGD steps")
  for rate in (TX, "0.1", None, 1j, True, np.ones(2), jax.random.key(0), lambda step: 0.1)
]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_of_a_net_an_optimizer_and_a_spec(name):
  for args, words in [*WRONG, *(RATES if name in STEPS else TXS)]:
    with pytest.raises(ConfigError, match=words) as caught:
      METHODS[name](*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert (", lr, spec)" if name in STEPS else ", tx, spec)") in str(caught.value)


@pytest.mark.parametrize("name", STEPS)
def test_a_rate_may_be_any_number(name):
  for rate in (0.1, 0, np.float32(0.1), jnp.float32(0.1), np.array(0.1)):
    METHODS[name](ROUTED, rate, SPEC)
  jax.jit(lambda rate: (METHODS[name](ROUTED, rate, SPEC), rate)[1])(0.1)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_is_made_of_a_spec(name):
  for args, words in (((), "was called without spec"), ((NET,), "spec=MLP.* is no cljax.types.Spec")):
    with pytest.raises(ConfigError, match=words) as caught:
      GATES[name](*args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("net", "spec", "words"),
  [
    (nn.Dense, SPEC, "net=Dense is a class"),
    (Foreign(), SPEC, "is no flax.linen module"),
    (nn.Dense(4), 3, "spec=3 is"),
  ],
)
def test_heads_are_put_on_a_net_for_a_spec(net, spec, words):
  with pytest.raises(ConfigError, match=words):
    cljax.headed(net, spec)


def test_other_sections_pass_what_they_like():
  check_passed("method", Foreign, ["net"], ["n"])
  check_passed("method.guard", Foreign, ["answer", "spec"], [None, None])


def made(spec, name="finetune"):
  return METHODS[name](toys.mlp(spec), TX, spec)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"T": 1, "heads": 1}, "made for a spec of T=1, heads=1, and that of the stream has T=3, heads=3: make it with"),
    ({"T": 2}, "made for a spec of T=2, and that of the stream has T=3"),
    ({"heads": 1}, "made for a spec of heads=1, and"),
    ({"C": 5}, "made for a spec of C=5, and that of the stream has C=4"),
    ({"x_shape": (5, 5, 1)}, r"made for a spec of x_shape=\(5, 5, 1\), and"),
    ({"boundaries": False}, "made for a spec of boundaries=False, and"),
  ],
)
def test_a_method_of_another_spec_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words) as caught:
    assemble(made(SPEC._replace(**changes)), SPEC, DATA)
  assert "\n" not in str(caught.value)


def test_a_method_of_several_heads_is_none_for_one():
  spec, data = toys.stream(heads=1)
  with pytest.raises(ConfigError, match="made for a spec of heads=3, and that of the stream has heads=1"):
    assemble(made(SPEC), spec, data)
  assemble(made(SPEC._replace(T=5, rows=())), SPEC, data)  # room for more tasks
  assemble(made(Spec(SPEC.x_shape, SPEC.T, SPEC.C, SPEC.heads)), SPEC, data)  # which tells no rows


class Narrow(nn.Module):
  """A net whose answers are of as many classes as it likes."""

  classes_of_its_own: int

  @nn.compact
  def __call__(self, x, slot):
    logits = nn.Dense(self.classes_of_its_own)(x.reshape(len(x), -1))
    return cljax.types.Outputs(logits, logits, slot)


def test_answers_that_are_no_logits_of_the_stream_s_classes_are_refused():
  with pytest.raises(ConfigError, match=r"answers to two pictures by logits of \[2, 7\] where the stream's 4 classes"):
    assemble(METHODS["er"](Narrow(7), TX, SPEC), SPEC, DATA)
  broken = made(SPEC)._replace(apply=lambda state, x, slot: x @ state.params)
  with pytest.raises(ConfigError, match=r"this method cannot answer to pictures of \(4, 4, 1\): "):
    assemble(broken, SPEC, DATA)
