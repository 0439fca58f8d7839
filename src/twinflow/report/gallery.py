"""Pictures of an evaluation, matched between models and embedded in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from twinflow.evaluation.results import EvaluationRow

LARGEST = 320  # pixels; larger pictures are scaled down, so that a page stays a page
PIXEL_ART = 64  # up to this side a picture is enlarged with hard pixels


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture of one row."""

    row: EvaluationRow
    data: str | None  # a data: URI; None if the file can't be read
    correct: bool | None  # None if it wasn't judged
    pixelated: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One prompt and seed, as drawn in several rows."""

    prompt: str
    tiles: list[Tile]


def compare(folder: Path, rows: list[EvaluationRow]) -> list[Comparison]:
    """The pictures that all ``rows`` have, in the order of the first.

    A row's pictures lie in a folder of its own; the same file name and prompt in another row's is the same
    caption and seed.
    """
    if not rows:
        return []
    by_row = [{(_inside(s), s["prompt"]): s for s in row.samples} for row in rows]
    keys = [key for key in by_row[0] if all(key in samples for samples in by_row)]
    return [
        Comparison(
            prompt=key[1],
            tiles=[_tile(folder, row, samples[key]) for row, samples in zip(rows, by_row, strict=True)],
        )
        for key in keys
    ]


def _inside(sample: dict) -> str:
    """The file's name inside its row's folder. Of joined tables the file says whose folder ("home") that is in."""
    file = sample["file"].removeprefix(f"{sample['home']}/") if "home" in sample else sample["file"]
    return file.partition("/")[2]


def spread(comparisons: list[Comparison], number: int) -> list[Comparison]:
    """``number`` of them at even distances: benchmarks go task by task, and each should be seen."""
    total = len(comparisons)
    return [comparisons[i * total // number] for i in range(number)] if total > number else comparisons


def _tile(folder: Path, row: EvaluationRow, sample: dict) -> Tile:
    data, side = embed(folder, sample["file"])
    return Tile(row=row, data=data, correct=sample.get("correct"), pixelated=0 < side <= PIXEL_ART)


def embed(folder: Path, file: str, *, largest: int = LARGEST) -> tuple[str | None, int]:
    """A picture inside ``folder`` as a data: URI, and its longer side; (None, 0) if there is none.

    It is decoded and encoded again, so that the page holds nothing but pixels.
    """
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None, 0
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # missing, cut off, or no picture
        return None, 0
    side = max(image.size)
    image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if side <= 2 * PIXEL_ART:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", side
