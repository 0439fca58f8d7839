"""Scores of different protocols do not stand in one table without saying so."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from twinflow.errors import TwinflowError
from twinflow.evaluation.protocols import comparable, join_tables, run_facts
from twinflow.evaluation.results import EvaluationTable, Metric
from twinflow.report import write_report
from twinflow.report.files import joined

from .conftest import make_row, make_table


def tables(**other):
    one = make_table(make_row("base", 1, 0.5), prompts="aaaa", seed=0, date="2026-01-01", torch="2.13")
    two = make_table(
        make_row("mine", 1, 0.6), **({"prompts": "aaaa", "seed": 0, "date": "2026-02-02"} | other)
    )
    return one, two


def test_when_and_with_what_it_was_run_does_not_matter():
    one, two = tables()
    assert comparable(one, two) == []
    assert [row.model for row in join_tables([one, two]).rows] == ["base", "mine"]


@pytest.mark.parametrize("other", [{"prompts": "bbbb"}, {"seed": 1}, {"judge": "blip"}])
def test_another_prompt_file_seed_or_judge_is_refused(other):
    one, two = tables(**other)
    ((key, value),) = other.items()
    (difference,) = comparable(one, two)
    assert (difference.key, difference.b) == (key, value)
    with pytest.raises(TwinflowError, match=f"do not compare.*{key}"):
        join_tables([one, two])
    mixed = join_tables([one, two], mixed=True)
    assert len(mixed.rows) == 2
    (note,) = mixed.notes
    assert "Not comparable: mine" in note
    assert key in note


def test_another_benchmark_is_another_protocol():
    one, two = tables()
    assert comparable(one, replace(two, benchmark="geneval"))[0].key == "benchmark"


def test_the_same_model_twice_is_told_apart():
    one, _ = tables()
    assert [row.model for row in join_tables([one, one]).rows] == ["base", "base (2)"]


@pytest.mark.parametrize(
    ("identities", "names"),
    [(("x", "y"), ["mine", "mine (2)", "mine (2)"]), (("x", "x"), ["mine", "mine", "mine"])],
)
def test_a_line_is_of_one_model(identities, names):
    """Another model of the same name is told apart at every NFE, whether the first table has a row there or not."""
    first, second = identities
    one = make_table(make_row("mine", 1, 0.5, identity=first))
    two = make_table(make_row("mine", 2, 0.6, identity=second), make_row("mine", 4, 0.6, identity=second))
    assert [row.model for row in join_tables([one, two]).rows] == names
    both = make_table(make_row("mine", 1, 0.5), make_row("mine", 2, 0.6))
    assert [row.model for row in join_tables([one, both]).rows] == ["mine", "mine (2)", "mine (2)"]


def test_speed_ups_between_machines_come_with_a_warning(tmp_path):
    one = make_table(make_row("base", 4, 0.5), machine="a CPU, 2 threads")
    two = make_table(make_row("mine", 1, 0.6), machine="a GPU, 8 threads")
    (note,) = join_tables([one, two]).notes
    assert "different machines (a CPU, 2 threads; a GPU, 8 threads)" in note
    assert note in write_report(tmp_path, join_tables([one, two])).html.read_text()
    assert join_tables([one, one]).notes == []
    untimed = make_table(make_row("mine", 1, 0.6, seconds_per_image=None), machine="a GPU, 8 threads")
    assert join_tables([one, untimed]).notes == []


def test_a_metric_that_only_pictures_of_others_have_is_shown_without_a_plot(tmp_path):
    """Their evaluations are not known: there is nothing to draw it against."""
    ours = make_table(*(make_row("base", nfe, None, strict=None, tasks={}) for nfe in (1, 2)))
    clip = Metric(25.0, "CLIPScore", "higher", 2, 0.1)
    theirs = make_table(make_row("theirs", 0, 0.5, metrics={"clip": clip}), clip="ViT-L")
    for tables_ in ([ours, theirs], [theirs, ours]):
        text = write_report(tmp_path, join_tables(tables_, mixed=True)).html.read_text()
        assert "25.00" in text
        assert "Score by number of evaluations" not in text


def test_pictures_of_both_folders_are_found(folder, table, tmp_path_factory):
    home = tmp_path_factory.mktemp("two")
    for name in ("a", "b"):
        shutil.copytree(folder, home / name)
        table.save(home / name / "table.json")
    both, where = joined([home / "a", home / "b"])
    assert where == home.resolve()
    assert (where / both.rows[-1].samples[0]["file"]).is_file()
    text = write_report(home / "page", both, pictures=where).html.read_text()
    assert ">missing<" not in text
    assert text.count("data:image/png") > 8 * len(
        table.rows
    )  # the same prompts and seeds of both are matched
    with pytest.raises(TwinflowError, match=r"no evaluation in .*a, b"):
        joined([home])
    once, where = joined([home / "a", home / "b" / ".." / "a"])
    assert (len(once.rows), where.resolve()) == (len(table.rows), (home / "a").resolve())
    again, _ = joined([home / "a", home / "b", home / "a"])
    assert again.rows == both.rows


def test_a_file_that_is_no_table(tmp_path):
    file = tmp_path / "table.json"
    for text in ("{", "{}", '{"benchmark": "x", "rows": [{"model": "a"}]}', "[]"):
        file.write_text(text)
        with pytest.raises(TwinflowError, match="not the table"):
            EvaluationTable.load(file)


def test_a_table_is_read_as_it_was_written(folder, table):
    table.save(folder / "table.json")
    assert EvaluationTable.load(folder / "table.json") == table


def test_the_command_of_a_table_can_be_typed_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/twinflow/__main__.py", "eval", "a model"])
    assert run_facts()["command"] == "python -m twinflow eval 'a model'"
