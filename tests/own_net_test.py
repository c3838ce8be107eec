"""A linen module of one's own under the library's heads: methods that work on heads, dropout and BatchNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.advice import advice, slow
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.nets import NETS, headed
from cljax.nets.conv import Conv
from cljax.nets.modes import trains_apart
from cljax.run import fit
from cljax.types import Method, Outputs
from tests import toys
from tests.tiers import at_release

SPEC, DATA = toys.stream()
X, SLOT = jnp.zeros((1, *SPEC.x_shape)), jnp.zeros(1, jnp.int32)


class Body(nn.Module):
  """Knows nothing of heads, slots or this library."""

  @nn.compact
  def __call__(self, x):
    return nn.gelu(nn.Dense(16)(x.reshape(len(x), -1)))


class Noisy(nn.Module):
  @nn.compact
  def __call__(self, x, train: bool = False):
    x = nn.relu(nn.Dense(24)(x.reshape(len(x), -1)))
    x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
    return nn.Dropout(0.2, deterministic=not train)(x)


class BySlot(nn.Module):
  """A scale for each task, then pictures as they are."""

  @nn.compact
  def __call__(self, x, slot):
    return x * self.param("scale", nn.initializers.ones, (9,))[slot].reshape(-1, *[1] * (x.ndim - 1))


def accuracy(method):
  outcome = fit(method, SPEC, DATA, seeds=(0,), quiet=True)
  return outcome, np.diagonal(np.array(outcome.result["accuracy"][0], float)[1:])


@pytest.mark.parametrize("name", ["lwf", *at_release("er")])
def test_a_module_without_heads_learns_every_task(name):
  """Distillation reads all heads off the features."""
  keywords = {"er": {"capacity": 12, "replay": 4}, "lwf": {"warmup_epochs": 2, "batch_size": 10}}[name]
  net = headed(Body(), SPEC)
  outcome, diagonal = accuracy(METHODS[name](net, optax.sgd(0.3), SPEC, epochs=30, **keywords))
  assert diagonal.min() > 0.6, diagonal
  assert set(outcome.state.params) == {"body", "head"}
  assert outcome.state.params["head"]["kernel"].shape == (1, 16, SPEC.heads * SPEC.C)


def test_dropout_and_batch_statistics_are_of_training_alone():
  net = headed(Noisy(), SPEC)
  assert trains_apart(net) and not trains_apart(headed(Body(), SPEC))
  outcome, diagonal = accuracy(METHODS["finetune"](net, optax.sgd(0.3), SPEC, epochs=30))
  mean = jax.tree.leaves(outcome.state.collections["batch_stats"])[0]
  assert diagonal.min() > 0.6 and np.abs(np.asarray(mean)).max() > 0


def test_what_has_heads_stays_and_a_slot_is_passed_on():
  known = toys.mlp(SPEC)
  assert headed(known, SPEC) is known
  net = headed(BySlot(), SPEC)
  x, slot = jnp.ones((2, *SPEC.x_shape)), jnp.array([0, 1])
  variables = net.init(jax.random.key(0), x, slot)
  scaled = jax.tree.map(lambda leaf: leaf.at[1].set(5.0) if leaf.shape == (9,) else leaf, variables)
  features = net.apply(scaled, x, slot).features
  assert features.shape == (2, np.prod(SPEC.x_shape)) and features[0, 0] == 1 and features[1, 0] == 5


def test_outputs_stay_as_they_are():
  class Whole(nn.Module):
    @nn.compact
    def __call__(self, x, slot):
      features = x.reshape(len(x), -1)
      return Outputs(nn.Dense(SPEC.C)(features), features, slot)

  net = Whole()
  assert headed(net, SPEC) is net


class Called(nn.Module):
  """Has heads, under a name that the library does not know."""

  heads: int = SPEC.heads
  classes: int = SPEC.C

  @nn.compact
  def __call__(self, x, slot):
    features = x.reshape(len(x), -1)
    logits = nn.Dense(self.heads * self.classes, name="out")(features).reshape(len(x), self.heads, self.classes)
    return Outputs(logits[jnp.arange(len(x)), jnp.minimum(slot, self.heads - 1)], features, slot)


@pytest.mark.parametrize("name", ["lwf", "supsup", "expert_gate"])
def test_methods_that_read_heads_say_so_before_they_train(name):
  with pytest.raises(ConfigError, match=r"has none that it knows: .* cljax\.headed\(net, spec\)"):
    METHODS[name](Called(), optax.sgd(0.1), SPEC)


def test_spare_logits_need_a_net_that_takes_classes():
  class Whole(nn.Module):
    @nn.compact
    def __call__(self, x, slot):
      return Outputs(nn.Dense(SPEC.C)(x.reshape(len(x), -1)), x.reshape(len(x), -1), slot)

  with pytest.raises(ConfigError, match="spare_logits=5 widens the net's heads, and this net has no field `classes`"):
    METHODS["supsup"](Whole(), optax.sgd(0.1), SPEC._replace(heads=1), spare_logits=5)


def test_what_is_no_net_of_features_is_refused():
  class Number(nn.Module):
    def __call__(self, x):
      return x.sum()

  class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Conv(3, (3, 3, 3))(x.reshape(2, 5))

  with pytest.raises(ConfigError, match=r"Number gives \[\] of two pictures; features \[B, \.\.\.\]"):
    headed(Number(), SPEC)
  with pytest.raises(ConfigError, match="Flat cannot take pictures of"):
    headed(Flat(), SPEC)


class Convolving(nn.Module):
  layer: type[nn.Module] = nn.Conv
  kernel: tuple[int, ...] = (3, 3)

  @nn.compact
  def __call__(self, x):
    return self.layer(4, self.kernel)(self.layer(4, self.kernel)(x)).reshape(len(x), -1)


def warned(net, platform="cpu"):
  method = METHODS["finetune"](headed(net, SPEC), optax.sgd(0.1), SPEC)
  jax.eval_shape(method.init, jax.random.key(0))  # as the engine does before it asks: nothing may be missed for that
  return slow(method, platform)


def test_a_slow_convolution_on_a_cpu_is_told_once_with_the_fast_one():
  (line,) = warned(Convolving())
  assert "nn.Conv (body/Conv_1, body/Conv_0)" in line and "cljax.nets.conv.Conv" in line
  assert not warned(Convolving(), "gpu") and not warned(Convolving(Conv)) and not warned(Convolving(kernel=(3,)))
  one, other = (jax.eval_shape(headed(Convolving(of), SPEC).init, jax.random.key(0), X, SLOT) for of in (nn.Conv, Conv))
  assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, other)  # the fast one has the same params
  told = advice(toys.experiment(METHODS["er"](headed(Convolving(), SPEC), optax.sgd(0.1), SPEC), SPEC, DATA))
  assert [each for each in told if "nn.Conv" in each] == [line]


@pytest.mark.parametrize("name", ["cnn", "normed_cnn", "stack"])
def test_no_net_of_the_table_is_told_of(name):
  shape = (16, 16, 1)
  spec = SPEC._replace(x_shape=shape)
  net = NETS[name](heads=spec.heads, classes=spec.C)
  init = lambda key: net.init(key, jnp.zeros((1, *shape)), SLOT)  # noqa: E731
  assert not slow(Method(init, (), lambda *_: None), "cpu")
