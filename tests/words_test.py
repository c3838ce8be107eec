"""Who may know a method: its name and the keywords that it alone has stand in its own place and in the tables."""

import ast
import re
from collections import Counter
from pathlib import Path

from cljax import types
from cljax.data import STREAMS
from cljax.declared import fields
from cljax.looks import LOOKS
from cljax.methods import METHODS
from cljax.nets import NETS
from cljax.pieces.guards import GUARDS
from cljax.pieces.optimizers import OPTIMIZERS
from tests.tree import HOUSE, MODULES, TABLES_OF_METHODS, TREES, dotted, in_room, module_of, name_of, room, shrinks

# What still breaks a rule; it may only shrink.
KNOWN_NAMES = {  # (file, word of one method that it says): why
  ("cljax/ops/gating.py", "noise"): "a way to begin a row, and a word of committed configs",
  ("cljax/pieces/experts.py", "ewc"): "a way to go on from a parent",
  ("cljax/pieces/experts.py", "finetune"): "a way to go on from a parent, and a word of committed configs",
  ("cljax/pieces/experts.py", "lwf"): "a way to go on from a parent, and a word of committed configs",
}


def words_of_methods() -> dict[str, set[str]]:
  """{word: homes of the methods and guards that it belongs to}: their names, and keywords that one alone declares.

  A guard that is a method too, as fine-tuning under it, has one home; a method of a guard's name has its own beside.
  """
  declared = [
    (name, f"cljax.methods.{name}", set(fields(factory, 3)))
    for name, factory in METHODS.items()
    if f"cljax.methods.{name}" in MODULES
  ]
  declared += [(name, "cljax.pieces.guards", set(fields(factory, 2))) for name, factory in GUARDS.items()]
  count = Counter(word for _, _, own in declared for word in own)
  words: dict[str, set[str]] = {}
  for name, home, own in declared:
    for word in {name, *(word for word in own if count[word] == 1)}:
      words.setdefault(word, set()).add(home)
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
  "retrain": "the name of a phase",
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
