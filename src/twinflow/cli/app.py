"""The application and its first commands: quickstart, train, sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinflow import __version__
from twinflow.errors import TwinflowError

app = typer.Typer(
    help="Turn any flow-matching generator into a one-step generator.",
    no_args_is_help=True,
    invoke_without_command=True,
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

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe in YAML; or model=… data=… alone, for TwinFlow's defaults.")
]

SizeOption = Annotated[
    str | None,
    typer.Option(help="Height and width of the pictures, 512x512; the model's own by default."),
]
DtypeOption = Annotated[
    str, typer.Option(help="Of the model: float32, bfloat16, float16, or float64 for tiny ones.")
]


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and do nothing.")] = False,
) -> None:
    if version:
        typer.echo(f"twinflow {__version__}")
        raise typer.Exit


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
    recipe: RecipeArgument,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: train.steps=100 …")] = None,
    resume: Annotated[
        str, typer.Option(help="'auto' goes on where the output folder stopped; 'never'; or a checkpoint.")
    ] = "auto",
    show: Annotated[
        bool, typer.Option("--show", help="Print all keys of the recipe as they would be, and do nothing.")
    ] = False,
) -> None:
    """Train by a recipe, or a model on data. The same command again goes on where it was stopped."""
    from twinflow.config import recipe_of, recipe_yaml

    wanted = recipe_of([recipe, *(overrides or [])])
    if show:
        typer.echo(recipe_yaml(wanted), nl=False)
        return
    from twinflow.launch import launch

    launch(wanted, resume=resume)


@app.command()
def sample(
    model: ModelArgument,
    prompts: Annotated[
        list[str], typer.Argument(help="One picture for each; those in a file: eval --prompts FILE.")
    ],
    nfe: NfeOption = "1",
    guidance: GuidanceOption = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first picture; the next one has the next.")
    ] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the PNG files.")] = Path("samples"),
    size: SizeOption = None,
    dtype: DtypeOption = "float32",
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of a model that makes clips; its own number by default.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="For a model that edits: the source picture, one for all prompts or one for each."),
    ] = None,
) -> None:
    """Draw pictures, edits or clips."""
    from twinflow.evaluation.samples import draw_prompts

    files = draw_prompts(
        model,
        prompts,
        nfe=numbers(nfe),
        guidance=guidance,
        seed=seed,
        output=output,
        dtype=dtype_of(dtype),
        size=sides(size),
        frames=frames,
        sources=image or [],
    )
    for file in files:
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


def sides(text: str | None) -> tuple[int, int] | None:
    """``"512x768"`` as height and width."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise TwinflowError(f"--size {text!r} is not HEIGHTxWIDTH in pixels, such as 512x512")
    return int(height), int(width)


def dtype_of(text: str) -> str:
    """One of those that models are opened in."""
    text = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(text, text)  # as recipes say
    if text not in ("float32", "bfloat16", "float16", "float64"):
        raise TwinflowError(f"--dtype {text!r} is not one of float32, bfloat16, float16, float64")
    return text
