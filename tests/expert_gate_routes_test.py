"""Expert Gate (Aljundi et al. 2017) on tasks of which one knows what is related to what: parents, modes, routes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cljax.data.sample import decode
from cljax.pieces.experts import FINETUNE, LWF, SCRATCH
from tests import gates

LONG = {"epochs": 5, "warmup_epochs": 0, "autoencoder_epochs": 20, "patience": 3}
APART = [0, 1, 2, 3]


@functools.cache
def subject():
  """Four tasks; streams of other bases have the same shapes."""
  return gates.subject(*gates.subspaces(APART), chunk=150, **LONG)


@functools.cache
def related():
  """Tasks on subspaces A, B, A relabelled, C."""
  return subject().run(data=gates.subspaces([0, 1, 0, 2], relabel=(2,))[1])


def accuracy(carry, readout):
  return carry.right[readout][0, -1] / subject().experiment.test_rows[0]


def test_tasks_on_other_subspaces_are_told_apart():
  carry = subject().run()
  confusion = carry.confusion["inferred"][0]
  assert np.diagonal(confusion).sum() / confusion.sum() > 0.97
  assert accuracy(carry, "task").min() > 0.9
  np.testing.assert_allclose(accuracy(carry, "inferred"), accuracy(carry, "task"), atol=0.06)
  assert (np.asarray(carry.state.relatedness[0])[np.tril_indices(4, -1)] < 0.5).all()


def test_a_relabelled_copy_is_related_and_learns_without_forgetting():
  state = gates.state_of(related())
  rel = np.asarray(state.relatedness)
  assert rel[2, 0] > 0.85 and rel[2, 1] < 0.5
  np.testing.assert_array_equal(state.experts.parent[:3], [-1, 0, 0])
  np.testing.assert_array_equal(state.experts.mode, [SCRATCH, FINETUNE, LWF, FINETUNE])
  assert np.isnan(rel[np.triu_indices(4)]).all() and np.isnan(rel[:, 4]).all()


def test_more_of_a_task_in_the_new_one_is_more_related():
  """Mean over streams of the relatedness of a task whose training rows hold a growing share of task 0's pictures."""
  gates_first = gates.training(subject(), 2, phases=(0,))
  decision = next(unit for unit in gates.training(subject(), 2, phases=(1,)) if unit.at.task == 1)
  found = []
  for share in (0.0, 0.5, 1.0):
    values = []
    for seed in range(2):
      _, data = gates.subspaces(APART, seed=seed)
      rows, valid = data.tasks.train.idx.copy(), data.tasks.valid.idx.copy()
      rows[1, : int(share * 300)] = rows[0, : int(share * 300)]
      valid[1, : int(share * 60)] = data.test.idx[0, : int(share * 60)]  # rows of the same kind that no one trains on
      tasks = data.tasks._replace(train=data.tasks.train._replace(idx=rows), valid=data.tasks.valid._replace(idx=valid))
      carry = subject().run([*gates_first, decision], data=data._replace(tasks=tasks))
      values.append(float(carry.state.relatedness[0, 1, 0]))
    found.append(np.mean(values))
  assert found[0] < found[1] < found[2], found


def test_no_forgetting_with_the_task_given():
  R = related().right["task"][0]
  for task in range(4):
    assert R[task + 1, task] == R[-1, task]


def test_routes_do_not_depend_on_the_batch():
  state, bank = gates.state_of(related()), gates.subspaces([0, 1, 0, 2])[1].bank
  apply = jax.jit(subject().experiment.method.apply)
  x = decode(bank.x[np.random.default_rng(0).permutation(400)[:24]])
  whole = apply(state, x, None)
  for size in (1, 6):
    parts = [apply(state, x[i : i + size], None) for i in range(0, len(x), size)]
    np.testing.assert_array_equal(np.concatenate([part.task for part in parts]), whole.task)
    np.testing.assert_allclose(np.concatenate([part.logits for part in parts]), whole.logits, atol=1e-5)


def test_few_code_units_die():
  assert (np.asarray(related().state.gates.dead) < 0.2).all()


def test_several_experts_average_where_their_labels_coincide():
  """Two copies of one task, of equal labels: the answer is the mean of both; with other labels it is the best alone."""
  spec, data = gates.subspaces([0, 0, 1, 2])
  state = gates.state_of(subject().run(gates.training(subject(), 2), data=data))
  apply = jax.jit(gates.method_of(spec, activate="several", activate_above=0.0, **LONG).apply)
  x = decode(data.bank.x[:20])
  each = [jax.nn.softmax(apply(state, x, jnp.full(20, k)).logits) for k in range(2)]
  together = jax.nn.softmax(apply(state, x, None).logits)
  np.testing.assert_allclose(together, (each[0] + each[1]) / 2, atol=1e-5)
  apart = state.replace(experts=state.experts.replace(labels=state.experts.labels.at[1].add(4)))
  out = apply(apart, x, None)
  best = np.where((out.task == 0)[:, None], each[0], each[1])
  np.testing.assert_allclose(jax.nn.softmax(out.logits), best, atol=1e-5)
