"""The launchers from the shell: what a person types, right and wrong."""

import json

import numpy as np
import pytest
from absl import flags

from cljax.errors import ConfigError
from cljax.files import write_sealed
from cljax.report.store import read_result
from launch.app import in_words
from launch.config_files import check_overrides, meant
from tests.shell import alone, shell

QUICK = "--config=configs/quickstart.py"
TABLE = "--config=configs/papers/cotraining/table1.py"
CUT = ["--config.num_seeds=2", "--config.debug=True"]
TINY = ["--config.num_seeds=2", "--config.stream.tasks=2", "--config.method.epochs=1"]


def test_one_cell_leaves_all_its_files(tmp_path):
  done = alone("launch.train", f"{QUICK}:method=er", f"--workdir={tmp_path}/run", *TINY, "--config.log_every_steps=50")
  assert done.returncode == 0, done.stderr
  assert "ACC" in done.stdout and "er" in done.stdout
  names = {path.name for path in (tmp_path / "run").iterdir()}
  expected = {
    "config.json",
    "overrides.json",
    "environment.json",
    "metrics.jsonl",
    "checkpoints",
    "result.json",
    "figures",
  }
  assert expected <= names and any(name.startswith("events.") for name in names)
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert [len(result["accuracy"]), len(result["accuracy"][0]), len(result["accuracy"][0][0])] == [2, 3, 2]
  assert result["seeds"] == [0, 1] and result["readout"] == "task" and result["memory_bytes"] == 200 * (64 + 8)
  assert set(result["metrics"]) == {"ACC", "BWT", "FWT", "forgetting", "learning_accuracy"}
  assert {"compile_seconds", "train_seconds", "eval_seconds", "steps", "steps_per_second"} == set(result["timing"])
  assert json.loads((tmp_path / "run" / "overrides.json").read_text())["num_seeds"] == 2
  assert list((tmp_path / "run" / "figures").glob("*.png"))
  steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert {row["step"] for row in steps if row["event"] == "step"} == {0, 50, 100}
  again = shell("launch.report", f"--workdir={tmp_path}")
  assert again.returncode == 0, again.stderr
  html = (tmp_path / "report.html").read_text()
  assert "data:image/png;base64" in html and "http-equiv" not in html


SHORT = """from configs.quickstart import get_config


def sweep(arg=""):
  return [{"method": "finetune"}, {"method": "routing_cotrain"}]
"""


def test_a_config_with_several_cells_runs_them_all(tmp_path):
  """The quickstart with two of its methods, cut short: one table; what is finished is only read."""
  (tmp_path / "short.py").write_text(SHORT)
  run = tmp_path / "run"
  words = ["launch.train", f"--config={tmp_path}/short.py", f"--workdir={run}", *CUT]
  done = shell(*words)
  assert done.returncode == 0, done.stderr
  assert_all_ran(run, done, ("finetune", "routing_cotrain"))
  results = [path.stat().st_mtime_ns for path in sorted(run.glob("*/result.json"))]
  assert shell(*words).returncode == 0
  assert results == [path.stat().st_mtime_ns for path in sorted(run.glob("*/result.json"))]


def assert_all_ran(folder, done, methods):
  for method in methods:
    assert (folder / method / "result.json").exists() and method in done.stdout
  assert len(list(folder.glob("*/result.json"))) == len(methods)
  assert (folder / "report.html").exists() and list((folder / "figures").glob("*.png"))


@pytest.mark.slow
def test_the_whole_quickstart_cut_short(tmp_path):
  done = shell("launch.train", QUICK, f"--workdir={tmp_path}", *CUT)
  assert done.returncode == 0, done.stderr
  assert_all_ran(tmp_path, done, ("finetune", "er", "routing", "routing_cotrain"))


def test_reproduce_runs_and_reports_a_cell_of_the_smoke_table(tmp_path):
  words = [
    "--paper=cotraining",
    "--preset=smoke",
    f"--workdir={tmp_path}",
    "--seeds=1",
    "--only=stream=mnist_rot,method=joint",
  ]
  done = shell("launch.reproduce", *words)
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / "digits_rot" / "joint" / "result.json").read_text())
  assert result["oracle"] is True and result["metrics"]["BWT"]["mean"] is None
  assert result["accuracy"][0][1] == [None, None, None]
  assert "joint" in done.stdout and (tmp_path / "report.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "cells"), [("expert_gate", 19), ("subnetwork", 3)])
def test_the_whole_smoke_table_of_papers_that_infer_the_task(tmp_path, paper, cells):
  done = shell("launch.reproduce", f"--paper={paper}", "--preset=smoke", f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert len(list(tmp_path.glob("*/*/result.json"))) == cells
  assert "task recognition" in done.stdout


def test_predict_answers_with_a_finished_run(tmp_path):
  """Its own test rows, then pictures from a file; what was read is told."""
  table = "--config=configs/papers/expert_gate/table1.py:preset=smoke,stream=split_mnist,method=expert_gate"
  done = shell("launch.train", table, f"--workdir={tmp_path}/run", "--config.num_seeds=1", "--config.method.epochs=1")
  assert done.returncode == 0, done.stderr
  assert "ACC, task inferred" in done.stdout and "task recognition" in done.stdout
  assert {"gate_confusion.png", "relatedness.png"} <= {each.name for each in (tmp_path / "run" / "figures").iterdir()}
  done = shell("launch.predict", f"--workdir={tmp_path}/run", "--count=4")
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("truly task") == 20 and "right expert" in done.stdout and "gate " in done.stdout
  np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 1), np.uint8))
  done = shell("launch.predict", f"--workdir={tmp_path}/run", f"--pictures={tmp_path}/x.npy")
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("picture ") == 3 and done.stdout.count("expert_") == 1  # one alike picture, one expert
  for words in (["--pictures=/nowhere.npy"], ["--seed=5"]):
    done = shell("launch.predict", f"--workdir={tmp_path}/run", *words)
    assert done.returncode == 2 and "error:" in done.stderr and "Traceback" not in done.stderr
  result = read_result(tmp_path / "run" / "result.json")
  write_sealed(tmp_path / "run" / "result.json", {**result, "data_hash": "other"})
  done = shell("launch.predict", f"--workdir={tmp_path}/run")  # its test rows would be others
  assert done.returncode == 2 and "the data is not what the run was trained on" in done.stderr


@pytest.mark.slow
def test_the_whole_smoke_table(tmp_path):
  done = shell("launch.reproduce", "--paper=cotraining", "--preset=smoke", f"--workdir={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert len(list(tmp_path.glob("*/*/result.json"))) == 8


WRONG = {
  "unknown method": ([f"{QUICK}:method=era"], ["era", "Did you mean er?", "routing_cotrain"]),
  "unknown method name": ([QUICK + ":method=er", "--config.method.name=erx"], ["config.method.name", "erx", "er"]),
  "unknown stream": ([QUICK + ":method=er", "--config.stream.name=permutd"], ["permutd", "permuted"]),
  "unknown data set": ([QUICK + ":method=er", "--config.stream.source=mnits"], ["mnits", "mnist"]),
  "a field that the config has a method for": (
    [QUICK + ":method=er", "--config.method.update=unoin"],
    ["config.method.update='unoin' is not known", "union"],
  ),
  "unknown key": ([QUICK + ":method=er", "--config.method.capacty=5"], ["capacty", "Did you mean method.capacity?"]),
  "unknown key of the top": ([QUICK, "--config.num_seed=5"], ["num_seed", "num_seeds"]),
  "unknown flag": ([QUICK, "--wrkdir=x"], ["wrkdir"]),
  "unknown argument": ([QUICK, "extra"], ["extra"]),
  "wrong type": ([QUICK, "--config.seed=1.5"], ["seed", "1.5"]),
  "wrong word": ([QUICK, "--config.num_seeds=many"], ["num_seeds", "many"]),
  "zero seeds": ([QUICK, "--config.num_seeds=0"], ["config.num_seeds=0", "least is 1"]),
  "negative batch": (
    [QUICK + ":method=er", "--config.method.batch_size=-3"],
    ["config.method.batch_size=-3", "least is 1"],
  ),
  "negative rate": ([QUICK + ":method=er", "--config.optimizer.lr=-0.1"], ["config.optimizer.lr=-0.1", "least is 0"]),
  "rate that is no number": ([QUICK + ":method=er", "--config.optimizer.lr=nan"], ["config.optimizer.lr", "finite"]),
  "zero width": ([QUICK + ":method=er", "--config.net.hidden=(0,8)"], ["config.net.hidden", "least is 1"]),
  "k above E": ([QUICK + ":method=routing", "--config.method.k=21"], ["config.method.k=21", "1..20"]),
  "small memory": ([QUICK + ":method=er", "--config.method.capacity=5"], ["config.method.capacity=5", "at least 10"]),
  "too many rows": ([QUICK + ":method=er", "--config.stream.examples_per_task=5000"], ["5000", "1438 rows"]),
  "too many turns": ([f"{TABLE}:preset=smoke,stream=mnist_rot", "--config.stream.tasks=41"], ["41", "360"]),
  "too many splits": (
    [QUICK + ":method=er", "--config.stream.name=split", "--config.stream.tasks=11"],
    ["11", "10 classes"],
  ),
  "uneven split": (
    [QUICK + ":method=er", "--config.stream.name=split", "--config.stream.tasks=3"],
    ["3", "1, 2, 5, 10"],
  ),
  "a field of another method": (
    [QUICK + ":method=er", "--config.method.name=finetune", "--config.method.capacity=20"],
    ["method.capacity", "method.epochs"],
  ),
  "readout": ([QUICK + ":method=er", "--config.evaluate=some"], ["config.evaluate", "some", "seen"]),
  "executor": ([QUICK + ":method=er", "--config.seed_executor=pmap"], ["seed_executor", "pmap"]),
  "optimizer of routing": ([QUICK + ":method=routing", "--config.optimizer.name=adam"], ["adam", "plain sgd"]),
  "net of routing": ([QUICK + ":method=routing", "--config.net.name=mlp"], ["config.net"]),
  "no such config": (["--config=configs/quikstart.py"], ["configs/quikstart.py", "configs/quickstart.py"]),
  "no config": ([], ["--config is missing", "configs/quickstart.py"]),
  "no accelerator": ([QUICK, "--platform=tpu"], ["--platform=tpu", "--platform=cpu"]),
  "no GPU": ([QUICK, "--platform=gpu"], ["--platform=gpu: no such device here", "--platform=cpu"]),
  "no GPU by a flag of JAX": ([QUICK, "--jax_platforms=cuda"], ["--jax_platforms=cuda: no such device here"]),
  "a flag of another main": ([QUICK, "--seeds=3"], ["unknown flag --seeds. Did you mean --config.num_seeds?"]),
  "a key without its section": ([QUICK, "--epochs=3"], ["--epochs. Did you mean --config.method.epochs?"]),
  "a file of flags that is not there": ([QUICK, "--flagfile=/nowhere"], ["Unable to open flagfile", "/nowhere"]),
  "a sweep of one value": (
    [QUICK + ":method=er", '--config.sweep.method=("erx",)'],
    ["config.method.name='erx' is not known"],
  ),
  "a folder of programs without a name": ([QUICK, "--compilation_cache="], ["--compilation_cache='' must be a path"]),
  "a value for none": ([QUICK, "--noconfig.debug=3"], ["--noconfig.debug=3 does not take an argument"]),
  "a code, no number of seeds": ([QUICK, "--config.seed=1700000000000"], ["the most is 2147473647"]),
  "a key that one cell lacks": ([QUICK, "--config.method.capacity=300"], ["finetune", "capacity"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_gets_one_clear_message(case, tmp_path):
  words, parts = WRONG[case]
  done = shell(
    "launch.train", *words, f"--workdir={tmp_path}/run", TFDS_DATA_DIR=f"{tmp_path}/no_data", JAX_PLATFORMS=""
  )
  text = done.stdout + done.stderr
  assert done.returncode == 2 and "Traceback" not in text, text
  for part in parts:
    assert part in text, text


SETS = "from cljax.config import *\ndef get_config(arg=''):\n  it = default()\n  {}\n  return it"
BROKEN = {
  "num_seeds = 3)": "line 1: SyntaxError",
  "import no_such_module": "line 1: ModuleNotFoundError: No module named 'no_such_module'",
  "def get_config(arg=''):\n  return default()": "line 2: NameError: name 'default' is not defined",
  SETS.format("it.num_seeds = 'two'"): "config.num_seeds='two' must be a whole number",
  SETS.format("it.lr = 1 + 'a'"): "line 4: TypeError",
  SETS.format("it.num_seed = 2"): "Did you mean num_seeds",
  "def get_config(arg=''):\n  return {}": "get_config gives dict, not a ConfigDict",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_mistake_in_a_config_file_is_one_line_that_names_it(text, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(text)
  done = shell("launch.train", f"--config={path}", f"--workdir={tmp_path}/run")
  assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
  assert BROKEN[text] in done.stderr.splitlines()[-1]


def test_a_section_of_a_config_is_given_by_its_fields():
  for word, way in (
    ("optimizer=adam", "--config.optimizer.name=adam"),
    ("method.guard=si", "--config.method.guard.name=si"),
    ("sweep=(0.1,)", "--config.sweep.lr=..."),
  ):
    with pytest.raises(ConfigError, match=f"is a section.*, whose fields are given one by one: {way}$"):
      check_overrides([f"{QUICK}:method=er", f"--config.{word}"])


def test_no_flag_is_meant_by_itself():
  assert meant("seeds", []) == "" and meant("num_seeds", []) == " Did you mean --seeds?"


def test_what_a_parser_of_flags_says_names_no_function():
  for parser, word, way in ((int, "two", "a whole number"), (float, "1e-1x", "a number")):
    with pytest.raises(ValueError, match=".") as caught:
      parser(word)
    assert in_words(f"flag --config.x={word}: {caught.value}") == f"flag --config.x={word}: it must be {way}"
  with pytest.raises(ValueError, match=".") as caught:
    flags.BooleanParser().parse("maybe")
  assert in_words(f"flag --x=maybe: {caught.value}").endswith(": it must be true or false")


def test_reproduce_asks_for_its_paper(tmp_path):
  asked = {
    "--paper is missing: one of baselines, cotraining, ": [],
    "Did you mean --seeds?": ["--num_seeds=3"],
    "--max_hours=nan: is no number of hours": ["--max_hours=nan"],
  }
  for part, words in asked.items():
    done = shell("launch.reproduce", *words, f"--workdir={tmp_path}")
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr


def test_a_work_dir_is_the_same_folder_in_every_main(tmp_path, monkeypatch):
  """Written with ~, and of a name that would be a pattern."""
  monkeypatch.setenv("HOME", str(tmp_path))
  words = "--workdir=~/a [1]*"
  done = shell("launch.train", f"{QUICK}:method=finetune", words, "--config.num_seeds=1", "--config.debug=True")
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "a [1]*" / "result.json").is_file() and (tmp_path / "jax_cache").is_dir()
  (tmp_path / "a 1").mkdir()  # which the pattern would match
  done = shell("launch.report", words)
  assert done.returncode == 0 and (tmp_path / "a [1]*" / "report.md").is_file(), done.stderr
  done = shell("launch.evaluate", words)
  assert done.returncode == 0 and (tmp_path / "a [1]*" / "evaluations.json").is_file(), done.stderr
  done = shell("launch.predict", words)
  assert done.returncode == 2 and f"{tmp_path}/a [1]* holds no parts to load" in done.stderr, done.stderr


def test_a_backend_of_windows_that_does_not_exist_is_nobody_s_concern(tmp_path, monkeypatch):
  monkeypatch.setenv("MPLBACKEND", "nonsense")
  done = alone("launch.report", f"--workdir={tmp_path}/none")
  assert done.returncode == 2 and f"{tmp_path}/none does not exist" in done.stderr, done.stderr


def test_an_unwritable_work_dir(tmp_path):
  (tmp_path / "file").write_text("in the way")
  done = shell("launch.train", f"{QUICK}:method=er", f"--workdir={tmp_path}/file/run", *TINY)
  assert done.returncode == 74 and "Traceback" not in done.stderr
  assert str(tmp_path) in done.stderr


def test_missing_data_says_what_to_type(tmp_path):
  words = [
    f"{TABLE}:preset=gem1000,stream=mnist_perm,method=er",
    f"--workdir={tmp_path}/run",
    f"--data_dir={tmp_path}/none",
  ]
  done = shell("launch.train", *words)
  assert done.returncode == 2 and "Traceback" not in done.stderr
  for part in ("mnist", f"{tmp_path}/none", "launch.prepare", "--data_dir", "digits"):
    assert part in done.stderr


def test_a_full_disk_keeps_what_was_finished(tmp_path):
  """A limit on file sizes stands in for a full disk: the run ends with a message, and goes on once there is room."""
  words = ["launch.train", f"{QUICK}:method=er", f"--workdir={tmp_path}/run", *TINY, "--compilation_cache=off"]
  done = shell(*words, largest=20_000, JAX_COMPILATION_CACHE_DIR="")
  assert done.returncode == 74, done.stderr
  assert "Traceback" not in done.stderr and "could not be written" in done.stderr
  assert json.loads((tmp_path / "run" / "config.json").read_text())
  assert shell(*words).returncode == 0
