"""What sets the rows of a table apart: no two runs of different kinds stand side by side unmarked."""

import pytest

from cljax.report import apart, gallery, tables
from tests.results import fake

BASE = {
  "paper": "cotraining",
  "cell": "mnist_perm/er",
  "seed": 0,
  "num_seeds": 2,
  "debug": False,
  "log_every_steps": 100,
  "stream": {"name": "permuted", "source": "mnist", "scenario": "task", "tasks": 3, "examples_per_task": 0},
  "optimizer": {"name": "sgd", "lr": 0.1},
  "net": {"name": "mlp", "hidden": (256, 256)},
  "method": {"name": "er", "epochs": 1, "capacity": 1000},
  "sweep": {"lr": ()},
}


def config(**changes):
  """BASE with changes by dotted name, `__` for a dot."""
  found = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
  for key, value in changes.items():
    section, _, field = key.partition("__")
    if field:
      found[section][field] = value
    else:
      found[section] = value
  return found


def run(name="er", on="mnist_perm", preset="paper", fields=None, **changes):
  return fake(name, on, preset, config=config(**changes), **(fields or {}))


@pytest.mark.parametrize(
  ("changes", "heading", "here", "there"),
  [
    ({"stream__scenario": "class"}, "scenario", "task", "class"),
    ({"debug": True}, "debug", "false", "true"),
    ({"stream__examples_per_task": 300}, "examples_per_task", "0", "300"),
    ({"stream__tasks": 5}, "tasks", "3", "5"),
    ({"optimizer__lr": 1e-3}, "lr", "0.1", "0.001"),
    ({"seed": 100}, "seed", "0", "100"),
  ],
)
def test_a_key_that_differs_is_a_column(changes, heading, here, there):
  headings, table = tables.rows([run("er"), run("routing", **changes)], {})
  assert [line[headings.index(heading)] for line in table] == [here, there]
  assert heading not in tables.rows([run("er"), run("routing")], {})[0]


@pytest.mark.parametrize(
  ("changes", "mark"),
  [
    ({"method__epochs": 3}, "epochs=3"),
    ({"method__capacity": 10}, "capacity=10"),
    ({"net__hidden": (64,)}, "hidden=(64,)"),
    ({"net__name": "cnn"}, "net.name=cnn"),
    ({"log_every_steps": 7}, "log_every_steps=7"),
    ({"method__epochs": 3, "net__name": "cnn"}, "epochs=3, net.name=cnn"),
  ],
)
def test_any_other_key_is_a_mark_on_the_rows_of_no_majority(changes, mark):
  headings, table = tables.rows([run("er"), run("finetune"), run("routing", **changes)], {})
  assert headings[-1] == apart.MARK
  assert [line[-1] for line in table] == ["-", "-", mark]
  two = tables.rows([run("er"), run("routing", **changes)], {})[1]
  assert all(line[-1] != "-" for line in two)  # of two rows neither is the usual one


@pytest.mark.parametrize("key", ["method__name", "stream__source", "stream__name"])
def test_rows_that_are_called_alike_but_are_of_another_kind_are_told(key):
  """A config of Python may keep a cell's name beside another method or data set."""
  said = key.replace("__", ".")
  found = tables.text_table([run("er"), run("er", **{key: "other"})])
  assert "other" in found and (said in found or said.split(".")[1] in found)
  assert "other" not in tables.text_table([run("er", **{key: "other"}), run("er", **{key: "other"})])


def test_keywords_of_a_guard_that_was_not_taken_are_not_there():
  plain = run(method={"name": "er", "guard": {"name": "none", "strength": None}})
  guarded = [run(method={"name": "er", "guard": {"name": "ewc", "strength": s}}) for s in (1.0, 9.0)]
  assert apart.names([plain, *guarded], "abc") == [
    "er, method.guard.name=none",
    "er, strength=1",
    "er, strength=9",
  ]


def test_data_and_files_of_one_name_and_another_content_are_told():
  """A file that was written anew between two runs, a network of one's own that was changed, another JAX switch."""
  made = fake()["environment"]

  def made_by(**changes):
    return run("routing", fields={"environment": {**made, **changes}})

  for other, mark in (
    (run("routing", fields={"data_hash": "abcdef0123"}), "data=abcdef01"),
    (made_by(own_files={"me/nets.py:Wide": {"sha256": "0123456789"}}), "Wide=version 01234567"),
    (made_by(switches={"jax_enable_x64": True}), "jax_enable_x64=true"),
  ):
    same = {"own_files": {"you/nets.py:Wide": {"sha256": "9" * 9}}, "switches": {"jax_enable_x64": False}}
    rest = [run(name, fields={"environment": {**made, **same}}) for name in ("er", "finetune")]
    headings, table = tables.rows([*rest, other], {})
    assert headings[-1] == apart.MARK and mark in table[2][-1], table[2]
    assert [line[-1] for line in table[:2]] == ["-", "-"]
  fashion = run("er", "fashion", stream__source="fashion_mnist", fields={"data_hash": "abcdef0123"})
  assert "data" not in apart.differing([run(), fashion])  # another data set, as its source tells


def test_columns_are_few_and_the_rest_are_marks():
  changes = {"stream__scenario": "class", "stream__tasks": 5, "stream__examples_per_task": 9, "debug": True, "seed": 4}
  headings, table = tables.rows([run("er"), run("finetune"), run("routing", optimizer__lr=0.5, **changes)], {})
  own = [
    heading for heading in headings if heading in ("debug", "lr", "seed", "examples_per_task", "scenario", "tasks")
  ]
  assert len(own) == apart.COLUMNS and table[2][-1] == "scenario=class, tasks=5"


def test_streams_of_their_own_are_not_told_apart_by_what_makes_them():
  rotated = run("er", "mnist_rot", stream={"name": "rotated", "source": "mnist", "scenario": "task", "tasks": 20})
  assert apart.differing([run(), rotated]) == {}
  other = run("er", "mnist_rot", stream={"name": "rotated", "source": "mnist", "scenario": "class", "tasks": 20})
  assert apart.differing([run(), rotated, other]) == {"stream.scenario": ["task", "task", "class"]}


def test_presets_and_papers_are_tables_of_their_own():
  assert apart.differing([run(), run(preset="smoke", method__epochs=9)]) == {}
  assert apart.differing([run(), run(fields={"paper": "lasem"}, method__epochs=9)]) == {}


def test_what_a_table_tells_anyway_sets_nothing_apart():
  one = run("er", cell="a", num_seeds=3, sweep={"lr": (0.1, 0.2)})
  assert apart.marks([run("er"), one]) == {}


def test_a_key_that_only_one_method_has_is_no_difference():
  assert apart.differing([run("er"), run("finetune", method={"name": "finetune", "epochs": 1})]) == {}


def test_rows_of_one_name_are_told_apart_by_what_differs():
  results = [run(), run(optimizer__lr=0.3), run(optimizer__lr=0.3, method__capacity=50), run("joint")]
  paths = ["a/er", "b/er", "c/er", "joint"]
  assert apart.names(results, paths) == ["er, lr=0.1", "er", "er, capacity=50", "joint"]
  assert apart.names([run(), run(optimizer__lr=0.3)], paths[:2]) == ["er, lr=0.1", "er, lr=0.3"]
  assert apart.names([run(), run(stream__scenario="class")], paths[:2]) == ["er, scenario=task", "er, scenario=class"]
  assert apart.names([run(), run()], paths[:2]) == ["er, in a/er", "er, in b/er"]  # runs of one config
  three = apart.names([run(), run(), run(optimizer__lr=0.3)], paths[:3])
  assert three == ["er, in a/er", "er, in b/er", "er, lr=0.3"]


def test_values_are_written_as_they_are_typed():
  written = [apart.written(value) for value in (0.1, 1e-4, 3.0, True, (1,), (0.5, 2), [], "class", 123456789.5, None)]
  assert written == ["0.1", "0.0001", "3", "true", "(1,)", "(0.5,2)", "()", "class", "123456789.5", "None"]
  assert apart.written("/home/me/runs/static/parts/seed_{seed}/theta.npz") == ".../static/parts/seed_{seed}/theta.npz"


def test_values_that_agree_in_six_digits_stay_apart():
  assert apart.names([run(optimizer__lr=0.1), run(optimizer__lr=0.1000000001)], "ab") == [
    "er, lr=0.1",
    "er, lr=0.1000000001",
  ]


def test_scenarios_have_figures_of_their_own():
  results = [run("er"), run("routing"), run("er", stream__scenario="class")]
  names = apart.names(results, "abc")
  found = gallery.table_figures(results, [{}, {}, {}], names)
  assert {name for name in found if "drops" in name} == {"mnist_perm_task_drops", "mnist_perm_class_drops"}
  lines = [line.get_label() for line in found["mnist_perm_class_drops"].axes[0].lines if line.get_label()[0] != "_"]
  assert lines == [names[2]] and names[2] == "er, scenario=class"
  assert "mnist_perm_drops" in gallery.table_figures(results[:2], [{}, {}])


def test_what_rounding_leaves_of_a_product_is_not_written():
  values = {0.1 * 0.1: "0.01", 0.05 * 0.1: "0.005", 1e9: "1e+09", 0.123456789: "0.123456789", (4, 3): "(4,3)"}
  assert {value: apart.written(value) for value in values} == values
