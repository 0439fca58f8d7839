"""The columns of a score table, defined once for the page, the Markdown file and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twinflow.evaluation.results import EvaluationRow, EvaluationTable, Metric
from twinflow.report.summary import speed_up, summarise
from twinflow.report.text import NONE, metrics_of, score, seconds, task_error, task_name, tasks_of, times


@dataclass(frozen=True, kw_only=True)
class Cell:
    text: str
    error: str = ""  # half of the 95 % interval, where the number has one
    best: bool = False  # the highest of its column


@dataclass(frozen=True, kw_only=True)
class Column:
    """``rank``: the number that the best cell of a score column has most of; ``None`` marks no best."""

    title: str
    cell: Callable[[EvaluationRow], Cell]
    rank: Callable[[EvaluationRow], float | None] | None = None
    measure: bool = (
        False  # a metric, not the benchmark's own score: the page has a table of its own for these
    )


def score_columns(table: EvaluationTable) -> list[Column]:
    """Columns after model and NFE. What no row has measured has no column."""
    rows, reference = table.rows, summarise(table).base
    columns: list[Column] = []
    if any(row.overall is not None for row in rows):
        columns.append(
            Column(
                title="Overall",
                cell=lambda row: Cell(text=score(row.overall), error=_error(row.overall_error)),
                rank=lambda row: row.overall,
            )
        )
    if any(row.strict is not None for row in rows):
        columns.append(
            Column(
                title="Strict",
                cell=lambda row: Cell(text=score(row.strict), error=_error(row.strict_error)),
                rank=lambda row: row.strict,
            )
        )
    columns += [_task_column(task) for task in tasks_of(rows)]
    if any(row.held_out is not None for row in rows):
        columns.append(
            Column(
                title="Held-out",
                cell=lambda row: Cell(text=score(row.held_out, 2)),
                rank=lambda row: row.held_out,
            )
        )
    if any(row.diversity is not None for row in rows):
        columns.append(Column(title="Diversity", cell=lambda row: Cell(text=score(row.diversity, 2))))
    columns += [_metric_column(name, metric) for name, metric in metrics_of(rows).items()]
    if any(row.seconds_per_image is not None for row in rows):
        columns.append(Column(title="Per image", cell=lambda row: Cell(text=seconds(row.seconds_per_image))))
        columns.append(Column(title="Speed-up", cell=lambda row: Cell(text=times(speed_up(row, reference)))))
    return columns


def _error(error: float | None, digits: int = 3) -> str:
    return "" if error is None else score(error, digits)


def _metric_column(name: str, like: Metric) -> Column:
    sign = {"higher": 1.0, "lower": -1.0}.get(like.better)

    def cell(row: EvaluationRow) -> Cell:
        metric = row.metrics.get(name)
        if metric is None:
            return Cell(text=NONE)
        return Cell(text=score(metric.value, metric.digits), error=_error(metric.error, metric.digits))

    def rank(row: EvaluationRow) -> float | None:
        metric = row.metrics.get(name)
        return None if metric is None or sign is None else sign * metric.value

    arrow = {"higher": " ↑", "lower": " ↓"}.get(like.better, "")
    return Column(title=like.title + arrow, cell=cell, rank=rank if sign else None, measure=True)


def _task_column(task: str) -> Column:
    def cell(row: EvaluationRow) -> Cell:
        if task not in row.tasks:
            return Cell(text=NONE)
        return Cell(text=score(row.tasks[task], 2), error=score(task_error(row, task), 2))

    return Column(title=task_name(task), cell=cell, rank=lambda row: row.tasks.get(task))


def cells(columns: list[Column], row: EvaluationRow, rows: list[EvaluationRow]) -> list[Cell]:
    """The cells of ``row``, the best of each score column marked."""
    result = []
    for column in columns:
        cell = column.cell(row)
        if column.rank is not None and len(rows) > 1:
            known = [value for value in map(column.rank, rows) if value is not None]
            best = bool(known) and column.rank(row) == max(known)
            cell = Cell(text=cell.text, error=cell.error, best=best)
        result.append(cell)
    return result
