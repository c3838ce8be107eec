"""The table of the learned rule: its cells, and that each stands on the meta-training that it names."""

import pytest

from configs.papers.metateacher import meta, table1


@pytest.mark.parametrize("preset", table1.PRESETS)
def test_every_cell_begins_where_its_meta_training_did(preset):
  trained = meta.get_config(f"preset={preset}")
  cells = table1.sweep(f"preset={preset},meta=M/of")
  assert [cell["method"] for cell in cells] == list(table1.METHODS)
  for cell in cells:
    config = table1.get_config(",".join(f"{key}={value}" for key, value in cell.items()))
    base = cell["method"].partition("_")[0]
    rule = base if base in ("lstm", "maml", "rep", "hat") else "static"
    assert config.start_from == f"M/of/{rule}/parts/seed_{{seed%{trained.num_seeds}}}/start.npz"
    assert (config.given_tasks, config.steps_per_task) == (1, trained.curriculum.steps)
    assert config.looks == ("readout", "readout_within") and config.look_every_steps == config.steps_per_task // 10
    assert config.num_seeds == 3 * trained.num_seeds and config.stream.half == "second"
    assert config.net.to_dict().items() >= trained.net.to_dict().items()
    if cell["method"] in meta.RULES:
      assert config.method.theta == config.start_from.replace("start.npz", "theta.npz")
      assert (config.method.form, config.method.alpha) == (rule, trained.inner.alpha)
      assert config.method.hidden == trained.rule.hidden
    if base == "hat":
      assert config.method.gates_from == config.start_from.replace("start.npz", "embeddings.npz")
      own = meta.get_config(f"preset={preset},rule=hat").method.to_dict()
      assert (own["name"], own["largest_slope"], own["sparsity"]) == ("hat", 3.0, 0.75)
      assert own.items() <= config.method.to_dict().items()


def test_rates_and_strengths_are_in_the_names():
  def rate(method):
    return table1.get_config(f"method={method}").optimizer.lr

  assert [round(rate(name), 6) for name in ("sgd", "sgd_0.33", "lwf_0.5", "ewc_100_0.33", "ewc_1", "hat_0.33")] == [
    0.3,
    0.099,
    0.15,
    0.099,
    0.3,
    0.099,
  ]
  assert table1.get_config("method=ewc_100_0.33").method.guard.strength == 100
  assert table1.get_config("method=sgd,steps=twice").steps_per_task == 1000


def test_drawn_classes_are_those_that_meta_training_never_saw():
  stream = table1.get_config("preset=paper,experiment=2").stream
  assert stream.new == tuple(range(60, 110)) and stream.new_classes == 5 and stream.half == "all"
  unseen = table1.get_config("preset=paper,experiment=4").stream
  assert table1.get_config("preset=paper,experiment=4,method=sgd").cell == "cifar10_tiny_imagenet/sgd"
  assert unseen.source == "cifar10+tiny_imagenet" and unseen.new == tuple(range(10, 210)) and unseen.new_classes == 5


def test_where_an_episode_has_two_new_tasks_the_memory_goes_on_and_all_rows_are_kept():
  cells = {method: table1.get_config(f"preset=paper,experiment=5,method={method}") for method in ("lstm", "teacher")}
  assert cells["lstm"].method.memory == "keep" and cells["lstm"].stream.new_tasks == 2
  assert cells["teacher"].method.capacity == 3 * 50_000  # CIFAR-10 whole is the old task
  assert table1.get_config("preset=paper,method=lstm").method.memory == "reset"
