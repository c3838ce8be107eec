"""Figures, pages and the launcher that writes them, from results made by hand."""

import csv
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from PIL import Image

from cljax.errors import ConfigError
from cljax.methods.exhibits import EXHIBITS
from cljax.outcome import finished
from cljax.report import formats, gallery, overview, pages, plots, published, store, web
from cljax.report.losses import curves_of
from launch import cells, report
from tests.results import CONFIGS, READ, RIGHT, ROOT, L, S, T, fake, leave, published_of, report_arrays, two_streams


@pytest.fixture
def workdir(tmp_path):
  return two_streams(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
  """A work dir with its report, and what was written."""
  folder = two_streams(tmp_path_factory.mktemp("reported"))
  return folder, pages.write_report(folder, published_of, EXHIBITS)


def lines_of(figure, axis=0):
  return {line.get_label(): line.get_xydata() for line in figure.axes[axis].lines if line.get_label()[0] != "_"}


def test_a_run_s_figures():
  plain = {"accuracy_matrix", "seen_so_far", "task_curves", "drops"}
  assert set(gallery.run_figures(fake(), {"parameters": np.zeros((S, T))})) == plain
  assert set(gallery.run_figures(fake(), report_arrays())) == plain
  found = gallery.run_figures(fake(), report_arrays(), EXHIBITS)
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
  found = gallery.run_figures(fake(), arrays, EXHIBITS)
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
  found = gallery.run_figures(result, {})
  for figure in found.values():
    assert plots.png(figure)
  left_out = {"one task": {"seen_so_far"}, "ends only": set(), "nothing but the end": {"seen_so_far"}}
  assert set(found) == {"accuracy_matrix", "seen_so_far", "task_curves", "drops"} - left_out[case]


def test_empty_panels_and_figures_are_left_out():
  figure, axes = plots.canvas(8, 4, 1, 3)
  axes[0, 0].axhline(0)
  axes[0, 1].plot([1, 2], [np.nan, np.nan])
  assert plots.trimmed(figure) is None
  axes[0, 2].bar([1], [0.5])
  assert plots.trimmed(figure).axes == [axes[0, 2]] and figure.get_figwidth() == pytest.approx(8 / 3)
  blank, axes = plots.canvas(4, 4)
  axes[0, 0].imshow(np.full((2, 2), np.nan))
  whole, axes = plots.canvas(4, 4)
  axes[0, 0].imshow(np.eye(2))
  assert plots.not_empty({"blank": blank, "whole": whole}) == {"whole": whole}


def test_accuracy_stands_against_forgetting():
  """Of hand-made results: er by its mean and its deviation, joint as a line; where one lacks rows all are measured by
  the drop from right after a task."""
  er, joint = fake("er"), fake("joint", right={"task": np.where(np.arange(4)[:, None] == 3, RIGHT, -1)})
  figure = overview.accuracy_against_forgetting([er, joint], "ab")
  axis = figure.axes[0]
  point = axis.containers[0].lines[0].get_xydata()[0]
  np.testing.assert_allclose(point, [er["metrics"]["forgetting"]["mean"], er["metrics"]["ACC"]["mean"]])
  assert axis.lines[-1].get_ydata()[0] == joint["metrics"]["ACC"]["mean"]
  assert "trained once" in plots.caption_of(figure) and "best" in axis.get_xlabel()
  ends = RIGHT.copy()
  ends[:, 2, 0] = -1  # not the diagonal
  label, across = overview.lost([er, fake("er", right={"task": ends})])
  assert "right after" in label and across[0] == across[1] == [-value for value in er["metrics"]["BWT"]["values"]]


def test_the_mean_over_tasks_so_far():
  (line,) = lines_of(overview.seen_so_far([fake("er")], ["er"])).values()
  np.testing.assert_allclose(line, [[1, 0.9], [2, 0.875], [3, (0.65 + 0.8 + 0.85) / 3]])


def test_one_picture_of_several_folders(workdir):
  """Drawn again it is the same; it carries the numbers that it shows."""
  path = workdir / "made" / "one.png"
  for _ in range(2):
    cells.draw(str(workdir), ["mnist_perm", "mnist_rot/er"], path)
    told = json.loads(Image.open(path).text["Description"])
  assert [len(points) for points in told.values()] == [2, 1] and list(told) == ["MNIST-Perm", "MNIST-Rot"]
  metrics = fake("er")["metrics"]
  assert told["MNIST-Rot"] == {
    "Shared bottom + replay": [round(metrics["forgetting"]["mean"], 6), round(metrics["ACC"]["mean"], 6)]
  }
  with pytest.raises(ConfigError, match="none"):
    cells.draw(str(workdir), ["none"], path)


def test_losses_come_from_the_journal(tmp_path):
  """Steps begin anew in each task; what is cut, not finite or of something else is passed by."""
  rows = [
    {"event": "step", "task": 0, "phase": "fit", "step": 0, "seeds": [0, 1], "loss": [1.0, 3.0]},
    {"event": "evaluate", "row": 1, "readout": "task", "accuracy": [[0.5]]},
    {"event": "step", "task": 0, "phase": "fit", "step": 10, "seeds": [0, 1], "loss": [1.0, None]},
    {"event": "step", "task": 1, "phase": "fit", "step": 0, "seeds": [0, 1], "loss": [None, None]},
    {"event": "step", "task": 1, "phase": "gate", "step": 5, "seeds": [0], "loss": [4.0]},
    {"event": "step", "task": 1, "phase": "fit", "step": 2, "seeds": [0], "accuracy": [4.0]},
  ]
  (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"event": "st')
  found = curves_of(tmp_path)
  np.testing.assert_allclose(found["fit"], [[0, 10], [2, 1]])
  np.testing.assert_allclose(found["gate"], [[11 + 1 + 5], [4]])
  assert curves_of(tmp_path / "none") == {}
  figure = overview.losses([found, {}], ["a", "b"], "s")
  assert set(lines_of(figure)) == {"a, fit", "a, gate"} and plots.trimmed(overview.losses([{}], ["a"], "s")) is None


def test_more_methods_than_colours_are_all_drawn_and_differ():
  results = [fake(f"m{i}") for i in range(9)]
  figure = plots.drops(results)
  assert list(lines_of(figure)) == [f"m{i}" for i in range(9)]
  styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[:9]}
  assert len(styles) == 9


def test_a_table_s_figures_go_by_stream_and_result():
  short = fake("er", right={"task": RIGHT[:, :2, :1]}, rows=np.full((S, 1), 100))
  results = [fake("er"), short, fake("routing"), fake("routing", "mnist_rot")]
  names = ["er", "er in a/b", "routing", "routing"]
  found = gallery.table_figures(results, [{}, {}, report_arrays(), {}], names, EXHIBITS)
  routing = {f"mnist_perm_routing_{kind}" for kind in ("routing", "task_similarity", "expert_use")}
  kinds = ("accuracy_against_forgetting", "seen_so_far", "task_curves", "drops")
  curves = {f"{stream}_{kind}" for stream in ("mnist_perm", "mnist_rot") for kind in kinds}
  named = ("mnist_perm_er", "mnist_perm_er_in_a_b", "mnist_perm_routing", "mnist_rot_routing")
  assert set(found) == routing | curves | {f"{name}_accuracy_matrix" for name in named}
  kinds = [next(kind for kind in ("against", "seen", "matrix", "") if kind in name) for name in found]
  assert list(dict.fromkeys(kinds)) == ["against", "seen", "matrix", ""]
  assert set(lines_of(found["mnist_perm_drops"])) == {"er", "er in a/b", "routing"}
  assert plots.file_name("er in a/b") == "er_in_a_b"


def test_a_report_is_made_from_files_alone(reported):
  workdir, written = reported
  assert [path.name for path in written] == [f"report.{end}" for end in ("md", "html", "csv", "tex")]
  text = (workdir / "report.md").read_text()
  pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
  assert len(pictures) == 2 * (4 + 2 + 3) and all((workdir / picture).is_file() for picture in pictures)
  for expected in ("MoE + replay (routing)", published.RULE, "secondary source", "train --config=<a>&b", "0123456789"):
    assert expected in text
  page = (workdir / "report.html").read_text()
  sources = re.findall(r"<[^>]* src='?\"?([^'\" >]*)", page)
  assert len(sources) == len(pictures) and all(source.startswith("data:image/png;base64,") for source in sources)
  assert not re.search(r"<script [^>]*src|<link|@import|url\(", page)  # nothing is fetched
  assert f"<a href='{READ['link']}'>" in page
  assert "--config=&lt;a&gt;&amp;b" in page and page.count("<tr>") == 5
  captions = re.findall("<figcaption>(.*?)</figcaption>", page)
  assert len(captions) == len(pictures) and all(len(caption.split()) > 8 for caption in captions)
  assert "viewport" in page and "overflow-x:auto" in page
  kinds = []  # of several panels side by side, or too large for a phone
  for picture in pictures:
    with Image.open(workdir / picture) as image:
      kinds.append("wide" * (image.width > web.PANELS * image.height) + " large" * (image.width > web.LARGE))
  assert re.findall(r"<figure class='([^']*)'>", page) == [kind.strip() for kind in kinds] and any(kinds)


def test_the_table_for_other_programs(reported):
  workdir, _ = reported
  rows = list(csv.DictReader((workdir / "report.csv").read_text().splitlines()))
  assert len(rows) == 4 and {row["table"] for row in rows} == {"cotraining, preset paper"}
  er = next(row for row in rows if row["method"].endswith("(er)") and row["stream"] == "MNIST-Perm")
  assert er["ACC (last)"] == "0.7667" and er["ACC (last), s.d."] == "0.0707"
  assert (er["ACC (last), published"], er["BWT, published"]) == ("0.912", "-0.057")
  assert (er["parameters"], er["memory, MB"], er["of it stored examples, MB"]) == ("310700", "0.796", "0.792")
  assert er["minutes, all seeds"] == "1.2" and er["ACC, task not given, classes so far"] == "0.3817"
  lines = (workdir / "report.tex").read_text().splitlines()
  table = lines[lines.index(r"\toprule") :]
  assert {line.count(" & ") for line in table if line.endswith(r" \\")} == {len(re.search("{(l+)}", lines[3])[1]) - 1}
  assert formats.escaped("a_b & 5 % \\ ±") == r"a\_b \& 5 \% \textbackslash{} $\pm$"


def test_presets_have_sections_and_pictures_of_their_own(tmp_path):
  leave(tmp_path / "paper" / "er", fake("er"))
  leave(tmp_path / "small" / "er", fake("er", preset="gem1000"))
  pages.write_report(tmp_path, published_of)
  text = (tmp_path / "report.md").read_text()
  assert re.findall("## (.*)", text) == ["cotraining, preset gem1000", "cotraining, preset paper"]
  first, second = text.split("## ")[1:]
  assert "No published number" in first and published.RULE not in first
  assert "No published number" not in second and published.RULE in second
  assert len(list((tmp_path / "figures").glob("*.png"))) == 10


def test_report_arrays_that_are_gone_are_told(tmp_path, caplog):
  for method in ("er", "routing"):
    leave(tmp_path / method, {**fake(method, paper="", preset=""), "report": {"parameters": [3]}}, report_arrays())
  path = tmp_path / "er" / "report.npz"
  pages.write_report(tmp_path, published_of)
  assert finished(epath.Path(path.parent), ({},))[0][1] and not caplog.text
  assert "report.npz" not in (tmp_path / "report.md").read_text()
  path.unlink()
  pages.write_report(tmp_path, published_of)
  assert "1 of 2 results have no report.npz" in (tmp_path / "report.md").read_text()
  assert not finished(epath.Path(path.parent), ({},))[0][1]
  assert f"{path} is gone; delete result.json beside it" in caplog.text


def test_runs_without_a_result_are_told(tmp_path):
  """A table whose best row is still in training is no table of the best."""
  leave(tmp_path / "er", fake("er", paper="", preset=""))
  for name in ("er", "slow", "sweep", "rule"):
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / "config.json").write_text("{}")
  (tmp_path / "rule" / "meta.json").write_text("{}")
  leave(tmp_path / "sweep" / "lr=0.1", fake("routing", paper="", preset=""))
  line = "Begun, without a result yet, and so without a row: slow."
  pages.write_report(tmp_path)
  assert all(line in (tmp_path / name).read_text() for name in ("report.md", "report.html"))
  (tmp_path / "slow" / "config.json").unlink()
  assert store.unfinished(tmp_path) == []


def test_results_without_a_paper_stand_alone(tmp_path):
  leave(tmp_path / "mine", fake("er", paper="", preset=""))
  pages.write_report(tmp_path, published_of)
  text = (tmp_path / "report.md").read_text()
  assert "## runs\n" in text and "published" not in text.lower() and "verdict" not in text.lower()
  assert pages.read_published("cotraining", CONFIGS) == READ and pages.read_published("none", CONFIGS) == {}


def test_a_stream_whose_label_is_a_path_has_figures(tmp_path):
  leave(tmp_path / "mine", fake("er", "data_own/pairs.py:pairs", paper="", preset=""))
  pages.write_report(tmp_path)
  assert "figures/runs__data_own_pairs.py_pairs_drops.png" in (tmp_path / "report.md").read_text()
  assert (tmp_path / "figures" / "runs__data_own_pairs.py_pairs_drops.png").exists()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_published_file_is_named(tmp_path, text):
  (tmp_path / "papers" / "p").mkdir(parents=True)
  (tmp_path / "papers" / "p" / "published.json").write_text(text)
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


@pytest.mark.parametrize(
  ("given", "words"),
  [({"SEARCH": "x"}, "--search goes with --readme"), ({"COMPARE": "x", "README": "y"}, "are two things to do")],
)
def test_the_launcher_refuses_flags_that_would_mean_nothing(given, words, monkeypatch):
  for name in ("COMPARE", "SEARCH", "README", "PICTURE", "PANELS"):
    monkeypatch.setattr(report, name, SimpleNamespace(value=given.get(name, ["."] if name == "PANELS" else None)))
  with pytest.raises(ConfigError, match=words):
    report.check_flags()


def test_the_launcher_tells_what_differs(workdir):
  leave(workdir / "again" / "mnist_perm" / "er", fake("er", memory_bytes=1))
  done = shell(f"--workdir={workdir / 'mnist_perm' / 'er'}", f"--compare={workdir / 'again' / 'mnist_perm' / 'er'}")
  assert done.returncode == 1 and done.stdout.endswith(".:\n  fields that differ: memory_bytes\n"), done.stderr
  assert done.stdout.count(" equal\n") == 8  # four metrics of two readouts


def test_a_work_dir_that_cannot_be_written_is_an_os_error(workdir):
  (workdir / "figures").write_text("in the way")
  with pytest.raises(OSError, match="figures"):
    pages.write_report(workdir, published_of)
