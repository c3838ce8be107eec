"""Several devices and processes: the same numbers as one, and checkpoints that do not care how many there were."""

import json
import shutil
import socket

import chex
import jax
import numpy as np
import pytest

from cljax import artifacts
from cljax.overrides import relabel
from cljax.report.losses import curves_of
from cljax.report.store import equal, read_result
from cljax.run import train
from launch.config_files import load_config
from tests.data_axis import CELL, CONFIG, FIELDS
from tests.shell import begin


def command(workdir, *flags):
  fields = [f"--config.{key}={value}" for key, value in FIELDS.items()]
  return ["launch.train", f"--config={CONFIG}:{CELL}", f"--workdir={workdir}", *fields, *flags]


def start(devices, *words):
  """A process with so many CPU devices."""
  return begin(*words, JAX_NUM_CPU_DEVICES=str(devices))


def finish(process, code=0):
  """What it said."""
  done = process.finish()
  assert done.returncode == code, done.stderr
  return done


def config(**changes):
  it = load_config(CONFIG).get_config(CELL)
  it.update_from_flattened_dict({**FIELDS, **changes})
  relabel(it, FIELDS)  # as the launcher does
  return it


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """(the folder of the run on the one device of this process, its outcome)."""
  folder = tmp_path_factory.mktemp("one") / "run"
  return folder, train(config(), folder, quiet=True)


def differs(one_run, other):
  """The fields in which two runs differ."""
  return equal(*(read_result(folder / "result.json") for folder in (one_run, other)))


def test_eight_devices_give_the_result_of_one(one, tmp_path):
  """Three seeds keep three of eight busy, and the run says so."""
  output = finish(start(8, *command(tmp_path / "run"))).stderr
  assert "on 8 device(s)" in output and "3 seed(s) keep 3 of 8 devices busy, 5 idle" in output
  assert read_result(tmp_path / "run" / "result.json")["experiment"]["device_count"] == 3
  found = differs(one[0], tmp_path / "run")
  assert all(field.startswith("experiment.device_count") for field in found), found


def together(workdir, *flags, code=0):
  """Two processes of one run; what they say."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  flags = [*flags, "--distributed=on", f"--coordinator=localhost:{port}", "--processes=2", "--platform=cpu"]
  both = [start(1, *command(workdir, *flags, f"--process={i}")) for i in range(2)]
  return [finish(process, code) for process in both]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """(the folder of a run of two processes that was stopped after its first chunk, what they said)."""
  folder = tmp_path_factory.mktemp("stopped") / "run"
  return folder, together(folder, "--max_hours=0", code=75)  # after 0 hours a run saves


def test_a_checkpoint_of_two_devices_goes_on_on_one(one, stopped, tmp_path):
  """Three seeds on two devices are four rows there and three in the checkpoint."""
  shutil.copytree(stopped[0], tmp_path / "run")
  assert not (tmp_path / "run" / "result.json").exists()
  outcome = train(config(), tmp_path / "run", quiet=True)
  assert outcome.result["accuracy"] == one[1].result["accuracy"]


@pytest.mark.slow
def test_a_checkpoint_of_two_devices_of_one_process_goes_on_on_one(one, tmp_path):
  """As above, without a second process."""
  finish(start(2, *command(tmp_path / "run", "--max_hours=0")), code=75)
  assert not (tmp_path / "run" / "result.json").exists()
  outcome = train(config(), tmp_path / "run", quiet=True)
  assert outcome.result["accuracy"] == one[1].result["accuracy"]


def test_two_processes_give_the_result_of_one(one, stopped, tmp_path):
  """Stopped after the first chunk and gone on with: process 0 tells the other what the checkpoint holds."""
  shutil.copytree(stopped[0], tmp_path / "run")
  outputs = together(tmp_path / "run")
  assert "going on from step 20" in outputs[0].stderr
  assert ["written:" in output.stdout for output in outputs] == [True, False]  # process 0 alone speaks and writes
  found = differs(one[0], tmp_path / "run")
  assert all(field.startswith("experiment.device_count") for field in found), found


@pytest.mark.slow
def test_a_data_axis_gives_the_numbers_of_one_device(one, tmp_path):
  """Two seeds, each on two devices that share the rows of its batches: 1e-5 after 60 steps."""
  assert json.loads(finish(start(4, "tests.data_axis", tmp_path)).stdout) == 60
  alone = jax.tree.map(lambda leaf: leaf[:2], jax.device_get(one[1].state.params))
  there = artifacts.fill(alone, artifacts.read(tmp_path / "params.npz"), tmp_path)
  chex.assert_trees_all_close(there, alone, rtol=0, atol=1e-5)


def curves(folder):
  """The losses of a run as lists."""
  return {phase: each.tolist() for phase, each in curves_of(folder).items()}


def test_each_value_of_a_sweep_has_the_numbers_of_its_own_run(one, tmp_path):
  rate = config().optimizer.lr
  outcome = train(config(**{"sweep.lr": (0.03, rate)}), tmp_path / "sweep", quiet=True)
  assert [each.result["config"]["optimizer"]["lr"] for each in outcome.sweep] == [0.03, rate]
  assert differs(one[0], tmp_path / "sweep" / f"lr={rate:g}") == []
  assert json.dumps(curves(tmp_path / "sweep" / f"lr={rate:g}")) == json.dumps(curves(one[0])) != "{}"
  alone = train(config(**{"optimizer.lr": 0.03}), quiet=True)
  assert alone.result["accuracy"] == outcome.sweep[0].result["accuracy"] != outcome.sweep[1].result["accuracy"]
  chex.assert_trees_all_equal(alone.state, outcome.sweep[0].state)
  again = train(config(**{"sweep.lr": (0.03, rate)}), tmp_path / "sweep", quiet=True)  # finished: only read
  assert [each.result for each in again.sweep] == [
    read_result(tmp_path / "sweep" / name / "result.json") for name in ("lr=0.03", f"lr={rate:g}")
  ]
  np.testing.assert_array_equal(again.arrays["seen"], outcome.sweep[0].arrays["seen"])
  for before, after in zip(outcome.sweep, again.sweep, strict=True):
    chex.assert_trees_all_equal(after.state, before.state)
