"""What a config says: sweeps and labels."""

import numpy as np
import pytest

from cljax.config import complete, default, relabel
from cljax.errors import ConfigError
from cljax.experiment import build
from cljax.sweep import sweep_values, with_values
from launch.config_files import load_config

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
  "values,message", [(("fast",), "numbers only"), ((0.1, 0.1), "twice"), ((-1.0,), "too small"), ((True,), "numbers")]
)
def test_wrong_sweeps_are_refused(values, message):
  it = config()
  it.sweep.lr = values
  with pytest.raises(ConfigError, match=message):
    build(it)


def test_a_sweep_of_what_is_no_number_is_refused():
  it = config()
  it.sweep.capacity = (10, 100)
  with pytest.raises(ConfigError, match=r"config.sweep field='capacity'.*lr"):
    complete(it)


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
  "paper", ["cotraining/table1", "expert_gate/table1", "subnetwork/table1", "lasem/table1", "metateacher/figure1"]
)
def test_cells_on_digits_say_so(paper):
  """The smoke preset names what it trains on, and no two of its cells share a folder."""
  table = load_config(f"configs/papers/{paper}.py")
  cells = [table.get_config(",".join(f"{k}={v}" for k, v in cell.items())) for cell in table.sweep("preset=smoke")]
  names = [cell.cell for cell in cells]
  assert len(set(names)) == len(names) and all(cell.stream.source == "digits" for cell in cells)
  assert not any(other in name for name in names for other in ("mnist", "cifar", "usps", "fashion"))
