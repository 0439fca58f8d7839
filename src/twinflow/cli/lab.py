"""The ``lab`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinflow.cli.app import app


@app.command()
def lab(
    comparison: Annotated[
        Path, typer.Argument(help="A comparison in YAML, such as recipes/lab_shapeworld.yaml.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: budget.amount=1e12 …")] = None,
    size: Annotated[str | None, typer.Option(help="One of the comparison's sizes, such as gpu.")] = None,
    jobs: Annotated[
        int, typer.Option(help="Runs at the same time, each a process of its own: they share cores and GPUs.")
    ] = 1,
) -> None:
    """Train every method of a comparison at the same budget, score them, write the leaderboard."""
    from twinflow.lab import load_lab, run_lab

    board = run_lab(load_lab(comparison, overrides or [], size=size), jobs=jobs)
    if board is not None:
        typer.echo(board.markdown())
