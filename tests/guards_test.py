"""The law of guards, and what all of them have in common."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.data.sample import fetch, view_at
from cljax.errors import ConfigError
from cljax.loops import edge
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.ops.losses import cross_entropy
from cljax.ops.trees import amount, inner
from cljax.pieces.descent import descend
from cljax.pieces.guards import GUARDS, guarding
from cljax.pieces.optimizers import PlainSGD, sgd
from cljax.run import fit
from cljax.types import At, Batch, Guard, Place, Spec
from tests import toys
from tests.guarded import RATE, START, B, Numpy, flat, is_close, like, mean, rows_of, setting, trained

# The keyword that turns each guard off.
OFF = {name: {"per_task": 0} if name in ("agem", "gem", "ogd") else {"strength": 0} for name in GUARDS}
MEMORY = {"replay": 3, "capacity": 9}
METHODS_WITH = {"finetune": {}, "er": MEMORY, "single": {}, "routing": MEMORY}
PAIRS = [(name, guard) for name in ("er", "routing") for guard in GUARDS] + [("single", "lwf"), ("single", "gem")]
SMALL = {"agem": {"per_task": 4, "drawn_rows": 5}, "gem": {"per_task": 4}, "ogd": {"per_task": 4}}


def method_of(name, guard, keywords=None, **changes):
  """A small method of B current rows a step, under a guard with a small memory."""
  spec = setting()[0]
  net, tx = (toys.routed(spec, 4), RATE) if name == "routing" else (MLP(3, 4, (8,)), sgd(RATE))
  own = {"name": guard, **SMALL.get(guard, {}), **(keywords or {})}
  return METHODS[name](net, tx, spec, **{"guard": own, "batch_size": B, "epochs": 1, **METHODS_WITH[name], **changes})


def batch_of(live):
  slot = jnp.zeros(2, jnp.int32)
  return Batch(jnp.ones((2, 3)), slot, slot, jnp.ones((2, 4), bool), Place(slot, slot), slot, jnp.array(live))


def quadratic(params, batch):
  loss = sum((leaf**2).sum() for leaf in jax.tree.leaves(params)) / 2
  return loss, {"loss": loss}


def recording():
  """A guard whose past is what its hooks were given, in their order."""

  def loss(past, params, batch):
    return 10 * params["a"].sum()

  def project(at, past, gradient, ask):
    return jax.tree.map(lambda g, other: g + 100 * other, gradient, ask(batch_of([True, True])))

  def moved(past, before, gradient, after):
    return {"before": before, "gradient": gradient, "after": after}

  return Guard(loss=loss, project=project, moved=moved)


@functools.partial(jax.jit, static_argnames=("guard", "rests"))
def one_step(params, past, live, guard, rests=False, frozen=None):
  tx = optax.sgd(0.1, momentum=0.9)
  batch = batch_of([True, True])._replace(live=live)
  at = At(jax.random.key(0), None, None)
  return descend(tx, quadratic, params, tx.init(params), batch, at, guard=guard, past=past, rests=rests, frozen=frozen)


def test_the_order_of_a_guard_is_loss_projection_told():
  params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
  past = {"before": params, "gradient": params, "after": params}
  guard = recording()
  after, _, past, info = one_step(params, past, jnp.array([True, False]), guard)
  whole = {"a": params["a"] + 10 + 100 * params["a"], "b": params["b"] * 101}
  chex.assert_trees_all_close(after, jax.tree.map(lambda w, g: w - 0.1 * g, params, whole), rtol=1e-6)
  chex.assert_trees_all_equal(past, {"before": params, "gradient": params, "after": after})  # without the pull
  assert float(info["loss"]) == 7


@pytest.mark.parametrize(("live", "rests"), [((False, False), False), ((True, True), True)])
def test_nothing_moves_where_no_row_is_live_or_the_step_rests(live, rests):
  params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
  past = {"before": params, "gradient": params, "after": params}
  after, state, told, info = one_step(params, past, jnp.array(live), recording(), rests=rests)
  chex.assert_trees_all_equal((after, told), (params, past))
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state))
  assert set(info) == {"loss"}


def test_frozen_entries_keep_their_bits_whatever_the_momentum():
  params = {"a": jnp.array([1.0, -0.0]), "b": {"c": jnp.array(3.0), "d": jnp.array(-0.0)}}
  frozen = {"a": jnp.array([False, True]), "b": True}
  after, *_ = one_step(params, None, jnp.array([True, True]), Guard(), frozen=frozen)
  assert after["a"][0] != 1
  for new, old in ((after["a"][1], params["a"][1]), (after["b"]["c"], 3.0), (after["b"]["d"], params["b"]["d"])):
    assert np.float32(new).tobytes() == np.float32(old).tobytes()


def test_strength_zero_is_no_guard_and_wrong_words_are_refused():
  spec, _ = toys.stream()
  for off in ({"name": "none"}, Guard(), *({"name": name, **OFF[name]} for name in GUARDS)):
    assert guarding(off, spec) is None
  for zero in (0.0, np.float32(0), np.float64(0), np.zeros(()), jnp.float32(0), jnp.int32(0)):
    assert guarding({"name": "ewc", "strength": zero}, spec) is None
    assert jax.jit(lambda zero=zero: guarding({"name": "ewc", "strength": zero}, spec) is None)()
  jax.jit(lambda traced: guarding({"name": "ewc", "strength": traced}, spec)(None) and None)(0.0)  # not known yet
  assert guarding({"name": "ewc", "strength": np.float32(0.1)}, spec) is not None
  for wrong, word in (
    ({"name": "ewcc"}, "Did you mean ewc"),
    ({"name": "ewc", "strength": -1.0}, "config.method.guard.strength=-1"),
    ({"name": "ewc", "damping": 1.0}, "config.method.guard field='damping'"),
    ({"name": "ewc", "labels": "mine"}, "config.method.guard.labels='mine'"),
    ({"name": "si", "damping": 0.0}, "config.method.guard.damping=0"),
  ):
    with pytest.raises(ConfigError, match=word):
      guarding(wrong, spec)


def test_a_guarded_phase_has_no_blocks():
  spec, _ = toys.stream()
  tx = sgd(0.1)
  assert isinstance(tx, PlainSGD)
  for name in ("finetune", "er", "single"):
    free = METHODS[name](MLP(3, 4, (8,)), tx, spec)
    held = METHODS[name](MLP(3, 4, (8,)), tx, spec, guard={"name": "ewc"})
    assert free.phases[0].block is not None and held.phases[0].block is None
    for zero in (0, np.float32(0), jnp.float32(0)):
      off = METHODS[name](MLP(3, 4, (8,)), tx, spec, guard={"name": "ewc", "strength": zero})
      assert off.phases[0].block is not None and off.needs_boundaries == free.needs_boundaries


@pytest.mark.parametrize("times", [None, 2.0])
def test_a_sweep_whose_first_strength_is_zero_guards_the_others(times):
  """What is static about a method does not hang on its first row; a traced 0 is no guard, to rounding."""
  spec, data = toys.stream()
  net = MLP(3, 4, (8,))

  def guarded(hyper):
    strength = hyper["strength"] if times is None else times * hyper["strength"]
    return METHODS["ewc"](net, optax.adam(0.01), spec, epochs=4, guard={"name": "ewc", "strength": strength})

  state = fit(guarded, spec, data, seeds=(0, 0), hyper={"strength": [0.0, 5.0]}, quiet=True, evaluate_group=16).state
  free = fit(METHODS["finetune"](net, optax.adam(0.01), spec, epochs=4), spec, data, quiet=True, evaluate_group=16)
  chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[:1], state.params), free.state.params, atol=1e-6)
  assert (np.asarray(state.params["first"]["kernel"][0]) != np.asarray(state.params["first"]["kernel"][1])).any()
  assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.past.fisher))


@pytest.mark.parametrize(("name", "guard"), PAIRS)
def test_every_method_takes_every_guard(name, guard):
  """A task's begin, a step and its end give a state of the same shapes and types back."""
  view, method = setting()[2][1], method_of(name, guard)
  phase = method.phases[0]
  width = B + METHODS_WITH[name].get("replay", 0)

  def task(key):
    state = method.init(key)
    batch = fetch(view, Place(jnp.ones(width, jnp.int32), jnp.arange(width)))
    after = edge(phase, "enter", key, state, view, START)
    after, _ = phase.step(key, after, batch, START, view)
    return state, edge(phase, "exit", key, after, view, START)

  before, after = jax.eval_shape(task, jax.random.key(0))
  assert before.past is not None and method.needs_boundaries
  chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("name", METHODS_WITH)
def test_rows_that_a_guard_stores_are_counted(name):
  """With those of the method's own memory: pixels, label and task."""
  for guard, rows in (("agem", 12), ("ogd", 0)):
    method = method_of(name, guard)
    held = jax.jit(lambda key, method=method: method.report(method.init(key))["memory_bytes"])(jax.random.key(0))
    assert held == (rows + METHODS_WITH[name].get("capacity", 0)) * (16 + 8)


@pytest.mark.parametrize("name", ("er", "derpp", "mer", "routing", "finetune", "single"))
def test_a_memory_beyond_int32_is_reported(name):
  """3e9 bytes, to the digits of float32; a memory that int32 holds stays whole."""
  spec = Spec((1000, 1000, 3), 3, 4, 3)
  net, tx = (toys.routed(spec, 4), RATE) if name == "routing" else (MLP(3, 4, (8,)), sgd(RATE))
  by_guard = name in ("finetune", "single")
  for rows, kind in ((700, jnp.int32), (1000, jnp.float32)):
    own = {"guard": {"name": "agem", "per_task": rows // 3}} if by_guard else {"replay": 10, "capacity": rows}
    method = METHODS[name](net, tx, spec, **own)
    told = jax.eval_shape(lambda key, method=method: method.report(method.init(key)), jax.random.key(0))
    assert told["memory_bytes"].dtype == kind
  assert amount(2**31 - 1) == 2**31 - 1 and amount(2**31 - 1).dtype == jnp.int32
  assert int(amount(3 * 10**9)) == 3 * 10**9
  assert json.dumps(int(np.asarray([[amount(3 * 10**9)]])[0, -1]), allow_nan=False) == "3000000000"


def test_both_steps_of_replay_are_projected():
  """Sequential ER under GEM: the step on the current rows, then the one on the replayed, against numpy."""
  spec, data, views = setting()
  state = trained("gem", per_task=4, margin=0.4)[1][0]
  method = method_of("er", "gem", {"margin": 0.4})
  row = [*data.tasks.train.idx[1, :B], *data.tasks.train.idx[0, 3:6]]

  @jax.jit
  def step(state, past, view):
    batch = fetch(view, Place(1 - jnp.arange(B + 3) // B, jnp.array(row)))
    batch = batch._replace(y=(batch.y + 1) % 4)  # which hurts what was learnt
    other = method.init(jax.random.key(0)).replace(params=state.params, past=past)
    return method.phases[0].step(jax.random.key(0), other, batch, START, view)[0].params

  ours, kept, hurt = Numpy(state.params), np.asarray(state.past.place.row[:4]), []
  for t, own in ((1, row[:B]), (0, row[B:])):
    x, y = rows_of(t, np.array(own))
    g, r = flat(mean(ours.gradients(x, (y + 1) % 4, t))), flat(mean(ours.gradients(*rows_of(0, kept), 0)))
    hurt.append(g @ r < 0)
    ours.step(like(g + (0.4 - (g @ r) / (r @ r)) * r if hurt[-1] else g, ours.w))
  is_close(step(state, state.past, views[1]), ours.w)
  assert hurt[1]


def test_a_guard_is_told_the_gradient_of_its_own_rows_whatever_the_method_replays():
  """Of their cross-entropy alone: stored logits belong to other rows, and the first of them are no current ones."""
  spec, data, views = setting()
  kept = fetch(views[0], Place(jnp.zeros(7, jnp.int32), jnp.asarray(data.tasks.train.idx[0, :7])))
  guard = Guard(project=lambda at, past, gradient, ask: ask(kept))

  def moved(name, **own):
    method = METHODS[name](MLP(3, 4, (8,)), sgd(RATE), spec, guard=guard, batch_size=B, epochs=1, **own)

    @jax.jit
    def step(view):
      rows = B + (0 if name == "finetune" else 6 if name == "derpp" else 3)
      batch = fetch(view, Place(jnp.ones(rows, jnp.int32), jnp.asarray(data.tasks.train.idx[1, :rows])))
      state = method.init(jax.random.key(0))
      state = state.replace(logits=state.logits + 3.0) if name.startswith("der") else state
      return method.phases[0].step(jax.random.key(0), state, batch, START, view)[0].params

    return step(views[1])

  plain = moved("finetune", block=1)
  for name in ("der", "derpp"):
    is_close(moved(name, block=1, **MEMORY), plain)
  is_close(moved("er", block=1, update="union", **MEMORY), plain)


def test_routing_is_projected_through_its_gates():
  """Rows of task 0 with wrong labels hurt what is kept of it; under A-GEM the step stands upright on that gradient."""
  spec, data, views = setting()
  own = {"sample": "none", "cotrain": False, "capacity": 0, "replay": 0, "gate_scale": 1.0}
  free, held = method_of("routing", "none", **own), method_of("routing", "agem", {"drawn_rows": 12}, **own)
  row = jnp.asarray(data.tasks.train.idx[0, :B])

  @jax.jit
  def moves(key, view, before):
    state = edge(held.phases[0], "exit", key, held.init(key), before, START)
    own, _ = state.past.rows_of(0)
    batch = fetch(view, Place(jnp.zeros(B, jnp.int32), row))
    batch = batch._replace(y=(batch.y + 1) % 4)

    def loss(theta):
      kept = fetch(view, own)
      return cross_entropy(free.apply(state.moved(theta, None), kept.x, kept.task).logits, kept)

    after = [
      method.phases[0].step(key, state.replace(past=past), batch, START, view)[0].theta
      for method, past in ((free, None), (held, state.past))
    ]
    r = jax.grad(loss)(state.theta)
    return [inner(jax.tree.map(jnp.subtract, state.theta, theta), r) for theta in after], inner(r, r)

  (hurt, still), size = moves(jax.random.key(0), views[1], views[0])
  assert hurt < -1e-3 * size and abs(still) < 1e-5 * size


@pytest.mark.parametrize("other", ["si", "none"])
def test_a_method_that_is_named_by_its_guard_takes_no_other(other):
  """Tables call it by its name."""
  spec = setting()[0]
  with pytest.raises(ConfigError, match=rf"config.method.guard.name='{other}' is another: .*name='finetune'"):
    METHODS["ewc"](MLP(3, 4, (8,)), sgd(RATE), spec, guard={"name": other})


def begun(method, views):
  """The states as task 1 ended and as task 2 begins, after one step in each of tasks 0 and 1."""
  phase = method.phases[0]

  @jax.jit
  def learn(key):
    state = method.init(key)
    for t in range(2):
      state = edge(phase, "enter", key, state, views[t], START)
      batch = fetch(views[t], Place(jnp.full(B, t, jnp.int32), jnp.arange(B)))
      state = phase.step(key, state, batch, START, views[t])[0]
      state = edge(phase, "exit", key, state, views[t], START)
    return state, edge(phase, "enter", key, state, views[2], START)

  return learn(jax.random.key(0))


def test_lwf_holds_the_routes_of_all_earlier_tasks_through_one_head():
  spec, data = toys.stream(heads=1)
  views = [jax.jit(view_at, static_argnums=2)(data, jnp.int32(t), 3) for t in range(3)]
  own = {"sample": "none", "cotrain": False, "capacity": 0, "replay": 0, "gate_scale": 1.0, "batch_size": B}
  free, held = (
    METHODS["routing"](toys.routed(spec, 4), RATE, spec, guard={"name": name}, **own) for name in ("none", "lwf")
  )
  assert held.told
  _, state = begun(held, views)
  np.testing.assert_array_equal(state.past.old.any(axis=1), [True, True, False])
  noise = jax.random.normal(jax.random.key(1), state.router.shape)
  state = state.replace(router=state.router + noise)  # so that there is something to hold

  @jax.jit
  def routers(state):
    batch = fetch(views[2], Place(jnp.full(B, 2, jnp.int32), jnp.arange(B)))
    given = (held, state), (free, state.replace(past=None))
    return [method.phases[0].step(jax.random.key(0), own, batch, START, views[2])[0].router for method, own in given]

  with_guard, without = routers(state)
  pulled = np.abs(with_guard - without).max(axis=(0, 2))
  assert (pulled[:2] > 1e-6).all() and pulled[2] == 0, pulled


def test_lwf_holds_a_network_of_its_own_to_that_of_the_task_before():
  """`single` begins each task with another network, which teaches nothing."""
  before, state = begun(method_of("single", "lwf"), setting()[2])
  chex.assert_trees_all_equal(state.past.params, jax.tree.map(lambda leaf: leaf[1], before.store))
  assert not np.array_equal(state.past.params["first"]["kernel"], state.params["first"]["kernel"])
  assert state.past.t == 2
