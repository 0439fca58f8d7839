"""A small evaluation on disk: two models, real ShapeWorld pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinflow.data.shapeworld import TASKS, draw_scene, evaluation_suite, render
from twinflow.evaluation.results import EvaluationRow, EvaluationTable


def make_row(model: str, nfe: int, overall: float | None, **changes: object) -> EvaluationRow:
    fields: dict = {
        "images": 600,
        "overall_error": 0.02,
        "strict": max((overall or 0.0) - 0.03, 0.0),
        "tasks": dict.fromkeys(TASKS, overall),
        "held_out": overall,
        "diversity": 0.9,
        "seconds_per_image": 0.002 * nfe,
    }
    return EvaluationRow(model=model, nfe=nfe, overall=overall, **(fields | changes))


def make_table(*rows: EvaluationRow, **protocol: str | int) -> EvaluationTable:
    return EvaluationTable(benchmark="shapeworld", rows=list(rows), protocol=protocol)


@pytest.fixture
def table() -> EvaluationTable:
    return make_table(
        make_row("base", 1, 0.05),
        make_row("base", 100, 0.95, guidance=2.5),
        make_row("twinflow", 1, 0.76),
        make_row("twinflow", 4, 0.9),
        level="tiny",
        seed=0,
        command="twinflow eval a b",
    )


@pytest.fixture
def folder(tmp_path: Path, table: EvaluationTable) -> Path:
    """The table's pictures, written as an evaluation writes them."""
    suite = evaluation_suite("tiny", 4)
    for row in table.rows:
        pictures = tmp_path / f"{row.model}_nfe{row.nfe}"
        pictures.mkdir()
        for i, caption in enumerate(suite):
            image = render(draw_scene(caption, np.random.default_rng([row.nfe, i]), "tiny"), "tiny")
            file = pictures / f"{i:05}.png"
            Image.fromarray((255 * image).astype(np.uint8)).save(file)
            sample = {
                "prompt": caption["prompt"],
                "file": f"{pictures.name}/{file.name}",
                "correct": i % 2 == 0,
            }
            row.samples.append(sample)
    return tmp_path
