"""Synthetic items with questions, as csv text of the official form."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

COLUMNS = (
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
)
CATEGORIES = (
    "entity - whole",
    "entity - part",
    "attribute - color",
    "attribute - texture",
    "relation - spatial",
    "global",
)


def write_csv(path: Path, rows: list[tuple[str, int, str, str, str]]) -> Path:
    """Rows of (item, question, dependency, category, text)."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for item, number, dependency, category, text in rows:
        writer.writerow(
            {
                "item_id": item,
                "text": f"A long description of {item}, with commas,\nand a second line.",
                "keywords": "",
                "proposition_id": number,
                "dependency": dependency,
                "category_broad": "",
                "category_detailed": "",
                "tuple": f"{category} (thing, {number})",
                "question_natural_language": text,
            }
        )
    path.write_text(stream.getvalue(), newline="")
    return path


def random_rows(rng: random.Random, items: int) -> list[tuple[str, int, str, str, str]]:
    rows = []
    for k in range(items):
        item = f"partiprompts{97 + k}"
        for number in range(1, rng.randint(2, 9)):
            parents = sorted(rng.sample(range(1, number), rng.randint(0, min(2, number - 1))))
            if k == 0 and number == 2:
                parents = [1]  # the item that the official code drops
            dependency = ", ".join(map(str, parents)) or "0"
            rows.append(
                (item, number, dependency, rng.choice(CATEGORIES), f"Is thing {number} of {item} there?")
            )
    return rows
