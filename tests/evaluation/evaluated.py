"""A small evaluation on ShapeWorld."""

from __future__ import annotations

from pathlib import Path

from twinflow.evaluation.results import EvaluationTable
from twinflow.evaluation.runner import Evaluation
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark

BENCHMARK = ShapeWorldBenchmark(images_per_task=2)


def evaluate(output: Path, *models: str, benchmark=BENCHMARK, **options) -> EvaluationTable:
    options = {"nfe": [1, 2], "shown": False} | options
    (table,) = Evaluation(benchmarks=[benchmark], output=output, **options).run(models)
    return table
