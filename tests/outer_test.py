"""Episodes and their curriculum: what they are drawn from, when they end, and segments in one compiled scan."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.errors import ConfigError
from cljax.meta.curriculum import Curriculum
from cljax.meta.episodes import Episodes, check_classes, drawn, fresh_heads, table_of
from cljax.meta.outer import Adam, Outer, Place, compiled_segments
from cljax.meta.unroll import Inner, Pair
from cljax.nets import MLP
from cljax.ops.losses import cross_entropy, rows
from cljax.ops.trees import take
from cljax.pieces.neurons import tensors_of_net
from cljax.pieces.rule import Rule, init_theta
from cljax.types import Bank

KEY = jax.random.key(7)
RULE = Rule(hidden=3, hidden_vectors=2)
PAPER = Curriculum(threshold_most=50.0, truncation_most=17)


def episodes_of(old=(0, 1), pool=(2, 3, 4, 5, 6, 7), starts=3):
  """Ten classes of 5 to 14 rows, whose first pixel is their label; three starts."""
  y = np.repeat(np.arange(10), np.arange(5, 15)).astype(np.int32)
  x = np.random.default_rng(0).normal(size=(len(y), 3, 1, 1)).astype(np.float32)
  x[:, 0, 0, 0] = y
  net = MLP(3, 2, (4,))
  init = jax.jit(jax.vmap(lambda key: net.init(key, jnp.zeros((1, 3, 1, 1)), jnp.zeros(1, jnp.int32))["params"]))
  rows, count = table_of(y, "all")
  found = Episodes(Bank(x, y), rows, count, np.array(old, np.int32), np.array(pool, np.int32), None)
  return jax.tree.map(jnp.asarray, found._replace(starts=init(jax.random.split(KEY, starts))))


def outer_of(tasks=3, inner=(), rule=RULE, **curriculum):
  net = MLP(3, 2, (4,))
  variables = jax.eval_shape(net.init, KEY, jnp.zeros((1, 3, 1, 1)), jnp.zeros(1, jnp.int32))
  own = Inner(**{"old_batch": 4, "new_batch": 4, **dict(inner)})
  given = {"steps": 10, "threshold": 1e6, "threshold_most": 1e6, **curriculum}
  pair = Pair(net, *tensors_of_net(net, variables, (3, 1, 1)), rule, own)
  return Outer(pair, Curriculum(**given), Adam(lr=0.01).transform(20), "head", tasks, 2)


def place(**changes):
  zero = jnp.int32(0)
  blank = Place(zero, jnp.int32(1), zero, zero, zero, jnp.float32(0))
  return blank._replace(**{name: jnp.int32(value) for name, value in changes.items()})


def followed(outer, at, over=False, finite=True, length=3):
  found, goes_on, anew = outer.follow(at, length, jnp.bool_(over), jnp.bool_(finite))
  return {name: int(value) for name, value in found._asdict().items() if name != "largest"}, bool(goes_on), bool(anew)


def test_the_curriculum_of_the_paper():
  assert [float(Curriculum().threshold_at(n)) for n in (0, 299, 300, 600, 899)] == [20, 20, 25, 30, 30]
  assert [Curriculum().truncation_at(n) for n in (0, 299, 300, 600, 899)] == [5, 5, 7, 9, 9]
  assert (float(PAPER.threshold_at(1800)), PAPER.truncation_at(1800)) == (50, 17)
  assert [float(PAPER.threshold_at(1799, task)) for task in (1, 2)] == [45, 50]


def test_a_curriculum_that_does_not_grow_upwards_or_ends_no_episode_is_refused():
  with pytest.raises(ConfigError, match="threshold_most=10 is below config.curriculum.threshold=20"):
    Curriculum(threshold_most=10.0).checked()
  with pytest.raises(ConfigError, match="threshold=20 is so many times plain SGD's loss by .*unit='sgd'"):
    Curriculum(unit="sgd").checked()
  shares = Curriculum(unit="sgd", threshold=0.3, threshold_most=0.6)
  assert shares.checked() == shares
  for name in ("threshold_most", "later"):
    with pytest.raises(ConfigError, match=f"config.curriculum.{name}=30 is so many times"):
      shares._replace(**{name: 30.0}).checked()
  with pytest.raises(ConfigError, match="truncation_most=9 is more than the config.curriculum.steps=8"):
    Curriculum(steps=8).checked()
  assert PAPER.checked() == PAPER


def test_when_an_episode_ends():
  outer = outer_of(tasks=2, steps=10)
  same = {"task": 1, "short": 0, "skipped": 0}
  assert followed(outer, place(step=3, episode=4)) == ({"episode": 4, "step": 6, **same}, False, False)
  assert followed(outer, place(step=3, episode=4), over=True) == ({"episode": 5, "step": 0, **same}, False, True)
  # 3 does not divide 10: the segment from 9 on is the last
  assert followed(outer, place(step=6, episode=4)) == ({"episode": 4, "step": 9, **same}, False, False)
  assert followed(outer, place(step=9, episode=4)) == ({"episode": 5, "step": 0, **same}, False, True)
  assert followed(outer, place(step=3), finite=False) == (
    {"episode": 1, "step": 0, **same, "skipped": 1},
    False,
    True,
  )


def test_an_episode_of_two_new_tasks_goes_on_once():
  """By the threshold or at its last step; numbers that are not finite begin a new one."""
  outer = outer_of(tasks=3, steps=10)
  rest = {"short": 0, "skipped": 0}
  for at, over in ((place(step=3), True), (place(step=9), False)):
    assert followed(outer, at, over) == ({"episode": 0, "task": 2, "step": 0, **rest}, True, False)
  assert followed(outer, place(step=3, task=2), True) == ({"episode": 1, "task": 1, "step": 0, **rest}, False, True)
  found, goes_on, anew = followed(outer, place(step=3), finite=False)
  assert (found["episode"], found["task"], goes_on, anew) == (1, 1, False, True)


def test_where_no_episode_lives_one_is_let_live():
  """After `patience` that ended in their first segment, one lives to its last step, and counting begins again."""
  outer, at, ends = outer_of(tasks=2, steps=9, patience=2), place(), []
  for _ in range(12):
    was = at
    at, _, anew = outer.follow(at, 3, jnp.bool_(True), jnp.bool_(True))
    ends.append((int(was.short), int(was.step), bool(anew)))
  dies, lives = [(0, 0, True), (1, 0, True)], [(2, 0, False), (2, 3, False), (2, 6, True)]
  assert ends == [*dies, *lives, *dies, *lives, *dies]
  passed, _, _ = outer.follow(place(short=1), 3, jnp.bool_(False), jnp.bool_(True))
  assert int(passed.short) == 0


def test_classes_of_an_episode():
  it = episodes_of()
  draw = jax.jit(lambda key: it.classes(key, (3, 2)))
  found = [np.asarray(draw(jax.random.key(n))) for n in range(30)]
  for classes in found:
    assert classes[0].tolist() == [0, 1]
    assert len(set(classes[1:].ravel())) == 4 and set(classes[1:].ravel()) <= set(range(2, 8))
  assert len({tuple(classes.ravel()) for classes in found}) > 20
  fixed = episodes_of(old=(9,), pool=(5, 3, 8, 2))
  assert np.asarray(fixed.classes(KEY, (3, 2))).tolist() == [[9, -1], [5, 3], [8, 2]]


@pytest.mark.parametrize("task", [1, 2])
def test_rows_of_a_batch(task):
  """Old ones of all tasks before, new ones of the task; labels are places among the task's classes."""
  it = episodes_of(old=(9,), pool=(5, 3, 8, 2))
  classes = it.classes(KEY, (3, 2))
  batch = jax.jit(lambda key: it.batch(key, classes, jnp.int32(task), (300, 200)))(KEY)
  label = np.asarray(batch.x[:, 0, 0, 0]).round().astype(int)
  np.testing.assert_array_equal(label, np.asarray(classes)[batch.task, batch.y])
  np.testing.assert_array_equal(label, it.bank.y[batch.place.row])
  assert set(np.asarray(batch.task[300:])) == {task} and set(np.asarray(batch.task[:300])) == set(range(task))
  np.testing.assert_array_equal(batch.classes, np.asarray(classes)[batch.task] >= 0)
  old = [9, 5, 3][: 1 if task == 1 else 3]
  share = [np.mean(label[:300] == one) for one in old]  # class n has n + 5 rows: uniform over rows
  np.testing.assert_allclose(share, np.array([n + 5 for n in old]) / sum(n + 5 for n in old), atol=0.08)


def test_every_row_can_be_drawn_and_no_other():
  column, number = drawn(KEY, jnp.array([2, 0, 3]), 400)
  assert {(int(c), int(n)) for c, n in zip(column, number, strict=True)} == {(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)}


def test_halves_share_no_row():
  y = np.array([1, 0, 1, 1, 0, 1, 1], np.int32)
  (all_rows, count), (first, n), (second, m) = (table_of(y, half) for half in ("all", "first", "second"))
  assert count.tolist() == [2, 5] and n.tolist() == [1, 3] and m.tolist() == [1, 2]
  for label in (0, 1):
    halves = [*first[label, : n[label]], *second[label, : m[label]]]
    assert sorted(halves) == all_rows[label, : count[label]].tolist() == np.flatnonzero(y == label).tolist()


def test_a_start_keeps_its_old_head_and_gets_new_ones():
  it = episodes_of()
  draw = jax.jit(lambda key: it.start(key, "head", 2))
  starts = [draw(jax.random.key(n)) for n in range(12)]
  kernels = {np.asarray(start["first"]["kernel"]).tobytes() for start in starts}
  assert kernels == {np.asarray(take(it.starts, n)["first"]["kernel"]).tobytes() for n in range(3)}
  one = take(it.starts, 0)
  fresh = jax.jit(lambda one: fresh_heads(KEY, {"deep": one}, "deep/head", 2)["deep"])(one)
  np.testing.assert_array_equal(fresh["head"]["kernel"][:, :2], one["head"]["kernel"][:, :2])
  assert not np.any(np.asarray(fresh["head"]["kernel"][:, 2:]) == np.asarray(one["head"]["kernel"][:, 2:]))
  assert np.abs(fresh["head"]["kernel"]).max() <= np.sqrt(6 / (4 + 2))
  chex.assert_trees_all_equal(fresh["first"], one["first"])


@pytest.mark.parametrize(
  ("old", "pool", "tasks", "message"),
  [
    ((0, 11), (2, 3), 2, r"no rows of the classes \[11\]"),
    ((0, 0), (2, 3), 2, "must not name a class twice"),
    ((0, 1), (1, 3), 2, r"classes of config.data.old: \[1\]"),
    ((0, 1), (2, 3, 4), 3, "has 3 classes, too few for 2 new tasks of 2"),
    ((0, 1, 4), (2, 3), 2, "has 3 classes, but heads have config.data.classes=2"),
  ],
)
def test_classes_that_make_no_episodes_are_refused(old, pool, tasks, message):
  with pytest.raises(ConfigError, match=message):
    check_classes(old, pool, tasks, 2, np.full(10, 5))


STATIC = Rule("static")  # where the rule is not the point: its programs are small


@functools.cache
def begun(rule=RULE, **curriculum):
  """(outer loop, episodes, its state before the first segment)."""
  outer, it = outer_of(rule=rule, **curriculum), episodes_of()
  theta = jax.jit(lambda key: init_theta(key, outer.pair.tensors, rule))(KEY)
  return outer, it, jax.jit(lambda theta: outer.begin(KEY, theta, it))(theta)


@functools.cache
def compiled(count=4, **options):
  outer, it, state = begun(**options)
  run = compiled_segments(outer, 2, count)
  return outer, it, state, lambda state, first=0: run(KEY, it, state, jnp.int32(first))


def test_any_cutting_gives_the_same_bits():
  """And the same seed the same numbers; an episode of 10 steps and two tasks ends after ten segments of 2."""
  _, _, state, run = compiled()
  whole, told = compiled(count=12)[3](state)
  at = state
  for first in (0, 4, 8):
    at, _ = run(at, first)
  chex.assert_trees_all_equal(at, whole)
  assert told["episode"].tolist() == [0] * 10 + [1] * 2
  assert told["task"].tolist() == [1] * 5 + [2] * 5 + [1] * 2
  assert told["step"].tolist() == [2, 4, 6, 8, 10] * 2 + [2, 4]
  assert told["restarts"].tolist() == [False, False, False, False, True] * 2 + [False] * 2
  assert np.abs(np.asarray(whole.theta["first/kernel"]["out"])).max() > 1e-3 and float(whole.place.largest) > 0


def test_a_restart_is_a_fresh_start():
  """At the threshold the networks go back to a start and the memory to zero; in the second task they go on."""
  outer, it, state, run = compiled()
  assert state.unit == 1
  state = state._replace(unit=jnp.float32(1e-15))  # every loss is above so small a threshold
  at, told = run(state)
  assert told["task"].tolist() == [1, 2, 1, 2] and told["episode"].tolist() == [0, 0, 1, 1]
  chex.assert_trees_all_close(at.nets, jax.jit(lambda: outer.fresh(KEY, state.theta, it, jnp.int32(2)))())
  assert all(not np.any(leaf) for leaf in at.nets.memory.values())
  later, told = run(state._replace(place=state.place._replace(task=jnp.int32(2))))
  assert told["task"].tolist() == [2, 1, 2, 1]
  assert int(later.place.task) == 2 and all(np.any(leaf) for leaf in later.nets.memory.values())
  assert np.abs(later.nets.student["first"]["kernel"] - at.nets.student["first"]["kernel"]).max() > 0


OF_SGD = {"rule": STATIC, "unit": "sgd", "steps": 20, "threshold": 0.5, "threshold_most": 0.5}


def test_a_segment_that_is_not_finite_moves_nothing():
  _, _, state, run = compiled(count=1, **OF_SGD)
  spoiled = state.nets._replace(student=jax.tree.map(lambda leaf: leaf * jnp.nan, state.nets.student))
  at, told = run(state._replace(nets=spoiled))
  assert not told["finite"].any() and told["restarts"].all()
  chex.assert_trees_all_equal((at.theta, at.opt_state), (state.theta, state.opt_state))
  assert (int(at.place.episode), int(at.place.skipped), int(at.place.step)) == (1, 1, 0)
  chex.assert_tree_all_finite(at)
  moved, _ = run(state)
  assert np.any(moved.theta["first/kernel"]["bias"] != state.theta["first/kernel"]["bias"])


def test_the_rate_is_constant_then_a_cosine():
  """A gradient of one sign moves theta by the rate."""
  tx = Adam(lr=0.1, constant=0.5, last=0.2, clip=0.0).transform(10)
  theta, state, moves = jnp.float32(0), tx.init(jnp.float32(0)), []
  for _ in range(12):
    update, state = tx.update(jnp.float32(1), state, theta)
    moves.append(-float(update))
  np.testing.assert_allclose(moves[:6], 0.1, rtol=1e-4)
  assert all(np.diff(moves[6:11]) < 0)
  np.testing.assert_allclose(moves[10:], 0.02, rtol=1e-4)
  clipped = Adam(clip=0.5).transform(10)
  spread = clipped.update(jnp.array([3.0, 4.0]), clipped.init(jnp.zeros(2)), jnp.zeros(2))[1]
  np.testing.assert_allclose(np.asarray(spread[1][0].mu), 0.1 * np.array([0.3, 0.4]), rtol=1e-5)


def test_thresholds_may_be_shares_of_the_loss_of_plain_sgd():
  """Measured by plain steps on the same batches, the mean of the last tenth; a half of it is half the threshold."""
  outer, episodes, state, run = compiled(count=1, **OF_SGD)

  @jax.jit
  def step(teacher, student, number):
    one = jax.tree.map(lambda leaf: leaf[0], outer.batches(KEY, episodes, place(), number, 1))
    new = rows(one, 4)
    slope = jax.grad(lambda w: cross_entropy(outer.pair.answer(w, new).logits, new))(student)
    teacher = outer.pair.teach(teacher, one)
    student = jax.tree.map(lambda w, g: w - outer.pair.inner.alpha * g, student, slope)
    return teacher, student, outer.pair.apart(teacher, student, one)

  teacher, losses = state.nets.teacher, []
  student = teacher
  for number in range(20):
    teacher, student, loss = step(teacher, student, jnp.int32(number))
    losses.append(loss)
  np.testing.assert_allclose(state.unit, np.mean(losses[-2:]), rtol=1e-4)
  assert state.unit > 0
  np.testing.assert_allclose(run(state)[1]["threshold"], [0.5 * state.unit], rtol=1e-6)
