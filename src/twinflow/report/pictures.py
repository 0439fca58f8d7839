"""The page's pictures: models beside each other at equal seeds, every setting, and what went wrong."""

from __future__ import annotations

from html import escape
from pathlib import Path

from twinflow.evaluation.results import EvaluationRow, EvaluationTable
from twinflow.report.failures import failures
from twinflow.report.gallery import Comparison, Tile, compare, embed, spread
from twinflow.report.html import section
from twinflow.report.summary import Summary
from twinflow.report.text import nfe_text, row_name

JUDGED = {  # what the marks say, and what stands beside wrong pictures, where no verifier looked
    "dpg": (
        "✓ and ✗ say whether the judge answered every question with yes.",
        "Pictures about which the judge did not answer every question with yes, spread evenly over the prompts, with "
        "those answers. Look here before you trust a number: a judge that is wrong shows it.",
    )
}
BY_VERIFIER = (
    "✓ and ✗ are the verifier’s.",
    "Wrong pictures, spread evenly over the tasks, with the objects that the detector found and how sure it was. Look "
    "here before you trust a number: a detector that is wrong shows it.",
)
SHOWN = 12  # comparisons that are open; the rest unfolds
WALL = 6  # prompts that are shown at every setting


def pictures(folder: Path, table: EvaluationTable, summary: Summary) -> str:
    """The base with few and with many evaluations beside the trained model, at equal seeds."""
    rows = compared(table, summary)
    comparisons = compare(folder, rows)
    if not comparisons:
        return _grids(folder, table)
    shown = spread(comparisons, SHOWN)
    rest = [c for c in comparisons if not any(c is other for other in shown)]
    names = ", ".join(f"<b>{escape(row_name(row))}</b>" for row in rows)
    drawn_here = all(row.style != "unknown" for row in rows)  # of others' pictures nobody knows the seeds
    same = f"Same prompt{', same seed' if drawn_here else ''}; " if len(rows) > 1 else ""
    note = f"From left to right: {names}. {same}{JUDGED.get(table.benchmark, BY_VERIFIER)[0]}"
    body = _cards(shown, summary.trained)
    if rest:
        more = _cards(rest, summary.trained)
        body += f"<details><summary>{len(rest)} more</summary>\n{more}</details>\n"
    return section("The same scenes" if len(rows) > 1 else "Pictures", body, note=note, name="pictures")


def compared(table: EvaluationTable, summary: Summary) -> list[EvaluationRow]:
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
        tiles = "".join(tile(one, named=True, chosen=one.row is trained) for one in comparison.tiles)
        cards.append(
            f'<figure class="card"><div class="tiles">{tiles}</div>'
            f"<figcaption>{escape(comparison.prompt)}</figcaption></figure>\n"
        )
    return f'<div class="cards">\n{"".join(cards)}</div>\n'


def tile(shown: Tile, *, named: bool = False, chosen: bool = False) -> str:
    """One picture with the verifier's mark; ``named``: and with its model."""
    name = escape(row_name(shown.row))
    verdict = {True: "right", False: "wrong", None: ""}[shown.correct]
    mark = {True: "✓", False: "✗", None: ""}[shown.correct]
    # A long name may be cut off, the number may not.
    number = f"· {shown.row.nfe}" if shown.row.nfe else ""
    caption = f'<span>{escape(shown.row.model)}</span><span class="nfe">{number}</span>' if named else ""
    picture = '<span class="missing">missing</span>'
    if shown.data is not None:
        pixelated = ' class="pixelated"' if shown.pixelated else ""
        picture = f'<img src="{shown.data}" alt="{name}{", " + verdict if verdict else ""}"{pixelated}>'
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
    return section("Pictures", f'<div class="grids">\n{"".join(figures)}</div>\n') if figures else ""


def every_picture(folder: Path, table: EvaluationTable) -> str:
    """All rows side by side: a few prompts at once, the others folded away."""
    rows = [row for row in table.rows if row.samples]
    comparisons = compare(folder, rows) if len(rows) > 1 else []
    if not comparisons:
        return ""
    shown = spread(comparisons, WALL)
    rest = [c for c in comparisons if not any(c is other for other in shown)]
    body = wall(shown, rows)
    if rest:
        body += f"<details><summary>{len(rest)} more prompts</summary>\n{wall(rest, rows)}</details>\n"
    note = "A column for each setting, a line for each prompt and seed: what more evaluations change."
    return section("Every setting", body, note=note, name="every")


def wall(comparisons: list[Comparison], rows: list[EvaluationRow]) -> str:
    head = "".join(f"<th>{escape(row.model)}<br>{nfe_text(row)} NFE</th>" for row in rows)
    lines = "".join(
        f'<tr><th scope="row">{escape(c.prompt)}</th>'
        + "".join(f"<td>{tile(one)}</td>" for one in c.tiles)
        + "</tr>\n"
        for c in comparisons
    )
    return (
        f"<div class=\"scroll\"><table class='wall'><thead><tr><th></th>{head}</tr></thead>\n"
        f"<tbody>{lines}</tbody></table></div>\n"
    )


def wrong_pictures(folder: Path, table: EvaluationTable, summary: Summary) -> str:
    """Of the rows that a reader compares first; those of the others unfold."""
    first = compared(table, summary)[::-1]
    body = failures(folder, first)
    rest = failures(folder, [row for row in table.rows if not any(row is other for other in first)])
    if not body and not rest:
        return ""
    if rest:
        body += f"<details><summary>the other settings</summary>\n{rest}</details>\n"
    note = JUDGED.get(table.benchmark, BY_VERIFIER)[1]
    return section("What went wrong", body, note=note, name="wrongs")
