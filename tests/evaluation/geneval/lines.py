"""Metadata lines of our own in GenEval's schema: one of each task, in words that the embedded model knows."""

from __future__ import annotations

import json
from pathlib import Path

from twinflow.evaluation.geneval import PromptFile
from twinflow.evaluation.geneval.prompts import fingerprint


def _thing(name: str, count: int = 1, **more: object) -> dict:
    return {"class": name, "count": count, **more}


SIX: tuple[dict, ...] = (
    {"tag": "single_object", "include": [_thing("toaster")], "prompt": "a photo of a circle"},
    {
        "tag": "two_object",
        "include": [_thing("fork"), _thing("clock")],
        "prompt": "a photo of a circle and a square",
    },
    {
        "tag": "counting",
        "include": [_thing("kite", 3)],
        "exclude": [_thing("kite", 4)],
        "prompt": "a photo of three squares",
    },
    {"tag": "colors", "include": [_thing("vase", color="red")], "prompt": "a photo of a red circle"},
    {
        "tag": "position",
        "include": [_thing("boat"), _thing("bird", position=["left of", 0])],
        "prompt": "a photo of a circle left of a square",
    },
    {
        "tag": "color_attr",
        "include": [_thing("cup", color="red"), _thing("book", color="blue")],
        "prompt": "a photo of a red circle and a blue square",
    },
)


def prompt_file(*rows: dict) -> PromptFile:
    return PromptFile(rows=rows, name=f"{len(rows)}.jsonl", sha256=fingerprint(rows))


def write_lines(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path
