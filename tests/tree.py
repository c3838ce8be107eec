"""The tree as syntax: its files, what each imports and names. What the tests of its rules read."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for room in ("cljax", "launch", "configs", "benchmarks") for path in (ROOT / room).rglob("*.py"))
HOUSE = [path for path in FILES if path.parts[len(ROOT.parts)] != "benchmarks"]  # benchmarks jit and loop as they like

TABLES_OF_METHODS = {"cljax.methods", "cljax.methods.exhibits"}


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
  assert not gone, f"no longer breaks the rule, so take it off its list: {gone}"
