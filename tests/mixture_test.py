"""Where a new task goes: a known task, an expert with a similar task and room, a new expert, or nowhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.methods.subnetwork.assignment import assign
from cljax.methods.subnetwork.keywords import Sharing
from cljax.methods.subnetwork.subnets import Subnets

RULES = Sharing(recurring_below=0.8, capacity_hidden=0.6, capacity_output=0.9)
ROOM = [[0.3, 0.3, 0.5]] * 3


@functools.cache
def compiled(experts):
  return jax.jit(functools.partial(assign, experts=experts, rules=RULES))


def found(
  losses=(3.0, 3.0, 0, 0), similarity=(-1.0, -1.0, -1.0, -1.0), share=None, expert_of=(0, 1, -1, -1), experts=3
):
  expert_of = jnp.array(expert_of)
  subnets = Subnets(None, {}, {}, jnp.zeros((4, 3)), jnp.zeros((4, 4), bool), None, expert_of, expert_of >= 0)
  went = compiled(experts)(subnets, jnp.array(losses), jnp.array(similarity), jnp.array(share or ROOM))
  return tuple(np.asarray(each).item() for each in went)  # known, shared, full, slot, expert


def test_a_known_task_goes_to_its_slot_whatever_else_fits():
  assert found(losses=(3.0, 0.8, 0, 0), similarity=(0.9, -1.0, -1.0, -1.0)) == (True, True, False, 1, 1)
  assert not found(losses=(3.0, 0.81, 0, 0))[0]


def test_slots_that_are_not_finished_are_not_known():
  assert found(losses=(3.0, 3.0, 0.0, 0.0))[0] is False


def test_the_most_similar_task_s_expert_is_shared():
  assert found(similarity=(0.3, 0.5, -1.0, -1.0)) == (False, True, False, 2, 1)
  assert found(similarity=(0.5, 0.3, -1.0, -1.0)) == (False, True, False, 2, 0)


@pytest.mark.parametrize("layer, most", [(0, 0.6), (1, 0.6), (2, 0.9)])
def test_an_expert_without_room_is_passed_over(layer, most):
  at_most, over = [list(row) for row in ROOM], [list(row) for row in ROOM]
  at_most[1][layer], over[1][layer] = most, most + 0.01
  assert found(similarity=(0.3, 0.5, -1.0, -1.0), share=at_most)[4] == 1
  assert found(similarity=(0.3, 0.5, -1.0, -1.0), share=over)[4] == 0
  assert found(similarity=(-1.0, 0.5, -1.0, -1.0), share=over) == (False, False, False, 2, 2)


def test_nothing_similar_opens_the_next_expert_and_the_last_one_is_the_last():
  assert found() == (False, False, False, 2, 2)
  assert found(experts=2) == (False, False, True, 2, 1)
  assert found(experts=2, similarity=(0.3, -1.0, -1.0, -1.0))[2] is False


def test_no_slot_left_is_full_but_a_known_task_needs_none():
  used = (0, 0, 1, 1)
  assert found(losses=(3.0,) * 4, similarity=(0.5, -1.0, -1.0, -1.0), expert_of=used)[2] is True
  assert found(losses=(3.0, 3.0, 3.0, 0.1), expert_of=used) == (True, False, False, 3, 1)
