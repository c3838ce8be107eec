"""Overrides in two passes, names and then keywords; sweeps whose values are runs of their own."""

import pytest

from cljax.config import complete, default
from cljax.errors import ConfigError
from cljax.overrides import changed, renamed
from cljax.run import train
from cljax.sweep import cells, sweep_values
from launch.cells import cell_config, run_cells, spread
from launch.config_files import check_overrides, load_config, prepared, typed_in

QUICK = "configs/quickstart.py"


def quickstart(method="finetune"):
  return load_config(QUICK).get_config(f"method={method}")


def test_a_name_brings_its_keywords():
  it = changed(quickstart(), {"method.distill_weight": 2, "method.name": "lwf"})  # in any order
  assert (it.method.name, it.method.distill_weight, it.method.epochs) == ("lwf", 2.0, 3)
  it = changed(quickstart(), {"stream.name": "rotated", "stream.degrees": 5})
  assert (it.stream.degrees, it.stream.tasks, it.stream.source) == (5.0, 10, "digits")
  it = changed(quickstart(), {"optimizer.name": "adam", "optimizer.b1": 0.8})
  assert (it.optimizer.b1, it.optimizer.lr) == (0.8, 0.05) and "momentum" not in it.optimizer
  it = changed(quickstart(), {"optimizer.name": "adamw"})
  assert it.optimizer.weight_decay == 1e-4  # not the 0 that plain SGD has by default


def test_what_the_file_set_goes_where_the_new_choice_does_not_know_it():
  it = renamed(quickstart("er"), {"method.name": "finetune"})
  assert "capacity" not in it.method and it.method.epochs == 3
  it = changed(quickstart("routing_cotrain"), {"method.name": "er", "net.name": "mlp"})
  assert it.method.capacity == 200 and "k" not in it.method and it.net.to_dict()["hidden"] == default_hidden()
  it = renamed(changed(quickstart(), {"method.epochs": 5}), {"method.name": "joint"})
  assert it.method.epochs == 5


def default_hidden():
  return complete(default()).net.hidden


def test_what_the_user_set_is_refused_there():
  with pytest.raises(ConfigError, match=r"config key='method.capacity' is not known"):
    changed(quickstart("er"), {"method.name": "lwf", "method.capacity": 3})
  argv = ["", f"--config={QUICK}:method=er", "--config.method.name=lwf", "--config.method.capacity=3"]
  with pytest.raises(ConfigError, match=r"--config key='method.capacity' is not known"):
    check_overrides(argv)
  check_overrides([*argv[:3], "--config.method.distill_weight=2"])
  check_overrides([*argv[:2], "--config.method.name", "lwf", "--config.method.distill_weight", "2"])


def test_what_is_unknown_is_listed_by_the_name_that_was_typed(tmp_path):
  """Not by the file, which sets another one."""
  argv = ["", f"--config={QUICK}:method=er", "--config.method.name=lwf", "--config.method.capacty=3"]
  with pytest.raises(ConfigError, match="`cljax list lwf` shows its keywords"):
    check_overrides(argv)
  with pytest.raises(ConfigError, match=f"`cljax list {QUICK}:method=er` shows all"):
    check_overrides([*argv[:2], "--config.method.capacty=3"])
  with pytest.raises(ConfigError, match="`cljax list ewc` shows its keywords"):
    check_overrides([*argv[:2], "--config.method.guard.name=ewc", "--config.method.guard.strenght=3"])
  (tmp_path / "own.py").write_text("from cljax.nets import MLP as Mine\n")
  with pytest.raises(ConfigError, match="Choose one of: net.hidden, .*net.name$"):
    check_overrides([*argv[:2], f"--config.net.name={tmp_path}/own.py:Mine", "--config.net.hiden=(3,)"])


def test_the_net_of_a_meta_training_is_another_choice():
  """Its keywords come with its name, and those of the file's net go."""
  file = "configs/papers/metateacher/meta.py"
  words = [f"--config={file}:preset=smoke", "--config.net.name=normed_cnn", "--config.net.widths=(8,)"]
  config = prepared(load_config(file).get_config("preset=smoke"), ["", *words])
  assert config.net.name == "normed_cnn" and "hidden" not in config.net and config.length.segments == 40
  check_overrides(["", *words])
  with pytest.raises(ConfigError, match="'net.hidden' is not known.*`cljax list normed_cnn` shows its keywords"):
    check_overrides(["", *words, "--config.net.hidden=(8,)"])


def test_a_guard_is_another_choice():
  it = changed(
    quickstart("er"), {"method.guard.name": "ewc", "method.guard.strength": 5, "method.guard.labels": "model"}
  )
  assert it.method.guard.strength == 5.0
  other = changed(it, {"method.guard.name": "si", "method.guard.damping": 0.2})
  assert other.method.guard.to_dict()["damping"] == 0.2 and "labels" not in other.method.guard
  assert other.method.guard.strength == 5.0
  assert changed(it, {"method.guard.name": "none"}).method.guard.name == "none"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"method.name": "lfw"}, "config.method.name='lfw' is not known. Did you mean lwf"),
    ({"method.guard.name": "ewcc"}, "config.method.guard.name='ewcc' is not known. Did you mean ewc"),
    ({"method.epochs": "many"}, "config.method.epochs='many' must be a whole number"),
    ({"net.width": 3}, "config key='net.width' is not known"),
  ],
)
def test_wrong_changes(changes, message):
  with pytest.raises(ConfigError, match=message):
    changed(quickstart(), changes)


def test_a_value_that_the_new_choice_may_not_have_goes_with_the_old_one():
  """`b1` may be 1 with lion, and has to be below it with adam, which then begins at its own default."""
  it = complete({"optimizer": {"name": "lion", "lr": 0.1, "weight_decay": 3.0, "b1": 1.0}})
  adam = renamed(it, {"optimizer.name": "adam"}).optimizer
  assert (adam.b1, adam.weight_decay) == (0.9, 3.0)


def test_sections_without_a_name_are_completed():
  it = complete({"method": {"epochs": 2}, "stream": {"tasks": 3}, "net": {"hidden": (8,)}})
  assert (it.method.name, it.stream.name, it.net.name) == ("finetune", "permuted", "mlp")
  assert (it.method.epochs, it.stream.tasks, it.stream.source, it.net.hidden) == (2, 3, "digits", (8,))


def test_words_are_typed_with_and_without_an_equals_sign():
  words = ["x", "--config=a.py", "--config.a.b=1=2", "-config.c", "d", "--config.e"]
  assert typed_in(words) == {"a.b": "1=2", "c": "d", "e": ""}


def test_a_sweep_over_whole_numbers_and_words_is_runs():
  it = prepared(quickstart("er"), [])
  it.sweep.capacity, it.sweep.optimizer, it.sweep.lr = (100, 50), ("sgd", "adam"), (0.1, 0.2)
  found = cells(complete(it))
  assert [values for values, _ in found] == [
    {"optimizer": name, "capacity": rows} for name in ("sgd", "adam") for rows in (100, 50)
  ] or [values for values, _ in found] == [
    {"capacity": rows, "optimizer": name} for rows in (100, 50) for name in ("sgd", "adam")
  ]
  for values, own in found:
    assert (own.method.capacity, own.optimizer.name) == (values["capacity"], values["optimizer"])
    assert sweep_values(own) == ({"lr": 0.1}, {"lr": 0.2}) and "capacity" not in own.sweep
  with pytest.raises(ConfigError, match=r"each of these values is a run of its own; python -m launch.train"):
    train(it)


def test_a_swept_name_needs_what_the_user_set():
  it = prepared(quickstart("er"), [])
  it.sweep.method = ("er", "lwf")
  found = cells(complete(it), {"method.epochs": 1})
  assert [(own.method.name, own.method.epochs) for _, own in found] == [("er", 1), ("lwf", 1)]
  assert found[1][1].cell == "" and "capacity" not in found[1][1].method
  with pytest.raises(ConfigError, match=r"method.capacity' is not known"):
    cells(complete(it), {"method.capacity": 20})


@pytest.mark.parametrize(
  ("sweep", "message"),
  [
    ({"capacity": (10, 10)}, "names a value twice"),
    ({"capacity": (10, "many")}, r"config.sweep.capacity=\(10, 'many'\) must be a whole number"),
    ({"method": ("er", "ewr")}, "config.method.name='ewr' is not known"),
    ({"capacity": 10}, "must be several values"),
    ({"capcity": (1, 2)}, "config.sweep field='capcity' is not known. Did you mean capacity"),
    ({"guard": ("ewc", "ewd")}, "config.method.guard.name='ewd' is not known"),
  ],
)
def test_wrong_sweeps(sweep, message):
  it = quickstart("er").to_dict()
  with pytest.raises(ConfigError, match=message):
    cells(complete({**it, "sweep": sweep}))


def test_folders_of_a_sweep():
  it = prepared(quickstart("er"), [])
  it.sweep.capacity = (100, 50)
  assert list(spread(complete(it), {})) == ["er/capacity=100", "er/capacity=50"]
  it.sweep.capacity, it.sweep.net = (), ("mlp", "my file.py:Net")
  with pytest.raises(ConfigError, match=r"there is no file"):
    spread(complete(it), {})
  assert list(spread(complete(quickstart("er")), {})) == ["er"]


def test_all_cells_of_a_table_take_the_same_changes():
  module = load_config(QUICK)
  it = cell_config(
    module, {"method": "routing"}, {"method.name": "er", "method.capacity": 7, "sweep.batch_size": (5, 10)}
  )
  assert (it.method.capacity, it.sweep.batch_size) == (7, (5, 10))
  with pytest.raises(ConfigError, match=r"the cell 'er': .*'method.k' is not known.*by :method=er"):
    cell_config(module, {"method": "er"}, {"method.k": 3})


def test_choices_of_a_late_cell_are_refused_before_the_first_begins(tmp_path):
  module = load_config(QUICK)
  with pytest.raises(ConfigError, match="'routing' takes plain sgd steps of its own"):
    run_cells(module, module.sweep(), str(tmp_path), {"optimizer.name": "adamw"}, None)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["finetune", "er", "routing", "lwf"])
def test_any_names(method):
  module = load_config("configs/any.py")
  it = module.get_config(f"stream=rotated,source=digits,method={method},optimizer=adam")
  assert (it.stream.name, it.method.name, it.optimizer.name) == ("rotated", method, "adam")
  assert it.net.name == ("routed_mlp" if method == "routing" else "mlp")
  with pytest.raises(ConfigError, match="the config argument='methd' is not known. Did you mean method"):
    module.get_config("methd=er")
