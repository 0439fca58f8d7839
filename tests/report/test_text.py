"""Numbers are neither flattered nor lost on their way to the reader."""

from __future__ import annotations

import pytest

from twinflow.report.text import percent, seconds, task_error, times

from .conftest import make_row


@pytest.mark.parametrize(
    ("fraction", "text"), [(0, "0 %"), (0.954, "95 %"), (0.998, "99 %"), (1, "100 %"), (1.25, "125 %")]
)
def test_percent_reaches_100_only_at_100(fraction, text):
    assert percent(fraction) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (12.34, "12 s"), (1.5, "1.5 s"), (0.211, "211 ms"), (0.003, "3.0 ms"), (4e-6, "4.0 µs")],
)
def test_seconds_in_a_unit_that_suits(value, text):
    assert seconds(value) == text


def test_times():
    assert [times(x) for x in (None, 1.04, 9.96, 70.4)] == ["–", "1.0×", "10.0×", "70×"]


def test_task_intervals_narrow_with_pictures_and_are_never_empty():
    few, many = (make_row("m", 1, 1.0, images=n) for n in (60, 6000))
    assert 0 < task_error(many, "colors") < task_error(few, "colors")
    # 100 pictures a task, half right: the textbook's 1.96 sqrt(.25 / 100), which Wilson's is close to there.
    assert task_error(make_row("m", 1, 0.5), "colors") == pytest.approx(0.098, abs=0.003)
