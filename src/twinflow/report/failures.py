"""Wrong pictures with what the detector saw drawn on them, or what a judge said no to, to be judged in turn."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from twinflow.evaluation.results import EvaluationRow
from twinflow.report.gallery import PIXEL_ART, embed
from twinflow.report.text import row_name

SHOWN = 8  # of a row, the rest unfolds
_LINE = 8.0  # height of a label in hundredths of the picture's width


def failures(folder: Path, rows: list[EvaluationRow]) -> str:
    """A group for each row that has failures; "" if none has."""
    groups = []
    for row in rows:
        cards = [_card(folder, failure) for failure in row.failures]
        if not cards:
            continue
        rest = cards[SHOWN:]
        more = f"<details><summary>{len(rest)} more</summary>{_grid(rest)}</details>" if rest else ""
        groups.append(f"<h3>{escape(row_name(row))}</h3>\n{_grid(cards[:SHOWN])}{more}\n")
    return "".join(groups)


def _grid(cards: list[str]) -> str:
    return f'<div class="failures">\n{"".join(cards)}</div>\n'


def _card(folder: Path, failure: dict[str, Any]) -> str:
    data, side = embed(folder, failure["file"])
    picture = '<span class="missing">missing</span>'
    if data is not None:
        pixelated = ' class="pixelated"' if side <= PIXEL_ART else ""
        picture = f'<img src="{data}" alt="wrong"{pixelated}>{_overlay(failure)}'
    reason = "".join(
        f"<span>{escape(line.replace('>=', ' ≥ '))}</span>" for line in failure.get("reason", "").splitlines()
    )
    if "score" in failure:
        reason = f"<span>{failure['score']:.2f} of 1</span>{reason}"
    if "boxes" in failure:
        saw = ", ".join(box["label"] for box in failure["boxes"]) or "nothing"
        reason += f"<span>seen: {escape(saw)}</span>"
    return (
        f'<figure><div class="seen">{picture}</div><figcaption><i>{escape(failure["prompt"])}</i>'
        f"{reason}</figcaption></figure>\n"
    )


def _overlay(failure: dict[str, Any]) -> str:
    """Boxes and labels as SVG over the picture; lengths in hundredths of its width."""
    width, height = failure["size"]
    scale = 100 / width
    boxes, labels = [], []  # labels after all boxes: a box that crosses one would cut its digits
    taken: list[tuple[float, float]] = []
    for i, box in enumerate(failure.get("boxes", [])):
        x1, y1, x2, y2 = (value * scale for value in box["box"])
        color = f"var(--box-{i % 4})"
        boxes.append(
            f'<rect x="{x1:.2f}" y="{y1:.2f}" width="{max(0.0, x2 - x1):.2f}" height="{max(0.0, y2 - y1):.2f}" '
            f'style="stroke:{color}"/>'
        )
        label = f"{box['label']} {box['score']:.2f}".replace("0.", ".", 1)
        length = 3.7 * len(label) + 2
        left = min(max(0.0, x1), max(0.0, 100 - length))
        top = y1 - _LINE if y1 >= _LINE else min(y2, height * scale - _LINE)
        while any(abs(top - other) < _LINE and abs(left - x) < length for x, other in taken):
            top += _LINE
        taken.append((left, top))
        labels.append(
            f'<rect class="label" x="{left:.2f}" y="{top:.2f}" width="{length:.2f}" height="{_LINE}" '
            f'style="fill:{color}"/><text x="{left + 1:.2f}" y="{top + 5.9:.2f}">{escape(label)}</text>'
        )
    return f'<svg viewBox="0 0 100 {height * scale:.2f}" aria-hidden="true">{"".join(boxes + labels)}</svg>'
