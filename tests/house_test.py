"""The rules of the tree, read off its syntax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for room in ("cljax", "launch", "configs") for path in (ROOT / room).rglob("*.py"))
METHOD_FILES = [path for path in FILES if "methods" in path.parts and path.name != "__init__.py"]

ROOMS_BELOW_METHODS = tuple(
  f"cljax.{room}" for room in ("types", "errors", "ops", "pieces", "nets", "data.sample", "fit", "artifacts", "methods")
)


def name_of(path: Path) -> str:
  return str(path.relative_to(ROOT))


def dotted(node: ast.AST) -> str:
  """`jax.lax.scan` of an attribute chain; '' of anything else."""
  if isinstance(node, ast.Attribute):
    return f"{dotted(node.value)}.{node.attr}"
  return node.id if isinstance(node, ast.Name) else ""


def mentions(path: Path) -> set[str]:
  """All dotted names in a file, and the names that it imports."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Attribute | ast.Name):
      found.add(dotted(node))
    if isinstance(node, ast.ImportFrom):
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return found


def files_with(*endings: str) -> set[str]:
  return {name_of(path) for path in FILES if any(name.endswith(end) for name in mentions(path) for end in endings)}


def test_jit_lives_in_run():
  assert files_with("jax.jit", ".pjit", "eqx.filter_jit") == {"cljax/run.py"}


def test_loops_over_the_stream_live_in_fit():
  """The other loops run over a plan's indices, a permutation's rounds and stacked networks, not over training steps
  (but for those of one block, and of rows held back or kept where boundaries are hidden)."""
  loops = files_with("lax.fori_loop", "lax.scan", "lax.while_loop")
  assert loops == {
    "cljax/fit.py",
    "cljax/pieces/blocks.py",
    "cljax/pieces/replay.py",
    "cljax/ops/slots.py",
    "cljax/methods/subnetwork/watching.py",
    "cljax/data/sample.py",
  }


def test_vmap_over_seeds_lives_in_mesh():
  assert files_with("lax.map") == {"cljax/mesh.py", "cljax/data/sample.py"}  # the latter over groups of pictures
  assert files_with("jax.shard_map") == {"cljax/mesh.py"}


def test_config_dicts_stay_outside():
  allowed = {"cljax/config.py", "cljax/experiment.py", "cljax/predict.py", "cljax/run.py"}
  inside = {name for name in files_with("ml_collections.ConfigDict", "ConfigDict") if name.startswith("cljax/")}
  assert inside <= allowed


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: path.stem)
def test_a_method_imports_the_vocabulary_and_maths_only(path):
  libraries = {"jax", "flax", "optax", "chex"}
  for node in ast.walk(ast.parse(path.read_text())):
    modules = []
    if isinstance(node, ast.Import):
      modules = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
      modules = [node.module]
      if node.module == "cljax.fit":
        assert [alias.name for alias in node.names] == ["mean_over"]
    for module in modules:
      if module.startswith("cljax"):
        assert module.startswith(ROOMS_BELOW_METHODS), module
      else:
        assert module.split(".")[0] in libraries | set(sys.stdlib_module_names), module


def test_no_branch_on_a_method_s_name():
  for path in FILES:
    if path.parts[-2] not in ("methods", "cotraining") and path.parts[-3] != "papers" and path.name != "quickstart.py":
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
          assert not dotted(node.left).endswith(("method.name", ".method")), f"{name_of(path)}:{node.lineno}"


def test_deprecated_idioms_are_absent():
  gone = files_with(
    "jax.pmap", "random.PRNGKey", "tree_util.tree_map", "training.checkpoints", "experimental.shard_map"
  )
  assert gone == set()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_short(path):
  """Files under 300 lines, functions under 60 lines of their own (nested functions count for themselves)."""
  text = path.read_text()
  assert text.count("\n") <= 310
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef):
      own = node.end_lineno - node.body[0].end_lineno
      own -= sum(inner.end_lineno - inner.lineno + 1 for inner in node.body if isinstance(inner, ast.FunctionDef))
      assert own <= 60, f"{name_of(path)}:{node.lineno} {node.name} has {own} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_and_public_functions_say_what_they_are(path):
  tree = ast.parse(path.read_text())
  if not path.read_text().strip():
    return
  assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"


def test_nothing_imports_tensorflow_or_torch():
  """Every module in a fresh process; data sets are read without TensorFlow, too (bank_test)."""
  modules = [name_of(path)[:-3].replace("/", ".") for path in FILES if path.name != "__init__.py"]
  code = f"""
import importlib, importlib.util, sys
sys.modules['torch'] = None  # tensorboardX imports it where it is installed
for name in {modules!r}:
  if name.startswith('configs'):
    spec = importlib.util.spec_from_file_location('c', name.replace('.', '/') + '.py')
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
  else:
    importlib.import_module(name)
import tensorflow_datasets
print([name for name in ('tensorflow', 'keras', 'clu') if name in sys.modules])
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().splitlines()[-1] == "[]"
