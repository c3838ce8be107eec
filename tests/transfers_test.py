"""An old task and new ones: whose rows they are, which classes are drawn, and what is refused."""

import jax
import numpy as np
import pytest

from cljax.data import STREAMS, bank
from cljax.errors import ConfigError

SOURCE, KEY = bank.load("digits"), jax.random.key(3)
transfer = STREAMS["transfer"]


def labels_of(stream, t):
  rows = stream.tasks.train
  return SOURCE.train.y[rows.idx[t][: rows.count[t]]]


def test_halves_part_the_rows_of_the_new_classes_and_leave_the_old_task_whole():
  spec, whole = transfer(SOURCE, KEY, old=(4, 2), new=(9, 7, 1))
  assert (spec.T, spec.C, spec.heads) == (2, 3, 2)
  halves = [transfer(SOURCE, KEY, old=(4, 2), new=(9, 7, 1), half=half)[1] for half in ("first", "second")]
  rows = [each.tasks.train for each in (whole, *halves)]
  own = [set(part.idx[1][: part.count[1]].tolist()) for part in rows]
  assert own[1] | own[2] == own[0] and not own[1] & own[2]
  assert len({part.idx[0][: part.count[0]].tobytes() for part in rows}) == 1
  for label in (9, 7, 1):  # each class is halved by itself
    counts = [(labels_of(stream, 1) == label).sum() for stream in halves]
    assert abs(counts[0] - counts[1]) <= 1 and sum(counts) == (SOURCE.train.y == label).sum()
  np.testing.assert_array_equal(whole.tasks.label_map[0, [4, 2]], [0, 1])
  np.testing.assert_array_equal(whole.tasks.label_map[1, [9, 7, 1]], [0, 1, 2])
  np.testing.assert_array_equal(whole.tasks.classes, [[True, True, False], [True] * 3])
  tests = SOURCE.test.y[whole.test.idx[1][: whole.test.count[1]]]
  assert set(tests.tolist()) == {9, 7, 1} and len(tests) == np.isin(SOURCE.test.y, (9, 7, 1)).sum()


def test_new_classes_are_drawn_without_replacement_by_key_and_draw():
  found = set()
  for key, draw in ((KEY, 0), (KEY, 1), (jax.random.key(4), 0)):
    keywords = {"old": (0,), "new": tuple(range(1, 10)), "new_tasks": 2, "new_classes": 3, "draw": draw}
    spec, stream = transfer(SOURCE, key, **keywords)
    drawn = stream.tasks.label_unmap[1:].ravel()
    assert spec.T == 3 and len(set(drawn.tolist())) == 6 and 0 not in drawn
    np.testing.assert_array_equal(stream.tasks.label_unmap, transfer(SOURCE, key, **keywords)[1].tasks.label_unmap)
    found.add(drawn.tobytes())
  assert len(found) == 3


@pytest.mark.parametrize(
  ("keywords", "words"),
  [
    ({"old": (0, 12)}, r"config.stream.old=\(0, 12\): the data has no labels \[12\]"),
    ({"new": (5, 5)}, "names a class twice"),
    ({"new": (4, 5)}, r"has classes of config.stream.old: \[4\]"),
    ({"new_tasks": 2}, "5 classes, which do not make config.stream.new_tasks=2 tasks of equally many"),
    ({"new_tasks": 2, "new_classes": 3}, "which do not make config.stream.new_tasks=2 tasks of 3"),
    ({"half": "third"}, "config.stream.half='third' is not known"),
  ],
)
def test_refusals(keywords, words):
  with pytest.raises(ConfigError, match=words):
    transfer(SOURCE, KEY, **keywords)
