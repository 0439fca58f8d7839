"""``twinflow cache``: encode a recipe's data once."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twinflow.cli.app import RecipeArgument, app


@app.command()
def cache(
    recipe: RecipeArgument,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it: data.cache=FOLDER names what is written.")
    ] = None,
) -> None:
    """Encode pictures and captions once, for training without autoencoder and text encoders.

    The same command again goes on where it was stopped. Then train by the same recipe and data.cache.
    """
    from twinflow.config import recipe_of
    from twinflow.launch import cache as write

    loaded = recipe_of([recipe, *(overrides or [])])
    console = Console()
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("encoding", total=None)
        rows = write(loaded, progress=lambda done, total: bar.update(task, completed=done, total=total))
    console.print(f"{len(rows)} rows in {rows.folder}", highlight=False, markup=False, soft_wrap=True)
