"""Tables: verdicts, rows, and the same in text, Markdown and HTML."""

import re

import numpy as np
import pytest

from cljax.report import published, tables, web
from tests.results import PUBLISHED, S, T, fake, looked, with_metric


@pytest.mark.parametrize(
  ("metric", "ours", "std", "theirs", "expected"),
  [
    ("ACC", 0.92, 0.004, 0.92, "reproduced"),
    ("ACC", 0.934, 0.004, 0.92, "reproduced"),  # the bound, whose difference is .01400...01 in floating point
    ("ACC", 0.906, 0.004, 0.92, "reproduced"),
    ("ACC", 0.9341, 0.004, 0.92, "better"),
    ("ACC", 0.9059, 0.004, 0.92, "short"),
    ("ACC", 0.93, None, 0.92, "reproduced"),
    ("ACC", 0.9301, None, 0.92, "better"),
    ("BWT", -0.02, 0.002, -0.04, "better"),
    ("BWT", -0.06, 0.002, -0.04, "short"),
    ("BWT", -0.052, 0.002, -0.04, "reproduced"),
    ("forgetting", 0.02, 0.002, 0.04, "better"),
    ("forgetting", 0.06, 0.002, 0.04, "short"),
  ],
)
def test_the_verdict_follows_the_written_rule(metric, ours, std, theirs, expected):
  assert published.verdict(metric, ours, std, theirs) == expected


def line_of(results, method, paper=PUBLISHED):
  headings, table = tables.rows(results, paper)
  line = next(line for line in table if re.search(rf"\b{method}\b", line[headings.index("method")]))
  return headings, line


def test_ours_stands_beside_the_published_number_with_a_verdict():
  result = with_metric(with_metric(fake(), "ACC", 0.9123, 0.0021), "BWT", -0.06, 0.001)
  headings, line = line_of([result], "routing_cotrain")
  at = headings.index("ACC (last)")
  assert headings[at : at + 3] == ["ACC (last)", "published", "verdict"]
  assert line[at : at + 3] == ["0.9123 ± 0.0021", "0.920", "reproduced"]
  at = headings.index("BWT")
  assert line[at : at + 3] == ["-0.0600 ± 0.0010", "-0.038", "short"]
  assert line[headings.index("seeds")] == "2" and "MoE + replay + co-training" in line[headings.index("method")]
  assert "learning accuracy (average)" in headings and published.not_compared([result], PUBLISHED) == ""


def test_another_preset_has_no_published_number_beside_it_and_is_told_why():
  small = fake(preset="gem1000")
  headings, _ = line_of([small], "routing_cotrain")
  assert "published" not in headings and "verdict" not in headings
  last = tables.text_table([small], PUBLISHED).splitlines()[-1]
  assert "'gem1000'" in last and "'paper'" in last and published.RULE not in last
  assert published.not_compared([fake("joint", preset="gem1000")], PUBLISHED) == ""  # no published number to miss


def test_debug_runs_have_no_published_number_beside_them():
  short = fake(config={"debug": True})
  assert "published" not in line_of([short], "routing_cotrain")[0]
  assert "debug" in tables.text_table([short], PUBLISHED).splitlines()[-1]


def test_two_presets_in_one_table_are_told_apart():
  both = [fake(), fake(preset="gem1000")]
  headings, table = tables.rows(both, PUBLISHED)
  assert headings[0] == "preset" and [line[0] for line in table] == ["gem1000", "paper"]
  verdicts = [line[headings.index("verdict")] for line in table]
  assert verdicts == ["-", "short"]


def test_undefined_values_and_single_seeds_are_shown_as_such():
  result = with_metric(with_metric(fake(), "ACC", 0.5), "BWT", None)
  headings, line = line_of([result], "routing_cotrain")
  at = headings.index("ACC (last)")
  assert line[at] == "0.5000"
  at = headings.index("BWT")
  assert line[at : at + 3] == ["-", "-0.038", "-"]


def test_the_peak_has_a_column_where_some_result_has_one():
  found = looked()
  found["watch"] |= {"valid": np.full((S, T), 6), "test": np.array([[50, 60, 70], [40, 50, 60]])}
  headings, table = tables.rows([fake("er"), fake("routing", looked=found)], PUBLISHED)
  assert [line[headings.index(tables.PEAK)] for line in table] == ["-", "0.5500 ± 0.0707"]
  assert tables.PEAK not in tables.rows([fake("er")], PUBLISHED)[0]


def test_oracles_are_marked():
  _, line = line_of([fake("joint"), fake("er")], "joint")
  assert "[oracle]" in line[1] and "[oracle]" not in line_of([fake("joint"), fake("er")], "er")[1][1]


def test_rows_stand_in_the_order_of_the_paper():
  results = [fake(m, s) for s in ("mnist_rot", "mnist_perm", "other") for m in ("zeta", "routing", "er", "finetune")]
  _, table = tables.rows(results, PUBLISHED)
  assert [line[0] for line in table[::4]] == ["MNIST-Perm", "MNIST-Rot", "other"]
  methods = ["Shared bottom (finetune)", "Shared bottom + replay (er)", "MoE + replay (routing)", "zeta"]
  assert [line[1] for line in table[:4]] == methods


def test_the_terminal_s_table_is_aligned_and_needs_no_paper():
  lines = tables.text_table([fake("er"), fake("routing_cotrain")]).splitlines()
  assert len(lines) == 3 and {"method", "ACC", "BWT", "forgetting", "seeds"} <= set(lines[0].split())
  assert len({line.index("0.7667 ± 0.0707") for line in lines[1:]}) == 1 and "published" not in lines[0]


def test_markdown_and_html_say_the_same():
  headings, table = ["a", "b"], [["1 | 2", "<&>"], ["", "±"]]
  assert tables.markdown(headings, table) == "| a | b |\n| --- | --- |\n| 1 \\| 2 | <&> |\n|  | ± |"
  page = web.table(headings, table)
  assert re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t", page) == ["a", "b", "1 | 2", "&lt;&amp;&gt;", "", "±"]


def test_the_readme_s_table_tells_what_made_it():
  text = tables.readme_table([fake(preset="gem1000")], PUBLISHED)
  assert "| published |" not in text and "Commit 0123456789; cpu; 1.2 minutes in all" in text
  compared = tables.readme_table([fake()], PUBLISHED)
  assert "0.920" in compared and f"- {published.RULE}" in compared


def test_splice_replaces_the_part_between_the_markers_only():
  text = "head\n<!-- results:a -->\nold\n<!-- /results:a -->\n<!-- results:b -->x<!-- /results:b -->\ntail"
  once = tables.splice(text, "a", "| new |")
  assert once == text.replace("\nold\n", "\n\n| new |\n\n") and tables.splice(once, "a", "| new |") == once
  for wrong in ("c", "results"):
    with pytest.raises(ValueError, match=f"results:{wrong}"):
      tables.splice(text, wrong, "")
  with pytest.raises(ValueError, match="results:a"):
    tables.splice("<!-- /results:a --> <!-- results:a -->", "a", "")


def test_the_published_means_agree_with_what_is_derived_from_them():
  for stream, methods in PUBLISHED["values"].items():
    assert set(methods) == {"finetune", "er", "routing", "routing_cotrain"} and stream in PUBLISHED["streams"]
    for method, values in methods.items():
      derived = PUBLISHED["derived"]["learning_accuracy"][stream][method]
      assert derived == pytest.approx(values["ACC"] - values["BWT"] * 19 / 20, abs=5.1e-4)
      assert method in PUBLISHED["methods"]


def test_what_a_state_takes_is_told_where_it_is_known():
  """All that a method keeps for one seed, stored rows among it; results of older versions do not know it."""
  known, unknown = fake("er", state_bytes=1_254_321, memory_bytes=500_000), fake("routing_cotrain", state_bytes=None)
  headings, line = line_of([known, unknown], "er")
  assert line[headings.index("memory, MB")] == "1.75"
  headings, line = line_of([known, unknown], "routing_cotrain")
  assert line[headings.index("memory, MB")] == "-"
  assert "memory, MB" not in tables.rows([unknown], PUBLISHED)[0]
