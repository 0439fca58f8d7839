"""The application and its first commands: quickstart, train, sample."""

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

    for file in draw_prompts(model, prompts, nfe=numbers(nfe), guidance=guidance, seed=seed, output=output):
        typer.echo(file)


def numbers(text: str) -> list[int]:
    """``"1,2,4"`` as numbers."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise TwinflowError(f"--nfe {text!r} is not a list of whole numbers of at least 1, such as 1,2,4")
    return found
