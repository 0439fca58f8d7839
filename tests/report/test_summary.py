"""The sentence at the top is true, for good news, bad news and half a table."""

from __future__ import annotations

import pytest

from twinflow.report import summarise

from .conftest import make_row, make_table


def test_compares_the_fewest_evaluations_with_the_best_of_the_base(table):
    summary = summarise(table)
    assert (summary.base.model, summary.base.nfe) == ("base", 100)
    assert (summary.trained.model, summary.trained.nfe) == ("twinflow", 1)
    assert summary.base_at_same is table.row("base", 1)
    assert summary.kept == pytest.approx(0.8)
    assert summary.evaluations_saved == 99
    assert summary.speed_up == pytest.approx(100)
    assert summary.headline == "With 1 network evaluation, twinflow reaches 80 % of the score of base at 100."


def test_details_have_every_number(table):
    details = summarise(table).details
    for part in ("0.760 ± 0.020", "0.950 ± 0.020", "600 pictures", "99 of 100", "100×", "0.050"):
        assert part in details


def test_the_model_called_base_is_the_base_wherever_it_stands():
    table = make_table(make_row("mine", 1, 0.5), make_row("base", 8, 0.4))
    assert summarise(table).base.model == "base"
    assert summarise(table).kept == pytest.approx(1.25)


def test_without_that_name_the_first_model_is_the_base():
    table = make_table(make_row("sd3", 50, 0.6), make_row("mine", 1, 0.3))
    assert summarise(table).base.model == "sd3"


def test_the_cheaper_of_two_equally_good_rows_is_the_base_s_best():
    table = make_table(make_row("base", 100, 0.9), make_row("base", 50, 0.9), make_row("mine", 1, 0.3))
    assert summarise(table).base.nfe == 50


def test_one_model_alone():
    summary = summarise(make_table(make_row("base", 4, 0.3), make_row("base", 100, 0.9)))
    assert summary.trained is None
    assert summary.kept is None
    assert summary.headline == "base scores 0.900 ± 0.020 with 100 network evaluations."


def test_a_base_that_scores_nothing_has_no_percentage():
    summary = summarise(make_table(make_row("base", 1, 0.0), make_row("mine", 1, 0.3)))
    assert summary.kept is None
    assert "base scores 0 at 1" in summary.headline


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        summarise(make_table())
