"""Builds the API pages of all of cljax by pdoc; whatever pdoc warns of ends it.

python docs/api.py build/api
"""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
from pdoc.extract import walk_specs

import cljax


def pages() -> list[str]:
  """What pdoc is to be told, so that every module has a page: it looks only into packages without `__all__`."""
  found = pkgutil.walk_packages(cljax.__path__, "cljax.")
  asked, covered = ["cljax"], set(walk_specs(["cljax"]))
  for name in (module.name for module in found if not module.name.endswith("__main__")):
    if name not in covered:
      asked.append(name)
      covered |= set(walk_specs([name]))
  return asked


def build(folder: Path) -> int:
  """Writes the pages; how many there are."""
  for name in cljax.__all__:  # these are found when they are asked for, and pdoc does not ask
    setattr(cljax, name, getattr(cljax, name))
  pdoc.render.configure(docformat="google", show_source=False, search=False)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Error parsing type annotation")  # of a class that names itself
    pdoc.pdoc(*pages(), output_directory=folder)
  return len(list(folder.rglob("*.html")))


if __name__ == "__main__":
  print(f"{build(Path(sys.argv[1]))} pages, from {sys.argv[1]}/index.html on")
