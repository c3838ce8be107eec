"""What a config says: sweeps and labels."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cljax.advice import idle, trivial, untested
from cljax.config import complete, default
from cljax.data import bank
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.outcome import names_of
from cljax.overrides import relabel
from cljax.pieces.course import Course
from cljax.recipe import build_stream
from cljax.run import train
from cljax.sweep import hyperparameters, sweep_values, with_values
from cljax.types import Bank
from launch.config_files import load_config
from tests import toys

TABLE = "configs/papers/cotraining/table1.py"


def config(**changes):
  it = default()
  it.update_from_flattened_dict({"num_seeds": 2, "stream.name": "permuted", "method.name": "er"})
  it.stream.tasks = 2
  it.update_from_flattened_dict(changes)
  return complete(it)


def test_every_real_number_of_a_method_can_be_swept():
  assert set(config().sweep) == {"lr"}
  routed = complete(load_config(TABLE).get_config("method=routing_cotrain"))
  assert {"lr", "cotrain_lr", "router_lr", "noise", "gate_scale", "router_init"} <= set(routed.sweep)
  assert not {"k", "capacity", "sample", "cotrain"} & set(routed.sweep)


def test_several_keys_give_all_combinations():
  it = complete(load_config(TABLE).get_config("method=routing_cotrain"))
  it.sweep.lr, it.sweep.cotrain_lr = (0.1, 0.3), (0.1, 0.01)
  values = sweep_values(it)
  assert len(values) == 4 and {"lr": 0.3, "cotrain_lr": 0.01} in values
  alone = with_values(it, {"lr": 0.3, "cotrain_lr": 0.01})
  assert (alone.optimizer.lr, alone.method.cotrain_lr) == (0.3, 0.01)
  assert not any(alone.sweep.to_dict().values()) and it.optimizer.lr == 0.1


def test_a_sweep_of_a_number_that_the_config_leaves_open_reaches_the_rows():
  """`none` is the learning rate; a row of the sweep has its own."""
  it = complete(load_config(TABLE).get_config("method=routing_cotrain"))
  assert it.method.cotrain_lr is None and "cotrain_lr" not in hyperparameters(it)[0]
  it.sweep.cotrain_lr = (0.01, 1.0)
  assert [row["cotrain_lr"] for row in hyperparameters(it)] == [0.01, 1.0]


def test_another_choice_leaves_no_numbers_of_the_one_before():
  """Of a complete config, as a config file gives it, whose names Python sets."""
  it = complete(config(**{"method.name": "routing", "net.name": "routed_mlp"}))
  assert "gate_scale" in it.sweep
  it.method, it.net = {"name": "er"}, {"name": "mlp"}
  assert "gate_scale" not in complete(it).sweep
  it.sweep.gate_scale = (1.0, 2.0)
  with pytest.raises(ConfigError, match=r"config.sweep field='gate_scale' is not known"):
    complete(it)


def test_without_a_sweep_there_is_one_value():
  assert sweep_values(config()) == ({},)


@pytest.mark.parametrize("nesterov", [False, True])
def test_only_sgd_without_momentum_runs_in_blocks(nesterov):
  """The blocked update is exact for plain SGD only; other optimizers take the steps one by one."""
  assert build(config()).method.phases[0].block is not None
  it = config()
  it.optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
  assert build(it).method.phases[0].block is None
  it.optimizer = {"name": "adam", "lr": 0.1}
  assert build(it).method.phases[0].block is None


def test_rows_of_the_seed_axis_are_values_by_seeds():
  it = config()
  it.sweep.lr = (0.1, 0.3, 0.5)
  experiment = build(it)
  assert experiment.seeds == (0, 1) * 3
  np.testing.assert_allclose(experiment.hyper["lr"], np.repeat([0.1, 0.3, 0.5], 2), rtol=1e-6)
  assert experiment.axes.tasks.train.warp.index == 0  # each row has its seed's permutations
  index = np.asarray(experiment.stream.tasks.train.warp.index)
  np.testing.assert_array_equal(index[0], index[2])
  assert (index[0] != index[1]).any()


@pytest.mark.parametrize(
  "values,message",
  [
    (("fast",), "numbers only"),
    ((0.1, 0.1), "twice"),
    ((0.1, 0.1000000001), "twice, as float32"),
    ((-1.0,), "too small"),
    ((True,), "numbers"),
  ],
)
def test_wrong_sweeps_are_refused(values, message):
  it = config()
  it.sweep.lr = values
  with pytest.raises(ConfigError, match=message):
    build(it)


def test_values_that_agree_in_six_digits_have_names_of_their_own():
  assert names_of([{"lr": 0.1}, {"lr": 0.03}]) == ["lr=0.1", "lr=0.03"] and names_of([{}]) == [""]
  near = [{"lr": 0.1234561, "noise": 1.0}, {"lr": 0.1234562, "noise": 1.0}, {"lr": 0.5, "noise": 1.0}]
  assert names_of(near) == ["lr=0.1234561,noise=1.0", "lr=0.1234562,noise=1.0", "lr=0.5,noise=1"]


def test_words_and_tuples_that_are_written_alike_have_names_of_their_own():
  """So that no run of a sweep takes another's folder, and is lost without a word."""
  for values in (
    [{"net": "my/nets.py:Wide"}, {"net": "my_nets.py:Wide"}],
    [{"classes": ((0, 1), (2,))}, {"classes": ((0,), (1, 2))}],
    [{"classes": tuple(range(n))} for n in (90, 91)],  # too long for a folder
  ):
    names = names_of(values)
    assert len(set(names)) == 2 and all(len(name) < 140 for name in names) and names == names_of(values)
    assert names_of(values[::-1]) == names[::-1]


@pytest.mark.parametrize("devices", [3, 0])
def test_data_devices_must_divide_the_devices(devices):
  with pytest.raises(ConfigError, match="data_devices"):
    build(config(data_devices=devices))


@pytest.mark.parametrize(
  "override,labels",
  [
    ({"optimizer.lr": 0.2}, ("cotraining", "paper", "mnist_perm/er")),
    ({"stream.tasks": 5}, ("cotraining", "", "mnist_perm/er")),
    ({"method.epochs": 2}, ("cotraining", "", "mnist_perm/er")),
    ({"method.name": "finetune"}, ("", "", "")),
    ({"stream.source": "digits"}, ("", "", "")),
  ],
)
def test_labels_do_not_outlive_what_they_say(override, labels):
  """A run with another method, stream or scale has no published number beside it."""
  it = load_config(TABLE).get_config("stream=mnist_perm,method=er")
  relabel(it, override)
  assert (it.paper, it.preset, it.cell) == labels


def test_a_method_may_call_a_keyword_parent():
  """What linen adds to every net is hidden for nets alone."""
  it = default()
  it.update_from_flattened_dict({"stream.name": "split", "method.name": "confident"})
  assert "parent" in complete(it).method and "parent" not in complete(it).net
  it = default()
  it.update_from_flattened_dict({"stream.name": "split", "method.name": "confident", "method.parent": "previous"})
  assert build(complete(it)).method.phases
  it.net.parent = "previous"
  with pytest.raises(ConfigError, match="config.net"):
    build(complete(it))


@pytest.mark.parametrize(
  ("scenario", "tasks", "told"),
  [("task", 10, 1), ("domain", 10, 1), ("class", 10, 0), ("task", 5, 0), ("domain", 5, 0)],
)
def test_tasks_of_one_class_are_told(scenario, tasks, told):
  found = trivial(build(toys.config_of({"name": "finetune"}, name="split", tasks=tasks, scenario=scenario)))
  assert len(found) == told
  assert not told or "task 1, 2, 3, 4, 5 and 5 more has one class only" in found[0]


def test_tasks_that_are_tested_on_some_of_their_classes_are_told():
  it = toys.config_of({"name": "finetune"}, name="split", tasks=5)
  assert untested(build(it)) == []
  data = build_stream(it, (0, 1), source=without_rows("test"))
  (line,) = untested(build(it, data=data))
  assert line.startswith("task 2: some of its classes have no test rows")
  it = toys.config_of({"name": "finetune"}, name="subsets", classes=((0, 1), (2, 3)))  # all classes are live
  assert untested(build(it)) == []


def test_cores_are_no_devices_to_fill(monkeypatch):
  it = build(toys.config_of({"name": "finetune"}))
  mesh = SimpleNamespace(size=2, shape={"seed": 2}, devices=np.array([SimpleNamespace(platform="gpu")]))
  three = it._replace(seeds=(0, 1, 2), mesh=mesh)
  monkeypatch.setattr(jax, "device_count", lambda: 2)
  assert idle(three) == ["3 seeds on 2 devices take as long as 4, which config.num_seeds may ask for"]
  mesh.devices[0].platform = "cpu"
  assert idle(three) == []
  monkeypatch.setattr(jax, "device_count", lambda: 8)
  assert "3 seed(s) keep 2 of 8 devices busy, 6 idle" in idle(three)[0]


def without_rows(split):
  """The digits, of which one split lacks the class 3."""
  found = bank.load("digits")
  of_split = getattr(found, split)
  return found._replace(**{split: Bank(of_split.x[of_split.y != 3], of_split.y[of_split.y != 3])})


@pytest.mark.parametrize(("split", "rows"), [("test", "test"), ("train", "training")])
def test_a_task_without_rows_is_refused_by_its_number(split, rows):
  it = toys.config_of({"name": "finetune"}, name="split", tasks=10)
  laid = []
  with pytest.raises(ConfigError, match=rf"task 4 has no {rows} rows|the smallest task has 0 rows"):
    laid.append(build_stream(it, (0, 1), source=without_rows(split)))
    build(it, data=laid[0])
  assert len(laid) == (split == "test")


@pytest.mark.parametrize(
  "method",
  [
    {"name": "expert_gate"},
    {"name": "discriminative"},
    {"name": "lasem", "choose": "search"},
    {"name": "darts", "alpha_rows": "valid"},
  ],
  ids=lambda method: method["name"],
)
def test_methods_that_ask_validation_rows_are_refused_without_any(method):
  it = toys.config_of({"name": "finetune"}, valid_per_task=0)
  it.method = method
  if method["name"] in ("lasem", "darts"):
    it.net = {"name": "stack", "channels": (3, 3), "pools": (2, 2), "hidden": (4,)}
  with pytest.raises(ConfigError, match="asks the validation rows of every task, and task 1 has none: set config.str"):
    build(complete(it))
  it.stream.valid_per_task = 5
  assert build(complete(it)).method.needs_valid


@pytest.mark.parametrize("passes", [1, 3])
def test_debug_cuts_the_rows_where_boundaries_are_hidden(passes):
  """The stream is seen once whatever is cut: two tasks of half the rows of ten steps each."""
  stream = {"name": "subsets", "classes": ((0, 1), (2, 3), (4, 5)), "boundaries": False, "passes": passes}
  it = toys.config_of({"name": "finetune", "batch_size": 7}, keys={"debug": True}, **stream)
  experiment = build(it)
  assert experiment.timeline.rows.tolist() == [[35, 35]] * 2 and experiment.timeline.steps() == 10
  outcome = train(it, quiet=True)
  assert np.isfinite(outcome.result["metrics"]["ACC"]["mean"])


@pytest.mark.parametrize(("given", "tasks"), [(0, 2), (1, 2), (3, 4)])
def test_debug_keeps_the_first_tasks_of_any_stream(given, tasks):
  own = {"debug": True, "given_tasks": given}
  it = build(toys.config_of({"name": "finetune"}, keys=own, name="subsets"))
  assert tasks == it.spec.T and it.stream.tasks.classes.shape[0] == tasks
  it = build(toys.config_of({"name": "finetune"}, keys=own, name="split", tasks=5))
  assert (it.spec.T, it.spec.heads) == (tasks, tasks)
  assert np.asarray(it.stream.tasks.label_unmap)[1].tolist() == [2, 3]  # as in the whole stream
  assert it.timeline.steps() == 10 * (tasks - given)


@pytest.mark.parametrize(
  "paper",
  [
    "cotraining/table1",
    "expert_gate/table1",
    "subnetwork/table1",
    "lasem/table1",
    "metateacher/figure1",
    "baselines/table1",
  ],
)
def test_cells_on_digits_say_so(paper):
  """The smoke preset names what it trains on, and no two of its cells share a folder."""
  table = load_config(f"configs/papers/{paper}.py")
  cells = [table.get_config(",".join(f"{k}={v}" for k, v in cell.items())) for cell in table.sweep("preset=smoke")]
  names = [cell.cell for cell in cells]
  assert len(set(names)) == len(names) and all(cell.stream.source == "digits" for cell in cells)
  assert not any(other in name for name in names for other in ("mnist", "cifar", "usps", "fashion"))


def test_every_keyword_of_the_optimizer_can_be_given_and_goes_with_another_choice():
  """What the other choice does not know is dropped at its default, and refused where it was set."""
  it = config()
  assert it.optimizer.to_dict() == {
    "name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "clip_norm": 0.0, "weight_decay": 0.0,
    **Course()._asdict(),
  }  # fmt: skip
  it.optimizer.name = "adamw"
  changed = complete(it).optimizer
  assert changed.lr == 0.1 and changed.weight_decay == 1e-4 and "momentum" not in changed and changed.b2 == 0.999
  it.optimizer.weight_decay = 0.2
  assert complete(it).optimizer.weight_decay == 0.2
  it.optimizer.momentum = 0.9
  with pytest.raises(ConfigError, match=r"config\.optimizer\.momentum=0\.9 means nothing to .*'adamw'"):
    complete(it)


def test_a_guard_without_a_name_is_the_usual_one():
  """Of a penalty method its own, and elsewhere none, which has no strength."""
  assert complete(ConfigDict({"method": {"name": "ewc", "guard": {"strength": 5}}})).method.guard.name == "ewc"
  with pytest.raises(ConfigError, match=r"guard\.strength=5 means nothing to config\.method\.guard\.name='none'"):
    complete(ConfigDict({"method": {"name": "finetune", "guard": {"strength": 5}}}))


def test_a_method_of_ones_own_may_give_its_guard_no_default(tmp_path):
  """None, or nothing at all, is no guard."""
  for told in ("", " = None"):
    path = tmp_path / f"own{len(told)}.py"
    path.write_text(
      "from cljax.declared import declared\nfrom cljax.pieces.guards import Guarded\n"
      f"@declared('method', given=3)\ndef mine(net, tx, spec, *, guard: Guarded{told}):\n  return None\n"
    )
    assert complete(ConfigDict({"method": {"name": f"{path}:mine"}})).method.guard.name == "none"


@pytest.mark.parametrize("method", ["hat", "mer", "lwf", "packnet", "joint", "expert_gate"])
@pytest.mark.parametrize("guard", ["ewc", "si", "gem"])
def test_a_guard_of_a_method_that_takes_none_is_refused(method, guard):
  """Whatever another method has by default: nothing that was chosen goes without a word."""
  with pytest.raises(ConfigError, match=rf"config\.method\.guard=.*'{guard}'.* means nothing to .*'{method}'"):
    complete(ConfigDict({"method": {"name": method, "guard": {"name": guard}}}))
  assert "guard" not in complete(ConfigDict({"method": {"name": method, "guard": {"name": "none"}}})).method
