"""The table in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twinflow.evaluation.results import EvaluationTable
from twinflow.report.columns import Column, cells, score_columns
from twinflow.report.summary import summarise
from twinflow.report.text import metrics_of, nfe_text, task_name, tasks_of

DETAILS = ("Held-out", "Strict")  # what a narrow terminal loses after the tasks and the metrics


def print_table(table: EvaluationTable, *, console: Console | None = None) -> None:
    """Print the scores and the headline. A narrow terminal gets no columns for the single tasks."""
    console = console or Console()
    columns = _that_fit(table, score_columns(table), console.width)
    console.print(_grid(table, columns))
    summary = summarise(table)
    for note in table.notes:
        console.print(f"[bold red]{escape(note)}[/]", highlight=False)
    console.print(f"[bold]{escape(summary.headline)}[/] {escape(summary.details)}", highlight=False)


def _that_fit(table: EvaluationTable, columns: list[Column], width: int) -> list[Column]:
    """Without the tasks, metrics and details that a narrow terminal has no room for, in this order."""
    tasks = [task_name(task) for task in tasks_of(table.rows)]
    metrics = [m.title for m in reversed(metrics_of(table.rows).values())]
    for dropped in (None, tasks, *([title] for title in metrics), *([title] for title in DETAILS)):
        if dropped is not None:
            columns = [c for c in columns if c.title.rstrip(" ↑↓") not in dropped]
        needed = max(len(row.model) for row in table.rows) + 2 + 5
        for column in columns:
            found = [cells([column], row, table.rows)[0] for row in table.rows]
            shown = [len(c.text) + (len(c.error) + 2 if column.title == "Overall" else 0) for c in found]
            needed += max(len(column.title), *shown) + 2
        if needed <= width + 2:
            break
    return columns


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
        grid.add_row(escape(row.model) if row.model != last else "", nfe_text(row), *texts)
        last = row.model
    return grid
