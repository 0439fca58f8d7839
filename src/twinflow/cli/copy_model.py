"""``twinflow copy-model``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinflow.cli.app import app


@app.command("copy-model")
def copy_model(
    name: Annotated[str, typer.Argument(help="An embedded model: shapeworld-tiny.")],
    output: Annotated[Path, typer.Argument(help="Folder to write, which must not be there yet.")],
) -> None:
    """Write a model that comes with twinflow as a folder, which diffusers loads."""
    from twinflow.assets import copy_model as copy

    typer.echo(f"{copy(name, output)}: a stock diffusers pipeline")
