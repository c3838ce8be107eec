"""Who may import whom, read off the tree's syntax."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.tree import MODULES, TABLES_OF_METHODS, TREES, arrows, dotted, imports, name_of, room

# From the ground up. What stands in one line may import each other, but nothing may import from a line further down,
# and there is no circle anywhere. A name stands for the module and for all that it holds.
ROOMS = (
  ("errors", "types"),
  ("declared", "disk", "divergence", "files", "host", "keys", "metrics", "named", "passed", "paths", "values"),
  ("ops",),
  ("data", "nets", "report"),
  ("artifacts", "loops", "readout"),
  ("start", "traced"),
  ("pieces",),
  ("methods",),
  (
    "checkpoint",
    "journal",
    "wandb_board",
    "lock",
    "looks",
    "memory",
    "mesh",
    "monitor",
    "seals",
    "timeline",
    "workdir",
  ),
  ("sections", "settings"),
  ("config",),
  ("overrides", "recorded"),
  ("given", "sweep"),
  ("recipe",),
  ("experiment",),
  ("advice", "callbacks", "cursor", "drive", "predict", "program"),
  ("outcome",),
  ("run",),
  ("evaluation", "meta", "over"),
)
ABOVE = ("configs", "benchmarks", "launch")


def level_of(module: str) -> int:
  """The line of ROOMS on which a module stands."""
  first, *rest = module.split(".")
  if rest == ["__main__"]:  # `python -m cljax`, which hands over to the launchers
    return len(ROOMS) + len(ABOVE)
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
    if module == "cljax.loops":
      assert name == "mean_over"
    elif module.startswith("cljax"):
      assert module.startswith(allowed), module
    else:
      assert module.split(".")[0] in {"jax", "flax", "optax", "chex"} | set(sys.stdlib_module_names), module


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
  libraries = {"numpy", "matplotlib", "etils", "absl"} | set(sys.stdlib_module_names)
  for module, _ in imports(path):
    if module.startswith("cljax"):
      assert module.startswith(tuple(f"cljax.{own}" for own in ("errors", "files", "metrics", "paths", "report"))), (
        module
      )
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
