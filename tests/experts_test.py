"""Experts that grow: a net's other collections go with each of them, and where a chain goes on from."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.errors import ConfigError
from cljax.loops import edge
from cljax.methods import METHODS
from cljax.methods.confident import State
from cljax.nets import MLP
from cljax.nets.modes import at_rest
from cljax.pieces.experts import EWC, FINETUNE, Chain, chained, part, with_root
from tests import gates, toys
from tests.guarded import RATE, START, Numpy, all_rows, batches, is_close, mean, setting, steps_of, zip_trees
from tests.modes_test import Modal
from tests.subjects import Subject

FEW = {"batch_size": 10, "epochs": 2, "warmup_epochs": 0, "mode": "lwf"}


@functools.cache
def run():
  """(subject, {kind and task: the experts after such a unit}) of a net with dropout and BatchNorm."""
  spec, data = toys.stream()
  method = METHODS["confident"](Modal(3, 4), optax.adam(0.05), spec, **FEW)
  base = Subject(toys.experiment(method, spec, data, seeds=(0,), chunk=8))
  carry, found = base.start(), {}
  for unit in gates.training(base, 3):
    base.run([unit], carry=carry)
    found[unit.kind, unit.at.task] = jax.tree.map(lambda leaf: np.array(leaf[0]), carry.state.experts)
  return base, found


def of_slot(experts, k):
  return jax.tree.map(lambda leaf: leaf[k], (experts.store, experts.store_collections))


def test_each_expert_keeps_its_statistics():
  _, found = run()
  last = found["exit", 2]
  for task in range(3):
    chex.assert_trees_all_equal(of_slot(found["exit", task], task), of_slot(last, task))
    chex.assert_trees_all_equal(of_slot(last, task)[1], found["exit", task].collections)
  means = last.store_collections["batch_stats"]["BatchNorm_0"]["mean"]
  assert all((means[one] != means[other]).any() for one, other in ((0, 1), (1, 2), (0, 3)))


def test_a_new_expert_goes_on_from_the_statistics_of_its_parent():
  _, found = run()
  for task in (1, 2):
    chex.assert_trees_all_equal(found["enter", task].collections, of_slot(found["exit", task - 1], task - 1)[1])
  fresh = found["enter", 0].collections["batch_stats"]["BatchNorm_0"]
  assert not fresh["mean"].any() and (fresh["var"] == 1).all()


def test_an_expert_answers_at_rest_by_its_own_statistics():
  base, found = run()
  experts, method = found["exit", 2], base.experiment.method
  x, slot = jnp.asarray(toys.bank().x[:9] / np.float32(255)), jnp.arange(9) % 3
  out = jax.jit(method.apply)(State(experts), x, slot)
  rest = jax.jit(lambda own: at_rest(Modal(1, 4), *own, x, jnp.zeros(9, jnp.int32)).logits)
  for k in range(3):
    np.testing.assert_allclose(out.logits[k::3], rest(of_slot(experts, k))[k::3], atol=1e-5)


def test_a_file_of_an_expert_holds_its_statistics():
  _, found = run()
  own = part(found["exit", 2], 1)
  leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(own)}
  loaded = jax.jit(lambda experts, leaves: with_root(experts, leaves, "a file"))
  experts = loaded(found["enter", 0], leaves)
  chex.assert_trees_all_equal(of_slot(experts, 3), of_slot(found["exit", 2], 1))
  assert bool(experts.finished[3])


@pytest.mark.parametrize("name", ["confident", "discriminative", "expert_gate"])
def test_the_state_of_an_ordinary_net_has_no_leaf_for_them(name):
  """So a checkpoint of before there were such nets is one of today's."""
  spec, _ = toys.stream()
  state = jax.eval_shape(METHODS[name](toys.mlp(spec), optax.adam(0.05), spec).init, jax.random.key(0))
  names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
  assert not [leaf for leaf in names if "collections" in leaf]
  assert {".experts.params['net']['head']['bias']", ".experts.store['first']['kernel']", ".experts.parent"} <= names


def test_a_chain_goes_on_from_the_one_before():
  chains = (("previous",), ("previous", 7), ("none",))
  parents = jax.jit(jax.vmap(lambda t: jnp.stack([chained(parent, t, *first) for parent, *first in chains])))
  np.testing.assert_array_equal(parents(jnp.arange(3)), [[-1, 7, -1], [0, 0, -1], [1, 1, -1]])
  assert Chain() == Chain("previous", "finetune")


# Elastic weight consolidation about the parent.


@functools.cache
def consolidated(ewc_strength, mode="ewc", fisher_rows=0):
  """[(before the first step, after the steps, after the end)] of each task's experts, one hidden layer under SGD."""
  spec, _, views = setting()
  own = {"mode": mode, "warmup_epochs": 0, "ewc_strength": ewc_strength, "fisher_rows": fisher_rows}
  method = METHODS["confident"](MLP(3, 4, (8,)), optax.sgd(RATE), spec, **own)
  phase = method.phases[0]

  @jax.jit
  def learn(state, t, batches, view):
    begun = edge(phase, "enter", jax.random.fold_in(jax.random.key(0), t), state, view, START)

    def one(state, batch):
      return phase.step(jax.random.key(1), state, batch, START, view)[0], None

    moved = jax.lax.scan(one, begun, batches)[0]
    return begun, moved, edge(phase, "exit", jax.random.key(2), moved, view, START)

  state, found = jax.jit(method.init)(jax.random.key(3)), []
  for t in range(3):
    found.append(learn(state, jnp.int32(t), batches(t), views[t]))
    state = found[-1][-1]
  return [tuple(jax.device_get(each.experts) for each in own) for own in found]


@pytest.mark.parametrize("rows", [0, 7])
def test_an_expert_under_ewc_equals_its_formula(rows):
  """Against numpy in float64: F is the mean of squared per-example gradients of the parent's task at its weights."""
  strength, F, anchor = 40.0, None, None
  for t, (begun, moved, left) in enumerate(consolidated(strength, fisher_rows=rows)):
    ours = Numpy(begun.params["net"])
    if anchor is not None:
      is_close(begun.params["net"]["first"], anchor)
    for x, y in steps_of(t):
      gradient = mean(ours.gradients(x, y, 0))
      if anchor is not None:
        pull = zip_trees(lambda F, w, a: strength * F * (w - a), F, ours.w["first"], anchor)
        gradient["first"] = zip_trees(np.add, gradient["first"], pull)
      ours.step(gradient)
    is_close(moved.params["net"], ours.w)
    task = jax.tree.map(lambda leaf: np.asarray(leaf)[: rows or None], all_rows(t))
    F = mean(zip_trees(np.square, ours.gradients(task.x, task.y, 0)))["first"]
    anchor = ours.w["first"]
    is_close(jax.tree.map(lambda leaf, t=t: leaf[t], left.fisher), {"first": F})
  assert left.mode.tolist() == [0, EWC, EWC] and left.parent.tolist() == [-1, 0, 1]


def test_ewc_of_strength_zero_is_fine_tuning_to_the_bit_and_more_is_not():
  nothing, tuned, held = (consolidated(*own)[-1][-1] for own in ((0.0,), (0.0, "finetune"), (40.0,)))
  assert (nothing.mode[1:] == EWC).all() and (tuned.mode[1:] == FINETUNE).all()
  chex.assert_trees_all_equal(nothing.store, tuned.store)
  first = [each.store["first"]["kernel"] for each in (held, tuned)]
  np.testing.assert_array_equal(first[0][0], first[1][0])
  start = first[1][0]
  far = [np.square(each[1] - start).sum() for each in first]
  assert 0 < far[0] < far[1]


@pytest.mark.parametrize("name", ["confident", "discriminative", "expert_gate"])
def test_only_experts_that_may_learn_by_ewc_keep_a_fisher(name):
  spec, _ = toys.stream()

  def kept(**own):
    state = jax.eval_shape(METHODS[name](toys.mlp(spec), optax.adam(0.05), spec, **own).init, jax.random.key(0))
    return state.experts.fisher

  assert kept() == kept(mode="lwf") == kept(mode="finetune") == {}
  fisher = kept(mode="ewc")
  assert "head" not in fisher and fisher["first"]["kernel"].shape == (4, 16, 8)


def test_a_file_of_an_expert_holds_its_fisher():
  experts = consolidated(40.0)[-1][-1]
  own = part(experts, 1)
  leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(own)}
  loaded = with_root(jax.tree.map(jnp.asarray, experts), leaves, "a file")
  chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[3], loaded.fisher), own["fisher"])
  without = {name: leaf for name, leaf in leaves.items() if "fisher" not in name}
  with pytest.raises(ConfigError, match=r"a file has no \['fisher'\]"):
    with_root(experts, without, "a file")
