"""The report as one HTML page: no script, no request, readable on a phone, on paper and in the dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from twinflow.evaluation.results import EvaluationTable
from twinflow.report.html import definitions, document, figure, section
from twinflow.report.losses import Curve
from twinflow.report.numbers import plots, scores
from twinflow.report.pictures import every_picture, pictures, wrong_pictures
from twinflow.report.plots import loss_curves
from twinflow.report.summary import Summary, evaluations, summarise
from twinflow.report.text import percent, row_name, score, seconds, times


def render_page(
    folder: Path,
    table: EvaluationTable,
    *,
    title: str,
    losses: Mapping[str, dict[str, Curve]],
    facts: Mapping[str, Any],
) -> str:
    summary = summarise(table)
    body = [
        _header(table, summary, title),
        pictures(folder, table, summary),
        scores(table, summary),
        plots(table, summary),
        every_picture(folder, table),
        wrong_pictures(folder, table, summary),
        _losses(losses),
        _protocol(table, facts),
    ]
    return document(title, "".join(body))


def _header(table: EvaluationTable, summary: Summary, title: str) -> str:
    place = [
        title,
        table.benchmark,
        *(str(table.protocol[k]) for k in ("level", "date") if k in table.protocol),
    ]
    return f"""<header>
<p class="kicker">{" · ".join(escape(part) for part in place)}</p>
<h1>{escape(summary.headline)}</h1>
<p class="lead">{escape(summary.scores)}</p>
{"".join(f'<p class="warning">{escape(note)}</p>' for note in table.notes)}{_figures(summary)}</header>
"""


def _figures(summary: Summary) -> str:
    """The few numbers that a reader remembers."""
    row, base = summary.trained, summary.base
    if row is None or not summary.scored:
        return ""
    same = summary.base_at_same
    before = f"{score(same.overall)} before training" if same is not None and same is not base else ""
    cost = f"score with {evaluations(row.nfe)}" if row.nfe else "score"
    found = [(score(row.overall), cost, before)]
    if summary.kept is not None:
        found.append((percent(summary.kept), f"of {row_name(base)}", f"which scores {score(base.overall)}"))
    if summary.evaluations_saved > 0:
        found.append(
            (times(base.nfe / row.nfe), "fewer network evaluations", f"{row.nfe} instead of {base.nfe}")
        )
    if summary.speed_up is not None:
        pair = f"{seconds(row.seconds_per_image)} a picture instead of {seconds(base.seconds_per_image)}"
        found.append((times(summary.speed_up), "as fast", pair))
    items = "".join(
        f"<div><dt>{escape(value)}</dt><dd>{escape(what)}<span>{escape(more)}</span></dd></div>\n"
        for value, what, more in found
    )
    return f'<dl class="figures">\n{items}</dl>\n'


def _losses(losses: Mapping[str, dict[str, Curve]]) -> str:
    figures = "".join(figure(name, loss_curves(name, curves)) for name, curves in losses.items() if curves)
    if not figures:
        return ""
    note = "Training loss by role. A loss that is level is no bad sign: its target moves with the model."
    return section("Training", f'<div class="plots">\n{figures}</div>\n', note=note, name="training")


def _protocol(table: EvaluationTable, facts: Mapping[str, Any]) -> str:
    groups = [definitions(values) for values in (facts, table.protocol) if values]
    if not groups:
        return ""
    return section("Protocol", "".join(groups), name="protocol")
