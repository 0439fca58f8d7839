"""GenEval's results file: one JSON object a line, as the official scorer writes and ``summary_scores.py`` reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twinflow.evaluation.scoring import Detection, ImageResult, Verdict


def write_results(path: str | Path, rows: Iterable[ImageResult]) -> None:
    """The official keys, with strict verdicts and colours added."""
    with Path(path).open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row_to_json(row)) + "\n")


def read_results(path: str | Path) -> list[ImageResult]:
    """Rows of a results file, ours or one of the official scorer (whose ``strict`` is then always False)."""
    with Path(path).open(encoding="utf-8") as file:
        return [row_from_json(json.loads(line)) for line in filter(str.strip, file)]


def row_to_json(row: ImageResult) -> dict[str, Any]:
    """One line of the file."""
    details: dict[str, list[list[float]]] = {}
    colors: dict[str, list[str | None]] = {}
    for found in row.detections:
        details.setdefault(found.class_name, []).append([*found.box, found.score])
        colors.setdefault(found.class_name, []).append(found.color)
    return {
        "filename": row.filename,
        "tag": row.tag,
        "prompt": row.prompt,
        "correct": row.correct,
        "reason": row.verdict.reason,
        "metadata": json.dumps(row.metadata),
        "details": json.dumps(details),
        "strict": row.strict,
        "colors": json.dumps(colors),
    }


def row_from_json(line: Mapping[str, Any]) -> ImageResult:
    """The row of a line; AttributeError, LookupError, TypeError or ValueError if it is something else."""
    colors = json.loads(line.get("colors", "{}"))
    found = [
        Detection(
            class_name=name,
            box=(box[0], box[1], box[2], box[3]),
            score=box[4],
            color=colors[name][i] if name in colors else None,
        )
        for name, boxes in json.loads(line["details"]).items()
        for i, box in enumerate(boxes)
    ]
    return ImageResult(
        filename=line["filename"],
        metadata=json.loads(line["metadata"]),
        verdict=Verdict(correct=line["correct"], strict=line.get("strict", False), reason=line["reason"]),
        detections=sorted(found, key=lambda d: -d.score),
    )
