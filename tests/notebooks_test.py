"""Every notebook runs from top to bottom."""

import ast
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests.tiers import at_release

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("lasem", "your_own")  # by both, what notebooks are made of
ALL = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = [path for path in ALL if path.stem in FIRST]
OTHERS = at_release(*(path for path in ALL if path.stem not in FIRST))


def execute(source: str, names: dict[str, object]):
  """Runs a cell as a kernel does: what its last expression is worth is shown."""
  *lines, last = ast.parse(source).body
  if not isinstance(last, ast.Expr):
    lines, last = [*lines, last], None
  exec(compile(ast.Module(lines, []), "<cell>", "exec"), names)
  if last is not None:
    repr(eval(compile(ast.Expression(last.value), "<cell>", "eval"), names))


@pytest.mark.parametrize("path", [*NOTEBOOKS, *OTHERS], ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
  """In this process: a kernel of its own would have to import everything anew."""
  monkeypatch.chdir(ROOT)
  cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
  assert cells and not any(cell["outputs"] for cell in cells), "commit notebooks without outputs"
  names: dict[str, object] = {"__name__": "__main__"}
  for cell in cells:
    execute("".join(cell["source"]), names)
    for figure in map(plt.figure, plt.get_fignums()):  # which a kernel draws
      figure.canvas.draw()
  plt.close("all")
