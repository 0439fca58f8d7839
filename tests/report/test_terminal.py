"""The terminal's table fits the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from twinflow.report import print_table

from .conftest import make_row, make_table


@pytest.mark.parametrize(("width", "tasks"), [(80, False), (160, True)])
def test_tasks_are_shown_where_they_fit(table, width, tasks):
    stream = io.StringIO()
    print_table(table, console=Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "0.760 ±0.020" in text
    assert ("Counting" in text) == tasks
    assert "80 %" in text


def test_markup_in_a_name_is_text():
    stream = io.StringIO()
    print_table(make_table(make_row("[red]x[/]", 1, 0.5)), console=Console(file=stream, width=100))
    assert "[red]x[/]" in stream.getvalue()
