"""Published orderings and the winners of searches, on results made by hand."""

import pytest

from cljax.report import published
from tests.apart_test import run
from tests.results import PUBLISHED, looked, with_metric

PAPER = {
  "preset": "paper",
  "changed": lambda result: ["lr=0.25"] if result["config"]["optimizer"]["lr"] == 0.25 else [],
  "values": {"mnist_perm": {"er": {"ACC": 0.9, "BWT": -0.1}, "routing": {"ACC": 0.8, "BWT": -0.1}}},
}


def scored(result, values, metric="ACC", seeds=None):
  known = [v for v in values if v is not None]
  mean = sum(known) / len(known)
  std = (sum((v - mean) ** 2 for v in known) / (len(known) - 1)) ** 0.5 if len(known) > 1 else None
  found = with_metric(result, metric, mean, std)
  found["metrics"][metric]["values"] = list(values)
  accuracy = [result["accuracy"][0]] * len(values)  # of as many seeds
  return {**found, "accuracy": accuracy, "seeds": list(seeds or range(len(values)))}


def lines_of(*results):
  return [line for line in published.rankings(results, PAPER) if "ACC" in line]


@pytest.mark.parametrize(
  ("er", "routing", "expected"),
  [
    ((0.9, 0.91, 0.92), (0.8, 0.82, 0.81), "1 of 1 pairs hold."),
    ((0.8, 0.82, 0.81), (0.9, 0.91, 0.92), "0 of 1 pairs hold; the other way round: er before routing (-0.1000)."),
    ((0.8, 0.9, 0.7), (0.81, 0.7, 0.8), "0 of 1 pairs hold; unsettled: er before routing (+0.0300)."),
    # apart by .002 on every seed: paired, that is settled, however far the seeds lie from each other
    ((0.602, 0.802, 0.7021), (0.6, 0.8, 0.7), "1 of 1 pairs hold."),
    ((0.9,), (0.8,), "0 of 1 pairs hold; unsettled: er before routing (+0.1000)."),
  ],
)
def test_a_published_order_holds_does_not_or_is_unsettled(er, routing, expected):
  (line,) = lines_of(scored(run("er"), er), scored(run("routing"), routing))
  assert line == f"mnist_perm: ACC, published er > routing, as configured: {expected}"


def test_other_seeds_are_compared_by_their_means():
  one, two = scored(run("er"), (0.602, 0.802, 0.702)), scored(run("routing"), (0.6, 0.8, 0.7), seeds=(7, 8, 9))
  assert "unsettled: er before routing (+0.0020)" in lines_of(one, two)[0]
  far = scored(run("routing"), (0.01, 0.011, 0.012), seeds=(7, 8, 9))
  assert "1 of 1 pairs hold" in lines_of(one, far)[0]


def test_equal_published_numbers_are_no_order():
  results = [run("er"), run("routing")]
  assert [line for line in published.rankings(results, PAPER) if "BWT" in line] == [
    "mnist_perm: BWT, published er > routing, as configured: 0 of 0 pairs hold."
  ]


def test_orders_are_asked_within_one_problem():
  """Another number of tasks, scenario or preset is no comparison."""
  for changes in ({"stream__tasks": 5}, {"stream__scenario": "class"}, {"preset": "smoke"}, {"debug": True}):
    assert lines_of(run("er"), run("routing", **changes)) == []


def test_searched_methods_are_compared_at_the_best_of_each_too():
  low, high = scored(run("er", optimizer__lr=0.5), (0.7, 0.71)), scored(run("er"), (0.9, 0.91))
  routing = scored(run("routing"), (0.8, 0.81, 0.82))
  configured, tuned = lines_of(low, high, routing)
  assert (
    "as configured: 0 of 1" in configured and "the best of each (2 of er, 1 of routing; judged by test rows)" in tuned
  )
  assert tuned.endswith("1 of 1 pairs hold.")


def test_as_configured_is_the_preset_s_own_however_many_seeds_another_has():
  more = scored(run("er", optimizer__lr=0.25), (0.7, 0.71, 0.7, 0.71))
  configured, _ = lines_of(more, scored(run("er"), (0.9, 0.91)), scored(run("routing"), (0.8, 0.81)))
  assert "as configured: 1 of 1" in configured
  assert lines_of(more, scored(run("routing"), (0.8, 0.81))) == []  # nothing of its own
  assert published.published_value(run(), "ACC", {**PAPER, "changed": lambda result: ["lr=0.3"]}) is None
  without = {key: value for key, value in PAPER.items() if key != "changed"}
  assert published.published_value(run(), "ACC", without) is None  # nobody could tell


def test_the_winner_of_a_search_is_chosen_by_validation_rows():
  """The best on validation rows is not the best on test rows: its test number is the lower one."""
  right = {"valid": looked()["valid"]}
  low = {"valid": {**right["valid"], "right": right["valid"]["right"] // 2}}
  chosen = scored(run("er", fields={"looked": right}), (0.6, 0.62))
  other = scored(run("er", optimizer__lr=0.5, fields={"looked": low}), (0.7, 0.72))
  names = ["er, lr=0.1", "er, lr=0.5"]
  assert published.winners([chosen, other], names) == [
    "Best of 2 of er on mnist_perm, by validation rows: er, lr=0.1; test ACC 0.6100 ± 0.0141."
  ]
  blind = scored(run("er", optimizer__lr=0.5), (0.7, 0.72))
  assert published.winners([chosen, blind], names) == [
    "Best of 2 of er on mnist_perm, judged by test rows: er, lr=0.5; test ACC 0.7100 ± 0.0141."
  ]


def test_runs_that_differ_in_their_seeds_alone_are_no_search():
  """The best of a few draws is no setting."""
  low, high, other = scored(run(), (0.6,)), scored(run(seed=9, log_every_steps=5), (0.9,)), run(method__epochs=9)
  assert published.winners([low, high], ["a", "b"]) == []
  (line,) = published.winners([low, high, scored(other, (0.5,))], ["a", "b", "c"])
  assert line.startswith("Best of 2 settings, 3 results, of er on mnist_perm, judged by test rows: b;")


def test_runs_of_different_problems_are_no_search():
  assert published.winners([run(), run(stream__scenario="class")], ["a", "b"]) == []
  assert published.winners([run(), run("routing")], ["a", "b"]) == []
  assert published.winners([with_metric(run(), "ACC", None), with_metric(run(seed=4), "ACC", None)], ["a", "b"]) == []


def test_the_source_of_published_numbers_is_a_link():
  assert PUBLISHED["link"].startswith("https://")
