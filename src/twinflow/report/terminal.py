"""The table in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twinflow.evaluation.results import EvaluationTable
from twinflow.report.columns import Column, cells, score_columns
from twinflow.report.summary import summarise

ESSENTIAL = ("Overall", "Strict", "Diversity", "Per image", "Speed-up")
WIDE = 132  # columns that a terminal needs for the tasks to fit


def print_table(table: EvaluationTable, *, console: Console | None = None) -> None:
    """Print the scores and the headline. A narrow terminal gets no columns for the single tasks."""
    console = console or Console()
    columns = score_columns(table)
    if console.width < WIDE:
        columns = [column for column in columns if column.title in ESSENTIAL]
    console.print(_grid(table, columns))
    summary = summarise(table)
    console.print(f"[bold]{escape(summary.headline)}[/] {escape(summary.details)}", highlight=False)


def _grid(table: EvaluationTable, columns: list[Column]) -> Table:
    grid = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("Model", no_wrap=True)
    grid.add_column("NFE", justify="right")
    for column in columns:
        grid.add_column(column.title, justify="right", no_wrap=True)
    last = None
    for row in table.rows:
        if last not in (None, row.model):
            grid.add_row()
        texts = []
        for column, cell in zip(columns, cells(columns, row, table.rows), strict=True):
            text = f"[bold]{cell.text}[/]" if cell.best else cell.text
            # In a terminal only the overall score has room for its interval.
            texts.append(
                f"{text} [dim]±{cell.error}[/]" if cell.error and column.title == "Overall" else text
            )
        grid.add_row(escape(row.model) if row.model != last else "", str(row.nfe), *texts)
        last = row.model
    return grid
