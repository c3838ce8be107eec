"""A table for other programs: report.csv for spreadsheets and pandas, report.tex for a paper."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from cljax.report.apart import MARK

BETWEEN = " ± "
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
SPECIAL |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
PATTERN = re.compile("|".join(map(re.escape, SPECIAL)))


def unlike(headings: Sequence[str]) -> list[str]:
  """The headings, each that stands there more than once behind the last one that does not: `ACC, published`."""
  counts, found, owner = Counter(headings), [], ""
  for name in headings:
    owner = name if counts[name] == 1 else owner
    found.append(name if counts[name] == 1 else f"{owner}, {name}")
  return found


def parted(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
  """The table with mean and standard deviation in columns of their own, and nothing in place of a dash."""
  both = [any(BETWEEN in row[i] for row in rows) for i in range(len(headings))]
  heads = []
  for name, two in zip(unlike(headings), both, strict=True):
    heads += [name, f"{name}, s.d."] if two else [name]
  found = []
  for row in rows:
    line: list[str] = []
    for text, two in zip(row, both, strict=True):
      mean, _, deviation = text.partition(BETWEEN)
      line += [mean, deviation] if two else [text]
    found.append(["" if text == "-" else text for text in line])
  return heads, found


def as_csv(sections: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]]) -> str:
  """All sections as one table, {title: (headings, rows)}: a column for the title, and all columns that any has."""
  tables = {title: parted(*one) for title, one in sections.items()}
  columns = list(dict.fromkeys(name for heads, _ in tables.values() for name in heads))
  text = io.StringIO()
  writer = csv.DictWriter(text, ["table", *columns], restval="", lineterminator="\n")
  writer.writeheader()
  for title, (heads, rows) in tables.items():
    writer.writerows({"table": title, **dict(zip(heads, row, strict=True))} for row in rows)
  return text.getvalue()


def escaped(text: str) -> str:
  """Text as LaTeX sets it."""
  return PATTERN.sub(lambda found: SPECIAL[found[0]], text)


def as_latex(sections: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]]) -> str:
  """A `tabular` for each section, in the style of the package booktabs; marks of what differs are left out."""
  parts = [r"% \usepackage{booktabs}"]
  for title, (headings, rows) in sections.items():
    kept = [i for i, name in enumerate(headings) if name != MARK]
    lines = [" & ".join(escaped(row[i]) for i in kept) + r" \\" for row in (headings, *rows)]
    begin = [f"% {title}", rf"\begin{{tabular}}{{{'l' * len(kept)}}}", r"\toprule", lines[0], r"\midrule"]
    parts.append("\n".join([*begin, *lines[1:], r"\bottomrule", r"\end{tabular}"]))
  return "\n\n".join(parts) + "\n"
