"""The quick start: the embedded pipeline before and after a few minutes of TwinFlow, with scores and pictures."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from twinflow.assets import QUICKSTART_RECIPE
from twinflow.config import load_recipe
from twinflow.evaluation.model_names import ModelName
from twinflow.evaluation.models import open_model
from twinflow.evaluation.results import EvaluationTable
from twinflow.evaluation.runner import TABLE, Evaluation
from twinflow.evaluation.shapeworld_benchmark import ShapeWorldBenchmark
from twinflow.launch import launch
from twinflow.report import print_table, write_comparison, write_report

IMAGES_PER_TASK = 50
BASE_NFE, TRAINED_NFE = (100, 4, 2, 1), (1, 2, 4)


def run_quickstart(
    output: Path, overrides: list[str], *, images_per_task: int = IMAGES_PER_TASK
) -> EvaluationTable:
    """Evaluate the base, train it by the embedded recipe, evaluate again, write the report to ``output``."""
    console, start = Console(), time.monotonic()
    recipe = load_recipe(QUICKSTART_RECIPE, [f"output={output / 'run'}", *overrides])

    console.print(
        "[bold]1/3[/] the base: what it draws in 100 network evaluations a picture, and in 4, 2 and 1"
    )
    benchmark = ShapeWorldBenchmark("tiny", images_per_task=images_per_task)
    evaluation = Evaluation(benchmarks=[benchmark], nfe=BASE_NFE, output=output, overwrite=True)
    evaluation.begin()
    (table,) = evaluation.tables
    base = open_model(ModelName.parse(recipe.model.path))
    evaluation.draw_and_score(base, "base")

    console.print(f"[bold]2/3[/] TwinFlow: {recipe.train.steps} steps, {recipe.train.batch} pictures each")
    result = launch(recipe)
    if result.pipeline is None:  # interrupted; the trainer said how to go on
        return table

    console.print("[bold]3/3[/] the same prompts and seeds again, in 1, 2 and 4 network evaluations")
    trained = open_model(ModelName.parse(str(result.pipeline)))
    evaluation.draw_and_score(trained, "twinflow", nfe=TRAINED_NFE)
    table.facts = {"training_seconds": result.seconds, "seconds": time.monotonic() - start}
    table.save(output / TABLE)
    files = write_report(
        output,
        table,
        losses={"twinflow": result.output / "metrics.jsonl"},
        facts={"training": f"{result.seconds:.0f} s", "all": f"{table.facts['seconds']:.0f} s"},
    )
    picture = write_comparison(output, table, shown=[("base", 100), ("base", 1), ("twinflow", 1)])
    print_table(table)
    console.print(f"side by side: [bold]{picture}[/]")
    console.print(f"report with pictures: [bold]{files.html}[/]   one-step model: [bold]{result.pipeline}[/]")
    return table
