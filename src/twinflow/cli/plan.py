"""``twinflow plan``: memory and time of a recipe before it is launched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from twinflow.cli.app import app


@app.command()
def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe in YAML; or changes alone, to TwinFlow's defaults on model=…, or its authors' "
            "settings for 20 B on --config."
        ),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: train.batch=8 …")] = None,
    gpu: Annotated[str, typer.Option(help="h100-80, h200-141, a100-40, l40s-48, rtx4090-24, …")] = "h100-80",
    gpus: Annotated[
        int, typer.Option(help="How many of them, laid out as the recipe's parallel section says.")
    ] = 1,
    machine: Annotated[
        int | None, typer.Option(help="How many of them in one machine; by default up to 8.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="A published model in the place of the recipe's: qwen-image, wan2.1-14b, …"),
    ] = None,
    text_tokens: Annotated[int | None, typer.Option(help="Length of a prompt.")] = None,
    frames: Annotated[int | None, typer.Option(help="Of a clip.")] = None,
    remedies: Annotated[bool, typer.Option(help="Look for changes that make it fit.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Memory, work and time of a recipe, from configurations alone: nothing is loaded or trained."""
    from rich.console import Console

    from twinflow.planner import find_remedies, gpu_named, plan_recipe, recipe_for
    from twinflow.planner.comparison import compare
    from twinflow.planner.tables import comparison_table, memory_table, model_table, remedy_table, time_table
    from twinflow.recipes.typed import names_recipe

    arguments = [*([] if recipe is None else [recipe]), *(overrides or [])]
    file = Path(arguments.pop(0)) if arguments and names_recipe(arguments) else None
    wanted = recipe_for(file, arguments, config=config)
    planner, made = plan_recipe(
        wanted,
        gpu=gpu_named(gpu),
        gpus=gpus,
        machine=machine,
        config=config,
        text_tokens=text_tokens,
        frames=frames,
    )
    tried = find_remedies(planner, made) if remedies and not made.fits else []
    if as_json:
        found = made.to_json()
        found["remedies"] = [
            {"overrides": t.remedy.overrides, "costs": t.remedy.costs, "plan": t.plan.to_json()}
            for t in tried
        ]
        found["comparison"] = [row.__dict__ for row in compare(planner, made)]
        typer.echo(json.dumps(found, indent=1))
        return
    console = Console()
    for table in (
        model_table(made),
        memory_table(made),
        time_table(made),
        comparison_table(compare(planner, made)),
    ):
        console.print(table)
    if tried:
        console.print(remedy_table(made, tried))
    if made.profile.dead:
        console.print(
            f"never get a gradient, and are not trained: {', '.join(made.profile.dead)}", highlight=False
        )
    console.print(made.summary(), highlight=False)
