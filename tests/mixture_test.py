"""Where a new task goes: a known task, an expert with a similar task and room, a new expert, or nowhere."""

import jax.numpy as jnp
import numpy as np
import pytest

from cljax.methods.subnetwork.mixture import Rules, home
from cljax.methods.subnetwork.subnets import Subnets

RULES = Rules(
  experts=3, slots=4, decisions=4, centred=True, score="grad", select="topk", fractions=(0.1, 0.1, 0.1), above=3.0,
  keep_accuracy=0.97, recurring_below=0.8, overlap_from=0.25, deviation_up_to=2.0, capacity_hidden=0.6,
  capacity_output=0.9, forward_from="all_frozen", bias="first", infer="entropy",
)  # fmt: skip
ROOM = [[0.3, 0.3, 0.5]] * 3


def found(losses=(3.0, 3.0, 0, 0), fit=(-1.0, -1.0, -1.0, -1.0), share=None, expert_of=(0, 1, -1, -1), **rules):
  expert_of = jnp.array(expert_of)
  subnets = Subnets(None, {}, {}, jnp.zeros((4, 3)), jnp.zeros((4, 4), bool), None, expert_of, expert_of >= 0)
  told = home(subnets, jnp.array(losses), jnp.array(fit), jnp.array(share or ROOM), RULES._replace(**rules))
  return tuple(np.asarray(each).item() for each in told)  # known, shared, full, slot, expert


def test_a_known_task_goes_to_its_slot_whatever_else_fits():
  assert found(losses=(3.0, 0.8, 0, 0), fit=(0.9, -1.0, -1.0, -1.0)) == (True, True, False, 1, 1)
  assert not found(losses=(3.0, 0.81, 0, 0))[0]


def test_slots_that_are_not_finished_are_not_known():
  assert found(losses=(3.0, 3.0, 0.0, 0.0))[0] is False


def test_the_most_similar_task_s_expert_is_shared():
  assert found(fit=(0.3, 0.5, -1.0, -1.0)) == (False, True, False, 2, 1)
  assert found(fit=(0.5, 0.3, -1.0, -1.0)) == (False, True, False, 2, 0)


@pytest.mark.parametrize("layer, most", [(0, 0.6), (1, 0.6), (2, 0.9)])
def test_an_expert_without_room_is_passed_over(layer, most):
  at_most, over = [list(row) for row in ROOM], [list(row) for row in ROOM]
  at_most[1][layer], over[1][layer] = most, most + 0.01
  assert found(fit=(0.3, 0.5, -1.0, -1.0), share=at_most)[4] == 1
  assert found(fit=(0.3, 0.5, -1.0, -1.0), share=over)[4] == 0
  assert found(fit=(-1.0, 0.5, -1.0, -1.0), share=over) == (False, False, False, 2, 2)


def test_nothing_similar_opens_the_next_expert_and_the_last_one_is_the_last():
  assert found() == (False, False, False, 2, 2)
  assert found(experts=2) == (False, False, True, 2, 1)
  assert found(experts=2, fit=(0.3, -1.0, -1.0, -1.0))[2] is False


def test_no_slot_left_is_full_but_a_known_task_needs_none():
  used = (0, 0, 1, 1)
  assert found(losses=(3.0,) * 4, fit=(0.5, -1.0, -1.0, -1.0), expert_of=used)[2] is True
  assert found(losses=(3.0, 3.0, 3.0, 0.1), expert_of=used) == (True, False, False, 3, 1)
