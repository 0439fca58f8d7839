"""The Markdown table is a table, whatever the models are called."""

from __future__ import annotations

from twinflow.evaluation.results import Metric
from twinflow.report import to_markdown
from twinflow.report.markdown import markdown_report

from .conftest import make_row, make_table


def test_every_row_has_as_many_cells_as_the_head(table):
    lines = to_markdown(table).splitlines()
    assert len(lines) == 2 + len(table.rows)
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_the_best_of_a_column_is_bold(table):
    best = to_markdown(table).splitlines()[3]
    assert "**0.950** ± 0.020" in best


def test_what_was_not_measured_has_no_column():
    rows = [make_row(m, 1, 0.5, held_out=None, diversity=None, seconds_per_image=None) for m in ("a", "b")]
    head = to_markdown(make_table(*rows)).splitlines()[0]
    assert not any(title in head for title in ("Held-out", "Diversity", "Speed-up", "Per image"))


def test_what_one_row_lacks_is_a_dash():
    rows = [make_row("base", 4, 0.5), make_row("mine", 1, 0.5, seconds_per_image=None, diversity=None)]
    assert to_markdown(make_table(*rows)).splitlines()[-1].endswith("| – | – | – |")


def test_what_an_interval_is_of_kid_is_said_where_there_is_one(table):
    assert "KID" not in markdown_report(table, title="T", facts={})
    table.rows[0].metrics["kid"] = Metric(1.0, "KID × 1000", "lower", 2, 0.5)
    text = markdown_report(table, title="T", facts={})
    assert "± is half of the 95 % interval; of KID, the deviation over subsets." in text


def test_names_are_escaped():
    table = make_table(make_row("a|b_c<i>\nd", 1, 0.5), make_row("base", 1, 0.5), note="x|<b>")
    text = markdown_report(table, title="*T*", facts={"k": "`v`"})
    assert r"| a\|b\_c&lt;i&gt; d |" in text
    assert "<b>" not in text
    assert r"# \*T\*" in text


def test_report_has_facts_and_protocol(table):
    text = markdown_report(table, title="T", facts={"training_time": "4 min"})
    assert "- Training time: 4 min" in text
    assert "- Command: twinflow eval a b" in text
