"""The page is one well-formed file that asks for nothing, and says what the table says."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from twinflow.evaluation.results import Metric
from twinflow.report import write_report
from twinflow.report.names import label_points
from twinflow.report.plots import SERIES, model_colors, pareto
from twinflow.report.summary import summarise

from .checker import Checker
from .conftest import make_row, make_table


@pytest.fixture
def metrics(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {i}, "loss": {2 / i}, "loss/fake": {1 / i}}}' for i in range(1, 30)]
    file.write_text("\n".join(lines))
    return file


def test_the_page_is_well_formed_and_self_contained(folder, table, metrics):
    files = write_report(folder, table, losses={"run a": metrics, "run b": metrics}, facts={"steps": 5})
    text = files.html.read_text()
    page = Checker(text)
    assert page.images
    assert all(src.startswith("data:image/") for src in page.images)
    assert all(link.startswith("#") for link in page.links)
    assert "script" not in page.tags
    for part in ("80 % of the score", "0.760", "±0.020", "twinflow eval a b", "run b", "✓", "✗"):
        assert part in text
    assert files.markdown.read_text().startswith("# ")


def test_plots_are_xml_in_the_page_s_colours(folder, table, metrics):
    text = write_report(folder, table, losses={"run": metrics}).html.read_text()
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 4
    for plot in plots:
        ElementTree.fromstring(plot)
        assert "var(--rule)" in plot
        assert "#0a0b" not in plot  # every stand-in has become a variable


def test_the_same_table_gives_the_same_page(folder, table):
    first, second = (write_report(folder, table).html.read_text() for _ in range(2))
    assert re.sub(r"<svg.*?</svg>", "", first, flags=re.DOTALL) == re.sub(
        r"<svg.*?</svg>", "", second, flags=re.DOTALL
    )


EVIL = '<script>alert("x")</script>&$x_1$'


def test_everything_is_escaped(folder, metrics):
    row, other = make_row("base", 1, 0.5, tasks={EVIL: 0.5}), make_row(EVIL, 1, 0.5, tasks={EVIL: 0.4})
    for each in (row, other):
        each.samples.append({"prompt": EVIL, "file": "none.png", "correct": None})
    table = make_table(row, other, **{EVIL: EVIL})
    table.benchmark = EVIL
    files = write_report(folder, table, losses={EVIL: metrics}, title=EVIL, facts={EVIL: EVIL})
    text = files.html.read_text()
    Checker(text)
    assert "<script" not in text
    assert "<script" not in files.markdown.read_text()
    assert "missing" in text  # the picture


def test_a_table_of_numbers_alone(tmp_path):
    bare = {"held_out": None, "diversity": None, "seconds_per_image": None, "tasks": {}}
    files = write_report(tmp_path / "new", make_table(make_row("base", 1, 0.0, **bare)))
    Checker(files.html.read_text())


def test_an_empty_table_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        write_report(tmp_path, make_table())
    assert not list(tmp_path.iterdir())


def test_a_failure_is_shown_with_what_the_detector_saw(folder, table):
    row = table.rows[0]
    wrong = row.samples[1] | {
        "reason": "expected square>=1, found 0\nand <b>",
        "boxes": [
            {"label": "red <circle>", "box": [8.0, 4.0, 24.0, 20.0], "score": 0.91},
            {"label": "blue square", "box": [8.0, 4.0, 20.0, 30.0], "score": 0.4},
        ],
        "size": [32, 64],
    }
    row.failures = [wrong]
    text = write_report(folder, table).html.read_text()
    Checker(text)
    (overlay,) = re.findall(r'<svg viewBox="0 0 100 200.00".*?</svg>', text)
    tree = ElementTree.fromstring(overlay)
    boxes = [r for r in tree.iter("rect") if "class" not in r.attrib]
    # In hundredths of the picture's width, whatever its size.
    assert [float(boxes[0].get(k)) for k in ("x", "y", "width", "height")] == [25, 12.5, 50, 50]
    labels = [r for r in tree.iter("rect") if r.get("class") == "label"]
    first, second = (float(r.get("y")) for r in labels)
    assert abs(first - second) >= 8  # two labels in one place would hide one another
    assert [t.text for t in tree.iter("text")] == ["red <circle> .91", "blue square .40"]
    kinds = [r.get("class") for r in tree.iter("rect")]
    assert kinds == [None, None, "label", "label"]  # no box is drawn over a label
    for part in ("expected square ≥ 1, found 0", "and &lt;b&gt;", "seen: red &lt;circle&gt;, blue square"):
        assert part in text


def test_measures_have_a_table_and_plots_of_their_own(folder, table):
    for row in table.rows:
        row.metrics = {
            "fid": Metric(10.0 + row.nfe, "FID", "lower", 1),
            "clip": Metric(0.3, "CLIPScore", error=0.1),
        }
    text = write_report(folder, table).html.read_text()
    Checker(text)
    scores, measures = re.findall(r'<table class="scores.*?</table>', text, flags=re.DOTALL)
    assert "FID" not in scores
    assert "<b>11.0</b>" in measures  # the lowest is the best
    assert text.count('<figure class="plot">') == 5
    assert "FID (lower is better)" in text


def test_a_benchmark_without_a_score_and_pictures_of_unknown_cost(tmp_path):
    bare = {"strict": None, "tasks": {}, "held_out": None, "overall_error": None}
    rows = [
        make_row("base", 4, None, metrics={"clip": Metric(0.31, "CLIPScore", "higher", 2, 0.01)}, **bare),
        make_row("found", 0, None, seconds_per_image=None, **bare),
    ]
    files = write_report(tmp_path, make_table(*rows))
    text = files.html.read_text()
    Checker(text)
    assert "found, beside base at 4 NFE" in text
    assert "0.31" in text
    assert "None" not in text
    assert "None" not in files.markdown.read_text()


def test_what_strict_means_is_said_as_the_benchmark_counts(table, tmp_path):
    """ShapeWorld forbids objects of any class, GenEval of those that the prompt names."""
    said = {"shapeworld": "that the prompt doesn’t name", "geneval": "other classes are free"}
    for name, own in said.items():
        page = write_report(tmp_path, replace(table, benchmark=name)).html.read_text()
        assert [text in page for text in said.values()] == [text == own for text in said.values()]


def test_the_stricter_score_has_its_interval_and_the_note_says_what_intervals_take_for_granted(tmp_path):
    page = write_report(tmp_path, make_table(make_row("base", 1, 0.5, strict_error=0.037))).html.read_text()
    assert "±0.037" in page
    assert "pictures of one prompt for independent" in page


def test_equal_seeds_are_claimed_for_pictures_that_were_drawn_here_alone(folder, table):
    assert "Same prompt, same seed; " in write_report(folder, table).html.read_text()
    rows = [replace(row, style="unknown") if row.model == "twinflow" else row for row in table.rows]
    page = write_report(folder, replace(table, rows=rows)).html.read_text()
    assert "Same prompt; " in page
    assert "same seed" not in page


def test_a_warning_stands_before_the_numbers(folder, table):
    table.notes = ["Not comparable: <a> & b"]
    files = write_report(folder, table)
    text = files.html.read_text()
    assert text.index("Not comparable: &lt;a&gt; &amp; b") < text.index("<table")
    assert "> **Not comparable" in files.markdown.read_text()


def test_the_front_is_what_no_cheaper_one_beats():
    points = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.6), (2.0, 0.1), (4.0, 0.6), (5.0, 0.9)]
    assert pareto(points) == [(1.0, 0.2), (2.0, 0.6), (5.0, 0.9)]
    assert all(
        not any(c <= cost and v > value for c, v in points) for cost, value in pareto(points)
    )  # the definition


def test_the_model_that_the_page_marks_has_its_accent_in_the_plots_too():
    table = make_table(
        make_row("base", 8, 0.9),
        make_row("other", 2, 0.8),
        make_row("ours", 1, 0.8),
        make_row("more", 2, 0.7),
    )
    marked = summarise(table).trained
    assert marked is not None
    colors = model_colors(table, base="base", trained=marked.model)
    assert colors == {"base": SERIES[0], "other": SERIES[2], "ours": SERIES[1], "more": SERIES[3]}
    assert SERIES[1] not in model_colors(table, base="base").values()


def test_numbers_of_points_that_touch_are_moved_apart_and_others_are_not():
    ax = Figure(figsize=(4, 3)).add_subplot()
    ax.set_xscale("log")
    ax.set_xlim(1, 1000)
    ax.set_ylim(0, 1)
    points = [(10.0, 0.5, "1", "k"), (10.5, 0.51, "1", "r"), (200.0, 0.51, "8", "k"), (10.2, 0.9, "2", "r")]
    label_points(ax, [*points, (400.0, 0.2, "", "k")])
    found = {(text.get_text(), text.get_color()): text.get_position()[1] for text in ax.texts}
    assert len(found) == 4  # no number, no text
    assert found["1", "r"] - found["1", "k"] >= 0.05 - 1e-9
    assert found["8", "k"] == pytest.approx(0.51)
    assert found["2", "r"] == pytest.approx(0.9)
