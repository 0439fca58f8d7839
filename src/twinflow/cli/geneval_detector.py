"""``twinflow geneval-detector``: the official detector of GenEval, once, from OpenMMLab's file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinflow.cli.app import app


@app.command("geneval-detector")
def geneval_detector(
    checkpoint: Annotated[
        Path, typer.Argument(help="OpenMMLab's Mask2Former, .pth; `twinflow eval --list` says where it is.")
    ],
    output: Annotated[Path, typer.Argument(help="Folder to write: transformers' layout, safetensors.")],
) -> None:
    """Convert GenEval's official detector, so that neither mmdet nor mmcv is needed. No code in the file is run."""
    from twinflow.evaluation.geneval.convert import convert_checkpoint

    name = convert_checkpoint(checkpoint, output)
    typer.echo(f"{name}: use it by --benchmark geneval --with geneval.detector={output}")
