"""A method's own columns and figures: who is asked, where they stand, and how a user's come in."""

import numpy as np

from cljax.metrics import spread
from cljax.report import gallery, pages, plots, tables
from cljax.report.exhibits import Exhibit, columns_of, field_of, figures_of, table_figures_of
from tests.results import S, T, fake, leave

ARRAYS = {"mine": np.arange(S * T).reshape(S, T)}


def asked(seen):
  """An exhibit that notes what it was shown."""

  def figures(result, arrays, title):
    seen.append((result["method"], title))
    figure, axes = plots.canvas(2, 2)
    axes[0, 0].plot(arrays["mine"][0])
    return {"mine": figure}

  def table_figures(results, arrays):
    seen.append([result["method"] for result in results])
    figure, axes = plots.canvas(2, 2)
    axes[0, 0].plot([1, 2])
    return {"all": figure}

  def columns(result):
    return {"mine": spread(result["report"]["mine"]), "word": "a text"}

  return Exhibit(("mine",), ("config.method.batch_size",), columns, figures, table_figures)


def results():
  whole = {"config": {"method": {"batch_size": 10}, "stream": {}}}
  return [fake("er"), fake("own", report=ARRAYS, **whole), fake("bare", report=ARRAYS)]


def test_an_exhibit_sees_the_results_that_have_what_it_needs():
  seen = []
  exhibits = {"mine": asked(seen)}
  found = gallery.table_figures(results(), [{}, ARRAYS, ARRAYS], exhibits=exhibits)
  assert {name for name in found if "mine" in name or "all" in name} == {"mnist_perm_all", "mnist_perm_own_mine"}
  assert seen == [["own"], ("own", "mnist_perm, own")]
  assert table_figures_of(results(), [{}, {}, {}], exhibits) == {} and len(seen) == 2
  assert figures_of(results()[1], {}, "t", exhibits) == {} and columns_of(results()[0], exhibits) == {}


def test_columns_come_last_with_dashes_elsewhere():
  headings, table = tables.rows(results(), {}, exhibits={"mine": asked([])})
  assert headings[-2:] == ["mine", "word"] and headings[:-2] == tables.rows(results(), {})[0]
  cells = {line[headings.index("method")]: line[-2:] for line in table}
  last = ARRAYS["mine"][:, -1]
  assert cells["own"] == [f"{last.mean():.4f} ± {last.std(ddof=1):.4f}", "a text"]
  assert cells["er"] == cells["bare"] == ["-", "-"]


def test_a_field_is_found_by_its_path_or_is_none():
  result = {"a": {"b": 0, "c": None}, "d": 1}
  assert field_of(result, "a.b") == 0 and field_of(result, "d") == 1
  assert field_of(result, "a.c") is None and field_of(result, "a.x.y") is None and field_of(result, "d.e") is None


def test_a_user_s_exhibit_is_in_the_report(tmp_path):
  leave(tmp_path / "own", results()[1], ARRAYS)
  exhibits = {"mine": asked([])}
  assert "word" not in pages.write_report(tmp_path)[0].read_text()
  text = pages.write_report(tmp_path, exhibits=exhibits)[0].read_text()
  assert "| word |" in text and "_own_mine.png" in text
