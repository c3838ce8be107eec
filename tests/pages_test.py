"""What the pages tell to type can be typed: every launcher, flag, config, key and value that stands in them."""

import ast
import re
import shlex

import pytest

from cljax.meta.settings import settings_of
from cljax.overrides import changed
from launch import commands, config_files
from launch import list as listing
from launch.config_files import ROOT

PAGES = ("README.md", "WORKSPACE.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
COMMAND = re.compile(r"(?:python -m launch\.|(?<![\w/'-])cljax )(\w+)((?: .*)?)$")


def typed(text):
  """[(launcher, words)] of a page's blocks, and of code in its sentences; what the shell fills in is left out."""
  fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
  blocks = [block for language, block in fenced if language in ("sh", "bash", "")]
  inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
  lines = [line for block in blocks for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
  found = []
  for line in [*lines, *(" ".join(code.split()) for code in inline)]:
    if match := COMMAND.search(re.split(r" > | +# |; do", line)[0]):
      rest = match[2]
      for sign in "'\"":  # of a line that ends what another one began
        rest = rest.replace(sign, "") if rest.count(sign) % 2 else rest
      found.append((match[1], [word for word in shlex.split(rest) if not re.search(r"[$\[\]]|[.]{3}", word)]))
  return found


def flags_of(name):
  """What a launcher takes beside the keys of a config: its own flags, and those of the files that it names."""

  def of(name):
    return (ROOT / "launch" / f"{name}.py").read_text()

  texts = [of(name), *map(of, re.findall(r"adopt_module_key_flags\((\w+)", of(name)))]
  declared = set(re.findall(r"\"(workdir|data_dir|max_hours)\"", texts[0]))
  return declared | {flag for text in texts for flag in re.findall(r"DEFINE_[^\"]*\"(\w+)\"", text)}


def value_of(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return {"true": True, "false": False}.get(text.lower(), text)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_to_type(page, tmp_path, monkeypatch):
  """Flags exist, configs are found, and what is set in them is taken."""
  monkeypatch.chdir(tmp_path)
  text = (ROOT / page).read_text()
  for block in re.findall(r"```python\n([^`]*class MyNet[^`]*)```", text):
    (tmp_path / "my_file.py").write_text(block)
  for name, words in typed(text):
    if name == "NAME":  # any of them
      continue
    assert name in commands.COMMANDS, (page, name)
    if name == "list":
      listing.main(*words)
    given = {word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")}
    own = {flag.removeprefix("no") for flag in given if not flag.startswith("config.")}
    assert own <= flags_of(name) | {"help"}, (page, name, own - flags_of(name))
    words = config_files.config_first(["", *words])
    path = config_files.chosen(words)
    if not path or not path.partition(":")[0].endswith(".py") or "FILE" in path:
      continue
    config_files.check_overrides(words)
    changes = {key: value_of(value) for key, value in config_files.typed_in(words).items()}
    if name == "meta":
      config = config_files.prepared(config_files.read_config(path), words)
      config.update_from_flattened_dict(changes)
      settings_of(config)
    else:
      assert changed(config_files.read_config(path), changes).method.name


def test_pages_are_read():
  """As often as counted by hand once, so that no command passes by."""
  found = {page: len(typed((ROOT / page).read_text())) for page in PAGES}
  assert found["docs/running.md"] >= 20 and found["README.md"] >= 4 and found["docs/slurm.md"] >= 3
  assert typed("```sh\n# python\nsrun .venv/bin/python -m launch.train \\\n --config=F.py --shard=$X/8 > log\n```") == [
    ("train", ["--config=F.py"])
  ]
