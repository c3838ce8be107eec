"""Columns that read those before: how wide adapters are, what a column computes and learns, that nothing is lost."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.data.sample import fetch, view_at
from cljax.methods.progressive import Progressive, adapted, width_of
from cljax.metrics import forgetting_ratio
from cljax.nets import Stack
from cljax.ops.trees import take
from cljax.pieces.learner import Fit
from cljax.pieces.optimizers import sgd
from cljax.pieces.transfer import Decay, Transfer, layered
from cljax.types import Clock, Place, Spec
from tests import toys
from tests.methods_test import toy
from tests.sharing_test import COUNTS, PICTURES, TABLE, numbers

ROWS, RATE, DECAY, EPOCHS = 6, 0.5, 0.2, 5
CLOCK = Clock(*(jnp.int32(n) for n in (0, 0, 8, 0)))._replace(epoch=jnp.int32(3))
LATERALS = {  # numbers of column 1: for each layer 1 + width * (channels + 1 + window^2 * the layer's channels)
  "cifar100_10": 1 + 8 * (32 + 1 + 9 * 32) + 1 + 8 * (32 + 1 + 9 * 64) + 1 + 16 * (64 + 1 + 9 * 64),
  "office_home": 1 + 16 * (64 + 1 + 25 * 256) + 2 * (1 + 64 * (256 + 1 + 9 * 256)),
  "stl10": 2569 + 4873 + 10257 + 19473 + 40993,
}
# Of layers 1 to 3 of the net below, by how many columns are before: 12, 8 and 12 channels over 2 * (columns + 1).
WIDTHS = {1: (3, 2, 3), 2: (2, 1, 2)}
WINDOWS, SKIPS, POOLS = (3, 1, 3, 3), (-1, -1, 0, -1), (1, 1, 2, 1)


def progressive(net, spec):
  return Progressive(layered(net, spec, Transfer()), sgd(RATE), Decay(DECAY), Fit(ROWS, EPOCHS), 2)


@functools.cache
def small():
  """(the method of a net of four layers, its state, the stream) of four tasks."""
  spec, stream = toys.stream((30, 23, 40, 20))
  fields = {"channels": (12, 8, 12, 3), "windows": WINDOWS, "pools": POOLS, "skips": SKIPS, "hidden": (5,)}
  method = progressive(Stack(spec.T, spec.C, **fields, dropout=0.0), spec)
  return method, jax.jit(method.init)(jax.random.key(0)), jax.device_put(stream)


def test_widths_of_adapters():
  """int(channels / (2 * columns, its own included)), and never none."""
  assert [width_of(64, before, 2) for before in range(1, 10)] == [16, 10, 8, 6, 5, 4, 4, 3, 3]
  assert [width_of(32, before, 2) for before in (1, 2, 3, 7, 8, 15, 16, 39)] == [8, 5, 4, 2, 1, 1, 1, 1]
  assert width_of(256, 9, 2) == 12 and width_of(64, 1, 4) == 8


@pytest.mark.parametrize("stream", COUNTS)
def test_parameters_of_the_paper_s_networks(stream):
  """A column is the net alone, and from the second on its laterals."""
  config, (side, C) = TABLE.get_config(f"stream={stream},method=progressive"), PICTURES[stream]
  net = Stack(10, C, **{key: value for key, value in config.net.to_dict().items() if key != "name"})
  method = progressive(net, Spec((side, side, 3), 10, C, 10))
  state = jax.eval_shape(method.init, jax.random.key(0))
  convolutions, above, _ = COUNTS[stream]
  assert numbers(state.column["layers"]) == convolutions and numbers(state.column["top"]) == above
  ends = [state.replace(finished=np.arange(10) < done) for done in range(3)]
  alone = convolutions + above
  assert [int(method.report(end)["parameters"]) for end in ends] == [0, alone, 2 * alone + LATERALS[stream]]


def test_a_new_column_holds_what_is_counted():
  """Its other numbers are zero; no two columns begin alike."""
  method, state, _ = small()
  report = jax.jit(method.report)
  for t, widths in enumerate(((0, 0, 0), WIDTHS[1], WIDTHS[2])):
    shapes = zip(widths, (12, 8, 12), (1, 9, 9), (8, 12, 3), strict=True)
    expected = sum(t * (1 + width * (into + 1 + window * out)) for width, into, window, out in shapes)
    laterals = jax.device_get(take(state.store["laterals"], t))
    assert sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(laterals)) == expected
    counts = [report(state.replace(finished=np.arange(4) == t))["parameters"] for t in (0, t)]
    assert counts[1] - counts[0] == expected
  starts = np.asarray(state.store["layers"][0]["kernel"])
  assert len(np.unique(starts.reshape(4, -1), axis=0)) == 4 and len(np.unique(starts)) == starts.size


def test_adapters_side_by_side_and_their_gradient():
  """Against one product a column, for no column to as many as there are; channels beyond theirs mean nothing."""
  random = np.random.default_rng(0)
  old, kernel, slopes = (random.normal(size=shape) for shape in ((3, 2, 2, 2, 5), (5, 7), (2, 2, 2, 7)))

  @jax.jit
  def both(old, kernel, slopes):
    found = []
    for count, width in ((0, 1), (1, 3), (2, 3), (3, 2)):

      def mine(kernel, count=count, width=width):
        made = adapted(3, old, kernel, jnp.int32(count), jnp.int32(width))
        return jnp.where(jnp.arange(7) < count * width, made, 0)

      def naive(kernel, count=count, width=width):
        parts = [old[i] @ kernel[:, i * width : (i + 1) * width] for i in range(count)]
        return jnp.concatenate([*parts, jnp.zeros((2, 2, 2, 7 - count * width))], axis=-1)

      for form in (mine, naive):
        value, back = jax.vjp(form, kernel)
        found.append((value, *back(slopes)))
    return found

  found = both(*(jnp.asarray(array, jnp.float32) for array in (old, kernel, slopes)))
  for mine, naive in zip(found[::2], found[1::2], strict=True):
    chex.assert_trees_all_close(mine, naive, atol=1e-5)
  assert np.abs(found[-1][1]).max() > 1


def convolved(x, kernel):
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def naive_outputs(columns, t, x):
  """What each layer of column t gives, by one pair of convolutions for each column before."""
  before, found, own = [naive_outputs(columns, j, x) for j in range(t)], [], columns[t]
  for l, layer in enumerate(own["layers"]):
    z = convolved(x, layer["kernel"]) + layer["bias"]
    for j in range(t if l else 0):
      lateral, width = own["laterals"][l], WIDTHS[t][l - 1]
      mine = slice(j * width, (j + 1) * width)
      reduced = convolved(lateral["alpha"][j] * before[j][l - 1], lateral["reduce"][None, None, :, mine])
      z += convolved(jax.nn.relu(reduced + lateral["bias"][mine]), lateral["expand"][:, :, mine])
    x = jax.nn.relu(z) + (found[SKIPS[l]] if SKIPS[l] >= 0 else 0)
    x = x.reshape(len(x), 4 // 2, 2, 4 // 2, 2, -1).max(axis=(2, 4)) if POOLS[l] == 2 else x
    found.append(x)
  return found


@pytest.mark.parametrize("t", [0, 1, 2])
def test_a_step_is_that_of_one_convolution_a_column(t):
  """Its answers and the step of its numbers; what is beyond its adapters' channels neither counts nor moves."""
  method, state, stream = small()
  view = view_at(stream, jnp.int32(t), 4)
  batch = fetch(view, Place(jnp.full(ROWS, t, jnp.int32), stream.tasks.train.idx[t, :ROWS]))
  leaves, tree = jax.tree.flatten(state.store)
  random = np.random.default_rng(t)
  store = tree.unflatten([0.3 * random.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
  state = state.replace(store=store, column=take(store, t), now=jnp.int32(t))

  @jax.jit
  def naive(store, batch):
    columns = [take(store, j) for j in range(t + 1)]

    def loss(column):
      features = naive_outputs([*columns[:t], column], t, batch.x)[-1].reshape(ROWS, -1)
      logits = method.nets.top(column, features).logits
      return -jax.nn.log_softmax(logits)[jnp.arange(ROWS), batch.y].mean(), logits

    slopes, logits = jax.grad(loss, has_aux=True)(columns[t])
    rate = RATE / (1 + DECAY * (t * EPOCHS + 3))
    return logits, jax.tree.map(lambda value, slope: value - rate * slope, columns[t], slopes)

  logits, expected = naive(store, batch)
  after, _ = stepped()(state, batch, view)
  chex.assert_trees_all_close(after.column, expected, atol=2e-6)
  np.testing.assert_allclose(answered()(state, batch.x, jnp.full(ROWS, t)).logits, logits, atol=1e-5)
  chex.assert_trees_all_equal(after.store, store)
  for l in (1, 2, 3):
    live, (now, then) = t * WIDTHS.get(t, (0, 0, 0))[l - 1], (each.column["laterals"][l] for each in (after, state))
    assert (now["reduce"] != then["reduce"])[:, :live].any() == (t > 0)
    assert (now["reduce"] == then["reduce"])[:, live:].all() and (now["expand"] == then["expand"])[:, :, live:].all()


@functools.cache
def stepped():
  method, *_ = small()
  return jax.jit(lambda state, batch, view: method.step(jax.random.key(2), state, batch, CLOCK, view))


@functools.cache
def answered():
  return jax.jit(small()[0].apply)


def test_nothing_moves_once_its_task_is_over():
  """A column keeps its bits from the end of its task on, so the forgetting ratio is 1; others wait as they began."""
  subject, ends = toy("progressive"), []

  def after(unit, carry):
    if unit.kind == "exit":
      ends.append(jax.device_get(carry.state))

  begun = jax.device_get(subject.start().state)
  carry = subject.run(after=after)
  assert len(ends) == 3
  for t, end in enumerate(ends):
    for j in range(3):
      own = jax.tree.map(lambda leaf, j=j: leaf[:, j], end.store)
      then = jax.tree.map(lambda leaf, j=j: leaf[:, j], ends[j].store if j <= t else begun.store)
      chex.assert_trees_all_equal(own, then)
    np.testing.assert_array_equal(end.finished, [np.arange(3) <= t] * 2)
  assert (ends[0].store["layers"][0]["kernel"][:, 0] != begun.store["layers"][0]["kernel"][:, 0]).any()
  for R in carry.right["task"] / subject.experiment.test_rows[:, None]:  # [T + 1, T] of a seed
    assert forgetting_ratio(R[-1], np.diagonal(R[1:])) == 1 and np.diagonal(R[1:]).min() > 0.5
