"""The README says what is true: its commands are those that run, its tables come from the result files."""

import inspect
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from PIL import Image

import cljax
from cljax.experiment import build
from cljax.methods import METHODS
from cljax.methods.exhibits import EXHIBITS
from cljax.overrides import changed
from cljax.report.overview import points
from cljax.report.store import find_results, read_report_arrays, read_result
from cljax.report.tables import readme_table, splice, text_table
from launch import cells
from launch.config_files import load_config, typed_in
from launch.list import paper
from launch.presets import published_of
from tests.results import fake

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ((ROOT / name).read_text() for name in ("README.md", "docs/results.md"))
TABLES = {  # the name of each table's markers, and the result files that it comes from
  "paper": ROOT / "results" / "cotraining" / "paper",
  "gem1000": ROOT / "results" / "cotraining" / "gem1000",
  "subnetwork": ROOT / "results" / "subnetwork" / "robust",
  "subnetwork_paper": ROOT / "results" / "subnetwork" / "paper",
  "expert_gate": ROOT / "results" / "expert_gate" / "paper",
  "lasem": ROOT / "results" / "lasem" / "quick",
  "lasem_long": ROOT / "results" / "lasem" / "long",
  "lasem_longer": ROOT / "results" / "lasem" / "longer",
  "metateacher_figure1": ROOT / "results" / "metateacher" / "figure1",
  "metateacher_reduced": ROOT / "results" / "metateacher" / "reduced",
  "metateacher_small_cifar": ROOT / "results" / "metateacher" / "small_cifar",
  "baselines": ROOT / "results" / "baselines" / "paper",
  "metateacher_reduced_twice": ROOT / "results" / "metateacher" / "reduced_twice",
}
SEARCHED = {"paper": ROOT / "results" / "cotraining" / "search" / "scale"}  # other settings, for the orderings


def test_the_first_two_commands():
  """A newcomer's two blocks set everything up by themselves, with the versions that passed."""
  blocks = re.findall(r"^```bash\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
  assert len(blocks) == 2
  for block in blocks:
    assert block.startswith("python3 -m venv .venv\n") and "-c constraints.txt" in block
  assert "launch.train --config=configs/quickstart.py" in blocks[0] and "-m pytest" in blocks[1]


def test_ci_runs_the_second_command():
  script = (ROOT / ".ci" / "run").read_text()
  awk = re.search(r"command=\$\((awk .*)\)", script).group(1)
  found = subprocess.run(["bash", "-c", awk], cwd=ROOT, capture_output=True, text=True, check=True).stdout
  assert "-m pytest" in found and "pytest" not in script


@pytest.mark.parametrize("name", TABLES)
def test_tables_come_from_the_result_files(name):
  """Else run: python -m launch.report --workdir=results/PAPER/PRESET --readme=NAME, with --search=... for SEARCHED."""
  folder = TABLES[name]
  results = [result for _, result, _ in find_results(folder)]
  searched = [result for _, result, _ in find_results(SEARCHED[name])] if name in SEARCHED else []
  table = readme_table(results, published_of(folder.parent.name), EXHIBITS, searched)
  if f"<!-- results:{name} -->" in RESULTS:
    assert splice(RESULTS, name, table) == RESULTS
  own = (ROOT / "configs" / "papers" / folder.parent.name / "README.md").read_text()
  if f"<!-- results:{name} -->" in own:
    assert splice(own, name, table) == own


def test_every_table_is_known():
  papers = "".join(path.read_text() for path in (ROOT / "configs" / "papers").glob("*/README.md"))
  assert set(re.findall(r"<!-- results:(\w+) -->", RESULTS + papers)) == set(TABLES)


def test_arrays_beside_results_are_of_the_same_runs():
  """report.npz holds what result.json tells of the last task, by the same names."""
  for path in sorted((ROOT / "results").rglob("report.npz")):
    told, arrays = read_result(path.parent / "result.json")["report"], read_report_arrays(path.parent)
    assert set(told) <= set(arrays), path  # older results tell less
    for name, values in told.items():
      np.testing.assert_allclose(arrays[name][:, -1], np.array(values, float), err_msg=f"{path}: {name}")


def test_every_method_is_listed_with_its_paper():
  for name, factory in METHODS.items():
    (line,) = re.findall(rf"^\| `{name}` \|.*$", README, flags=re.M)
    link = paper(factory)
    assert f"({link})" in line or "plain baseline" in line, line
    for config in re.findall(r"\((configs/[^)]*)\)", line):
      assert f'"{name}"' in (ROOT / config).read_text(), line


def test_links_lead_somewhere():
  """Of all pages, to files and to headings of the same page."""
  for page in (ROOT / "README.md", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
    text = page.read_text()
    headings = {
      re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall("^#+ (.*)", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$|`[^`]*`", "", text, flags=re.M | re.S)):
      if target.startswith("#"):
        assert target[1:] in headings, (page.name, target)
      elif "://" not in target:
        assert (page.parent / target).exists(), (page.name, target)


def test_the_picture_shows_the_committed_results():
  """Else run the command below the picture."""
  told = json.loads(Image.open(ROOT / "docs" / "forgetting.png").text["Description"])
  folders = re.search(r"--panels=(\S+)`", README).group(1).split(",")
  assert points(cells.panels_of(str(ROOT / "results"), folders)) == told


def test_what_the_commands_print_is_what_they_print():
  """The table below the first command has the columns that a launch prints, in their order."""
  (block,) = re.findall(r"```\n(stream .*?)```", README, flags=re.S)
  results = [fake(method, "digits_permuted", "quickstart") for method in ("finetune", "er")]
  printed = text_table(results, published_of("cotraining")).splitlines()
  headings = [re.split(r"  +", line)[:3] for line in (block, printed[0])]
  assert headings[0] == headings[1] and set(re.split(r"  +", block.splitlines()[0])) - {"lr"} <= set(
    re.split("  +", printed[0])
  )
  assert (
    all(file in block for file in ("report.md", "report.html", "report.csv", "report.tex")) and printed[-1] in block
  )


def test_paths_in_the_map_exist():
  for name in re.findall(
    r"`((?:cljax|launch|configs|tests|notebooks)/[\w/]+\.(?:py|ipynb|md))`",
    README + (ROOT / "WORKSPACE.md").read_text(),
  ):
    assert (ROOT / name).exists(), name


def test_one_s_own_things_run_as_they_stand(monkeypatch, tmp_path):
  """The block of README.md and those of docs/your_own.md, on arrays of the names that they give them."""
  monkeypatch.chdir(tmp_path)
  draw = np.random.default_rng(0)
  names = {"optax": optax, "cljax": cljax}
  for x, y in (("x0", "y0"), ("x1", "y1"), ("u0", "v0"), ("u1", "v1")):
    names[y] = draw.integers(0, 3, 60)
    names[x] = (draw.random((60, 5)) + np.eye(5)[names[y]] * 3).astype(np.float32)
  page = (ROOT / "docs" / "your_own.md").read_text()
  first, *others = [block for text in (README, page) for block in re.findall(r"```python\n(.*?)```", text, flags=re.S)]
  exec(compile(first.replace("seeds=(0, 1)", "seeds=(0, 1), quiet=True"), "README.md", "exec"), names)
  assert names["outcome"].result["metrics"]["ACC"]["mean"] > 0.8
  fits = []

  def fit_again(*given, **named):
    """The same call has just run: it is only looked at."""
    fits.append(inspect.signature(cljax.fit).bind(*given, **named))
    return names["outcome"]

  names["fit_again"] = fit_again
  for block in others:
    block = block.replace("cljax.fit(", "fit_again(").replace("(spec, stream))", "(spec, stream), quiet=True)")
    exec(compile(block, "docs/your_own.md", "exec"), names)
  assert names["outcome"].result["metrics"]["ACC"]["mean"] > 0.8 and len(fits) == 1
  assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine_by_config"]


def test_python_of_the_other_pages_is_taken(monkeypatch, tmp_path):
  """The blocks of docs/data.md and docs/training.md, on pictures of the names that they have; nothing is trained."""
  monkeypatch.chdir(tmp_path)
  fits, net = [], cljax.NETS["mlp"](heads=1, classes=2, hidden=(3,))
  for name in ("fit", "train"):
    bind = inspect.signature(getattr(cljax, name)).bind
    monkeypatch.setattr(cljax, name, lambda *given, bind=bind, **named: fits.append(bind(*given, **named).arguments))
  x, y = np.tile(np.arange(4, dtype=np.uint8)[:, None, None], (1, 2, 2)), np.array([0, 1, 0, 1])
  names = {"np": np, "jax": jax, "optax": optax, "cljax": cljax, "net": net, "config": cljax.default(), "method": None}
  names |= {f"{name}{n}{split}": {"x": x, "y": y}[name] for name in "xy" for n in ("", 1, 2) for split in ("", "t")}
  names |= {f"rows{n}{split}": [0, 1] for n in (1, 2) for split in ("", "t")}
  for page in ("data", "training"):
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), flags=re.S):
      exec(compile(block, page, "exec"), names)
  assert len(fits) == 3 and {"stream", "hyper", "on_row"} <= {name for each in fits for name in each}
  assert (tmp_path / "mine.npz").exists() and names["method"]({"lr": 0.1}).phases
  carry = SimpleNamespace(state=SimpleNamespace(params={"w": np.array([[3.0, 4.0], [0.0, 1.0]])}))
  assert names["on_row"](carry, 1) == {"norm": [5.0, 1.0]}


def test_a_file_of_one_s_own_is_taken_as_the_page_types_it(monkeypatch, tmp_path):
  """my_file.py of docs/your_own.md, by the commands below it."""
  page = (ROOT / "docs" / "your_own.md").read_text()
  (block,) = re.findall(r"```python\n([^`]*class MyNet[^`]*)```", page)
  (tmp_path / "my_file.py").write_text(block)
  monkeypatch.chdir(tmp_path)
  commands = re.findall(r"^python -m launch.train --config=configs/any.py (.*)", page, flags=re.M)
  assert len(commands) == 3
  for command in commands:
    typed = typed_in(command.split())
    changes = {key: int(value) if value.isdigit() else value for key, value in typed.items() if key != "optimizer.lr"}
    experiment = build(changed(load_config("configs/any.py").get_config(), changes))
    assert experiment.config["method"]["epochs"] == changes.get("method.epochs", 1)
    kernels = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(experiment.method.init, jax.random.key(0)).params)]
    assert ((64, changes["net.width"]) in kernels) if "net.width" in changes else kernels
