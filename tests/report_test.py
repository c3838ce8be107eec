"""Result files, tables, figures and pages, from results made by hand: nothing is trained here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from cljax.report import pages, plots, store, tables
from cljax.types import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
PUBLISHED = json.loads((CONFIGS / "papers" / "cotraining" / "published.json").read_text())
S, T, L, E = 2, 3, 2, 4
RIGHT = np.array(
  [
    [[10, 10, 10], [90, 10, -1], [80, 95, 20], [70, 85, 90]],
    [[10, 10, 10], [90, 10, -1], [80, 95, 20], [60, 75, 80]],
  ]
)


def fake(method="routing_cotrain", stream="mnist_perm", preset="paper", **changes):
  """A result of two seeds and three tasks, with the pairs of `seen` evaluated."""
  fields = {
    "right": {"task": RIGHT, "class": RIGHT // 2},
    "rows": np.full((S, T), 100),
    "readout": "task",
    "task_confusion": None,
    "paper": "cotraining",
    "preset": preset,
    "cell": f"{stream}/{method}",
    "method": method,
    "stream": stream,
    "seeds": [0, 1],
    "oracle": method == "joint",
    "parameters": np.int64(310700),
    "memory_bytes": np.int32(792000),
    "timing": {"compile_seconds": 6.0, "train_seconds": 60.0, "eval_seconds": 6.0, "steps": 9, "steps_per_second": 1.0},
    "environment": {"devices": ["cpu"], "git_commit": "0123456789abcdef", "command": "train --config=<a>&b"},
    "data_hash": "00ff",
    "experiment": {"precision": "highest", "executor": "map", "device_count": 1},
    "config": {"seed": 0, "net": {"widths": (19, 19)}},
  }
  return store.make_result(**(fields | changes))


def report_arrays():
  draw = np.random.default_rng(0)
  return {
    "routing": draw.random((S, T, L, T, E)),
    "unused": draw.integers(0, E, (S, T, L)),
    "skipped": draw.integers(0, 9, (S, T, T)),
  }


def summary(mean, std=None):
  return {"mean": mean, "std": std, "values": []}


def with_metric(result, name, mean, std=None):
  return {**result, "metrics": {**result["metrics"], name: summary(mean, std)}}


def leave(folder, result, arrays=None):
  folder.mkdir(parents=True)
  store.write_json(folder / "result.json", result)
  if arrays:
    store.write_report_arrays(folder / "report.npz", arrays)


@pytest.fixture
def workdir(tmp_path):
  """Two streams of two methods."""
  for stream in ("mnist_perm", "mnist_rot"):
    leave(tmp_path / stream / "er", fake("er", stream))
    leave(tmp_path / stream / "routing", fake("routing", stream), report_arrays())
  return tmp_path


# What a result is.


def test_a_result_has_the_documented_fields_and_json_types():
  result = fake()
  assert list(result) == list(store.FIELDS) and all(store.FIELDS.values())
  assert json.loads(json.dumps(result, allow_nan=False)) == result
  assert result["accuracy"][0] == [[0.1, 0.1, 0.1], [0.9, 0.1, None], [0.8, 0.95, 0.2], [0.7, 0.85, 0.9]]
  assert result["metrics"]["ACC"]["mean"] == pytest.approx(0.766667, abs=5e-7)
  assert result["metrics"]["BWT"]["values"] == [pytest.approx(-0.15), pytest.approx(-0.25)]
  assert list(result["readouts"]) == ["class"] and result["readouts"]["class"]["accuracy"][1][3] == [0.3, 0.37, 0.4]
  assert result["readouts"]["class"]["metrics"]["ACC"]["values"][0] == pytest.approx((0.35 + 0.42 + 0.45) / 3)


def test_test_rows_may_be_the_same_for_all_seeds_and_differ_by_task():
  found = store.shares(RIGHT, np.array([100, 200, 400]))
  assert found[1, 3].tolist() == [0.6, 0.375, 0.2] and np.isnan(found[0, 1, 2])


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_result_with_other_fields_is_refused(change):
  with pytest.raises(ValueError, match="paper" if change == "missing" else "colour"):
    if change == "unknown":
      fake(colour="red")
    else:
      store.make_result(right={"task": RIGHT}, rows=np.full((S, T), 100), readout="task", task_confusion=None)


def test_a_result_survives_its_file(tmp_path):
  result = fake(task_confusion=np.arange(S * T * T).reshape(S, T, T))
  store.write_json(tmp_path / "result.json", result)
  assert store.read_result(tmp_path / "result.json") == result
  text = (tmp_path / "result.json").read_text()
  assert '\n "seeds": [0, 1],\n' in text and "NaN" not in text and '\n  "executor": "map"' in text


def test_numpy_nan_and_tuples_become_json(tmp_path):
  value = {"a": np.float32(0.5), "b": (np.int64(1), float("nan")), "c": np.array([[True]]), "d": None, "e": "x"}
  store.write_json(tmp_path / "v.json", value)
  assert json.loads((tmp_path / "v.json").read_text()) == {"a": 0.5, "b": [1, None], "c": [[True]], "d": None, "e": "x"}


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, fails):
  path = tmp_path / "result.json"
  store.write_json(path, {"old": 1})

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, fails, full)
  with pytest.raises(OSError, match=r"No space left on device; .*result\.json could not be written"):
    store.write_json(path, {"new": 2})
  assert json.loads(path.read_text()) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
  """The new content is whole and on the disk before it gets the name."""
  path, seen = tmp_path / "result.json", []
  store.write_json(path, {"old": 1})

  def killed(source, target):
    seen.append((json.loads(Path(source).read_text()), json.loads(path.read_text()), Path(source).parent))
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    store.write_json(path, {"new": 2})
  assert seen == [({"new": 2}, {"old": 1}, tmp_path)] and json.loads(path.read_text()) == {"old": 1}


def broken(change):
  result = fake()
  if change == "another schema":
    result["schema"] += 1
  if change == "a field less":
    del result["data_hash"]
  text = json.dumps(result)
  return {"cut off": text[:100], "no object": "[]", "no text": "\udcff", "empty": ""}.get(change, text)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ("cut off", "damaged"),
    ("empty", "damaged"),
    ("no text", "damaged"),
    ("no object", "schema 3"),
    ("another schema", "schema 3"),
    ("a field less", "data_hash"),
  ],
)
def test_a_damaged_result_is_named(tmp_path, change, says):
  path = tmp_path / "result.json"
  path.write_bytes(broken(change).encode(errors="surrogateescape"))
  with pytest.raises(ConfigError, match=says) as caught:
    store.read_result(path)
  assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_results_are_found_sorted_and_below_their_work_dir(workdir):
  found = store.find_results(workdir)
  assert [path for path, _, _ in found] == ["mnist_perm/er", "mnist_perm/routing", "mnist_rot/er", "mnist_rot/routing"]
  assert [result["cell"] for _, result, _ in found] == [path for path, _, _ in found]
  assert [folder for _, _, folder in found] == [epath.Path(workdir) / path for path, _, _ in found]
  assert [path for path, _, _ in store.find_results(workdir / "mnist_rot" / "er")] == ["."]


def test_no_results_is_an_error_that_says_what_to_type(tmp_path):
  with pytest.raises(ConfigError, match=r"holds no result\.json.*python -m launch\.train"):
    store.find_results(tmp_path)
  with pytest.raises(ConfigError, match="nowhere does not exist"):
    store.find_results(tmp_path / "nowhere")


def test_report_arrays_survive_their_file(tmp_path):
  arrays = report_arrays()
  store.write_report_arrays(tmp_path / "report.npz", arrays)
  found = store.read_report_arrays(tmp_path)
  assert set(found) == set(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype
  assert store.read_report_arrays(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize("kept", [0, 10, 400])
def test_damaged_report_arrays_are_named(tmp_path, kept):
  store.write_report_arrays(tmp_path / "report.npz", report_arrays())
  content = (tmp_path / "report.npz").read_bytes()
  (tmp_path / "report.npz").write_bytes(content[:kept])
  with pytest.raises(ConfigError, match=r"report\.npz is damaged"):
    store.read_report_arrays(tmp_path)


def test_flipped_bits_of_report_arrays_are_seen(tmp_path):
  store.write_report_arrays(tmp_path / "report.npz", report_arrays())
  content = bytearray((tmp_path / "report.npz").read_bytes())
  content[300] ^= 255
  (tmp_path / "report.npz").write_bytes(content)
  with pytest.raises(ConfigError, match=r"report\.npz is damaged"):
    store.read_report_arrays(tmp_path)


def test_equal_results_may_differ_in_time_and_place_only():
  other = fake()
  other["timing"] = {"train_seconds": 1.0}
  other["environment"] = {}
  assert store.equal(fake(), other) == []
  other["config"]["net"]["widths"] = [20, 20]
  other["config"]["timing"] = 1
  other["accuracy"][1][3][2] += 1e-9
  del other["data_hash"]
  assert store.equal(fake(), other) == ["accuracy", "config.net.widths", "config.timing", "data_hash"]
  assert store.equal(other, fake()) == store.equal(fake(), other)


def test_work_dirs_are_compared_cell_by_cell(tmp_path):
  leave(tmp_path / "a" / "er", fake("er"))
  leave(tmp_path / "a" / "routing", fake("routing"))
  leave(tmp_path / "b" / "er", fake("er", timing={}))
  leave(tmp_path / "b" / "routing", fake("routing", parameters=1))
  leave(tmp_path / "b" / "joint", fake("joint"))
  found = store.compare(tmp_path / "a", tmp_path / "b")
  assert found == {"er": [], "joint": [f"only in {tmp_path / 'b'}"], "routing": ["parameters"]}


# What a table says.


@pytest.mark.parametrize(
  ("metric", "ours", "std", "published", "expected"),
  [
    ("ACC", 0.92, 0.004, 0.92, "reproduced"),
    ("ACC", 0.934, 0.004, 0.92, "reproduced"),  # the bound, whose difference is .01400...01 in floating point
    ("ACC", 0.906, 0.004, 0.92, "reproduced"),
    ("ACC", 0.9341, 0.004, 0.92, "better"),
    ("ACC", 0.9059, 0.004, 0.92, "short"),
    ("ACC", 0.93, None, 0.92, "reproduced"),
    ("ACC", 0.9301, None, 0.92, "better"),
    ("BWT", -0.02, 0.002, -0.04, "better"),
    ("BWT", -0.06, 0.002, -0.04, "short"),
    ("BWT", -0.052, 0.002, -0.04, "reproduced"),
    ("forgetting", 0.02, 0.002, 0.04, "better"),
    ("forgetting", 0.06, 0.002, 0.04, "short"),
  ],
)
def test_the_verdict_follows_the_written_rule(metric, ours, std, published, expected):
  assert tables.verdict(metric, ours, std, published) == expected


def line_of(results, method, published=PUBLISHED):
  headings, table = tables.rows(results, published)
  line = next(line for line in table if re.search(rf"\b{method}\b", line[headings.index("method")]))
  return headings, line


def test_ours_stands_beside_the_published_number_with_a_verdict():
  result = with_metric(with_metric(fake(), "ACC", 0.9123, 0.0021), "BWT", -0.06, 0.001)
  headings, line = line_of([result], "routing_cotrain")
  at = headings.index("ACC (last)")
  assert headings[at : at + 3] == ["ACC (last)", "published", "verdict"]
  assert line[at : at + 3] == ["0.9123 ± 0.0021", "0.920", "reproduced"]
  at = headings.index("BWT")
  assert line[at : at + 3] == ["-0.0600 ± 0.0010", "-0.038", "short"]
  assert line[headings.index("seeds")] == "2" and "MoE + replay + co-training" in line[headings.index("method")]
  assert "learning accuracy (average)" in headings and tables.no_verdict([result], PUBLISHED) == ""


def test_another_preset_gets_no_verdict_and_is_told_why():
  small = fake(preset="gem1000")
  headings, line = line_of([small], "routing_cotrain")
  at = headings.index("ACC (last)")
  assert line[at + 1 : at + 3] == ["0.920", "-"]
  assert "gem1000" in tables.text_table([small], PUBLISHED).splitlines()[-1]
  assert "'paper'" in tables.no_verdict([small], PUBLISHED)
  assert tables.no_verdict([fake("joint", preset="gem1000")], PUBLISHED) == ""  # no published number, nothing to say


def test_two_presets_in_one_table_are_told_apart():
  both = [fake(), fake(preset="gem1000")]
  headings, table = tables.rows(both, PUBLISHED)
  assert headings[0] == "preset" and [line[0] for line in table] == ["gem1000", "paper"]
  verdicts = [line[headings.index("verdict")] for line in table]
  assert verdicts == ["-", "short"]


def test_undefined_values_and_single_seeds_are_shown_as_such():
  result = with_metric(with_metric(fake(), "ACC", 0.5), "BWT", None)
  headings, line = line_of([result], "routing_cotrain")
  at = headings.index("ACC (last)")
  assert line[at] == "0.5000"
  at = headings.index("BWT")
  assert line[at : at + 3] == ["-", "-0.038", "-"]


def test_oracles_are_marked():
  _, line = line_of([fake("joint"), fake("er")], "joint")
  assert "[oracle]" in line[1] and "[oracle]" not in line_of([fake("joint"), fake("er")], "er")[1][1]


def test_rows_stand_in_the_order_of_the_paper():
  results = [fake(m, s) for s in ("mnist_rot", "mnist_perm", "other") for m in ("zeta", "routing", "er", "finetune")]
  _, table = tables.rows(results, PUBLISHED)
  assert [line[0] for line in table[::4]] == ["MNIST-Perm", "MNIST-Rot", "other"]
  methods = ["Shared bottom (finetune)", "Shared bottom + replay (er)", "MoE + replay (routing)", "zeta"]
  assert [line[1] for line in table[:4]] == methods


def test_results_of_one_method_are_named_by_their_folders():
  names = tables.labels([fake("er"), fake("er"), fake("joint")], ["lr.1/er", "lr.3/er", "joint"])
  assert names == ["er in lr.1/er", "er in lr.3/er", "joint"]
  _, table = tables.rows([fake("joint"), fake("er")], PUBLISHED, ["a", "b"])
  assert [line[1] for line in table] == ["Shared bottom + replay (b)", "Joint training (a) [oracle]"]


def test_the_terminal_s_table_is_aligned_and_needs_no_paper():
  lines = tables.text_table([fake("er"), fake("routing_cotrain")]).splitlines()
  assert len(lines) == 3 and {"method", "ACC", "BWT", "forgetting", "seeds"} <= set(lines[0].split())
  assert len({line.index("0.7667 ± 0.0707") for line in lines[1:]}) == 1 and "published" not in lines[0]


def test_markdown_and_html_say_the_same():
  headings, table = ["a", "b"], [["1 | 2", "<&>"], ["", "±"]]
  assert tables.markdown(headings, table) == "| a | b |\n| --- | --- |\n| 1 \\| 2 | <&> |\n|  | ± |"
  page = tables.as_html(headings, table)
  assert re.findall(r"<t[hd]>(.*?)</t", page) == ["a", "b", "1 | 2", "&lt;&amp;&gt;", "", "±"]


def test_the_readme_s_table_tells_what_made_it():
  text = tables.readme_table([fake(preset="gem1000")], PUBLISHED)
  assert "published" not in text and "Commit 0123456789; cpu; 1.2 minutes in all" in text
  assert "0.920" in tables.readme_table([fake()], PUBLISHED)


def test_splice_replaces_the_part_between_the_markers_only():
  text = "head\n<!-- results:a -->\nold\n<!-- /results:a -->\n<!-- results:b -->x<!-- /results:b -->\ntail"
  once = tables.splice(text, "a", "| new |")
  assert once == text.replace("\nold\n", "\n\n| new |\n\n") and tables.splice(once, "a", "| new |") == once
  for wrong in ("c", "results"):
    with pytest.raises(ValueError, match=f"results:{wrong}"):
      tables.splice(text, wrong, "")
  with pytest.raises(ValueError, match="results:a"):
    tables.splice("<!-- /results:a --> <!-- results:a -->", "a", "")


def test_the_published_means_agree_with_what_is_derived_from_them():
  for stream, methods in PUBLISHED["values"].items():
    assert set(methods) == {"finetune", "er", "routing", "routing_cotrain"} and stream in PUBLISHED["streams"]
    for method, values in methods.items():
      derived = PUBLISHED["derived"]["learning_accuracy"][stream][method]
      assert derived == pytest.approx(values["ACC"] - values["BWT"] * 19 / 20, abs=5.1e-4)
      assert method in PUBLISHED["methods"]


# What the figures and pages hold.


def lines_of(figure, axis=0):
  return {line.get_label(): line.get_xydata() for line in figure.axes[axis].lines if line.get_label()[0] != "_"}


def test_a_run_s_figures():
  plain = {"accuracy_matrix", "task_curves", "drops"}
  assert set(plots.run_figures(fake(), {"parameters": np.zeros((S, T))})) == plain
  found = plots.run_figures(fake(), report_arrays())
  assert set(found) == plain | {"routing", "task_similarity", "expert_use"}
  for figure in found.values():
    assert plots.png(figure).startswith(b"\x89PNG")


def test_curves_start_at_their_task_and_drops_end_at_zero():
  curves = plots.task_curves([fake("er")])
  np.testing.assert_allclose(lines_of(curves, 0)["er"], [[1, 0.9], [2, 0.8], [3, 0.65]])
  np.testing.assert_allclose(lines_of(curves, 1)["er"], [[2, 0.95], [3, 0.8]])
  np.testing.assert_allclose(lines_of(plots.drops([fake("er")]))["er"], [[1, 0.25], [2, 0.15], [3, 0]])


def test_long_streams_show_tasks_1_and_10():
  right = np.tile(np.arange(20) * 5, (1, 21, 1))
  figure = plots.task_curves([fake("er", right={"task": right}, rows=np.full((1, 20), 100), seeds=[3])])
  assert [axis.get_ylabel()[-7:] for axis in figure.axes] == [" task 1", "task 10"]
  np.testing.assert_allclose(lines_of(figure, 1)["er"], [[i, 0.45] for i in range(10, 21)])


def test_routing_figures_show_the_first_seed_after_the_last_task():
  arrays = report_arrays()
  found = plots.run_figures(fake(), arrays)
  last = arrays["routing"][0, -1]
  for l in range(L):
    np.testing.assert_allclose(found["routing"].axes[l].images[0].get_array(), last[l])
    np.testing.assert_allclose(found["task_similarity"].axes[l].images[0].get_array(), last[l] @ last[l].T)
  use = lines_of(found["expert_use"])
  np.testing.assert_allclose(use["layer 2"][:, 1], arrays["unused"][:, :, 1].mean(axis=0))
  np.testing.assert_allclose(lines_of(found["expert_use"], 1)["skipped"][:, 1], arrays["skipped"][:, -1].mean(axis=0))


def test_curves_join_what_was_evaluated_for_all_seeds():
  right = np.tile(np.arange(4)[:, None] * 10, (2, 1, 3))
  right[0, 2, 0] = -1
  figure = plots.task_curves([fake("er", right={"task": right})])
  np.testing.assert_allclose(lines_of(figure)["er"], [[1, 0.1], [3, 0.3]])


@pytest.mark.parametrize("case", ["one task", "ends only", "nothing but the end"])
def test_figures_of_sparse_matrices(case):
  right = np.full((1, 4, 3), -1)
  right[:, -1] = 50
  if case == "ends only":
    right[:, [1, 2], [0, 1]] = 90
  if case == "one task":
    right = right[:, 2:, :1]
  result = fake(right={"task": right}, rows=np.full((1, right.shape[2]), 100), seeds=[0])
  for figure in plots.run_figures(result, {}).values():
    assert plots.png(figure)


def test_more_methods_than_colours_are_all_drawn_and_differ():
  results = [fake(f"m{i}") for i in range(9)]
  figure = plots.drops(results)
  assert list(lines_of(figure)) == [f"m{i}" for i in range(9)]
  styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[:9]}
  assert len(styles) == 9


def test_a_table_s_figures_go_by_stream_and_result():
  short = fake("er", right={"task": RIGHT[:, :2, :1]}, rows=np.full((S, 1), 100))
  results = [fake("er"), short, fake("routing"), fake("routing", "mnist_rot")]
  found = plots.table_figures(results, [{}, {}, report_arrays(), {}], ["er", "er in a/b", "routing", "routing"])
  routing = {f"mnist_perm_routing_{kind}" for kind in ("routing", "task_similarity", "expert_use")}
  curves = {f"{stream}_{kind}" for stream in ("mnist_perm", "mnist_rot") for kind in ("task_curves", "drops")}
  assert set(found) == routing | curves
  assert set(lines_of(found["mnist_perm_drops"])) == {"er", "er in a/b", "routing"}
  assert plots.file_name("er in a/b") == "er_in_a_b"


def test_a_report_is_made_from_files_alone(workdir):
  written = pages.write_report(workdir, CONFIGS)
  assert [path.name for path in written] == ["report.md", "report.html"] and all(path.exists() for path in written)
  text = (workdir / "report.md").read_text()
  pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
  assert len(pictures) == 2 * (2 + 3) and all((workdir / picture).is_file() for picture in pictures)
  for expected in ("MoE + replay (routing)", tables.RULE, "secondary source", "train --config=<a>&b", "0123456789"):
    assert expected in text
  page = (workdir / "report.html").read_text()
  sources = re.findall(r"(?:src|href)='?\"?([^'\" >]*)", page)
  assert len(sources) == len(pictures) and all(source.startswith("data:image/png;base64,") for source in sources)
  assert not re.search(r"<script|<link|@import|url\(|https?://", page)
  assert "--config=&lt;a&gt;&amp;b" in page and page.count("<tr>") == 5


def test_presets_have_sections_and_pictures_of_their_own(tmp_path):
  leave(tmp_path / "paper" / "er", fake("er"))
  leave(tmp_path / "small" / "er", fake("er", preset="gem1000"))
  pages.write_report(tmp_path, CONFIGS)
  text = (tmp_path / "report.md").read_text()
  assert re.findall("## (.*)", text) == ["cotraining, preset gem1000", "cotraining, preset paper"]
  first, second = text.split("## ")[1:]
  assert "No verdict" in first and tables.RULE not in first
  assert "No verdict" not in second and tables.RULE in second
  assert len(list((tmp_path / "figures").glob("*.png"))) == 4


def test_results_without_a_paper_stand_alone(tmp_path):
  leave(tmp_path / "mine", fake("er", paper="", preset=""))
  pages.write_report(tmp_path, CONFIGS)
  text = (tmp_path / "report.md").read_text()
  assert "## runs\n" in text and "published" not in text.lower() and "verdict" not in text.lower()
  assert pages.read_published("cotraining", CONFIGS) == PUBLISHED and pages.read_published("none", CONFIGS) == {}


def test_a_damaged_published_file_is_named(tmp_path):
  (tmp_path / "papers" / "p").mkdir(parents=True)
  (tmp_path / "papers" / "p" / "published.json").write_text("{")
  with pytest.raises(ConfigError, match=r"published\.json is damaged"):
    pages.read_published("p", tmp_path)


def shell(*words):
  command = [sys.executable, "-m", "launch.report", *words]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_launcher_refuses_in_one_line(workdir):
  (workdir / "mnist_perm" / "er" / "result.json").write_text("{")
  done = shell(f"--workdir={workdir}")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ") and "result.json is damaged" in last


def test_the_launcher_tells_what_differs(workdir):
  leave(workdir / "again" / "mnist_perm" / "er", fake("er", memory_bytes=1))
  done = shell(f"--workdir={workdir / 'mnist_perm' / 'er'}", f"--compare={workdir / 'again' / 'mnist_perm' / 'er'}")
  assert done.returncode == 1 and done.stdout.strip() == ".: memory_bytes", done.stderr


def test_a_work_dir_that_cannot_be_written_is_an_os_error(workdir):
  (workdir / "figures").write_text("in the way")
  with pytest.raises(OSError, match="figures"):
    pages.write_report(workdir, CONFIGS)
