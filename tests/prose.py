"""What the READMEs say in numbers, against the result files: phrases with `{}` places, and how numbers are written.

A phrase is `(template, *values)` or a text. A number is written as `str.format` rounds the exact double (half to even),
without the zero before the point and with a space before the percent sign: `.924`, `-.044`, `92 %`.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cljax.files import read_json
from cljax.report import store

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NAMED = {"a third": 1 / 3, "half": 1 / 2, "two thirds": 2 / 3, "four fifths": 4 / 5}  # shares that are told in words
ELSEWHERE = ("Claims of the paper", "Decisions", "Streams")  # sections of published numbers and of settings
PLACE = r"(\S+(?: %)?)"
DECIMAL = re.compile(r"(?<![\w.])[-+]?(?:\d*\.\d+|\d+(?= %))(?![\w.]*\w)")


class Number(float):
  """A float that is written as the READMEs do."""

  def __format__(self, spec: str) -> str:
    return re.sub(r"^([-+]?)0\.", r"\1.", super().__format__(spec)).replace("%", " %")


def written(template: str, *values: Any) -> str:
  """The phrase with its numbers."""
  return template.format(*[Number(value) if isinstance(value, float) else value for value in values])


def folded(text: str) -> str:
  """With every run of blanks and line breaks as one blank."""
  return " ".join(text.split())


def read(place: str) -> str:
  """A page, or a folder's README, without what is generated between markers, and without blocks of code."""
  path = ROOT / place
  text = (path / "README.md" if path.is_dir() else path).read_text()
  text = re.sub(r"<!-- results:(\w+) -->.*?<!-- /results:\1 -->", "", text, flags=re.S)
  return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def wrong(place: str, phrases: Iterable[Any]) -> list[str]:
  """Of each phrase that the README lacks: what is computed, and what stands there instead, if anything does."""
  text, found = folded(read(place)), []
  for phrase in phrases:
    template, *values = [phrase] if isinstance(phrase, str) else phrase
    computed = folded(written(template, *values)) if values else folded(template)
    if computed not in text:
      parts = [re.escape(folded(f"x{part}x")[1:-1]) for part in re.split(r"\{[^}]*\}", template)]
      instead = re.search(PLACE.join(parts), text) if values else None
      found.append(f"computed: {computed}; there: {instead.group() if instead else 'no such phrase'}")
  return found


def uncovered(place: str, phrases: Iterable[Any], left_out: Sequence[str]) -> list[str]:
  """Of a README the numbers with a point or a percent sign, with what stands around them, that nothing accounts for.

  Args:
    left_out: texts with numbers that no committed file holds; `...` in one stands for anything.
  """
  text = read(place)
  for heading in ELSEWHERE:
    text = re.sub(rf"^## {heading}$.*?(?=^## )", "", text, flags=re.M | re.S)
  text = folded(text)
  for phrase in phrases:
    template, *values = [phrase] if isinstance(phrase, str) else phrase
    text = text.replace(folded(written(template, *values)) if values else folded(template), "#")
  found = []
  for one in left_out:
    text, times = re.subn(".*?".join(map(re.escape, one.split("..."))), "#", text)
    found += [] if times else [f"left out, and not there: {one}"]
  text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "`", text))
  return found + [text[max(at.start() - 40, 0) : at.end() + 25] for at in DECIMAL.finditer(text)]


def word(number: float) -> str:
  """A count up to twelve in words."""
  return WORDS[round(number)]


def named(share: float) -> str:
  """A share in words: the nearest of NAMED."""
  return min(NAMED, key=lambda name: abs(NAMED[name] - share))


def row(*cells: str) -> str:
  """A row of a table."""
  return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def bold(texts: Sequence[str], best: int) -> list[str]:
  """The best of them in bold."""
  return [f"**{text}**" if i == best else text for i, text in enumerate(texts)]


# Result files


@functools.cache
def result(place: str) -> dict[str, Any]:
  """That of a folder below results/."""
  return store.read_result(RESULTS / place / "result.json")


def runs(place: str) -> list[str]:
  """All folders below it that hold a result, below results/."""
  return sorted(str(path.parent.relative_to(RESULTS)) for path in (RESULTS / place).rglob("result.json"))


@functools.cache
def arrays(place: str) -> dict[str, np.ndarray]:
  """Its report after each task."""
  return store.read_report_arrays(RESULTS / place)


@functools.cache
def asked(place: str) -> dict[str, dict[str, Any]]:
  """What it was asked again: setting -> entry."""
  return read_json(RESULTS / place / "evaluations.json")["evaluations"]


def matrices(place: str) -> np.ndarray:
  """[S, T + 1, T] its accuracies, NaN where not evaluated."""
  return np.array(result(place)["accuracy"], dtype=float)


def last(place: str) -> np.ndarray:
  """[S, T] its accuracies at the end."""
  return matrices(place)[:, -1]


def mean(place: str, metric: str = "ACC") -> float:
  """Over seeds, of the main readout."""
  return result(place)["metrics"][metric]["mean"]


def std(place: str, metric: str = "ACC") -> float:
  """Over seeds."""
  return result(place)["metrics"][metric]["std"]


def inferred(place: str) -> tuple[float, float]:
  """(ACC with the task inferred, share of rows whose task was found), means over seeds."""
  found = result(place)["readouts"]["inferred"]
  return found["metrics"]["ACC"]["mean"], found["task_recognition"]["mean"]
