"""The rules of the tree, read off its syntax.

Where today's tree breaks a rule, the place stands in a list beside it; such a list only shrinks: an entry that no
longer breaks the rule fails the test.
"""

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cljax import types
from cljax.data import STREAMS
from cljax.declared import fields
from cljax.looks import LOOKS
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.pieces.guards import GUARDS
from cljax.pieces.optimizers import OPTIMIZERS

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for room in ("cljax", "launch", "configs", "benchmarks") for path in (ROOT / room).rglob("*.py"))
HOUSE = [path for path in FILES if path.parts[len(ROOT.parts)] != "benchmarks"]  # benchmarks jit and loop as they like

LONGEST_FUNCTION, LONGEST_FILE = 60, 300  # lines

# From the ground up. What stands in one line may import each other, but nothing may import from a line further down,
# and there is no circle anywhere. A name stands for the module and for all that it holds.
ROOMS = (
  ("errors", "types"),
  ("declared", "files", "keys", "metrics"),
  ("ops",),
  ("data", "nets", "report"),
  ("artifacts", "fit"),
  ("pieces",),
  ("methods",),
  ("checkpoint", "looks", "memory", "mesh", "monitor", "timeline", "workdir"),
  ("settings",),
  ("config",),
  ("sweep",),
  ("recipe",),
  ("experiment",),
  ("drive", "predict"),
  ("outcome",),
  ("run",),
  ("evaluation",),
)
ABOVE = ("configs", "benchmarks", "launch")

# Lists of what still breaks a rule: they may only shrink.
LONG_FUNCTIONS: dict[str, str] = {}  # function: why; two at most
LONG_FILES: set[str] = set()
WITHOUT_DOCSTRING: set[str] = set()
WITHOUT_LINK: set[str] = set()
KNOWN_NAMES = {  # (file, word of one method that it says): why
  ("cljax/ops/gating.py", "noise"): "a way to begin a row, and a word of committed configs",
  ("cljax/pieces/experts.py", "finetune"): "a way to go on from a parent, and a word of committed configs",
  ("cljax/pieces/experts.py", "lwf"): "a way to go on from a parent, and a word of committed configs",
}


def name_of(path: Path) -> str:
  return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
  return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def dotted(node: ast.AST) -> str:
  """`jax.lax.scan` of an attribute chain; '' of anything else."""
  if isinstance(node, ast.Attribute):
    return f"{dotted(node.value)}.{node.attr}"
  return node.id if isinstance(node, ast.Name) else ""


def imports(path: Path) -> list[tuple[str, str]]:
  """(module, name) of all that a file imports, wherever in it; no name where the module itself is imported."""
  found = []
  for node in ast.walk(TREES[path]):
    if isinstance(node, ast.Import):
      found += [(alias.name, "") for alias in node.names]
    if isinstance(node, ast.ImportFrom):
      assert node.module and not node.level, f"{name_of(path)}:{node.lineno} imports by a relative name"
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        found.append((whole, "") if whole in MODULES else (node.module, alias.name))
  return found


def arrows(path: Path) -> set[str]:
  """The modules of this tree that a file imports."""
  return {module for module, _ in imports(path) if module in MODULES}


def mentions(path: Path) -> set[str]:
  """All dotted names in a file, and the names that it imports."""
  names = {dotted(node) for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute | ast.Name)}
  return names | {f"{module}.{name}".removesuffix(".") for module, name in imports(path)}


def files_with(*endings: str) -> set[str]:
  return {name_of(path) for path in HOUSE if any(name.endswith(end) for name in mentions(path) for end in endings)}


def in_room(path: Path, room: str) -> bool:
  return module_of(path) == room or module_of(path).startswith(f"{room}.")


def room(name: str) -> list[Path]:
  return [path for path in FILES if in_room(path, name)]


def documented(node: ast.AST) -> bool:
  return bool(ast.get_docstring(node))  # type: ignore[arg-type]


def shrinks(found, allowed) -> None:
  """Nothing new breaks a rule, and what no longer breaks it leaves the list."""
  new, gone = sorted(set(found) - set(allowed)), sorted(set(allowed) - set(found))
  assert not new, f"breaks the rule: {new}"
  assert not gone, f"no longer breaks the rule, so take it off its list in this file: {gone}"


# Where things live


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
    "cljax/pieces/balanced.py",
    "cljax/ops/slots.py",
    "cljax/methods/subnetwork/watching.py",
    "cljax/data/sample.py",
  }


def test_vmap_over_seeds_lives_in_mesh():
  assert files_with("lax.map") == {"cljax/mesh.py", "cljax/data/sample.py"}  # the latter over groups of pictures
  assert files_with("jax.shard_map") == {"cljax/mesh.py"}


def test_config_dicts_stay_outside():
  allowed = {"cljax/config.py", "cljax/sweep.py", "cljax/recipe.py", "cljax/experiment.py", "cljax/run.py"}
  inside = {name for name in files_with("ml_collections.ConfigDict", "ConfigDict") if name.startswith("cljax/")}
  assert inside <= allowed


def test_deprecated_idioms_are_absent():
  gone = files_with(
    "jax.pmap", "random.PRNGKey", "tree_util.tree_map", "training.checkpoints", "experimental.shard_map"
  )
  assert gone == set()


# Who may import whom


def level_of(module: str) -> int:
  """The line of ROOMS on which a module stands."""
  first, *rest = module.split(".")
  if first in ABOVE:
    return len(ROOMS) + ABOVE.index(first)
  for level, rooms in enumerate(ROOMS):
    if not rest or rest[0] in rooms:
      return level
  raise AssertionError(f"{module} stands in no room: give it one in ROOMS, as low as its imports allow")


def test_no_arrow_points_upwards():
  found = {
    (module, other)
    for module, path in MODULES.items()
    for other in arrows(path)
    if level_of(other) > level_of(module) and not module.startswith("benchmarks")
  }
  assert not found


def test_no_circle():
  open_, done = [], set()

  def visit(module):
    assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
    if module not in done:
      open_.append(module)
      for other in arrows(MODULES[module]):
        visit(other)
      open_.remove(module)
      done.add(module)

  for module in MODULES:
    visit(module)


def method_folder(module: str) -> str:
  """`cljax.methods.x` of all that a folder of a method holds; '' of others."""
  parent = ".".join(module.split(".")[:3])
  return parent if module.startswith("cljax.methods.") and MODULES[parent].name == "__init__.py" else ""


TABLES_OF_METHODS = {"cljax.methods", "cljax.methods.exhibits"}


def test_a_method_is_imported_by_the_tables_only():
  for module, path in MODULES.items():
    for other in arrows(path):
      if other.startswith("cljax.methods.") and other not in TABLES_OF_METHODS and module not in TABLES_OF_METHODS:
        assert method_folder(module) == method_folder(other) != "", f"{module} imports {other}"


METHOD_FILES = [path for path in room("cljax.methods") if path.name not in ("__init__.py", "exhibits.py")]
EXHIBIT_FILES = [path for path in room("cljax.methods") if path.name == "exhibits.py"]
BELOW_METHODS = ("types", "errors", "declared", "ops", "pieces", "nets", "artifacts", "data.sample")


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_a_method_imports_the_vocabulary_and_maths_only(path):
  allowed = (*(f"cljax.{room}" for room in BELOW_METHODS), "cljax.methods")
  for module, name in imports(path):
    if module == "cljax.fit":
      assert name == "mean_over"
    elif module.startswith("cljax"):
      assert module.startswith(allowed), module
    else:
      assert module.split(".")[0] in {"absl", "jax", "flax", "optax", "chex"} | set(sys.stdlib_module_names), module


@pytest.mark.parametrize("path", room("cljax.ops"), ids=lambda path: path.stem)
def test_ops_take_arrays_and_give_arrays(path):
  engine = {"Array", "Key", "PyTree", "NONE", "Batch", "Place"}
  for module, name in imports(path):
    if module == "cljax.types":
      assert name in engine, name
    elif module.startswith("cljax"):
      assert module.startswith(("cljax.ops", "cljax.errors")), module


@pytest.mark.parametrize("path", room("cljax.report"), ids=lambda path: path.stem)
def test_the_report_reads_result_files_only(path):
  libraries = {"numpy", "matplotlib", "etils"} | set(sys.stdlib_module_names)
  for module, _ in imports(path):
    if module.startswith("cljax"):
      assert module.startswith(("cljax.errors", "cljax.files", "cljax.metrics", "cljax.report")), module
    else:
      assert module.split(".")[0] in libraries, module


def public_functions(path: Path) -> list[ast.FunctionDef]:
  found = [node for node in TREES[path].body if isinstance(node, ast.FunctionDef)]
  return [node for node in found if not node.name.startswith("_")]


def takes_arrays(node: ast.FunctionDef) -> bool:
  """Whether a function has an argument that is an array, and not a number that may be traced (`Array | float`)."""
  arguments = [*node.args.args, *node.args.kwonlyargs]
  notes = [ast.unparse(one.annotation) for one in arguments if one.annotation]
  return any(re.search(r"^(Array|Batch|Place)\b(?! \| (int|float))", note) for note in notes)


def test_pieces_assert_what_they_are_given():
  for path in room("cljax.pieces"):
    if any(takes_arrays(node) for node in public_functions(path)):
      assert "chex" in dict(imports(path)), name_of(path)


def test_ops_assert_what_they_are_given():
  """Each function by itself, or the one that it hands its arguments to."""
  for path in room("cljax.ops"):
    for node in public_functions(path):
      body = node.body[1:]
      hands_on = len(body) == 1 and isinstance(body[0], ast.Return) and isinstance(body[0].value, ast.Call)
      asserts = any(dotted(call.func).startswith("chex.") for call in ast.walk(node) if isinstance(call, ast.Call))
      assert not takes_arrays(node) or asserts or hands_on, f"{name_of(path)}:{node.name}"


@pytest.mark.parametrize("path", EXHIBIT_FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_an_exhibit_draws_what_a_report_reads(path):
  for module, name in imports(path):
    if module.startswith("cljax"):
      own = module.startswith("cljax.methods.") and module.endswith(".exhibits")  # the table imports its entries
      assert own or module.startswith(("cljax.metrics", "cljax.report")) or name == "MODES", module
    else:
      assert module.split(".")[0] in {"numpy", "matplotlib"} | set(sys.stdlib_module_names), module


# Who may know a method


def home_of(name: str) -> str:
  """The module or folder that a method or a guard has for itself."""
  return "cljax.pieces.guards" if name in GUARDS else f"cljax.methods.{name}"


def words_of_methods() -> dict[str, set[str]]:
  """{word: homes of the methods that it belongs to}: their names, and keywords that one alone declares."""
  declared = {name: set(fields(factory, 3)) for name, factory in METHODS.items() if name not in GUARDS}
  declared |= {name: set(fields(factory, 2)) for name, factory in GUARDS.items()}
  count = Counter(word for own in declared.values() for word in own)
  words = {name: {home_of(name)} for name in declared}
  for name, own in declared.items():
    for word in own:
      if count[word] == 1:
        words.setdefault(word, set()).add(home_of(name))
  return words


def words_of_the_engine() -> set[str]:
  """Fields of its records, keywords of nets, streams and optimizers, whatever method has a keyword of that name too."""
  records = [one for one in vars(types).values() if isinstance(one, type) and hasattr(one, "_fields")]
  found = {field for one in records for field in one._fields} | set(LOOKS)
  for factory, given in ((NETS, 0), (STREAMS, 2), (OPTIMIZERS, 0)):
    found |= {field for one in factory.values() for field in fields(one, given)}
  for path in (*room("cljax.nets"), *room("cljax.ops"), *room("cljax.pieces")):
    for node in ast.walk(TREES[path]):
      if isinstance(node, ast.ClassDef):
        targets = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
        found |= {field.id for field in targets if isinstance(field, ast.Name)}
  return found


ELSEWHERE = {  # keywords of one method that are words of others too
  "bias": "a parameter of every layer",
  "center": "where a figure sets its text",
  "memory": "the field of a state that plans read",
  "threshold": "a rule for masks",
  "warmup": "the name of a phase",
}
ENGLISH = {"confident", "discriminative", "joint", "routing", "single", "subnetwork"}  # in a sentence no name


def said(path: Path) -> set[str]:
  """The words in a file's strings (but for docstrings), and its attributes."""
  tree, docstrings, found = TREES[path], set(), set()
  for node in ast.walk(tree):
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
      docstrings.add(body[0].value)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      found.add(node.attr)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
      found |= {node.value} | set(re.findall(r"method\.(\w+)", node.value))
      found |= set(re.findall(r"\w+", node.value)) & (set(METHODS) - ENGLISH)
  return found


def test_no_other_file_knows_a_method():
  """A method's name, and a keyword that it alone has, stand in its own file or folder and in the tables."""
  homes, engine = words_of_methods(), words_of_the_engine()
  words = set(homes) - engine - set(ELSEWHERE)
  found = set()
  for path in HOUSE:
    module = module_of(path)
    if module in TABLES_OF_METHODS or module.startswith("configs"):
      continue
    strange = {word for word in said(path) & words if not any(in_room(path, home) for home in homes[word])}
    found |= {(name_of(path), word) for word in strange}
  shrinks(found, KNOWN_NAMES)


def test_no_branch_on_a_method_s_name():
  for path in HOUSE:
    if path.parts[-2] not in ("methods", "cotraining") and path.parts[-3] != "papers" and path.name != "quickstart.py":
      for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Compare):
          assert not dotted(node.left).endswith(("method.name", ".method")), f"{name_of(path)}:{node.lineno}"


def test_a_method_names_its_paper():
  """By a link in the docstring that its file opens with, or says that it is a plain baseline."""
  without = set()
  for factory in METHODS.values():
    text = inspect.getmodule(inspect.unwrap(factory)).__doc__ or ""
    if "https://" not in text and "plain baseline" not in " ".join(text.split()):
      without.add(name_of(Path(inspect.getfile(inspect.unwrap(factory)))))
  shrinks(without, WITHOUT_LINK)


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
