"""A network that grows: which units a task retrains, what is added, removed and split, and what old tasks still see."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.data.sample import fetch, view_at
from cljax.errors import ConfigError
from cljax.methods.den.growth import Growing, Growth
from cljax.methods.den.method import PARTS, Den, den
from cljax.methods.den.units import Wide, furthest, group_soft, norms, soft
from cljax.nets import Stack
from cljax.pieces.learner import Fit
from cljax.pieces.optimizers import sgd
from cljax.pieces.transfer import Decay
from cljax.types import NONE, Clock, Place, Spec
from tests import toys

CLOCK = Clock(*(jnp.int32(n) for n in (0, 0, 8, 0)))
KEY = jax.random.key(1)
RATE, BASES, ROOM = 0.1, (3, 4, 5), 4
NET = {"pools": (1, 2), "dropout": 0.0, "weight_scale": 0.3, "bias": 0.1}
OLD = tuple(np.arange(base + ROOM) < base for base in BASES)


def method(**how):
  """Two convolutions of 3 and 4 channels and a layer of 5 units, with room for 4 more in each; steps of plain SGD."""
  spec, _ = toys.stream()
  net = Stack(heads=1, classes=spec.C, channels=(7, 8), hidden=(9,), **NET)
  return Den(Growing(Wide(net, spec), BASES, sgd(RATE), Growth(**{"added_units": 2, **how})), Decay(0.0), Fit(6, 10))


@functools.cache
def begun():
  """(the state as task 1 begins, a batch of it, the view)."""
  spec, stream = toys.stream()
  stream = jax.device_put(stream)
  view = view_at(stream, jnp.int32(1), spec.heads)
  batch = fetch(view, Place(jnp.ones(6, jnp.int32), stream.tasks.train.idx[1, :6]))
  edges = method().edges
  run = jax.jit(lambda key, view: edges.enter_head(key, edges.init(key), view, CLOCK))
  return run(jax.random.key(0), view), batch, view


@functools.cache
def edge(name, **how):
  """An edge of `method(**how)`, compiled."""
  return jax.jit(functools.partial(getattr(method(**how).edges, name), KEY, clock=CLOCK))


@functools.cache
def step(part):
  """(state, batch, view) -> the state after a step of a part, by rates that shrink visibly."""
  own = method(sparsity=0.5, proximal_rate=0.1)
  return jax.jit(lambda state, batch, view: own.step(part, KEY, state, batch, CLOCK, view)[0])


@jax.jit
def answer(state, x, slot):
  """[B, C] what the network says to rows of a task."""
  return method().apply(state, x, jnp.full(len(x), slot)).logits


def kernels(tree):
  """[P, I, O] of each layer, in numpy."""
  return [np.asarray(kernel) for kernel in method().edges.wide.kernels(tree)]


def changed(state, l, units, by=1.0):
  """The state after the first incoming weight of each of these units moved."""
  name = method().edges.wide.names[l]
  own = state.params[name]
  kernel = np.array(own["kernel"])
  kernel.reshape(-1, kernel.shape[-1])[0, list(units)] += np.asarray(by, np.float32)
  return state.replace(params=state.params | {name: own | {"kernel": jnp.asarray(kernel)}})


# Arithmetic


def test_the_subnetwork_is_what_the_classes_read():
  """Unit 0 reads class 0, unit 1 class 1, unit 2 none; unit 0 reads channel 1 alone."""
  wide = Wide(Stack(heads=1, classes=2, channels=(2,), pools=(2,), hidden=(3,)), Spec((2, 2, 1), 1, 2, 1))
  params = {
    "layer_0": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.zeros(2)},
    "hidden_0": {"kernel": jnp.array([[0.0, 2, 1], [-1, 0, 1]]), "bias": jnp.zeros(3)},
    "head": {"kernel": jnp.array([[1.0, 0], [0, -1], [0, 0]]), "bias": jnp.zeros(2)},
  }
  for classes, channels, units in (
    ([1, 0], [0, 1], [1, 0, 0]),
    ([0, 1], [1, 0], [0, 1, 0]),
    ([1, 1], [1, 1], [1, 1, 0]),
  ):
    found = wide.traced(params, jnp.array(classes, bool))
    chex.assert_trees_all_equal(found, [jnp.array(channels, bool), jnp.array(units, bool)])


def test_a_map_s_places_are_weights_between_two_units():
  """Of the layer that reads a flattened map the same channel's weights belong together."""
  state, *_ = begun()
  kernel = kernels(state.params)[2]
  assert kernel.shape == (4, 8, 9)  # a map of 2 x 2, 8 channels, 9 units
  np.testing.assert_array_equal(kernel[3, 5], np.asarray(state.params["hidden_0"]["kernel"])[3 * 8 + 5])


def test_proximal_steps_are_the_minima_of_what_they_stand_for():
  """In float64: the slope of |v - w|^2 / 2 + bar |v| is zero at v, or v is zero and w within the bar."""
  w, below, bar = np.random.default_rng(0).normal(size=(2, 3, 4)), np.array([True, False, True]), 1.5
  w[:, :, 0] *= 0.1
  found = np.asarray(group_soft(jnp.asarray(w, jnp.float32), jnp.asarray(below), bar), np.float64)
  np.testing.assert_array_equal(found[:, 1], w[:, 1].astype(np.float32))
  group, then = found[:, below], w[:, below]
  lengths = np.sqrt((then**2).sum(axis=(0, 1)))
  np.testing.assert_allclose(norms(jnp.asarray(w), jnp.asarray(below)), lengths, rtol=1e-6)
  assert (group[:, :, lengths <= bar] == 0).all() and (lengths <= bar).sum() == 2
  far, from_ = group[:, :, lengths > bar], then[:, :, lengths > bar]
  np.testing.assert_allclose(far - from_ + bar * far / np.sqrt((far**2).sum(axis=(0, 1))), 0, atol=1e-6)
  np.testing.assert_allclose(soft(jnp.array([-2.0, -0.5, 0.0, 0.5, 2.0]), 0.75), [-1.25, 0, 0, 0, 1.25])


def test_the_furthest_units_over_the_bar():
  index, asked = furthest(jnp.array([0.3, 0.9, 0.1, 0.5]), 0.2, 2)
  assert index.tolist() == [1, 3] and asked.tolist() == [True, True]
  assert furthest(jnp.array([0.3, 0.9, 0.1, 0.5]), 0.6, 9)[1].tolist() == [True, False, False, False]


def test_the_penalty_is_over_all_weights_and_over_how_far_old_ones_moved():
  """Against numpy in float64; new units and the head have not moved, and the head's part has no penalty."""
  state, *_ = begun()
  state = changed(changed(state, 1, [0, 1], [0.5, -2.0]), 2, [6], 3.0)  # unit 6 of layer 2 is not there
  own = method(weight_decay=0.3, drift=0.7)
  sizes = sum((np.asarray(w, np.float64) ** 2).sum() for w in jax.tree.leaves(state.params))
  pull = jax.jit(lambda t: [own.pull(part, state.params, state, t) for part in ("head", "selective", "split")])
  np.testing.assert_allclose(pull(jnp.int32(1)), [0, *[0.15 * sizes + 0.35 * (0.25 + 4)] * 2], rtol=1e-5)
  np.testing.assert_array_equal(pull(jnp.int32(0)), 0)


# Parts of a task


def test_the_head_then_the_subnetwork_learn():
  """The head alone; then weights between chosen units, by the gradient of a plain loss, and the head."""
  state, batch, view = begun()
  after = step("head")(state, batch, view)
  chex.assert_trees_all_equal({**after.params, "head": 0}, {**state.params, "head": 0})
  head = np.asarray(after.params["head"]["kernel"])
  assert (head[:5] != np.asarray(state.params["head"]["kernel"])[:5]).any(axis=1).all() and (head[:5] == 0).any()

  chosen = (OLD[0] & (np.arange(7) != 1), OLD[1] & (np.arange(8) != 2), OLD[2])
  state = state.replace(chosen=tuple(jnp.asarray(own) for own in chosen))
  own, how = method(), Growth()

  def plain(params):
    logits = own.edges.wide.answer(params, [jnp.asarray(old) for old in OLD], batch.x).logits
    size = sum((leaf**2).sum() for leaf in jax.tree.leaves(params))
    return -jax.nn.log_softmax(logits)[jnp.arange(6), batch.y].mean() + how.weight_decay / 2 * size

  expected = jax.tree.map(lambda w, g: w - RATE * g, state.params, jax.jit(jax.grad(plain))(state.params))
  after = step("selective")(state, batch, view)
  ends = own.edges.wide.ends([*chosen])
  for l, (now, then, moved) in enumerate(zip(*map(kernels, (after.params, state.params, expected)), strict=True)):
    free = np.broadcast_to(np.asarray(ends[l][0] & ends[l][1]), now.shape)
    np.testing.assert_allclose(now, np.where(free, moved, then), atol=1e-6)
    np.testing.assert_array_equal(now[~free], then[~free])


def test_in_the_first_task_all_learns_and_becomes_sparse_in_every_part():
  state, batch, view = begun()
  view = view._replace(t=jnp.int32(0))
  for part in PARTS:
    after = kernels(step(part)(state, batch, view).params)
    for now, then, units in zip(after, kernels(state.params), (*OLD, np.ones(4, bool)), strict=True):
      assert (now != then).any(axis=(0, 1))[units].all()
      assert 0 < (now == 0).sum() < now.size / 2
      np.testing.assert_array_equal(now[:, :, ~units], then[:, :, ~units])


def test_the_subnetwork_follows_the_head_of_the_task():
  """Classes that the task does not have ask for nothing; in the first task all units are chosen."""
  state, _, view = begun()
  head = np.zeros((9, 4), np.float32)
  head[2, 1] = head[3, 3] = head[7, 1] = 1  # unit 7 is not there
  hidden = np.array(state.params["hidden_0"]["kernel"])
  hidden.reshape(4, 8, 9)[:, 3, 2] = 0  # unit 2 does not read channel 3, unit 7 would
  layers = {name: state.params[name] | {"kernel": jnp.asarray(k)} for name, k in (("head", head), ("hidden_0", hidden))}
  state = state.replace(params=state.params | layers)
  classes = view.tasks.classes.at[1].set(jnp.array([True, True, False, False]))
  view = view._replace(tasks=view.tasks._replace(classes=classes))
  after = edge("enter_selective")(state, view=view)
  assert np.flatnonzero(after.chosen[2]).tolist() == [2]
  assert np.flatnonzero(after.chosen[1]).tolist() == [0, 1, 2]
  np.testing.assert_array_equal(after.units_chosen[1], [3, 3, 1])
  first = edge("enter_selective")(state, view=view._replace(t=jnp.int32(0)))
  chex.assert_trees_all_equal(first.chosen, tuple(jnp.asarray(old) for old in OLD))


def test_units_are_added_if_the_loss_is_high_and_old_tasks_do_not_see_them():
  """What an old task answers keeps its bits through `head` and `expand`; the new task's answer moves."""
  state, batch, view = begun()
  grown = edge("enter_expand", loss_threshold=0.1)(state, view=view)
  assert [np.flatnonzero(born == 1).tolist() for born in grown.born] == [[3, 4], [4, 5], [5, 6]]
  assert (answer(grown, batch.x, 1) != answer(state, batch.x, 1)).all()
  drawn = kernels(grown.params)[1] != kernels(state.params)[1]  # anew, whatever these places held
  assert drawn[:, :5, 4:6].all() and drawn[:, 3:5, :4].all() and not drawn[:, :3, :4].any()
  after = step("expand")(step("head")(grown, batch, view), batch, view)
  moved = [now != then for now, then in zip(kernels(after.params), kernels(grown.params), strict=True)]
  for l, (old, own) in enumerate(zip(OLD, moved, strict=False)):
    below = OLD[l - 1] if l else np.ones(1, bool)
    assert not own[:, below][:, :, old].any() and own[:, :, ~old].any()
    assert not l or own[:, ~below][:, :, old].any()  # new units are read by old ones
  np.testing.assert_array_equal(answer(after, batch.x, 0), answer(state, batch.x, 0))
  still = edge("enter_expand", loss_threshold=50.0)(state, view=view)
  chex.assert_trees_all_equal(still.born, state.born)
  chex.assert_trees_all_equal(still.params, state.params)


def test_new_units_shrink_one_by_one_and_as_groups():
  """Against numpy in float64: all new weights by the first, then each new unit's incoming weights by the second."""
  state, _, view = begun()
  state = edge("enter_expand", loss_threshold=0.1)(state, view=view)
  own, t = method(sparsity=0.3, group_sparsity=0.8), jnp.int32(1)
  run = jax.jit(lambda s: own.shrunk("expand", s.params, s, own.learns("expand", s, t), t, jnp.float32(0.5)))
  found, expected = kernels(run(state)), [kernel.astype(np.float64) for kernel in kernels(state.params)]
  there = [np.ones(1, bool), *(np.asarray(born) < NONE for born in state.born), np.ones(4, bool)]
  new = [np.zeros(1, bool), *(np.asarray(born) == 1 for born in state.born), np.zeros(4, bool)]
  for l, kernel in enumerate(expected):
    alone = (new[l][:, None] | new[l + 1]) & there[l][:, None] & there[l + 1]
    alone |= (l == 3) & there[l][:, None]  # all of the head
    kernel[:] = np.where(alone, np.sign(kernel) * np.maximum(np.abs(kernel) - 0.15, 0), kernel)
    for unit in np.flatnonzero(new[l + 1]):
      group = kernel[:, there[l], unit]
      kernel[:, there[l], unit] = group * max(0, 1 - 0.4 / np.sqrt((group**2).sum()))
    np.testing.assert_allclose(found[l], kernel, atol=1e-6)


def test_new_units_without_incoming_weights_are_removed_from_below():
  """Unit 4 of the first layer has none; unit 5 of the second had some from it alone."""
  state, _, view = begun()
  state = edge("enter_expand", loss_threshold=0.1)(state, view=view)
  one, two = (np.array(state.params[name]["kernel"]) for name in ("layer_0", "layer_1"))
  one[..., 4] = 0
  two[..., 5] = 0
  two[:, :, [4, 6], 5] = 1  # unit 6 is not there
  layers = {name: state.params[name] | {"kernel": jnp.asarray(k)} for name, k in (("layer_0", one), ("layer_1", two))}
  after = edge("leave_expand")(state.replace(params=state.params | layers), view=view)
  assert [np.flatnonzero(born == 1).tolist() for born in after.born] == [[3], [4], [5, 6]]


@pytest.mark.parametrize("old_copy", ["stays", "leaves"])
def test_a_unit_that_moved_far_is_split(old_copy):
  """Units 0 and 2 of layer 1 moved by 2 and 1 over .9, unit 1 by .5, unit 3 by .95 beyond the two that may be split."""
  state, batch, view = begun()
  moved = changed(state, 1, [0, 1, 2, 3], [2.0, 0.5, -1.0, 0.95])
  after = edge("enter_split", split_thresholds=(0.9, 0.9), old_copy=old_copy)(moved, view=view)
  assert after.born[1].tolist() == [0, 0, 0, 0, 1, 1, NONE, NONE]
  np.testing.assert_array_equal(np.flatnonzero(after.held[1]), [0, 2])
  assert after.left[1].tolist() == ([1, NONE, 1] + [NONE] * 5 if old_copy == "leaves" else [NONE] * 8)
  np.testing.assert_array_equal(after.units_split[1], [0, 2, 0])
  now, then, before = (kernels(tree) for tree in (after.params, moved.params, state.before))
  np.testing.assert_array_equal(now[1][:, :, [4, 5]], then[1][:, :, [0, 2]])
  np.testing.assert_array_equal(now[1][:, :, [0, 2]], before[1][:, :, [0, 2]])
  np.testing.assert_array_equal(now[1][:, :, [1, 3]], then[1][:, :, [1, 3]])
  np.testing.assert_array_equal(now[2][:, [4, 5]], then[2][:, [0, 2]])
  if old_copy == "leaves":  # nothing changed for the task
    np.testing.assert_allclose(answer(after, batch.x, 1), answer(moved, batch.x, 1), atol=1e-5)


def test_an_old_task_gets_its_answer_back_where_all_that_moved_is_split():
  state, batch, view = begun()
  moved = changed(changed(state, 0, [1], 3.0), 1, [0, 3], 2.0)
  assert (answer(moved, batch.x, 0) != answer(state, batch.x, 0)).any()
  after = edge("enter_split", split_thresholds=(0.9, 0.9), old_copy="stays")(moved, view=view)
  np.testing.assert_array_equal(answer(after, batch.x, 0), answer(state, batch.x, 0))
  later = step("split")(after, batch, view)
  for now, then, held in zip(kernels(later.params), kernels(after.params), after.held, strict=False):
    np.testing.assert_array_equal(now[:, :, np.asarray(held)], then[:, :, np.asarray(held)])
    assert (now != then).any()


def test_no_room_is_a_fault():
  state, _, view = begun()
  born = (state.born[0].at[3:6].set(0), *state.born[1:])  # one place is left
  grown = edge("enter_expand", loss_threshold=0.1)(state.replace(born=born), view=view)
  assert bool(grown.full) and int((grown.born[0] == 1).sum()) == 1
  split = edge("enter_split", split_thresholds=(0.9, 0.9), old_copy="stays")
  assert bool(split(changed(state.replace(born=born), 0, [0, 1], 2.0), view=view).full)
  assert not bool(split(changed(state.replace(born=born), 0, [0], 2.0), view=view).full)


def test_parameters_are_those_of_units_that_are_there():
  """3 + 1, 4, 5 + 2 units after two tasks, the heads by the units of their time."""
  state, *_ = begun()
  report = jax.jit(method().report)
  assert int(report(state)["parameters"]) == 0
  one = state.replace(finished=state.finished.at[0].set(True))
  body = (9 * 1 + 1) * 3 + (9 * 3 + 1) * 4 + (4 * 4 + 1) * 5
  assert int(report(one)["parameters"]) == body + (5 + 1) * 4
  born = (state.born[0].at[4].set(1), state.born[1], state.born[2].at[5:7].set(1))
  left = (*state.left[:2], state.left[2].at[0].set(1))
  found = report(one.replace(born=born, left=left, finished=one.finished.at[1].set(True)))
  body = (9 * 1 + 1) * 4 + (9 * 4 + 1) * 4 + (4 * 4 + 1) * 7
  assert int(found["parameters"]) == body + (5 + 1) * 4 + (6 + 1) * 4
  np.testing.assert_array_equal(found["units"], [[3, 4, 5], [4, 4, 6], [0, 0, 0]])


def test_epochs_are_parted_and_settings_that_do_not_fit_are_refused():
  spec, _ = toys.stream()
  net = toys.stack(spec)
  assert [phase.epochs for phase in den(net, sgd(RATE), spec, epochs=10, part_shares=(0.1, 0.2, 0.3)).phases] == [
    1,
    4,
    2,
    3,
  ]
  assert [phase.epochs for phase in den(net, sgd(RATE), spec, epochs=1).phases] == [1, 1, 1, 1]
  for keywords in ({"part_shares": (0.5, 0.4, 0.2)}, {"part_shares": (0.1,) * 4}, {"split_thresholds": (0.1,) * 3}):
    with pytest.raises(ConfigError, match=f"config.method.{next(iter(keywords))}"):
      den(net, sgd(RATE), spec, **keywords)
  with pytest.raises(ConfigError, match="config.net.skips"):
    den(net.clone(skips=(-1, 0)), sgd(RATE), spec)
