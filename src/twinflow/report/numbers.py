"""The page's numbers: tables of scores, and plots of them."""

from __future__ import annotations

from html import escape

from twinflow.evaluation.results import EvaluationTable
from twinflow.report.columns import Column, cells, score_columns
from twinflow.report.html import figure, section
from twinflow.report.pictures import compared
from twinflow.report.plots import metric_by_nfe, model_colors, score_by_nfe, score_by_time, task_bars
from twinflow.report.summary import Summary
from twinflow.report.text import kid_note, metrics_of, nfe_text, row_name

STRICT = {  # what the stricter score asks for, by benchmark
    "shapeworld": "allows no object that the prompt doesn’t name",
    "geneval": "wants exactly as many objects of the named classes as the prompt says; other classes are free",
}
INDEPENDENT = "; those of tasks take the pictures of one prompt for independent"


def scores(table: EvaluationTable, summary: Summary) -> str:
    columns = score_columns(table)
    parts = [columns]
    if summary.scored:  # the measures have a table of their own: one with both would be too wide
        parts = [[c for c in columns if not c.measure], [c for c in columns if c.measure]]
    body = "".join(_score_table(table, part, summary) for part in parts if part)
    titles = {column.title for column in columns}
    explained = [
        text
        for title, text in (
            ("Strict", f"<i>Strict</i> {STRICT.get(table.benchmark, 'allows no object too many')}."),
            ("Held-out", "<i>Held-out</i> prompts have pairs of shape and colour that training never saw."),
            ("Diversity", "<i>Diversity</i> is the spread of layouts over seeds; 1 is that of real scenes."),
            ("Shape fit ↑", "<i>Shape fit</i> is how well the shapes that were found fit clean ones."),
            ("Per image", f"The speed-up is against {escape(row_name(summary.base))}."),
        )
        if title in titles
    ]
    note = (
        "NFE is network evaluations a picture; a guided step costs two. ± is half of the 95 % interval"
        + f"{kid_note(table.rows)}{INDEPENDENT if any(row.tasks for row in table.rows) else ''}. "
        + " ".join(explained)
    )
    return section("Scores", body, note=note, name="numbers")


def _score_table(table: EvaluationTable, columns: list[Column], summary: Summary) -> str:
    head = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in columns)
    lines, last = [], None
    for row in table.rows:
        values = []
        for cell in cells(columns, row, table.rows):
            text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
            error = f"<small>±{escape(cell.error)}</small>" if cell.error else ""
            values.append(f"<td>{text}{error}</td>")
        kind = " ".join(
            name
            for name, holds in (("first", row.model != last), ("trained", row is summary.trained))
            if holds
        )
        name = escape(row.model) if row.model != last else f'<span class="again">{escape(row.model)}</span>'
        guided = "" if row.guidance == 1.0 else f"<small>guided {row.guidance:g}</small>"
        lines.append(
            f'<tr class="{kind}"><th scope="row">{name}</th><td>{nfe_text(row)}{guided}</td>'
            f"{''.join(values)}</tr>\n"
        )
        last = row.model
    few = " few" if len(columns) < 8 else ""
    return (
        f'<div class="scroll"><table class="scores{few}"><thead><tr><th scope="col">Model</th>'
        f'<th scope="col">NFE</th>{head}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table></div>\n'
    )


def plots(table: EvaluationTable, summary: Summary) -> str:
    trained = summary.trained.model if summary.trained is not None else None
    colors = model_colors(table, base=summary.base.model, trained=trained)
    rows = [row for row in compared(table, summary) if row.tasks]
    figures = ""
    if any(row.nfe and row.overall is not None for row in table.rows):
        figures += figure("Score by number of evaluations", score_by_nfe(table, colors=colors))
    pareto = score_by_time(table, colors=colors)
    if pareto is not None:
        figures += figure("Score by time: what a second buys", pareto)
    if rows:
        figures += figure("Score by task", task_bars(rows, colors))
    for name, metric in metrics_of(table.rows).items():
        if len({row.nfe for row in table.rows if row.nfe and name in row.metrics}) > 1:
            better = f" ({metric.better} is better)" if metric.better else ""
            figures += figure(metric.title + better, metric_by_nfe(table, name, colors=colors))
    return section("At a glance", f'<div class="plots">\n{figures}</div>\n', name="glance") if figures else ""
