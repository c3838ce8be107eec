"""Published numbers beside ours: verdicts by a written rule, and which of the published orderings hold.

The rule: `reproduced` where the means differ by at most .01 plus our standard deviation over seeds; beyond that
`better` or `short`, in the metric's good or bad direction. Only results of the preset that the published numbers belong
to, under the preset's own settings and not in debug mode, are compared.

A published number is an entry of a published.json: `values` {stream: {method: {metric: mean}}} for `preset`, with
`methods` and `streams` {name: display name} in the order of the paper. Whoever has the configs of the preset adds
`changed`, a function of a result that tells its `deviations`; without it nothing is compared.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cljax.metrics import METRICS
from cljax.report import apart
from cljax.report.compare import difference
from cljax.report.exhibits import Result

Published = Mapping[str, Any]  # a published.json, or {}

SHOWN = ("ACC", "BWT", "forgetting", "learning_accuracy")
TOLERANCE = 0.01
LISTED = 6  # settings of a row that are told one by one
RULE = (
  "Verdict: `reproduced` if the means differ by at most .01 plus our standard deviation over seeds; beyond that "
  "`better` or `short` in the metric's good or bad direction. A pair of methods is in the published order or not by "
  "the mean of its differences, seed by seed where both have run the same; it is `unsettled` where their 95 % interval "
  "by Student's t holds 0, or where there is one seed."
)


def verdict(metric: str, ours: float, std: float | None, published: float) -> str:
  """`reproduced`, `better` or `short` by the rule above; std None (one seed) counts as 0."""
  difference = ours - published
  if abs(difference) <= TOLERANCE + (std or 0.0) + 1e-9:  # the bound itself is in, whatever its last bits
    return "reproduced"
  return "better" if (difference > 0) == (METRICS[metric].better == "higher") else "short"


def deviations(here: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
  """`key=value` of the settings, under dotted names, that move a number and are not those of a preset's own config.

  Names of choices come first; what only the own choice has is told where nothing else is. A key at None is absent.
  """
  texts = {key: [apart.written(each.get(key)) for each in (here, own)] for key in sorted({*own, *here})}
  found = {key: ours for key, (ours, theirs) in texts.items() if ours != theirs}
  found = {key: ours for key, ours in found.items() if key not in apart.NO_MATTER and not key.startswith("sweep.")}
  there = {key: ours for key, ours in found.items() if ours != "None"} or found
  called = apart.short(list(there))
  told = [f"{called[key]}={ours}" for key, ours in sorted(there.items(), key=lambda one: not one[0].endswith(".name"))]
  return [*told[:LISTED], *([f"and {len(told) - LISTED} more"] if len(told) > LISTED else [])]


def changed(result: Result, published: Published) -> list[str]:
  """In what a result of the published preset departs from it, where the paper has a number for it; [] where in nothing.

  A table marks it, and no published number stands beside it.
  """
  if result["preset"] != published.get("preset") or "changed" not in published:
    return []
  known = published["values"].get(result["stream"], {}).get(result["method"])
  return list(published["changed"](result)) if known else []


def comparable(result: Result, published: Published) -> bool:
  """Whether the published numbers belong beside a result."""
  told = "changed" in published and result["preset"] == published["preset"] and not result["config"].get("debug")
  return told and not changed(result, published)


def published_value(result: Result, metric: str, published: Published) -> float | None:
  """The paper's number that belongs beside a result; None where there is none."""
  if not comparable(result, published):
    return None
  return published.get("values", {}).get(result["stream"], {}).get(result["method"], {}).get(metric)


def not_compared(results: Sequence[Result], published: Published) -> str:
  """Why no published number stands beside some results that the paper has one for; '' where there are none."""
  values = published.get("values", {})
  known = [r for r in results if any(r["method"] in methods for methods in values.values())]
  others = sorted({r["preset"] for r in known if r["preset"] != published.get("preset")})
  why = []
  if others:
    why.append(
      f"No published number stands beside preset {', '.join(map(repr, others))}: they belong to preset "
      f"{published['preset']!r}."
    )
  if any(r["config"].get("debug") and r["preset"] == published.get("preset") for r in known):
    why.append("No published number stands beside results of debug mode.")
  if any(changed(r, published) for r in known if not r["config"].get("debug")):
    why.append(f"No published number stands beside [changed] settings: they are not those of {published['preset']!r}.")
  return " ".join(why)


def accuracy_on(result: Result, rows: str) -> float | None:
  """Mean accuracy after the last task on `test` or `valid` rows; None where it was not asked."""
  if rows == "test":
    return result["metrics"]["ACC"]["mean"]
  found = result["readouts"].get("valid")
  return found["metrics"]["ACC"]["mean"] if found else None


def judged_by(results: Sequence[Result]) -> str:
  """The rows that settings are chosen by: `valid` where all were asked about them, else `test`."""
  return "valid" if all(accuracy_on(result, "valid") is not None for result in results) else "test"


def best_of(results: Sequence[Result], rows: str) -> int | None:
  """The place of the best by these rows; None where none has a number."""
  scores = {i: accuracy_on(result, rows) for i, result in enumerate(results)}
  known = {i: score for i, score in scores.items() if score is not None}
  return max(known, key=lambda i: known[i]) if known else None


def searches(results: Sequence[Result]) -> dict[Any, list[int]]:
  """{(problem, method): places} of results of one method on one stream that differ in how it was learnt alone."""
  found: dict[Any, list[int]] = {}
  for i, result in enumerate(results):
    found.setdefault((apart.problem(result), result["method"]), []).append(i)
  return found


SAID = {"valid": "by validation rows", "test": "judged by test rows"}


def winners(results: Sequence[Result], names: Sequence[str]) -> list[str]:
  """A line for each search: how many settings, which one wins by which rows, and its accuracy on test rows.

  Results that differ in their seeds alone are no search.

  A number of the rows that it was chosen by is flattered: that of `judged by test rows`.
  """
  lines = []
  for places in searches(results).values():
    tried = [results[i] for i in places]
    rows, settings = judged_by(tried), len({apart.learnt(result) for result in tried})
    best = best_of(tried, rows) if settings > 1 else None
    if best is not None:
      mean, std = (tried[best]["metrics"]["ACC"][key] for key in ("mean", "std"))
      number = "-" if mean is None else f"{mean:.4f}" + (f" ± {std:.4f}" if std is not None else "")
      runs = f"{settings} settings, {len(tried)} results," if settings < len(tried) else str(settings)
      lines.append(
        f"Best of {runs} of {tried[best]['method']} on {tried[best]['stream']}, {SAID[rows]}: "
        f"{names[places[best]]}; test ACC {number}."
      )
  return lines


def order_line(metric: str, chosen: Mapping[str, Result], values: Mapping[str, float], how: str) -> str:
  """How many pairs of methods stand in the published order, and which do not."""
  sign = 1 if METRICS[metric].better == "higher" else -1
  ranked = sorted(values, key=lambda method: -sign * values[method])
  pairs = [(a, b) for a, b in itertools.combinations(ranked, 2) if values[a] != values[b]]
  found = {pair: difference(metric, chosen[pair[0]], chosen[pair[1]]) for pair in pairs}
  held, against, unsettled = 0, [], []
  for (a, b), told in found.items():
    if told is None:
      unsettled.append(f"{a} before {b} (no number)")
      continue
    mean, half = told
    if np.isnan(half) or abs(mean) <= half:
      unsettled.append(f"{a} before {b} ({mean:+.4f})")
    elif sign * mean > 0:
      held += 1
    else:
      against.append(f"{a} before {b} ({mean:+.4f})")
  text = f"{metric}, published {' > '.join(ranked)}, {how}: {held} of {len(pairs)} pairs hold"
  text += f"; the other way round: {', '.join(against)}" if against else ""
  return text + (f"; unsettled: {', '.join(unsettled)}" if unsettled else "") + "."


def rankings(results: Sequence[Result], published: Published) -> list[str]:
  """Which of the published orderings hold, as configured and, where methods were searched, at the best of each.

  As configured is the result of a method under the preset's own settings with most seeds, the first of equals.
  """
  lines = []
  problems = dict.fromkeys(apart.problem(r) for r in results if published_value(r, "ACC", published) is not None)
  for problem in problems:
    here = [r for r in results if apart.problem(r) == problem]
    rows = {m: [r for r in here if r["method"] == m] for m in dict.fromkeys(r["method"] for r in here)}
    for metric in SHOWN:
      own = {m: [r for r in tried if published_value(r, metric, published) is not None] for m, tried in rows.items()}
      found = {m: published_value(r, metric, published) for m, each in own.items() for r in each[:1]}
      values = {m: value for m, value in found.items() if value is not None}
      if len(values) < 2:
        continue
      stream = f"{published.get('streams', {}).get(here[0]['stream'], here[0]['stream'])}: "
      most = {m: max(own[m], key=lambda r: len(r["seeds"])) for m in values}
      lines.append(stream + order_line(metric, most, values, "as configured"))
      if any(len(rows[m]) > 1 for m in values):
        by = judged_by([r for m in values for r in rows[m]])
        best = {m: best_of(rows[m], by) for m in values}
        if None not in best.values():
          tried = ", ".join(f"{len(rows[m])} of {m}" for m in values)
          tuned = {m: rows[m][i] for m, i in best.items() if i is not None}
          lines.append(stream + order_line(metric, tuned, values, f"at the best of each ({tried}; {SAID[by]})"))
  return lines


def remarks(
  results: Sequence[Result], published: Published, names: Sequence[str], searched: Sequence[Result] = ()
) -> list[str]:
  """What stands below a table: the rule beside verdicts, orderings, the winners of searches, what is missing.

  Args:
    searched: results of other settings, which are no rows of the table, for the orderings at the best of each method.
  """
  compared = any(published_value(r, metric, published) is not None for r in results for metric in SHOWN)
  lines = [RULE, *rankings([*results, *searched], published)] if compared else []
  return [*lines, *winners(results, names), *filter(None, [not_compared(results, published)])]
