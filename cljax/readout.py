"""How well a linear layer, learnt anew on frozen features, tells the classes of a task apart.

Readout accuracy (Xiong, Ren and Urtasun 2019, https://arxiv.org/abs/1910.04650): what a state has forgotten of a task
by this measure is gone from its representation, and no new output layer would bring it back. A probe learns from
training rows of the task, of old tasks too, so this is a measurement by the driver, which no method may see.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cljax.data.sample import shuffle, split_batch
from cljax.errors import ConfigError
from cljax.loops import Question, evaluate
from cljax.ops import probe
from cljax.types import Array, Method, Spec

MOST_ROWS = 5000  # of a task that a probe learns from, as published
MOST_NUMBERS = 2**24  # of the blocks of Newton's Hessian: about a minute a question on one core


def features_of(it: Question) -> tuple[Array, Array, Array]:
  """([n, D] features at rest, [n] labels, [] count) of training rows of the task, of which the first `count` are live.

  Where the task has more than MOST_ROWS they are the first of a keyed order, the same at every time and for all seeds:
  neither rows sorted by class nor classes that take turns make a lopsided choice.
  """
  rows = it.stream.tasks.train
  n = min(rows.idx.shape[-1], MOST_ROWS)
  group, count = min(it.group, n), rows.count[it.task]
  chosen = shuffle(jax.random.key(0), jnp.arange(-(-n // group) * group), count)  # beyond count a live row again

  def answer(i: Array) -> tuple[Array, Array]:
    batch = split_batch(it.stream.bank, it.stream.tasks, rows, it.task, i, jnp.ones(group, bool))
    return it.answers(batch).features, batch.y

  x, y = jax.lax.map(answer, chosen.reshape(-1, group))
  return x.reshape(len(chosen), -1), y.reshape(-1), jnp.minimum(count, n)


def count_by(found: probe.Probe, it: Question) -> dict[str, Array]:
  """The counts of `evaluate`, answered by a probe."""
  return it.count_right(lambda batch, out: found.logits(out.features).argmax(axis=-1) == batch.y)


def readout_newton(*asked: Any) -> dict[str, Array]:
  """Counts as `evaluate` does, by the best probe: the optimum of softmax regression among the task's own classes."""
  it = Question(*asked)
  return count_by(probe.newton(*features_of(it), it.stream.tasks.classes[it.task]), it)


def readout_adam(*asked: Any) -> dict[str, Array]:
  """The same by a probe that Adam has learnt, as published: quicker, and noisy (.25 points over its draws on MNIST).

  Its draws are named by the task and the last task trained, and are the same for all seeds.
  """
  it = Question(*asked)
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), it.task), it.now + 1)
  return count_by(probe.adam(key, *features_of(it), it.stream.tasks.classes[it.task]), it)


ANSWERS = {"evaluate": evaluate, "readout_newton": readout_newton, "readout_adam": readout_adam}


def answers_of(answer: str, readout: str, group: int, split: str, method: Method, *args: Any) -> dict[str, Array]:
  """What one of ANSWERS answers to a question, with the method after what is static."""
  return ANSWERS[answer](method, readout, group, split, *args)


def check_newton(method: Method, spec: Spec) -> None:
  """
  Raises:
    ConfigError: features and classes too many for Newton's steps.
  """
  state = jax.eval_shape(method.init, jax.random.key(0))
  x, slot = jax.ShapeDtypeStruct((1, *spec.x_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
  D = jax.eval_shape(method.apply, state, x, slot).features.shape[-1]
  numbers = spec.C * (D + 1) ** 2
  if numbers > MOST_NUMBERS:
    raise ConfigError(
      f"config.looks names 'readout', whose Newton steps hold a matrix of {D + 1} x {D + 1} for each of {spec.C} "
      f"classes: {numbers:,} numbers, and the most is {MOST_NUMBERS:,}. Use config.looks=('readout_adam',), or a net "
      "with fewer features"
    )
