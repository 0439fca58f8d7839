"""The report as one HTML page: no script, no request, readable on a phone, on paper and in the dark."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from twinflow import __version__
from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.report.columns import Column, cells, score_columns
from twinflow.report.failures import failures
from twinflow.report.gallery import Comparison, Tile, compare, embed, spread
from twinflow.report.losses import Curve
from twinflow.report.plots import (
    loss_curves,
    metric_by_nfe,
    model_colors,
    score_by_nfe,
    score_by_time,
    task_bars,
)
from twinflow.report.style import STYLE
from twinflow.report.summary import Summary, evaluations, summarise
from twinflow.report.text import metrics_of, nfe_text, percent, protocol_name, row_name, score, seconds, times

SHOWN = 12  # comparisons that are open; the rest unfolds
WALL = 6  # prompts that are shown at every setting
# The page may show what it carries, and nothing else: no script, no font, no request.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
        _pictures(folder, table, summary),
        _scores(table, summary),
        _plots(table, summary),
        _every_picture(folder, table),
        _failures(folder, table, summary),
        _losses(losses),
        _protocol(table, facts),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{"".join(body)}</main>
<footer>Written by twinflow {escape(__version__)}</footer>
</body>
</html>
"""


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


def _section(title: str, body: str, *, note: str = "", name: str = "") -> str:
    note = f'<p class="note">{note}</p>\n' if note else ""
    return f'<section class="{name}">\n<h2>{escape(title)}</h2>\n{note}{body}</section>\n'


# Pictures


def _pictures(folder: Path, table: EvaluationTable, summary: Summary) -> str:
    """The base with few and with many evaluations beside the trained model, at equal seeds."""
    rows = _compared(table, summary)
    comparisons = compare(folder, rows)
    if not comparisons:
        return _grids(folder, table)
    shown = spread(comparisons, SHOWN)
    rest = [c for c in comparisons if not any(c is other for other in shown)]
    names = ", ".join(f"<b>{escape(row_name(row))}</b>" for row in rows)
    same = "Same prompt, same seed; " if len(rows) > 1 else ""
    note = f"From left to right: {names}. {same}✓ and ✗ are the verifier’s."
    body = _cards(shown, summary.trained)
    if rest:
        more = _cards(rest, summary.trained)
        body += f"<details><summary>{len(rest)} more</summary>\n{more}</details>\n"
    return _section("The same scenes" if len(rows) > 1 else "Pictures", body, note=note, name="pictures")


def _compared(table: EvaluationTable, summary: Summary) -> list[EvaluationRow]:
    """The base with as few evaluations as the trained model, the base at its best, the trained model."""
    fewest = summary.base_at_same
    if summary.trained is None:  # one model alone: what it draws with few evaluations, and at its best
        fewest = min(table.rows, key=lambda row: row.nfe)
    rows: list[EvaluationRow] = []
    for row in (fewest, summary.base, summary.trained):
        if row is not None and not any(row is other for other in rows):
            rows.append(row)
    return rows


def _cards(comparisons: list[Comparison], trained: EvaluationRow | None) -> str:
    cards = []
    for comparison in comparisons:
        tiles = "".join(_tile(tile, named=True, chosen=tile.row is trained) for tile in comparison.tiles)
        cards.append(
            f'<figure class="card"><div class="tiles">{tiles}</div>'
            f"<figcaption>{escape(comparison.prompt)}</figcaption></figure>\n"
        )
    return f'<div class="cards">\n{"".join(cards)}</div>\n'


def _tile(tile: Tile, *, named: bool = False, chosen: bool = False) -> str:
    name = escape(row_name(tile.row))
    verdict = {True: "right", False: "wrong", None: ""}[tile.correct]
    mark = {True: "✓", False: "✗", None: ""}[tile.correct]
    # A long name may be cut off, the number may not.
    caption = (
        f'<span>{escape(tile.row.model)}</span><span class="nfe">{f"· {tile.row.nfe}" if tile.row.nfe else ""}</span>'
        if named
        else ""
    )
    picture = '<span class="missing">missing</span>'
    if tile.data is not None:
        pixelated = ' class="pixelated"' if tile.pixelated else ""
        picture = f'<img src="{tile.data}" alt="{name}{", " + verdict if verdict else ""}"{pixelated}>'
    return (
        f'<span class="tile {verdict}{" chosen" if chosen else ""}" title="{name}">{picture}'
        f'<span class="mark">{caption}<b>{mark}</b></span></span>'
    )


def _grids(folder: Path, table: EvaluationTable) -> str:
    """One picture of many samples for each row, of tables without single samples."""
    figures = []
    for row in table.rows:
        data, _ = embed(folder, row.grid, largest=1024) if row.grid else (None, 0)
        if data is not None:
            name = escape(row_name(row))
            figures.append(
                f'<figure><img src="{data}" alt="{name}"><figcaption>{name}</figcaption></figure>\n'
            )
    return _section("Pictures", f'<div class="grids">\n{"".join(figures)}</div>\n') if figures else ""


def _every_picture(folder: Path, table: EvaluationTable) -> str:
    """All rows side by side: a few prompts at once, the others folded away."""
    rows = [row for row in table.rows if row.samples]
    comparisons = compare(folder, rows) if len(rows) > 1 else []
    if not comparisons:
        return ""
    shown = spread(comparisons, WALL)
    rest = [c for c in comparisons if not any(c is other for other in shown)]
    body = _wall(shown, rows)
    if rest:
        body += f"<details><summary>{len(rest)} more prompts</summary>\n{_wall(rest, rows)}</details>\n"
    note = "A column for each setting, a line for each prompt and seed: what more evaluations change."
    return _section("Every setting", body, note=note, name="every")


def _wall(comparisons: list[Comparison], rows: list[EvaluationRow]) -> str:
    head = "".join(f"<th>{escape(row.model)}<br>{nfe_text(row)} NFE</th>" for row in rows)
    lines = "".join(
        f'<tr><th scope="row">{escape(c.prompt)}</th>'
        + "".join(f"<td>{_tile(tile)}</td>" for tile in c.tiles)
        + "</tr>\n"
        for c in comparisons
    )
    return (
        f"<div class=\"scroll\"><table class='wall'><thead><tr><th></th>{head}</tr></thead>\n"
        f"<tbody>{lines}</tbody></table></div>\n"
    )


def _failures(folder: Path, table: EvaluationTable, summary: Summary) -> str:
    """Of the rows that a reader compares first; those of the others unfold."""
    first = _compared(table, summary)[::-1]
    body = failures(folder, first)
    rest = failures(folder, [row for row in table.rows if not any(row is other for other in first)])
    if not body and not rest:
        return ""
    if rest:
        body += f"<details><summary>the other settings</summary>\n{rest}</details>\n"
    note = (
        "Wrong pictures, spread evenly over the tasks, with the objects that the detector found and how sure it "
        "was. Look here before you trust a number: a detector that is wrong shows it."
    )
    return _section("What went wrong", body, note=note, name="wrongs")


# Numbers


def _scores(table: EvaluationTable, summary: Summary) -> str:
    columns = score_columns(table)
    parts = [columns]
    if summary.scored:  # the measures have a table of their own: one with both would be too wide
        parts = [[c for c in columns if not c.measure], [c for c in columns if c.measure]]
    body = "".join(_score_table(table, part, summary) for part in parts if part)
    titles = {column.title for column in columns}
    explained = [
        text
        for title, text in (
            ("Strict", "<i>Strict</i> allows no object that the prompt doesn’t name."),
            ("Held-out", "<i>Held-out</i> prompts have pairs of shape and colour that training never saw."),
            ("Diversity", "<i>Diversity</i> is the spread of layouts over seeds; 1 is that of real scenes."),
            ("Shape fit ↑", "<i>Shape fit</i> is how well the shapes that were found fit clean ones."),
            ("Per image", f"The speed-up is against {escape(row_name(summary.base))}."),
        )
        if title in titles
    ]
    note = (
        "NFE is network evaluations a picture; a guided step costs two. ± is half of the 95 % interval"
        + ("; of KID, the deviation over subsets. " if "KID × 1000 ↓" in titles else ". ")
        + " ".join(explained)
    )
    return _section("Scores", body, note=note, name="numbers")


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


def _plots(table: EvaluationTable, summary: Summary) -> str:
    base = summary.base.model
    rows = [row for row in _compared(table, summary) if row.tasks]
    figures = ""
    if summary.scored and any(row.nfe for row in table.rows):
        figures += _figure("Score by number of evaluations", score_by_nfe(table, base=base))
    pareto = score_by_time(table, base=base)
    if pareto is not None:
        figures += _figure("Score by time: what a second buys", pareto)
    if rows:
        figures += _figure("Score by task", task_bars(rows, model_colors(table, base=base)))
    if len({row.nfe for row in table.rows if row.nfe}) > 1:
        for name, metric in metrics_of(table.rows).items():
            better = f" ({metric.better} is better)" if metric.better else ""
            figures += _figure(metric.title + better, metric_by_nfe(table, name, base=base))
    return (
        _section("At a glance", f'<div class="plots">\n{figures}</div>\n', name="glance") if figures else ""
    )


def _losses(losses: Mapping[str, dict[str, Curve]]) -> str:
    figures = "".join(_figure(name, loss_curves(name, curves)) for name, curves in losses.items() if curves)
    if not figures:
        return ""
    note = "Training loss by role. A loss that is level is no bad sign: its target moves with the model."
    return _section("Training", f'<div class="plots">\n{figures}</div>\n', note=note, name="training")


def _figure(title: str, svg: str) -> str:
    return f'<figure class="plot"><figcaption>{escape(title)}</figcaption>\n{svg}</figure>\n'


def _protocol(table: EvaluationTable, facts: Mapping[str, Any]) -> str:
    groups = [_definitions(values) for values in (facts, table.protocol) if values]
    if not groups:
        return ""
    return _section("Protocol", "".join(groups), name="protocol")


def _definitions(values: Mapping[str, Any]) -> str:
    items = "".join(
        f"<div><dt>{escape(protocol_name(str(key)))}</dt><dd>{_value(str(key), value)}</dd></div>\n"
        for key, value in values.items()
    )
    return f"<dl>\n{items}</dl>\n"


def _value(key: str, value: Any) -> str:
    text = escape(str(value))
    return f"<code>{text}</code>" if key == "command" else text
