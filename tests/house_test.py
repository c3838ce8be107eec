"""Rules of the tree, read off its syntax: where things live, how long they are, what is loaded.

Where today's tree breaks a rule, the place stands in a list beside it; such a list only shrinks: an entry that no
longer breaks the rule fails the test. Who may import whom is imports_test.py's, who may know a method words_test.py's.
"""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

from cljax.methods import METHODS
from tests.tiers import RELEASE
from tests.tree import FILES, HOUSE, ROOT, TREES, documented, files_with, module_of, name_of, room, shrinks

LONGEST_FUNCTION, LONGEST_FILE = 60, 300  # lines

# Lists of what still breaks a rule: they may only shrink.
LONG_FUNCTIONS: dict[str, str] = {}  # function: why; two at most
LONG_FILES: set[str] = set()
WITHOUT_DOCSTRING: set[str] = set()
WITHOUT_LINK: set[str] = set()

# Where things live


def test_jit_of_what_trains_lives_in_run():
  """Or in `meta`, which trains by itself. Elsewhere only what happens once: a stream's draws, the parts of a run."""
  meta = ("cljax/meta/outer.py", "cljax/meta/train.py")
  once = {"cljax/data/sample.py", "cljax/data/noisy_subsets.py", "cljax/outcome.py"}
  assert files_with("jax.jit", ".pjit", "eqx.filter_jit") == {"cljax/run.py", *meta} | once


def test_loops_over_the_stream_live_in_fit():
  """The other loops run over a plan's indices, a permutation's rounds, stacked networks, clusters, earlier tasks, the
  rounds of a quadratic program and a probe's steps, not over training steps (but for those of one block, of one row
  after the other in MER, of rows held back or kept where boundaries are hidden, and of `meta`)."""
  loops = files_with("lax.fori_loop", "lax.scan", "lax.while_loop")
  assert loops == {
    "cljax/loops.py",
    "cljax/pieces/blocks.py",
    "cljax/methods/mer.py",
    "cljax/pieces/replay.py",
    "cljax/pieces/balanced.py",
    "cljax/pieces/guards/projections.py",
    "cljax/ops/qp.py",
    "cljax/ops/slots.py",
    "cljax/ops/clusters.py",
    "cljax/ops/probe.py",
    "cljax/methods/progressive.py",
    "cljax/methods/subnetwork/watching.py",
    "cljax/data/sample.py",
    "cljax/meta/outer.py",
    "cljax/meta/query.py",
    "cljax/meta/unroll.py",
  }


def test_vmap_over_seeds_lives_in_mesh():
  assert files_with("lax.map") == {
    "cljax/mesh.py",
    "cljax/data/sample.py",
    "cljax/readout.py",
  }  # these over groups of rows
  assert files_with("jax.shard_map") == {"cljax/mesh.py"}


def test_config_dicts_stay_outside():
  allowed = {f"cljax/{name}.py" for name in ("config", "sections", "overrides", "sweep", "recipe", "experiment", "run")}
  inside = {name for name in files_with("ml_collections.ConfigDict", "ConfigDict") if name.startswith("cljax/")}
  assert inside <= allowed


def test_deprecated_idioms_are_absent():
  gone = files_with(
    "jax.pmap", "random.PRNGKey", "tree_util.tree_map", "training.checkpoints", "experimental.shard_map"
  )
  assert gone == set()


# How long, and said how


def test_functions_are_short():
  """Nested functions count, the signature and the docstring do not."""
  found = set()
  for path in FILES:
    for node in ast.walk(TREES[path]):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        first = node.body[1 if documented(node) and len(node.body) > 1 else 0]
        if node.end_lineno - first.lineno + 1 > LONGEST_FUNCTION:
          found.add(f"{name_of(path)}:{node.name}")
  shrinks(found, LONG_FUNCTIONS)
  assert len(LONG_FUNCTIONS) <= 2


def test_files_are_short():
  shrinks({name_of(path) for path in FILES if path.read_text().count("\n") > LONGEST_FILE}, LONG_FILES)


def test_all_that_is_public_says_what_it_is():
  """Modules, functions and classes; a main's module says what it does, and so do modules that hold nothing."""
  found = set()
  for path in FILES:
    assert documented(TREES[path]) or not path.read_text().strip(), f"{name_of(path)} has no docstring"
    for node in TREES[path].body:
      public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
      if public and node.name != "main" and not documented(node):
        found.add(f"{name_of(path)}:{node.name}")
  shrinks(found, WITHOUT_DOCSTRING)


def test_a_method_names_its_paper():
  """By a link in the docstring that its file opens with, or says that it is a plain baseline."""
  without = set()
  for factory in METHODS.values():
    text = inspect.getmodule(inspect.unwrap(factory)).__doc__ or ""
    if "https://" not in text and "plain baseline" not in " ".join(text.split()):
      without.add(name_of(Path(inspect.getfile(inspect.unwrap(factory)))))
  shrinks(without, WITHOUT_LINK)


# What is loaded


def test_nothing_imports_tensorflow_or_torch():
  """Every module in a fresh process; data sets are read without TensorFlow, too (bank_test)."""
  modules = [module_of(path) for path in HOUSE if path.name != "__init__.py"]
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


def test_the_report_loads_no_jax():
  """Tables and figures of results can be made where nothing trains."""
  modules = [module_of(path) for path in room("cljax.report")]
  code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "False"


def test_what_is_left_to_a_release_is_there():
  """A test that was renamed would run with the quick ones again."""
  for file, names in RELEASE.items():
    text = (ROOT / "tests" / f"{file}.py").read_text()
    gone = [name for name in names if f"def {name.partition('[')[0]}(" not in text]
    assert not gone, f"tests/{file}.py has no {gone}"
