"""Commands: quickstart, train, sample, eval, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinflow.errors import TwinflowError

app = typer.Typer(
    help="Turn any flow-matching generator into a one-step generator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ModelArgument = Annotated[
    str, typer.Argument(help="A diffusers folder, a hub id, an any-step checkpoint, or 'shapeworld-tiny'.")
]
NfeOption = Annotated[str, typer.Option(help="Network evaluations a picture: one number or several, 1,2,4.")]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance for a base model (two evaluations a step). Default: 2.5 for a base model "
        "at an even NFE of 8 or more; none for a model that TwinFlow trained."
    ),
]


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe: train.steps=100 …")
    ] = None,
    images_per_task: Annotated[int, typer.Option(help="Pictures of each of the six tasks.")] = 50,
) -> None:
    """Make the embedded text-to-image pipeline a one-step one: train, evaluate, report. Minutes on two cores."""
    from twinflow.quickstart import run_quickstart

    run_quickstart(output, overrides or [], images_per_task=images_per_task)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: train.steps=100 …")] = None,
    resume: Annotated[
        str, typer.Option(help="'auto' goes on where the output folder stopped; 'never'; or a checkpoint.")
    ] = "auto",
) -> None:
    """Train by a recipe. The same command again goes on where it was stopped."""
    from twinflow.config import load_recipe
    from twinflow.launch import launch

    launch(load_recipe(recipe, overrides or []), resume=resume)


@app.command()
def sample(
    model: ModelArgument,
    prompts: Annotated[list[str], typer.Argument(help="One picture for each.")],
    nfe: NfeOption = "1",
    guidance: GuidanceOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next one has the next.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("samples"),
) -> None:
    """Draw pictures."""
    from twinflow.evaluation.models import draw_prompts

    for file in draw_prompts(model, prompts, nfe=_numbers(nfe), guidance=guidance, seed=seed, output=output):
        typer.echo(file)


@app.command("eval")
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="One or more models, as for sample; NAME=MODEL names one.")
    ],
    benchmark: Annotated[str, typer.Option(help="What to measure: shapeworld.")] = "shapeworld",
    nfe: NfeOption = "1,2,4",
    guidance: GuidanceOption = None,
    level: Annotated[str, typer.Option(help="Level of ShapeWorld: tiny or full.")] = "tiny",
    images_per_task: Annotated[int, typer.Option(help="Pictures of each of the six tasks.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the captions' order and of the noise.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the table, results and pictures.")] = Path(
        "runs/eval"
    ),
) -> None:
    """Score models at several NFE: one table, one report page."""
    from twinflow.evaluation.models import evaluate_models
    from twinflow.report import print_table, write_report

    if benchmark != "shapeworld":
        raise TwinflowError(f"--benchmark {benchmark!r} is not known: this version has shapeworld")
    table = evaluate_models(
        models,
        nfe=_numbers(nfe),
        guidance=guidance,
        level=level,
        images_per_task=images_per_task,
        seed=seed,
        output=output,
    )
    print_table(table)
    files = write_report(output, table)
    typer.echo(f"report: {files.html}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that eval or quickstart wrote.")],
    run: Annotated[list[Path] | None, typer.Option(help="Training runs whose loss curves to show.")] = None,
) -> None:
    """Write the report page of an evaluation again, with the loss curves of training runs."""
    from twinflow.evaluation.results import EvaluationTable
    from twinflow.report import print_table, write_report

    file = folder / "table.json"
    if not file.is_file():
        raise TwinflowError(
            f"there is no evaluation in {folder}: {file.name} is missing; run `twinflow eval` first"
        )
    table = EvaluationTable.load(file)
    losses = {path.name: path / "metrics.jsonl" for path in run or []}
    for path in losses.values():
        if not path.is_file():
            raise TwinflowError(f"there is no training run in {path.parent}: {path.name} is missing")
    print_table(table)
    typer.echo(f"report: {write_report(folder, table, losses=losses).html}")


def _numbers(text: str) -> list[int]:
    """``"1,2,4"`` as numbers."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise TwinflowError(f"--nfe {text!r} is not a list of whole numbers of at least 1, such as 1,2,4")
    return numbers
