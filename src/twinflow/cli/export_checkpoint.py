"""``twinflow export-checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinflow.cli.app import app


@app.command("export-checkpoint")
def export_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint, or the folder of a run for its latest one.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder of the pipeline to write.")],
) -> None:
    """Write the pipeline of a checkpoint, also of a sharded one. No GPU and no second process are needed."""
    from twinflow.launch import export_checkpoint as export

    typer.echo(export(checkpoint, output))
